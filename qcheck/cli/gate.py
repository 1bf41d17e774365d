"""Which verdicts fail the run: `--fail-under` and `--fail-on`."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from qcheck.errors import UsageError
from qcheck.verdict import Failure, Verdict

ANY_KIND: Final = "any"
SCORE_DECIMALS: Final = 3  # of a record


@dataclass(frozen=True, slots=True)
class Gate:
    """`fail_under`: the least score that passes, 1..5. `fail_on`: defect kinds that do not pass, or `any`."""

    fail_under: float | None
    fail_on: frozenset[str]

    @classmethod
    def of(cls, fail_under: float | None, fail_on: Iterable[str], *, known: Collection[str]) -> "Gate":
        """A gate over the kinds that the model knows; raises UsageError for another, which would never fail."""
        wanted = frozenset(fail_on)
        if wanted and not known:
            raise UsageError(f"--fail-on {min(wanted)}: this model names no defects")
        unknown = sorted(wanted - {*known, ANY_KIND})
        if unknown:
            raise UsageError(f"--fail-on {unknown[0]}: this model knows {', '.join(known)}; or say {ANY_KIND}")
        return cls(fail_under, wanted)

    def reasons(self, result: Verdict | Failure) -> list[str]:
        """Why a verdict does not pass, a phrase each; none if it passes. A Failure was not judged, so not gated."""
        if isinstance(result, Failure):
            return []
        score = round(result.score, SCORE_DECIMALS)  # as the record shows it, so that nobody sees 3.0 fail 3
        low = self.fail_under is not None and score < self.fail_under
        reasons = [f"score {score} is under {self.fail_under:g}"] if low else []
        kinds = dict.fromkeys(defect.kind for defect in result.defects)
        return reasons + [f"has {kind}" for kind in kinds if kind in self.fail_on or ANY_KIND in self.fail_on]
