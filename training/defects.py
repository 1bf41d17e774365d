"""What a model reports: a domain's kinds of defect and the attributes they spoil; and a defect that is known."""

from dataclasses import dataclass
from typing import Any, Final

CLEAN_SCORE: Final = 4.6  # of an undamaged photo: no photo is perfect


@dataclass(frozen=True, slots=True)
class Domain:
    """What a model is taught to look for. `attribute_of`: for each kind, in their order, which of the `attributes` it
    spoils; the others stay untouched. `request`: what is asked of a picture, `may_zoom` and `must_answer` how it is to
    be answered. Another domain is another such table in the config of stage 0; checkpoints carry it on."""

    attribute_of: dict[str, str]
    attributes: tuple[str, ...]
    request: str = "Rate this photo."
    may_zoom: str = "Zoom or answer."
    must_answer: str = "Answer now."

    def __post_init__(self) -> None:
        if not self.attribute_of:
            raise ValueError("attribute_of must name a kind of defect at least")
        if unknown := set(self.attribute_of.values()) - set(self.attributes):
            raise ValueError(f"attribute_of names {sorted(unknown)[0]!r}, which is not among the attributes")
        for name in (*self.kinds, *self.attributes):
            if not name.replace("_", "").isalnum() or not name.isascii() or name != name.lower():
                raise ValueError(f"{name!r} must be of small letters, digits and _")
        if both := set(self.kinds) & {"clean"}:
            raise ValueError(f"a kind must not be called {both.pop()!r}: that is what sound pictures are called")

    @classmethod
    def of(cls, checkpoint: dict[str, Any]) -> "Domain":
        """That of a checkpoint of any stage."""
        known = checkpoint["domain"]
        return cls(**{**known, "attributes": tuple(known["attributes"])})

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self.attribute_of)


PHOTOS: Final = Domain(
    {
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
    },
    ("sharpness", "noise", "color", "exposure", "compression"),
)


@dataclass(frozen=True, slots=True)
class Defect:
    """A place that is known to be broken. `box`: x1, y1, x2, y2 in photo pixels, half-open; `level` 1..5; `cost` 0..1,
    of vista_score.py."""

    kind: str
    level: int
    box: tuple[int, int, int, int]
    cost: float
