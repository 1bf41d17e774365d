"""How far a bundle is from the checkpoint that it was made of, in figures."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from talk import Talk, Turn

# The largest error of a logit that passes, as a share of the largest logit of its turn. None of them says that a bundle
# judges well: they tell a wrong graph, whose logits are off by about the largest there are, from rounding.
TOLERANCES: Final = {
    # Sums in another order: 3e-6 was seen on small models. What is wrong in the least is off by more than this.
    "fp32": 1e-3,
    # 11 significant bits, rounded a dozen times a layer; norms, the residual and down-projections are float32.
    "fp16": 2e-2,
    # Weights alone are rounded, to 8 significant bits; not at all if the checkpoint has no more.
    "bf16": 3e-2,
    # Of 256 steps between a block's ends, and activations rounded to 8 bits when they are multiplied.
    "int8": 0.1,
    # Of 16 steps: noise of about 8% of a weight in every layer, whose largest effect among all words is meant here.
    "int4": 0.6,
}


@dataclass(slots=True)
class TurnError:
    """Of the logits of one turn, over all conversations. `largest`: of the reference; `strange`: how many of the
    bundle's were not finite."""

    steps: int = 0
    absolute: float = 0.0
    largest: float = 0.0
    strange: int = 0

    @property
    def relative(self) -> float:
        """The largest error as a share of the largest logit; infinite if one was not finite."""
        return math.inf if self.strange else self.absolute / max(self.largest, np.finfo(np.float32).tiny)

    def add(self, expected: NDArray[np.float32], found: NDArray[np.float32]) -> None:
        self.steps += 1
        finite = np.isfinite(found)
        self.strange += int((~finite).sum())
        self.largest = max(self.largest, float(np.abs(expected).max()))
        self.absolute = max(self.absolute, float(np.abs(expected - found).max(initial=0, where=finite)))


@dataclass(slots=True)
class Speed:
    """Of one of the two: milliseconds a turn, all included, and tokens said in a second of saying."""

    turns: int = 0
    tokens: int = 0
    ms: float = 0.0
    saying_ms: float = 0.0

    def add(self, talk: Talk) -> None:
        self.turns += len(talk.turns)
        self.tokens += talk.tokens
        self.ms += talk.ms
        self.saying_ms += talk.verdict.timing_ms.generate

    @property
    def ms_a_turn(self) -> float:
        return self.ms / self.turns

    @property
    def tokens_a_second(self) -> float:
        return 1e3 * self.tokens / self.saying_ms


