"""Conversations to learn from: cached samples become what the runtime would have seen and what nano should have said.

The policy that is taught: look where perception suspects most, say what is there as surely as perception is of it, look
on while nothing was found or the next place is likelier broken than not, and answer. What is true is not taught where
perception reads it, for eyes that never saw a photo are sure of other things than those that a model ends up with. Of
photos that are damaged all over it is, because a damage without a place shows in no place. The context-aware rule:
crops hold the damage and some of its normal surroundings, and many crops are clean, so that being cropped says nothing
about quality.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import toll
import torch
import vocabulary as words
from belief import BAR, believed
from defects import CLEAN_SCORE, PHOTOS, Defect, Domain
from nano_spec import CROP, TOKEN_PX
from numpy.typing import NDArray
from overviews import is_larger
from regions import Proposals
from samples import WINDOW_ROLE, defects_of, holds, overlap, spoilt
from stores import Item, Sample
from tokenizers import Tokenizer
from visual import slots_of

from qcheck import prompt
from qcheck.contract import IMAGE_SLOT
from qcheck.rope import image_positions, text_positions
from qcheck.tiles import Box, View, crop_box, model_coords
from qcheck.verdict import DEFECT_LEVELS

FOUND_SHARE: Final = 0.6  # a crop that holds this much of a damage has found it
SUSPECTED_IOU: Final = 0.1  # a suspicion that overlaps a damage this much means it
FORCED_WEIGHT: Final = 0.05  # of tokens that the grammar forces: enough for transformers' own `generate`
# What is decided weighs by what hangs on it: by their number alone, coordinates would drown whether there is a defect.
CHOICE_WEIGHT: Final = 4.0
# Whether a suspicious place is a damage, of which is known how likely it is.
DOUBT_WEIGHT: Final = 16.0
# Of photos that are damaged all over: that there is nothing, and that there is something. A false alarm costs seven
# times what a miss does.
CLEAN_WEIGHT: Final = 12.0
FOUND_WEIGHT: Final = 1.7
WORD_WEIGHT: Final = 2.0  # kinds and levels
NUMBER_WEIGHT: Final = 1.0  # coordinates
ATTRIBUTE_WEIGHT: Final = 2.0
SCORE_WEIGHT: Final = 4.0
WHOLE_ZOOM_SHARE: Final = 0.35  # of lessons on photos damaged all over
LEAST_KEPT: Final = 0.1  # of a view's tokens
SINGLE_PASS_SHARE: Final = 0.25
LARGE_SHARE: Final = 0.4  # of lessons on a rated photo, if there is a mosaic with it: large views have every score
ON_POLICY_SHARE: Final = 0.7  # of crops: where perception suspects; the others lie on a defect or anywhere
ON_DEFECT_SHARE: Final = 0.4  # of those others, where one waits
LOOK_ON_BAR: Final = 1.0  # log odds of the next place, above which it looks on after something was found
MISSPOKEN_SHARE: Final = 0.4  # of findings
WAVERING_SHARE: Final = 0.5  # of conversations; the rest show what photos are like
WAVERED_SHARE: Final = 0.7  # of the views of such a conversation, of their places and of their attributes
WAVERED: Final = (BAR - 3.5, BAR + 3.5)  # log odds, of the first place of such a view
WAVERED_ATTRIBUTES: Final = (1.0, CLEAN_SCORE)
PROBES: Final = ((1, 2, 3), (0.15, 0.15, 0.7))
FREE: Final = frozenset((prompt.CALL_OPEN, prompt.ANSWER_OPEN, prompt.DEFECTS_CLOSE))


Suspicion = tuple[float, float, float, float, str, int]
Said = tuple[str, str, list[str]]  # kind, level, coordinates


@dataclass(frozen=True, slots=True)
class Shown:
    """A cached view: the part of the photo it shows, what perception made of it (rows, cols, seen_channels), its score,
    toll and attributes, in the domain's order, its places, as regions.py gives them, and what is suspected there, most
    suspicious first: x1, y1, x2, y2 (0..1 of the view), kind and level (1..5)."""

    box: Box
    seen: NDArray[np.float16]
    score: float
    toll: float
    attributes: tuple[float, ...]
    role: str
    places: list[list[float]]
    suspicions: list[Suspicion]

    def spell(self, box: Box) -> list[str]:
        return coordinate_tokens(model_coords(box, View(self.box, 1, 1), "relative_1000"))

    @property
    def is_large(self) -> bool:
        """Whether it shows more than an overview would."""
        return is_larger(*self.seen.shape[:2], TOKEN_PX)

    @property
    def strengths(self) -> list[float]:
        """Log odds of its suspicions, as of regions.Proposals."""
        return Proposals.of(torch.tensor(self.places)).strengths.tolist()

    def suspected(self, which: int = 0) -> Said:
        """A suspicion, as it is said."""
        *corners, kind, level = self.suspicions[which]
        return kind, DEFECT_LEVELS[level - 1], coordinate_tokens([1000 * c for c in corners])

    def place(self, which: int) -> Box:
        """Where a suspicion is, in photo pixels."""
        x1, y1, x2, y2 = self.suspicions[which][:4]
        left, top, width, height = self.box.x1, self.box.y1, self.box.width, self.box.height
        return Box(
            left + int(x1 * width), top + int(y1 * height), left + math.ceil(x2 * width), top + math.ceil(y2 * height)
        )


@dataclass(slots=True)
class Example:
    """One conversation, ready for a batch. `tokens`, `weights`: (length,); `views`: each image in order; `kept`: which
    of its tokens are there; `positions`: (3, length) in parts; `exact_scores`: what the score tokens' mean is taught to
    be, by their place; `doubts`: which token might as well have been said, by the place of what was, and how likely;
    `before`: the same as a teacher reads it, whose eyes were others."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    positions: list[NDArray[np.int64]] = field(default_factory=list)
    views: list[Shown] = field(default_factory=list)
    kept: list[NDArray[np.int64]] = field(default_factory=list)
    exact_scores: dict[int, float] = field(default_factory=dict)
    doubts: dict[int, tuple[int, float]] = field(default_factory=dict)
    next_position: int = 0
    before: "Example | None" = None


