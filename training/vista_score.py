"""The score of a photo with known local defects, version "vista-1". Frozen: another formula gets another name.

It is a proxy and no human score. A region costs the more, the less its pixels are like the original's, the more the
place matters and the larger it is:

    severity   = clip((90 - SSIMULACRA2) / 100, 0, 1)       90 is visually lossless, -10 and less destroyed
    cost       = severity^0.7 * (0.45 + 0.55 importance) * (0.4 + 0.6 sqrt(min(1, area share / 0.08)))
    score      = 1 + (base - 1) * product over regions of (1 - cost)

SSIMULACRA2 is measured at full resolution in a window of at most WINDOW_PX around the region's middle, importance is
the mean of the importance map in the region, and base is the score of the photo without the regions.
"""

import io
from collections.abc import Iterable
from typing import Final

import numpy as np
from PIL import Image
from pixels import Pixels
from ssimulacra2 import compute_ssimulacra2

VERSION: Final = "vista-1"
WINDOW_PX: Final = 512
LOSSLESS: Final = 90.0


def likeness(original: Pixels, other: Pixels) -> float:
    """SSIMULACRA2: 100 for equal pixels, less for less alike, with no lower end."""
    files = [io.BytesIO(), io.BytesIO()]
    for file, pixels in zip(files, (original, other), strict=True):
        Image.fromarray(pixels).save(file, "BMP")
    return float(compute_ssimulacra2(*files))


def window_around(box: tuple[int, int, int, int], width: int, height: int) -> tuple[slice, slice]:
    """Rows and columns of at most WINDOW_PX each: the region's middle, and of a small region some surroundings."""
    slices = []
    for first, last, limit in ((box[1], box[3], height), (box[0], box[2], width)):
        side = min(limit, WINDOW_PX, max(last - first, 64))
        start = min(max(0, (first + last - side) // 2), limit - side)
        slices.append(slice(start, start + side))
    return slices[0], slices[1]


def cost(likeness_: float, importance: float, area_share: float) -> float:
    """Of one region, 0..1. `importance` 0..1; `area_share`: its box's area over the photo's."""
    severity = float(np.clip((LOSSLESS - likeness_) / 100, 0, 1))
    return severity**0.7 * (0.45 + 0.55 * importance) * size_factor(area_share)


def size_factor(area_share: float) -> float:
    """How much of a cost a region of that share of the photo's area has, 0.4..1."""
    return 0.4 + 0.6 * min(1.0, area_share / 0.08) ** 0.5


def score(base: float, costs: Iterable[float]) -> float:
    """1..`base`."""
    return 1 + (base - 1) * float(np.prod([1 - c for c in costs]))
