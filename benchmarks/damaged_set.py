"""Big photos with known local damage, made in memory from clean ones that no training saw."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from qcheck.photo import Photo
from qcheck.tiles import Box

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

from damage import CLEAN_SCORE, KINDS, Damage, damage, damaged_score
from photos import Source

REGION_SHARE: Final = (0.07, 0.34)  # least and greatest side of a damaged region, of the photo's side
LEAST_PIXELS: Final = 8_000_000


@dataclass(frozen=True, slots=True)
class Truth:
    """What is known of a photo: `box` and `kind` are None for a clean one."""

    source: str
    score: float
    box: Box | None
    kind: str | None
    level: int


def cases(sources: list[Source], per_source: int, seed: int) -> Iterator[tuple[Photo, Truth]]:
    """For each source of >= 8 MP: itself, its mirror image and its upside-down image clean; then `per_source` damaged
    copies, kinds in turn and levels at random."""
    rng = np.random.default_rng(seed)
    turn = 0
    for source in sources:
        clean = Photo.open(source.path).pixels
        height, width = clean.shape[:2]
        if height * width < LEAST_PIXELS:
            continue
        for variant in (clean, clean[:, ::-1], clean[::-1]):
            yield Photo.from_pixels(np.ascontiguousarray(variant)), Truth(source.path.name, CLEAN_SCORE, None, None, 0)
        made = 0
        while made < per_source:
            kind, level = KINDS[turn % len(KINDS)], int(rng.integers(1, 6))
            turn += 1
            pixels = clean.copy()
            found: Damage | None = damage(pixels, kind, level, rng, size=REGION_SHARE, avoid=[])
            if found is None:
                continue
            made += 1
            score = damaged_score(CLEAN_SCORE, [found], width, height)
            yield Photo.from_pixels(pixels), Truth(source.path.name, score, Box(*found.box), kind, level)