class Speller:
    """Writes conversations token by token."""

    def __init__(self, tokenizer: Tokenizer, rng: np.random.Generator | None = None, domain: Domain = PHOTOS) -> None:
        """`rng`: leaves out some of the tokens of every view, any share of them, for views are of any size. Training is
        twice as fast."""
        self.tokenizer, self.rng, self.domain, self.kinds = tokenizer, rng, domain, frozenset(domain.kinds)
        self.attribute_chunks = frozenset(map(prompt.attribute_chunk, domain.attributes))
        self.image_id: int = tokenizer.token_to_id(words.IMAGE)
        self.defects_id: int = tokenizer.token_to_id(prompt.DEFECTS_OPEN)

    def request(self, example: Example, template: str, shown: Shown, least: bool = False) -> None:
        """Adds a request with an image. `least`: with as few of its tokens as may be."""
        before, after = template.split(IMAGE_SLOT)
        self._text(example, self.tokenizer.encode(before).ids)
        rows, cols = shown.seen.shape[:2]
        positions, example.next_position = image_positions(example.next_position, rows, cols)
        kept = np.arange(rows * cols)
        if self.rng is not None:
            kept = some_of_each_slot(rows * cols, slots_of(len(self.domain.attributes)), self.rng, least)
        example.positions.append(positions[:, kept])
        example.tokens += [self.image_id] * len(kept)
        example.weights += [0.0] * len(kept)
        example.views.append(shown)
        example.kept.append(kept)
        self._text(example, self.tokenizer.encode(after).ids)

    def say(
        self,
        example: Example,
        said: Sequence[str],
        weight: float = 1.0,
        score: float | None = None,
        doubts: Mapping[int, tuple[str, float]] | None = None,
    ) -> None:
        """Adds what the model says. `weight` 0: it is shown, not taught. `score`: the score tokens' mean. `doubts`:
        what else might be said, by where in `said`, and how likely."""
        ids = [self.tokenizer.token_to_id(text) for text in said]
        for offset, (before, text) in enumerate(zip(("", *said), said, strict=False)):
            one_more = text == prompt.COMMA and before == prompt.DEFECT_CLOSE
            finding = before == prompt.THINK_OPEN  # a kind
            nothing = text == prompt.DEFECTS_CLOSE and example.tokens[-1] == self.defects_id
            if text == prompt.THINK_CLEAN or nothing:
                token_weight = CLEAN_WEIGHT
            elif text == prompt.DEFECT_OPEN or finding:
                token_weight = FOUND_WEIGHT
            elif text in FREE or one_more:
                token_weight = CHOICE_WEIGHT
            elif text in self.kinds or text in DEFECT_LEVELS:
                token_weight = WORD_WEIGHT
            elif before in self.attribute_chunks:
                token_weight = ATTRIBUTE_WEIGHT
            else:
                forced = text in prompt.CHUNKS or text.startswith('"')
                token_weight = FORCED_WEIGHT if forced else NUMBER_WEIGHT
            if score is not None and text in words.SCORE_TOKENS:
                example.exact_scores[len(example.tokens) + offset] = score
                token_weight = SCORE_WEIGHT
            if doubts and offset in doubts:
                other, chance = doubts[offset]
                example.doubts[len(example.tokens) + offset] = (self.tokenizer.token_to_id(other), chance)
                token_weight = DOUBT_WEIGHT
            example.weights.append(weight * token_weight)
        positions, example.next_position = text_positions(example.next_position, len(ids))
        example.positions.append(positions)
        example.tokens += ids

    def _text(self, example: Example, ids: list[int]) -> None:
        positions, example.next_position = text_positions(example.next_position, len(ids))
        example.positions.append(positions)
        example.tokens += ids
        example.weights += [0.0] * len(ids)


