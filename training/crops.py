"""Where to cut: around a defect, or away from all of them. Boxes are x1, y1, x2, y2 in photo pixels, half-open."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from qcheck.tiles import Box

CONTEXT: Final = (0.2, 0.6)  # of a defect's sides, on each side of it: between half and a fifth of a crop is the defect
LEAST_CROP_PX: Final = 448

BoxPx = tuple[int, int, int, int]


def context_crop(box: BoxPx, width: int, height: int, rng: np.random.Generator) -> BoxPx:
    """All of a box with normal surroundings on every side that the photo has, off its centre."""
    x1, y1, x2, y2 = box
    left, right, top, bottom = rng.uniform(*CONTEXT, 4)
    w, h = x2 - x1, y2 - y1
    # A small defect gets more around it: no view is smaller than a crop's least.
    more_x, more_y = max(0.0, LEAST_CROP_PX - w * (1 + left + right)), max(0.0, LEAST_CROP_PX - h * (1 + top + bottom))
    slide_x, slide_y = rng.uniform(0.2, 0.8, 2)
    return (
        max(0, round(x1 - left * w - slide_x * more_x)),
        max(0, round(y1 - top * h - slide_y * more_y)),
        min(width, round(x2 + right * w + (1 - slide_x) * more_x)),
        min(height, round(y2 + bottom * h + (1 - slide_y) * more_y)),
    )


def clean_crop(regions: Sequence[dict[str, Any]], width: int, height: int, rng: np.random.Generator) -> BoxPx | None:
    """A place that touches no defect, or None where forty tries found none."""
    for _ in range(40):
        w, h = (min(n, max(LEAST_CROP_PX, round(n * rng.uniform(0.1, 0.35)))) for n in (width, height))
        x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        if all(Box(x, y, x + w, y + h).iou(Box(*r["box"])) == 0 for r in regions):
            return x, y, x + w, y + h
    return None
