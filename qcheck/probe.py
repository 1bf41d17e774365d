"""The Q-Probe loop: look at the whole photo, zoom where it is suspicious, think again, answer.

Pure policy over an Engine: what is shown, what may be said, when to stop, and what the words mean on the photo.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from qcheck.engine import Conversation, Engine, Mark, Request, Sampler
from qcheck.errors import UsageError
from qcheck.photo import Photo
from qcheck.prompt import Answer, Call, Sighting, Turn
from qcheck.tiles import Box, CropSpec, View, crop_box, photo_box, view_of, whole
from qcheck.verdict import MAX_DEFECTS, Budget, Defect, Probe, Rollouts, StoppedBy, Timing, Verdict

DEFAULT_MAX_PROBES: Final = 3
MOST_PROBES: Final = 64
MOST_ROLLOUTS: Final = 64
ROLLOUT_TEMPERATURE: Final = 0.9  # that of the papers' training
ROLLOUT_SEED: Final = 2601
# Multiples of the golden ratio lie evenly between whole numbers, however many there are (Weyl 1916).
EVENLY: Final = (math.sqrt(5) - 1) / 2
# Two reports of one kind are one defect if they overlap this much, or if one lies this much inside the other.
SAME_IOU: Final = 0.3
SAME_INSIDE: Final = 0.6
CLEAN: Final = "clean"

# From what the model pointed at (photo pixels), the contract's crop rule, and the photo's width and height: the crop.
Aim = Callable[[Box, CropSpec, int, int], Box]


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the model may look: `max_probes` crops at most (0: a single pass), and no new crop once `budget_ms`
    milliseconds (decoding included) are spent or the next one would not fit. `rollouts`: so many sampled runs besides,
    which tell how much the score hangs on chance. Raises UsageError."""

    max_probes: int = DEFAULT_MAX_PROBES
    budget_ms: float | None = None
    rollouts: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.max_probes <= MOST_PROBES:
            raise UsageError(f"--max-probes {self.max_probes}: must be 0 to {MOST_PROBES}")
        if self.budget_ms is not None and not (math.isfinite(self.budget_ms) and self.budget_ms > 0):
            raise UsageError(f"--budget-ms {self.budget_ms}: must be more than 0")
        if not 0 <= self.rollouts <= MOST_ROLLOUTS:
            raise UsageError(f"--rollouts {self.rollouts}: must be 0 to {MOST_ROLLOUTS}")
        if self.rollouts and self.budget_ms is not None:
            raise UsageError("--rollouts and --budget-ms exclude each other: how often a photo is looked at takes time")


class Prober:
    """Judges photos with one engine."""

    def __init__(self, engine: Engine, *, aim: Aim = crop_box) -> None:
        """`aim` decides what part of the photo a call gets; only experiments (random crops, say) need another one."""
        self.engine, self.aim = engine, aim

    def judge(self, photo: Photo, limits: Limits, *, decode_ms: float = 0.0) -> Verdict:
        """One photo's verdict. `decode_ms`: what opening it took, for the budget and the record. Raises EngineError."""
        session = _Session(self.engine, self.aim, photo, limits, decode_ms)
        answer, notes = session.converse(None)
        # What each run says, which it drew: that is what reinforcement rewards, and it tells what the model doubts.
        scores = tuple(session.converse(self._sampler(number))[0].said for number in range(limits.rollouts))
        return session.verdict(answer, notes, Rollouts(scores) if scores else None)

    def _sampler(self, number: int) -> Sampler:
        """Of a rollout. Where a score is one token, it is drawn evenly over the rollouts, the first in the middle;
        where it is spelled, the first digit that is drawn need not be one of the score."""
        whole_numbers = bool(self.engine.contract.language.score_tokens)
        quantile = (0.5 + number * EVENLY) % 1 if whole_numbers else None
        return Sampler(ROLLOUT_TEMPERATURE, ROLLOUT_SEED + number, quantile, self.engine.contract.rollout_top_p)

    def sample(self, photo: Photo, limits: Limits, samplers: Iterable[Sampler]) -> list[Verdict]:
        """One sampled verdict for each sampler; the global view is shown once. Raises EngineError."""
        session = _Session(self.engine, self.aim, photo, limits, 0.0)
        return [session.verdict(*session.converse(sampler), None) for sampler in samplers]


@dataclass(slots=True)
class _Notes:
    """What one run through a conversation has found."""

    probes: list[Probe] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    stopped_by: StoppedBy = "model"