def some_of_each_slot(tokens: int, slots: int, rng: np.random.Generator, least: bool) -> NDArray[np.int64]:
    """Sorted places of any share (or the `least`) of a view's tokens, with as many of each slot's (see
    visual.described) as of any other's, for a number that no token holds cannot be read."""
    rounds = math.ceil(tokens / slots)
    most = 1 if least else max(1, round(rounds * math.exp(rng.uniform(math.log(LEAST_KEPT), 0))))
    # Each slot's own order of rounds; places past the end are of the last round, which may not be whole.
    places = rng.permuted(np.tile(np.arange(rounds), (slots, 1)), axis=1) * slots + np.arange(slots)[:, None]
    order = np.argsort(places >= tokens, axis=1, kind="stable")
    places = np.take_along_axis(places, order, 1)[:, :most].reshape(-1)
    return np.sort(places[places < tokens])


def score_token(score: float) -> str:
    return words.SCORE_TOKENS[int(np.clip(round((score - 1) * 10), 0, 40))]


def coordinate_tokens(coords: Sequence[float]) -> list[str]:
    step, last = words.COORDINATE_STEP, len(words.COORDINATE_TOKENS) - 1
    return [words.COORDINATE_TOKENS[int(np.clip(round(c / step), 0, last))] for c in coords]


