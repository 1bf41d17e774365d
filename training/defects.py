"""What a model of photos reports: kinds of defect, the attributes they spoil, and a defect that is known."""

from dataclasses import dataclass
from typing import Final

CLEAN_SCORE: Final = 4.6  # of an undamaged photo: no photo is perfect
WORST_SCORE: Final = 1.0
# What each kind takes from which attribute; the others stay untouched.
ATTRIBUTE_OF: Final = {
    "defocus": "sharpness",
    "motion_blur": "sharpness",
    "noise": "noise",
    "compression": "compression",
    "pixelation": "compression",
    "oversharpen": "sharpness",
    "banding": "exposure",
    "moire": "color",
    "overexposure": "exposure",
    "underexposure": "exposure",
    "color": "color",
    "dirt": "noise",
    "corruption": "compression",
}
KINDS: Final = tuple(ATTRIBUTE_OF)
ATTRIBUTES: Final = ("sharpness", "noise", "color", "exposure", "compression")


@dataclass(frozen=True, slots=True)
class Defect:
    """A place that is known to be broken. `box`: x1, y1, x2, y2 in photo pixels, half-open; `level` 1..5; `cost` 0..1,
    of vista_score.py."""

    kind: str
    level: int
    box: tuple[int, int, int, int]
    cost: float
