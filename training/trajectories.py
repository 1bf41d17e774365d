"""Conversations to learn from: cached samples become what the runtime would have seen and what nano should have said.

The context-aware rule: crops hold the damage and some of its normal surroundings, and many crops are clean, so that
being cropped says nothing about quality. A crop that was aimed badly is shown but the aim itself is never taught.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import vocabulary as words
from cells import CELL_CHANNELS
from degradations import ATTRIBUTE_OF, ATTRIBUTES, CLEAN_SCORE, KINDS, Damage, damaged_score
from nano_spec import CELLS_PER_SIDE
from numpy.typing import NDArray
from tokenizers import Tokenizer

from qcheck import prompt
from qcheck.contract import IMAGE_SLOT
from qcheck.rope import image_positions, text_positions
from qcheck.tiles import Box, View, model_coords
from qcheck.verdict import DEFECT_LEVELS

Spelled = tuple[str, str, list[str]]  # kind, level, coordinates

FOUND_SHARE: Final = 0.6  # a crop that holds this much of a damage has found it
SEEN_SHARE: Final = 0.25  # one that holds less than this does not show it
UNKNOWN: Final = -100  # what cross-entropy leaves out
TOKEN_FILLED: Final = 0.4  # a token filled this much by a damage is damaged
TOKEN_TOUCHED: Final = 0.08
DAMAGE_INSIDE: Final = 0.3  # so is one that holds this much of a damage
FORCED_WEIGHT: Final = 0.05  # of tokens that the grammar forces: enough for transformers' own `generate`
DECISION_WEIGHT: Final = 1.0
SCORE_WEIGHT: Final = 4.0
FREE: Final = frozenset(
    (prompt.CALL_OPEN, prompt.ANSWER_OPEN, prompt.THINK_CLEAN, prompt.DEFECTS_CLOSE, prompt.DEFECT_OPEN)
)


@dataclass(slots=True)
class Example:
    """One conversation, ready for a batch. `tokens`, `weights`: (length,); `views`: cells of each image in order,
    (rows, cols, CELL_CHANNELS); `truths`: what is wrong with each image's tokens, (2, tokens), see `token_truth`;
    `positions`: (3, length) in parts; `exact_scores`: the true score of the score tokens, by their place."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    positions: list[NDArray[np.int64]] = field(default_factory=list)
    views: list[NDArray[np.float16]] = field(default_factory=list)
    truths: list[NDArray[np.int64]] = field(default_factory=list)
    exact_scores: dict[int, float] = field(default_factory=dict)
    next_position: int = 0