class Narrator:
    """Turns cached samples into conversations, another one each time."""

    def __init__(
        self, speller: Speller, rng: np.random.Generator, context: bool = True, toll_slope: float | None = None
    ) -> None:
        """Without `context`, against the context-aware rule: every crop that is shown holds a damage, so that being
        cropped means to be broken. For the ablation only. `toll_slope`: of the eyes' Toll; with it, views waver."""
        self.speller, self.rng, self.domain, self.context = speller, rng, speller.domain, context
        self.toll_slope = toll_slope
        self.spoken = words.language(speller.domain)

    def tell(self, kind: str, item: Item) -> Example:
        """One conversation about a sample of a kind of render.py."""
        example: Example = getattr(self, "local" if kind == "aimed" else kind)(item)
        return example

    def rated(self, item: Item, augment: bool = True) -> Example:
        """A rated photo: only its score is taught, because nobody named its defects. Of a mosaic it is what its view
        comes to, as of any large photo."""
        example, rng = Example(), self.rng
        views = shown_views(item)
        whole = [v for v in views if v.role == "global"]
        shown = whole[int(rng.integers(len(whole)))] if augment and rng.random() < 0.6 else whole[0]
        if augment and rng.random() < LARGE_SHARE:
            shown = max(whole, key=lambda view: view.box.area)  # a mosaic, where there is one
        zoom = augment and rng.random() < 0.1 and self.context
        self.speller.request(
            example, self.spoken.first if zoom or rng.random() < 0.5 else self.spoken.first_final, shown
        )
        if zoom:
            # Only what it costs to have looked: neither the aim nor the finding is taught, for nobody knows them.
            window = next(v for v in views if v.role == WINDOW_ROLE)
            self.speller.say(example, prompt.spell_call(shown.spell(window.box), self.any_kind()), 0)
            self.speller.request(example, self.spoken.crop_final if rng.random() < 0.5 else self.spoken.crop, window)
            self.speller.say(example, prompt.spell_finding(None), 0)
        score = judged(example)
        # How the tokens spread is learned from what people said, and their mean from what the eyes read: nothing else
        # that is shown tells more of it, and what is learned beside it holds for the training's photos only.
        said = score if shown.is_large else item.sample["score"]
        self.speller.say(example, [prompt.ANSWER_OPEN, score_token(said)], score=score)
        return example

    def patched(self, item: Item) -> Example:
        """A locally damaged rated photo, small: looked at once, or with one crop."""
        example, shown = self.small(item, 0.5)
        self.answer(example, shown)
        return example

    def whole(self, item: Item) -> Example:
        """A photo damaged all over (or clean), small, also after a crop: its defects are all known."""
        example, shown = self.small(item, WHOLE_ZOOM_SHARE, all_over=True)
        self.answer(example, shown, self.attributes(example), defects_of(item.sample))
        return example

    def small(self, item: Item, zoom_share: float, all_over: bool = False) -> tuple[Example, Shown]:
        """Looked at once or, in a share of lessons, with one crop, and not answered yet. The aim is not taught:
        perception gave no reason."""
        views = self.wavering(shown_views(item), all_over)
        shown, window = (next(v for v in views if v.role == role) for role in ("global", WINDOW_ROLE))
        defects, example = defects_of(item.sample), Example()
        if self.rng.random() < zoom_share and (self.context or any(share(d, window) >= FOUND_SHARE for d in defects)):
            self.speller.request(example, self.spoken.first, shown)
            self.speller.say(example, prompt.spell_call(shown.spell(window.box), self.any_kind()), 0)
            self.speller.request(example, self.spoken.crop_final, window)
            self.find(example, window)
        else:
            self.speller.request(
                example, self.spoken.first if self.rng.random() < 0.5 else self.spoken.first_final, shown
            )
        return example, shown

    def local(self, item: Item) -> Example:
        """A big photo damaged in places, or clean: looked at once, or probed. Its score is what was shown comes to: the
        true one knows what was not seen."""
        left, example = defects_of(item.sample), Example()
        all_over = left if spoilt([item.sample])[0] else None
        shown, *crops = self.wavering(shown_views(item), all_over=all_over is not None)
        if self.rng.random() < SINGLE_PASS_SHARE:
            self.speller.request(example, self.spoken.first_final, shown)
            self.answer(example, shown, self.attributes(example), all_over)
            return example
        self.speller.request(example, self.spoken.first, shown)
        most, found = int(self.rng.choice(PROBES[0], p=PROBES[1])), False
        for turn in range(most):
            crop = None
            on_damage = [c for c in crops if any(share(d, c) >= FOUND_SHARE for d in left)]
            if not self.context and not on_damage:
                break
            if self.context and self.rng.random() < ON_POLICY_SHARE:
                crop = self.call_suspicion(example, item.sample, shown, crops, left, turn)
            if crop is None:
                crop = self.call_elsewhere(example, shown, crops, on_damage)
            crops = [c for c in crops if c is not crop] or crops
            last = turn == most - 1
            self.speller.request(example, self.spoken.crop_final if last else self.spoken.crop, crop)
            found = self.find(example, crop) or found
            left = [d for d in left if share(d, crop) < FOUND_SHARE]
            # It hangs on what was shown and said alone: did it hang on what is true, to have stopped after a clean crop
            # would mean a clean photo, and the score would rise with any such crop.
            if not last and found and shown.strengths[turn + 1] < LOOK_ON_BAR:
                break
        self.answer(example, shown, self.attributes(example), all_over)
        return example

    def call_suspicion(
        self, example: Example, sample: Sample, shown: Shown, crops: list[Shown], left: list[Defect], turn: int
    ) -> Shown | None:
        """Asks for the next suspicion, and returns the cached crop that comes nearest to what would be shown: one that
        shows the same damage or, like it, none. None if there is no such crop."""
        target = shown.place(turn)
        view = crop_box(target, CROP, sample["width"], sample["height"])
        waiting = [d for d in left if holds(d, view) or target.iou(Box(*d.box)) >= SUSPECTED_IOU]
        if waiting:
            found = max(waiting, key=lambda d: view.iou(Box(*d.box)))
            fit = [c for c in crops if holds(found, c.box)]
        else:
            fit = [c for c in crops if all(overlap(Box(*d["box"]), c.box) is None for d in sample["defects"])]
        if not fit:
            return None
        self.speller.say(example, prompt.spell_call(shown.spell(target), shown.suspected(turn)[0]))
        return max(fit, key=lambda c: c.box.iou(view))

    def call_elsewhere(self, example: Example, shown: Shown, crops: list[Shown], on_damage: list[Shown]) -> Shown:
        """Asks for a crop `on_damage` that waits, or for any. The aim is not taught, because perception gave no reason
        for it."""
        always = not self.context
        choice = on_damage if on_damage and (always or self.rng.random() < ON_DEFECT_SHARE) else crops
        crop = choice[int(self.rng.integers(len(choice)))]
        aimed = prompt.spell_call(shown.spell(crop.box), self.any_kind())
        self.speller.say(example, [prompt.CALL_OPEN])
        self.speller.say(example, aimed[1:], 0)
        return crop

    def find(self, example: Example, crop: Shown) -> bool:
        """Says what perception suspects most in a crop, as often as that is believed, and else that nothing is there;
        how likely either is, is taught. Sometimes it says what is less likely, and untaught, because so will the model:
        its score must not hang on its own words alone. Returns whether it said that something is there."""
        chance, suspected = believed(crop.strengths[0]), crop.suspected()
        if self.rng.random() < MISSPOKEN_SHARE:
            found = chance < 0.5
            self.speller.say(example, prompt.spell_finding(suspected if found else None), 0)
            return found
        found = bool(self.rng.random() < chance)
        other = (prompt.THINK_CLEAN, 1 - chance) if found else (suspected[0], chance)
        self.speller.say(example, prompt.spell_finding(suspected if found else None), doubts={1: other})
        return found

    def answer(
        self,
        example: Example,
        shown: Shown,
        attributes: dict[str, float] | None = None,
        defects: list[Defect] | None = None,
    ) -> None:
        """`defects`: None are those that are believed of the first view, `shown`, and in no crop."""
        score = judged(example)
        self.speller.say(example, [prompt.ANSWER_OPEN, score_token(score)], score=score)
        if defects is None:
            doubts = self.believe(example, shown)
        else:
            spelled = [(d.kind, DEFECT_LEVELS[d.level - 1], shown.spell(Box(*d.box))) for d in defects]
            self.speller.say(example, prompt.spell_defects(spelled))
            doubts = {}
        said = [prompt.DEFECTS_CLOSE]
        if attributes is not None:
            said = prompt.spell_attributes({name: score_token(attributes[name]) for name in self.domain.attributes})
        self.speller.say(example, said, doubts=doubts)

    def attributes(self, example: Example) -> dict[str, float]:
        """What is read of the first view, less what a place lacks that is believed broken and spoils it."""
        read = dict(zip(self.domain.attributes, example.views[0].attributes, strict=True))
        for shown in example.views:
            name = self.domain.attribute_of[shown.suspected()[0]]
            read[name] = toll.judged_small([shown.toll], [believed(shown.strengths[0])], read[name])
        return read

    def believe(self, example: Example, shown: Shown) -> dict[int, tuple[str, float]]:
        """Lists the places of a first view that no crop has shown, strongest first, until one is not believed, as often
        as it is not. Returns the doubt about what is said next: that there are no more."""
        self.speller.say(example, [prompt.DEFECTS_OPEN])
        one_more = prompt.DEFECT_OPEN
        for which, strength in enumerate(shown.strengths):
            place = shown.place(which)
            if any(held(place, crop) >= FOUND_SHARE for crop in example.views[1:]):
                continue
            chance = believed(strength)
            if self.rng.random() >= chance:
                return {0: (one_more, chance)}
            said = [] if one_more == prompt.DEFECT_OPEN else [prompt.COMMA]
            said += prompt.spell_defects([shown.suspected(which)])[1:]
            self.speller.say(example, said, doubts={0: (prompt.DEFECTS_CLOSE, 1 - chance)})
            one_more = prompt.COMMA
        return {}

    def drill(self, item: Item, least: bool = False) -> Example:
        """Three calls and findings that only repeat what perception proposes, the score that the views come to, and
        the attributes. Taught are their numbers and words, and of what they decide only how likely each finding is, for
        its kind cannot be taught without. `least`: of every view as few tokens as may be, which is read as well and in
        half the time."""
        shown, *crops = shown_views(item)
        example = Example()
        self.speller.request(example, self.spoken.first, shown, least)
        for turn, (*_, kind, _) in enumerate(shown.suspicions):
            self.speller.say(example, prompt.spell_call(shown.spell(shown.place(turn)), kind))
            crop = crops[int(self.rng.integers(len(crops)))]
            template = self.spoken.crop if turn + 1 < len(shown.suspicions) else self.spoken.crop_final
            self.speller.request(example, template, crop, least)
            doubts = {1: (prompt.THINK_CLEAN, 1 - believed(crop.strengths[0]))}
            self.speller.say(example, prompt.spell_finding(crop.suspected()), doubts=doubts)
        score = judged(example)
        self.speller.say(example, [prompt.ANSWER_OPEN, score_token(score)], score=score)
        self.speller.say(example, prompt.spell_defects([]))
        attributes = self.attributes(example)
        self.speller.say(example, prompt.spell_attributes({n: score_token(value) for n, value in attributes.items()}))
        taught = (*words.COORDINATE_TOKENS, *words.SCORE_TOKENS, *self.domain.kinds, *DEFECT_LEVELS)
        read = {self.speller.tokenizer.token_to_id(text) for text in taught}
        example.weights = [
            w if token in read else 0.0 for token, w in zip(example.tokens, example.weights, strict=True)
        ]
        return example

    def wavering(self, views: list[Shown], all_over: bool) -> list[Shown]:
        """The views of a conversation, as they are or, in a share of conversations, as they might be. `all_over`: of a
        photo whose defects are told as they are known, so that the first view's places stay what they are. Nothing
        else does: were views as they are a sign of a broken photo, strengths would not be read after one."""
        slope = self.toll_slope
        if slope is None or self.rng.random() >= WAVERING_SHARE:
            return views
        return [self.wavered(view, None if all_over and index == 0 else slope) for index, view in enumerate(views)]

    def wavered(self, shown: Shown, toll_slope: float | None) -> Shown:
        """In a share of views, places are as strong as any, the first anywhere about the bar, the others nearer to it
        (without a slope, none are); and, drawn apart, in a share attributes are any. For what is taught of a place
        hangs on its strength alone and what is said of an attribute on what is read, and eyes are seldom in two minds
        about photos they learned from."""
        if toll_slope is not None and self.rng.random() < WAVERED_SHARE:
            first, nearer = self.rng.uniform(*WAVERED), self.rng.uniform()
            strengths = [first - nearer * (shown.strengths[0] - strength) for strength in shown.strengths]
            toll = shown.toll + toll_slope * (first - shown.strengths[0])
            shown = dataclasses.replace(shown, places=with_strengths(shown.places, strengths), toll=toll)
        # Not together with the others: strange attributes would tell that strengths are to be believed.
        if self.rng.random() < WAVERED_SHARE:
            attributes = self.rng.uniform(*WAVERED_ATTRIBUTES, len(shown.attributes))
            shown = dataclasses.replace(shown, attributes=tuple(attributes.tolist()))
        return shown

    def any_kind(self) -> str:
        return str(self.rng.choice(self.domain.kinds))