class _Session:
    """One photo, from the first look to the verdict."""

    def __init__(self, engine: Engine, aim: Aim, photo: Photo, limits: Limits, decode_ms: float) -> None:
        self.engine, self.contract, self.aim = engine, engine.contract, aim
        self.photo, self.limits, self.decode_ms = photo, limits, decode_ms
        self.talk: Conversation = engine.conversation()
        self.started = time.perf_counter()
        self.last_turn_ms = 0.0
        self.notes = _Notes()
        self.sampler: Sampler | None = None
        self.global_view = view_of(whole(photo.width, photo.height), self.contract.global_view)
        self.start: Mark | None = None  # once the global view is prefilled

    def converse(self, sampler: Sampler | None) -> tuple[Answer, _Notes]:
        """One run from the global view, which is shown once for all runs, to an answer."""
        if self.start is not None:
            self.talk.back_to(self.start)
        self.notes, self.sampler = _Notes(), sampler
        view, asked = self.global_view, None
        while True:
            turn_started = time.perf_counter()
            move = self._turn(view, asked)
            self.last_turn_ms = (time.perf_counter() - turn_started) * 1e3
            if isinstance(move, Call) and self._too_late():
                move = self._answer_now(after_crop=asked is not None)
            if isinstance(move, Answer):
                return move, self.notes
            asked = move
            view = self._crop(move)

    def _turn(self, view: View, asked: Call | None) -> Call | Answer:
        """Shows a view (`asked`: the call that brought it) and returns what the model wants next."""
        may_call = self._may_call(used=len(self.notes.probes) + (asked is not None))
        kind: Request = "crop" if asked else "first"
        request: Request = kind if may_call else ("crop_final" if asked else "first_final")
        if asked is not None or self.start is None:
            self.talk.show(request, self.photo.pixels, self._decoded(view))
        if self.start is None:
            self.start = self.talk.mark()
        matcher = self.engine.grammar.matcher(after_crop=asked is not None, may_call=may_call)
        said = self.talk.say(matcher, self.sampler)
        turn = self.engine.dialect.read(said)
        if asked is not None:
            self._note(asked, view, turn)
        elif turn.thought:
            self.notes.thoughts.append(turn.thought)
        return turn.move

    def _decoded(self, view: View) -> View:
        """A view in the pixels that there are. Only the whole is ever shown of a photo that was decoded smaller."""
        if self.photo.decode_scale == 1:
            return view
        assert view.box == whole(self.photo.width, self.photo.height), "crops need every pixel"
        return replace(view, box=whole(self.photo.pixels.shape[1], self.photo.pixels.shape[0]))

    def _too_late(self) -> bool:
        """Whether the crop that was just asked for would end after the budget, if it takes as long as this turn did."""
        budget = self.limits.budget_ms
        return budget is not None and self._elapsed_ms() + self.last_turn_ms > budget

    def _answer_now(self, *, after_crop: bool) -> Answer:
        """Takes a call back and has the model answer from what it has seen."""
        self.notes.stopped_by = "budget_ms"
        self.talk.ask_again("crop_final" if after_crop else "first_final")
        said = self.talk.say(self.engine.grammar.matcher(after_crop=after_crop, may_call=False))
        turn = self.engine.dialect.read(said)
        if turn.thought:
            self.notes.thoughts.append(turn.thought)
        assert isinstance(turn.move, Answer), "the grammar let a call through where none is allowed"
        return turn.move

    def _may_call(self, used: int) -> bool:
        """Whether one more crop is allowed after `used` of them. A model that knows no crops stops by itself."""
        if not self.contract.language.zooms:
            return False
        allowed = used < self.limits.max_probes
        self.notes.stopped_by = "model" if allowed else "max_probes"
        return allowed

    def _elapsed_ms(self) -> float:
        return self.decode_ms + (time.perf_counter() - self.started) * 1e3

    def _crop(self, call: Call) -> View:
        """The crop for a call: its box with context, cut from the original pixels."""
        # A call that points nowhere gets the whole view again, small: the cap on probes ends such a talk.
        whole_view = self.global_view
        target = photo_box(call.coords, whole_view, self.contract.coordinates) or whole_view.box
        box = self.aim(target, self.contract.crop, self.photo.width, self.photo.height)
        return view_of(box, self.contract.crop_view)

    def _note(self, call: Call, view: View, turn: Turn) -> None:
        finding = turn.finding
        words = f"{finding.level} {finding.kind}" if finding else CLEAN
        if turn.thought is not None:
            words = turn.thought
        self.notes.probes.append(Probe(view.box, call.label, view.size, words))
        ended = words if words.endswith(".") else f"{words}."
        self.notes.thoughts.append(f"Crop {len(self.notes.probes)} ({call.label}?): {ended}")
        if finding and (defect := self._defect(finding, view)):
            self.notes.defects.append(defect)

    def _defect(self, sighting: Sighting, view: View) -> Defect | None:
        box = photo_box(sighting.coords, view, self.contract.coordinates)
        return None if box is None else Defect(sighting.kind, sighting.level, box, sighting.confidence)

    def verdict(self, answer: Answer, notes: _Notes, rollouts: Rollouts | None) -> Verdict:
        """What a run came to, with the time that all of them took."""
        seen = [self._defect(sighting, self.global_view) for sighting in answer.defects]
        thoughts = list(notes.thoughts)
        if answer.defects:
            named = ", ".join(f"{s.level} {s.kind}" for s in answer.defects)
            thoughts.append(f"Whole view: {named}.")
        spent = self.talk.spent
        timing = Timing(self.decode_ms, spent.tiles, spent.vision, spent.prefill, spent.generate, self._elapsed_ms())
        photo = self.photo
        return Verdict(
            path=photo.path,
            width=photo.width,
            height=photo.height,
            decode_scale=photo.decode_scale,
            score=answer.score,
            score_std=self.contract.score_std_scale * answer.score_std,
            attributes=answer.attributes,
            defects=merged([*notes.defects, *(defect for defect in seen if defect)]),
            probes=tuple(notes.probes),
            reasoning=" ".join(thoughts),
            budget=Budget(self.limits.max_probes, len(notes.probes), notes.stopped_by),
            model=self.engine.model,
            engine=self.engine.info,
            timing_ms=timing,
            rollouts=rollouts,
        )


def merged(defects: list[Defect]) -> tuple[Defect, ...]:
    """The defects by confidence, highest first, without repeats of the same kind in the same place; at most four."""
    kept: list[Defect] = []
    for defect in sorted(defects, key=lambda d: -d.confidence):
        if not any(other.kind == defect.kind and _same_place(other.box, defect.box) for other in kept):
            kept.append(defect)
    return tuple(kept[:MAX_DEFECTS])


def _same_place(a: Box, b: Box) -> bool:
    iou = a.iou(b)
    overlap = iou / (1 + iou) * (a.area + b.area)
    return iou >= SAME_IOU or overlap >= SAME_INSIDE * min(a.area, b.area)