class Speller:
    """Writes conversations token by token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.image_id: int = tokenizer.token_to_id(words.IMAGE)

    def request(
        self, example: Example, template: str, cells: NDArray[np.float16], truth: NDArray[np.int64] | None = None
    ) -> None:
        """Adds a request with an image. `truth`: what is wrong with its tokens; None: nobody knows."""
        before, after = template.split(IMAGE_SLOT)
        self._text(example, self.tokenizer.encode(before).ids)
        rows, cols = cells.shape[0] // CELLS_PER_SIDE, cells.shape[1] // CELLS_PER_SIDE
        positions, example.next_position = image_positions(example.next_position, rows, cols)
        example.positions.append(positions)
        example.tokens += [self.image_id] * (rows * cols)
        example.weights += [0.0] * (rows * cols)
        example.views.append(cells)
        example.truths.append(np.full((2, rows * cols), UNKNOWN) if truth is None else truth)
        self._text(example, self.tokenizer.encode(after).ids)

    def say(self, example: Example, said: Sequence[str], weight: float = 1.0, score: float | None = None) -> None:
        """Adds what the model says. `weight` 0: it is shown, not taught. `score`: the exact value of score tokens."""
        ids = [self.tokenizer.token_to_id(text) for text in said]
        for offset, text in enumerate(said):
            one_more = text == prompt.COMMA and offset > 0 and said[offset - 1] == prompt.DEFECT_CLOSE
            decided = text in FREE or one_more or not (text in prompt.CHUNKS or text.startswith('"'))
            token_weight = DECISION_WEIGHT if decided else FORCED_WEIGHT
            if score is not None and text in words.SCORE_TOKENS:
                example.exact_scores[len(example.tokens) + offset] = score
                token_weight = SCORE_WEIGHT
            example.weights.append(weight * token_weight)
        positions, example.next_position = text_positions(example.next_position, len(ids))
        example.positions.append(positions)
        example.tokens += ids

    def _text(self, example: Example, ids: list[int]) -> None:
        positions, example.next_position = text_positions(example.next_position, len(ids))
        example.positions.append(positions)
        example.tokens += ids
        example.weights += [0.0] * len(ids)


def score_token(score: float) -> str:
    return words.SCORE_TOKENS[int(np.clip(round((score - 1) * 10), 0, 40))]


def coordinate_tokens(coords: Sequence[float]) -> list[str]:
    step, last = words.COORDINATE_STEP, len(words.COORDINATE_TOKENS) - 1
    return [words.COORDINATE_TOKENS[int(np.clip(round(c / step), 0, last))] for c in coords]


@dataclass(frozen=True, slots=True)
class Shown:
    """A cached view: the part of the photo it shows and its cells."""

    box: Box
    cells: NDArray[np.float16]
    role: str

    def spell(self, box: Box) -> list[str]:
        return coordinate_tokens(model_coords(box, View(self.box, 1, 1), "relative_1000"))


def token_truth(shown: Shown, defects: Sequence[Damage]) -> NDArray[np.int64]:
    """(2, tokens): each token's kind (0 clean, else 1 + its index in KINDS) and level (0..4); UNKNOWN where a damage
    touches a token but does not fill it, and the level of clean ones."""
    rows, cols = (side // CELLS_PER_SIDE for side in shown.cells.shape[:2])
    truth = np.stack((np.zeros((rows, cols), np.int64), np.full((rows, cols), UNKNOWN)))
    box = shown.box
    x, y = (
        start + length * np.arange(n + 1) / n
        for start, length, n in ((box.x1, box.width, cols), (box.y1, box.height, rows))
    )
    for found in defects:
        x1, y1, x2, y2 = found.box
        wide = np.clip(np.minimum(x[1:], x2) - np.maximum(x[:-1], x1), 0, None)
        high = np.clip(np.minimum(y[1:], y2) - np.maximum(y[:-1], y1), 0, None)
        area = high[:, None] * wide[None]
        filled = (area / ((x[1] - x[0]) * (y[1] - y[0])) >= TOKEN_FILLED) | (
            area / ((x2 - x1) * (y2 - y1)) >= DAMAGE_INSIDE
        )
        touched = area / ((x[1] - x[0]) * (y[1] - y[0])) >= TOKEN_TOUCHED
        truth[0][touched & ~filled & (truth[0] == 0)] = UNKNOWN
        truth[0][filled], truth[1][filled] = 1 + KINDS.index(found.kind), found.level - 1
    return truth.reshape(2, -1)


def overlap(a: Box, b: Box) -> Box | None:
    x1, y1, x2, y2 = max(a.x1, b.x1), max(a.y1, b.y1), min(a.x2, b.x2), min(a.y2, b.y2)
    return Box(x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


class Narrator:
    """Turns cached samples into conversations, another one each time."""

    def __init__(
        self, speller: Speller, cells: Callable[[dict[str, Any]], NDArray[np.float16]], rng: np.random.Generator
    ) -> None:
        """`cells`: reads the cells of a sample's view entry."""
        self.speller, self.read, self.rng = speller, cells, rng

    def views(self, sample: dict[str, Any]) -> list[Shown]:
        return [Shown(Box(*view["box"]), self.read(view), view["role"]) for view in sample["views"]]

    def rated(self, sample: dict[str, Any], augment: bool = True) -> Example:
        """A rated photo: only its score is taught, because nobody named its defects."""
        example, rng = Example(), self.rng
        entry = sample["views"][int(rng.integers(len(sample["views"]))) if augment and rng.random() < 0.6 else 0]
        cells = self.flipped(self.read(entry), rng.random() < 0.5) if augment else self.read(entry)
        if augment and max(cells.shape[:2]) >= 12 and rng.random() < 0.5:
            cells = self.window(cells, 0.6)
        zoom = augment and rng.random() < 0.15
        final = not augment or rng.random() < 0.5
        self.speller.request(example, words.FIRST_FINAL if final and not zoom else words.FIRST, cells)
        if zoom:
            turns = int(rng.integers(1, 4))
            for turn in range(1, turns + 1):
                aim = coordinate_tokens(np.sort(rng.uniform(0, 1000, 4)))
                self.speller.say(example, prompt.spell_call(aim, self.any_kind()), 0)
                last = turn == turns and (turn == 3 or rng.random() < 0.5)
                self.speller.request(example, words.CROP_FINAL if last else words.CROP, self.window(cells, 0.5))
                self.speller.say(example, prompt.spell_finding(None), 0)
        self.speller.say(example, [prompt.ANSWER_OPEN, score_token(sample["score"])], score=sample["score"])
        return example

    def patched(self, sample: dict[str, Any]) -> Example:
        """A locally damaged rated photo: seen whole, or through a crop cut from its own cells."""
        (entry,) = sample["views"]
        flip = self.rng.random() < 0.5
        shown = Shown(Box(*entry["box"]), self.flipped(self.read(entry), flip), "global")
        defects = self.defects(sample, flip)
        example = Example()
        if self.rng.random() < 0.5:
            self.zoom_into_cells(example, shown, defects, sample)
        else:
            self.speller.request(
                example,
                words.FIRST if self.rng.random() < 0.5 else words.FIRST_FINAL,
                shown.cells,
                token_truth(shown, defects),
            )
            self.answer(example, sample, shown, defects, attributes=None)
        return example

    def whole(self, sample: dict[str, Any]) -> Example:
        """A photo damaged all over (or clean): score, defects and attributes, all known."""
        (entry,) = sample["views"]
        shown = Shown(Box(*entry["box"]), self.flipped(self.read(entry), self.rng.random() < 0.5), "global")
        defects = self.defects(sample, False)
        example = Example()
        self.speller.request(
            example,
            words.FIRST if self.rng.random() < 0.5 else words.FIRST_FINAL,
            shown.cells,
            token_truth(shown, defects),
        )
        self.answer(example, sample, shown, defects, sample["attributes"])
        return example

    def local(self, sample: dict[str, Any]) -> Example:
        """A big photo damaged in places: looked at once, or probed."""
        flip = self.rng.random() < 0.5
        width = sample["width"]
        views = [
            Shown(
                Box(width - v.box.x2, v.box.y1, width - v.box.x1, v.box.y2) if flip else v.box,
                self.flipped(v.cells, flip),
                v.role,
            )
            for v in self.views(sample)
        ]
        shown, crops = views[0], views[1:]
        defects = self.defects(sample, flip)
        attributes = local_attributes(sample)
        example = Example()
        plan = self.plan(crops, defects)
        if not plan:
            self.speller.request(
                example,
                words.FIRST_FINAL if defects or self.rng.random() < 0.6 else words.FIRST,
                shown.cells,
                token_truth(shown, defects),
            )
            self.answer(example, sample, shown, defects, attributes)
            return example
        self.speller.request(example, words.FIRST, shown.cells, token_truth(shown, defects))
        open_defects = list(defects)
        for turn, crop in enumerate(plan):
            self.call(example, shown, crop, open_defects)
            last = turn == len(plan) - 1
            forced = last and (bool(open_defects) or self.rng.random() < 0.4)
            self.speller.request(
                example, words.CROP_FINAL if forced else words.CROP, crop.cells, token_truth(crop, defects)
            )
            self.find(example, crop, defects)
            open_defects = [d for d in open_defects if self.share(d, crop) < FOUND_SHARE]
        self.answer(example, sample, shown, open_defects, attributes)
        return example

    def plan(self, crops: list[Shown], defects: list[Damage]) -> list[Shown]:
        """Which crops to look at, in order; empty: none."""
        rng = self.rng
        if rng.random() < 0.3:
            return []
        truths = [c for c in crops if c.role.startswith("truth")]
        others = [c for c in crops if not c.role.startswith("truth")]
        if not defects:
            return [
                others[i]
                for i in rng.permutation(len(others))[: int(rng.choice((0, 1, 2, 3), p=(0.1, 0.4, 0.25, 0.25)))]
            ]
        plan = truths[: int(rng.integers(1, len(truths) + 1))]
        for other in others:
            if rng.random() < 0.35:
                plan.insert(int(rng.integers(0, len(plan) + 1)), other)
        return plan[:3]

    def call(self, example: Example, shown: Shown, crop: Shown, open_defects: list[Damage]) -> None:
        """Asks for `crop`; taught only if it is where a damage still waits."""
        good = [d for d in open_defects if self.share(d, crop) >= FOUND_SHARE]
        if good:
            self.speller.say(example, prompt.spell_call(shown.spell(Box(*good[0].box)), good[0].kind))
            return
        self.speller.say(example, [prompt.CALL_OPEN])
        aimed = prompt.spell_call(shown.spell(crop.box), self.any_kind())
        self.speller.say(example, aimed[1:], 0)

    def find(self, example: Example, crop: Shown, defects: list[Damage]) -> None:
        seen = [(self.share(d, crop), d) for d in defects]
        seen = [(share, d) for share, d in seen if share >= SEEN_SHARE]
        if not seen:
            self.speller.say(example, prompt.spell_finding(None))
            return
        found = max(seen, key=lambda pair: pair[0])[1]
        part = overlap(Box(*found.box), crop.box)
        assert part is not None
        self.speller.say(example, prompt.spell_finding((found.kind, DEFECT_LEVELS[found.level - 1], crop.spell(part))))

    def zoom_into_cells(self, example: Example, shown: Shown, defects: list[Damage], sample: dict[str, Any]) -> None:
        rows, cols = shown.cells.shape[:2]
        y, x, h, w = self.window_at(rows, cols, 0.45)
        scale_x, scale_y = shown.box.width / cols, shown.box.height / rows
        box = Box(int(x * scale_x), int(y * scale_y), int((x + w) * scale_x), int((y + h) * scale_y))
        crop = Shown(box, shown.cells[y : y + h, x : x + w], "window")
        self.speller.request(example, words.FIRST, shown.cells, token_truth(shown, defects))
        self.speller.say(example, prompt.spell_call(shown.spell(box), self.any_kind()), 0)
        self.speller.request(example, words.CROP_FINAL, crop.cells, token_truth(crop, defects))
        self.find(example, crop, defects)
        left = [d for d in defects if self.share(d, crop) < FOUND_SHARE]
        self.answer(example, sample, shown, left, attributes=None)

    def answer(
        self,
        example: Example,
        sample: dict[str, Any],
        shown: Shown,
        defects: list[Damage],
        attributes: dict[str, float] | None,
    ) -> None:
        self.speller.say(example, [prompt.ANSWER_OPEN, score_token(sample["score"])], score=sample["score"])
        spelled = [(d.kind, DEFECT_LEVELS[d.level - 1], shown.spell(Box(*d.box))) for d in defects]
        self.speller.say(example, prompt.spell_defects(spelled))
        if attributes is None:
            self.speller.say(example, [prompt.DEFECTS_CLOSE])
        else:
            self.speller.say(
                example, prompt.spell_attributes({name: score_token(attributes[name]) for name in ATTRIBUTES})
            )

    def defects(self, sample: dict[str, Any], flip: bool) -> list[Damage]:
        width = sample["width"]
        return [
            Damage(
                d["kind"],
                d["level"],
                (width - d["box"][2], d["box"][1], width - d["box"][0], d["box"][3]) if flip else tuple(d["box"]),
            )
            for d in sample["defects"]
        ]

    def share(self, found: Damage, crop: Shown) -> float:
        """How much of a damage a crop holds, 0..1."""
        part = overlap(Box(*found.box), crop.box)
        return part.area / Box(*found.box).area if part else 0.0

    def any_kind(self) -> str:
        return str(self.rng.choice(list(ATTRIBUTE_OF)))

    @staticmethod
    def flipped(cells: NDArray[np.float16], flip: bool) -> NDArray[np.float16]:
        # Not quite what the convolutions would have seen in a mirrored photo, but near, and free.
        return cells[:, ::-1] if flip else cells

    def window_at(self, rows: int, cols: int, least: float) -> tuple[int, int, int, int]:
        """A window of whole tokens, (y, x, height, width) in cells."""
        sides = []
        for cells in (rows, cols):
            tokens = cells // CELLS_PER_SIDE
            length = int(self.rng.integers(max(1, round(least * tokens)), tokens + 1)) * CELLS_PER_SIDE
            sides.append((int(self.rng.integers(0, cells - length + 1)), length))
        return sides[0][0], sides[1][0], sides[0][1], sides[1][1]

    def window(self, cells: NDArray[np.float16], least: float) -> NDArray[np.float16]:
        y, x, h, w = self.window_at(*cells.shape[:2], least)
        return cells[y : y + h, x : x + w]


def local_attributes(sample: dict[str, Any]) -> dict[str, float]:
    """Each attribute of a locally damaged photo: the score it would have with the damages of that attribute alone."""
    damages = [Damage(d["kind"], d["level"], tuple(d["box"])) for d in sample["defects"]]
    return {
        name: damaged_score(
            CLEAN_SCORE, [d for d in damages if ATTRIBUTE_OF[d.kind] == name], sample["width"], sample["height"]
        )
        for name in ATTRIBUTES
    }


__all__ = ["CELL_CHANNELS", "Example", "Narrator", "Speller"]