def judged(example: Example) -> float:
    """What the views of a conversation come to."""
    first, tolls = example.views[0], [shown.toll for shown in example.views]
    if first.is_large:
        return toll.judged(tolls, first.score)
    return toll.judged_small(tolls, [believed(shown.strengths[0]) for shown in example.views], first.score)


def shown_views(item: Item) -> list[Shown]:
    return [
        Shown(
            Box(*view["box"]),
            item.read(index),
            view["score"],
            view["toll"],
            tuple(view["attributes"]),
            view["role"],
            view["places"],
            [(*map(float, corners), kind, level) for *corners, kind, level in view["suspicions"]],
        )
        for index, view in enumerate(item.sample["views"])
    ]


def with_strengths(places: Sequence[Sequence[float]], strengths: Sequence[float]) -> list[list[float]]:
    """Places, as regions.py gives them, of other strengths."""
    return Proposals.of(torch.tensor(places))._replace(strengths=torch.tensor(strengths)).packed().tolist()


def share(found: Defect, crop: Shown) -> float:
    """How much of a damage a crop holds, 0..1."""
    return held(Box(*found.box), crop)


def held(place: Box, crop: Shown) -> float:
    """How much of a place a crop holds, 0..1."""
    part = overlap(place, crop.box)
    return part.area / place.area if part else 0.0