@dataclass(slots=True)
class Comparison:
    """Added up over photos. `tolerance`: of the relative error; bytes are those on disk.

    Logits and equal tokens are of a bundle that was made to say what the checkpoint said; equal turns, the boxes of
    calls and scores are of both speaking freely.
    """

    precision: str
    tolerance: float
    bundle_bytes: int
    checkpoint_bytes: int
    errors: list[TurnError] = field(default_factory=list)
    choices: int = 0
    agreed: int = 0
    turns: int = 0
    same_turns: int = 0
    boxes: list[float] = field(default_factory=list)  # IoU of calls; 0 where only one of the two asked
    score_differences: list[float] = field(default_factory=list)
    pytorch: Speed = field(default_factory=Speed)
    bundle: Speed = field(default_factory=Speed)

    def add(self, reference: Talk, dictated: Talk, free: Talk) -> None:
        """One photo: what the checkpoint said, the bundle saying the same, and the bundle by itself."""
        for index, (expected, found) in enumerate(zip(reference.turns, dictated.turns, strict=True)):
            if index == len(self.errors):
                self.errors.append(TurnError())
            for pair in zip(expected.logits, found.logits, strict=True):
                self.errors[index].add(*pair)
            self.choices += found.choices
            self.agreed += found.agreed
        self.turns += max(len(reference.turns), len(free.turns))
        self.same_turns += _same_turns(reference.turns, free.turns)
        asked = zip_longest(reference.turns[1:], free.turns[1:])  # every view but the first is a call's
        self.boxes += [a.view.box.iou(b.view.box) if a and b else 0.0 for a, b in asked]
        self.score_differences.append(abs(reference.verdict.score - free.verdict.score))
        self.pytorch.add(reference)
        self.bundle.add(free)

    @property
    def relative(self) -> float:
        """The worst of all turns."""
        return max(error.relative for error in self.errors)

    @property
    def strange(self) -> int:
        return sum(error.strange for error in self.errors)

    @property
    def passed(self) -> bool:
        return not self.strange and self.relative <= self.tolerance

    @property
    def verdict(self) -> str:
        """What is wrong with the bundle, or that nothing is; one line."""
        if self.strange:
            return (
                f"{self.strange} logits are not finite: {self.precision} overflows with this checkpoint; use bf16 or"
                " fp32"
            )
        how = "within" if self.passed else "off by"
        return f"logits are {how} {self.relative:.2g} of the largest; {self.tolerance:g} passes at {self.precision}"

    def table(self) -> str:
        lines = [f"{'turn':>4}  {'steps':>6}  {'max error':>9}  {'of largest':>10}  not finite"]
        for number, error in enumerate(self.errors, 1):
            lines.append(
                f"{number:>4}  {error.steps:>6}  {error.absolute:>9.2e}  {error.relative:>10.2e}  {error.strange}"
            )
        differences = self.score_differences
        boxes = f"mean IoU {_mean(self.boxes):.3f} of {len(self.boxes)}" if self.boxes else "no calls"
        rows = {
            "tokens it would have chosen too": f"{self.agreed} of {self.choices}",
            "turns that are the same, speaking freely": f"{self.same_turns} of {self.turns}",
            "boxes of calls": boxes,
            "score": f"off by {_mean(differences):.3f} on average, {max(differences):.3f} at most,"
            f" {len(differences)} photos",
        }
        for name, speed in (("PyTorch float32", self.pytorch), (f"bundle {self.precision}", self.bundle)):
            size = self.checkpoint_bytes if speed is self.pytorch else self.bundle_bytes
            rows[name] = (
                f"{size / 1e6:.1f} MB, {speed.ms_a_turn:.0f} ms a turn, {speed.tokens_a_second:.1f} tokens a second"
            )
        width = max(map(len, rows))
        return "\n".join([*lines, "", *(f"{name:<{width}}  {text}" for name, text in rows.items()), "", self.verdict])

    def record(self) -> dict[str, Any]:
        """Ready for JSON, which knows no infinity: a figure that is not finite is null there."""
        return {
            "precision": self.precision,
            "passed": self.passed,
            "tolerance": self.tolerance,
            "relative": _number(self.relative),
            "turns": [
                {
                    "steps": error.steps,
                    "max_absolute": error.absolute,
                    "relative": _number(error.relative),
                    "not_finite": error.strange,
                }
                for error in self.errors
            ],
            "photos": len(self.score_differences),
            "same_tokens": self.agreed / self.choices,
            "same_turns": self.same_turns / self.turns,
            "calls": len(self.boxes),
            "call_iou": _mean(self.boxes) if self.boxes else None,
            "score_difference_mean": _mean(self.score_differences),
            "score_difference_max": max(self.score_differences),
            "bytes": {"pytorch": self.checkpoint_bytes, "bundle": self.bundle_bytes},
            "ms_a_turn": {"pytorch": self.pytorch.ms_a_turn, "bundle": self.bundle.ms_a_turn},
            "tokens_a_second": {"pytorch": self.pytorch.tokens_a_second, "bundle": self.bundle.tokens_a_second},
        }

    def json_line(self) -> str:
        return json.dumps(self.record(), allow_nan=False)


def _same_turns(ours: Sequence[Turn], theirs: Sequence[Turn]) -> int:
    return sum(a.said == b.said and a.view == b.view for a, b in zip(ours, theirs, strict=False))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
