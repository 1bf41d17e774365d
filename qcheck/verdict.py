"""What comes out: frozen results and their JSON record, schema `qcheck/1`.

The shape is fixed by `schema/qcheck-1.json`, which ships in the package and which the tests validate against.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from statistics import fmean, pstdev
from typing import Any, Final, Literal

from qcheck.errors import PhotoErrorKind
from qcheck.tiles import Box

SCHEMA: Final = "qcheck/1"
MAX_DEFECTS: Final = 4
SCORE_MIN: Final = 1.0
SCORE_MAX: Final = 5.0

# Upper bounds of the score levels, lowest first; from the last bound upwards a photo is excellent.
SCORE_LEVELS: Final[tuple[tuple[float, str], ...]] = ((1.8, "bad"), (2.6, "poor"), (3.4, "fair"), (4.2, "good"))
BEST_LEVEL: Final = "excellent"
# KADID-10k's five levels of a distortion, weakest first; severity 0..1 is their rank / 5.
DEFECT_LEVELS: Final[tuple[str, ...]] = ("slight", "moderate", "obvious", "serious", "catastrophic")

StoppedBy = Literal["model", "max_probes", "budget_ms"]


def level_of(score: float) -> str:
    """The word for a score in 1..5: bad < 1.8 <= poor < 2.6 <= fair < 3.4 <= good < 4.2 <= excellent."""
    for bound, level in SCORE_LEVELS:
        if score < bound:
            return level
    return BEST_LEVEL


def severity_of(level: str) -> float:
    """Severity 0..1 of a defect level's word (slight 0.2 ... catastrophic 1.0)."""
    return (DEFECT_LEVELS.index(level) + 1) / len(DEFECT_LEVELS)


@dataclass(frozen=True, slots=True)
class Defect:
    """A place where the photo is broken. `box` is in pixels of the upright original; `confidence` is 0..1."""

    kind: str
    level: str
    box: Box
    confidence: float

    def record(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "severity": severity_of(self.level),
            "level": self.level,
            "box": self.box.as_list(),
            "confidence": round(self.confidence, 4),
        }


@dataclass(frozen=True, slots=True)
class Probe:
    """One crop that the model asked for: where (upright original pixels), as what, at what size, and what it saw."""

    box: Box
    label: str
    seen_px: tuple[int, int]  # (width, height) of the crop as the model saw it
    finding: str

    def record(self) -> dict[str, Any]:
        return {"box": self.box.as_list(), "label": self.label, "seen_px": list(self.seen_px), "finding": self.finding}


@dataclass(frozen=True, slots=True)
class Budget:
    """How many crops were allowed and used, and what ended the looking."""

    max_probes: int
    used: int
    stopped_by: StoppedBy


@dataclass(frozen=True, slots=True)
class Rollouts:
    """The scores that sampled runs over a photo said: how much the judgement hangs on chance."""

    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.scores)

    @property
    def std(self) -> float:
        return pstdev(self.scores)

    def record(self) -> dict[str, Any]:
        return {
            "k": len(self.scores),
            "score_mean": round(self.mean, 3),
            "score_std": round(self.std, 3),
            "scores": [round(score, 3) for score in self.scores],
        }


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Which weights judged: the bundle's name, version and the sha256 of its contract (which pins every file)."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What ran them."""

    device: str
    provider: str
    precision: str


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall-clock milliseconds by phase. The only part of a record that differs from run to run."""

    decode: float
    tiles: float
    vision: float
    prefill: float
    generate: float
    total: float

    def record(self) -> dict[str, float]:
        return {name: round(getattr(self, name), 2) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judged photo. `score` is in 1..5, the expected value over the score tokens; `score_std` is their spread, made
    as wide as the model's errors are by its contract's `score_std_scale`."""

    path: str
    width: int  # pixels, upright
    height: int
    decode_scale: int
    score: float
    score_std: float
    attributes: dict[str, float]
    defects: tuple[Defect, ...]  # by confidence, highest first
    probes: tuple[Probe, ...]  # in the order they were made
    reasoning: str
    budget: Budget
    model: ModelInfo
    engine: EngineInfo
    timing_ms: Timing
    rollouts: Rollouts | None = None

    @property
    def level(self) -> str:
        return level_of(round(self.score, 3))

    def record(self) -> dict[str, Any]:
        """The JSON-ready record of schema `qcheck/1`."""
        return {
            "schema": SCHEMA,
            "path": self.path,
            "status": "ok",
            "width": self.width,
            "height": self.height,
            "decode": {"scale": self.decode_scale},
            "score": round(self.score, 3),
            "score_std": round(self.score_std, 3),
            "level": self.level,
            "attributes": {name: round(value, 2) for name, value in self.attributes.items()},
            "defects": [defect.record() for defect in self.defects],
            "probes": [probe.record() for probe in self.probes],
            "reasoning": self.reasoning,
            "budget": {
                "max_probes": self.budget.max_probes,
                "used": self.budget.used,
                "stopped_by": self.budget.stopped_by,
            },
            "model": {"name": self.model.name, "version": self.model.version, "sha256": self.model.sha256},
            "engine": {
                "device": self.engine.device,
                "provider": self.engine.provider,
                "precision": self.engine.precision,
            },
            **({"rollouts": self.rollouts.record()} if self.rollouts else {}),
            "timing_ms": self.timing_ms.record(),
        }


@dataclass(frozen=True, slots=True)
class Failure:
    """A photo that could not be judged: no score, never a made-up one."""

    path: str
    kind: PhotoErrorKind
    message: str

    def record(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "path": self.path,
            "status": "error",
            "error": {"kind": self.kind, "message": self.message},
        }


@cache
def schema_text() -> str:
    """The JSON Schema of a record, as text."""
    return files("qcheck").joinpath("schema/qcheck-1.json").read_text(encoding="utf-8")


def schema() -> dict[str, Any]:
    """The JSON Schema of a record, parsed."""
    parsed: dict[str, Any] = json.loads(schema_text())
    return parsed
