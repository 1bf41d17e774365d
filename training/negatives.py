"""Scenes that look broken and are not, made of clean photos. Each takes and returns (h, w, 3) uint8 sRGB.

Their softness, darkness and smoothness is what a photographer meant; a model that reports it as a defect is wrong.
"""

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from importance import Importance
from numpy.typing import NDArray
from PIL import Image
from pixels import LINEAR, Pixels, codes, disk, filtered, from_linear, to_u8
from scipy.ndimage import uniform_filter1d
from wavelets import texture_energy

SMOOTH: Final = "smooth"  # a clean photo that is mostly sky, water or wall: see texture_of
BOKEH: Final = ("bokeh", "panned")  # natural blur: what is taken for defocus
Negative = Callable[[Pixels, Importance, np.random.Generator], Pixels]


def clean(pixels: Pixels, importance: Importance, rng: np.random.Generator) -> Pixels:
    return pixels


def bokeh(pixels: Pixels, importance: Importance, rng: np.random.Generator) -> Pixels:
    """A shallow depth of field: sharp around what matters most, ever softer away from it, highlights as disks."""
    away = _away_from_subject(pixels, importance, rng)
    radius = rng.uniform(0.004, 0.012) * max(pixels.shape[:2])
    out = pixels
    for step, begin in ((0.25, 0.0), (0.5, 0.25), (1.0, 0.5)):
        share = np.clip((away - begin) / 0.25, 0, 1)[..., None]
        out = _mixed(out, _softened(pixels, radius * step), share)
    return out


def panned(pixels: Pixels, importance: Importance, rng: np.random.Generator) -> Pixels:
    """The camera followed its subject: all else is drawn out sideways."""
    away = _away_from_subject(pixels, importance, rng)
    length = max(3, int(rng.uniform(0.012, 0.04) * pixels.shape[1]))
    drawn = from_linear(uniform_filter1d(LINEAR[pixels].astype(np.float32), length, axis=1, mode="nearest"))
    return _mixed(pixels, drawn, np.clip(away / 0.3, 0, 1)[..., None])


def low_key(pixels: Pixels, importance: Importance, rng: np.random.Generator) -> Pixels:
    """Little light on purpose, less towards the edges; what matters keeps its light."""
    away = _away_from_subject(pixels, importance, rng)
    light = rng.uniform(0.5, 0.8) * (1 - rng.uniform(0.6, 0.85) * away)
    darkened = codes(LINEAR[pixels].astype(np.float32) * light[..., None].astype(np.float32))
    # Dithered, because the steps of a dark sky would show as rings.
    return to_u8(darkened + rng.random(pixels.shape, dtype=np.float32) - 0.5)


NEGATIVES: Final[dict[str, Negative]] = {
    "clean": clean,
    "bokeh": bokeh,
    "panned": panned,
    "low_key": low_key,
    SMOOTH: clean,
}


def texture_of(pixels: Pixels) -> float:
    """What most of a photo's places have no more of: small where it is mostly smooth."""
    return float(np.median(texture_energy(pixels)))


def _away_from_subject(pixels: Pixels, importance: Importance, rng: np.random.Generator) -> NDArray[np.float32]:
    """(h, w) 0 on the subject to 1 far from it: an ellipse around the most important place, with a wide ramp."""
    height, width = pixels.shape[:2]
    map_ = importance(pixels)
    row, column = np.unravel_index(int(map_.argmax()), map_.shape)
    middle = ((row + 0.5) / map_.shape[0], (column + 0.5) / map_.shape[1])
    reach = rng.uniform(0.16, 0.3, 2)
    y, x = (
        (np.arange(n, dtype=np.float32) / n - m) / r for n, m, r in zip((height, width), middle, reach, strict=True)
    )
    return np.clip((np.hypot(y[:, None], x[None]) - 1) / 1.4, 0, 1).astype(np.float32)


def _softened(pixels: Pixels, radius_px: float) -> Pixels:
    """Defocused; by a large radius in a smaller picture, where it looks the same and costs little."""
    factor = 2 ** max(0, math.floor(math.log2(max(radius_px, 1) / 4)))
    height, width = pixels.shape[:2]
    small = Image.fromarray(pixels).resize((-(-width // factor), -(-height // factor)), Image.Resampling.BOX)
    soft = filtered(np.asarray(small), disk(max(0.5, radius_px / factor)))
    return np.asarray(Image.fromarray(soft).resize((width, height), Image.Resampling.BICUBIC))


def _mixed(pixels: Pixels, other: Pixels, share: NDArray[np.float32]) -> Pixels:
    """A share of another's light. In 8 bits: a rounding step does not show where both are smooth."""
    mixed = pixels + share * (other.astype(np.float32) - pixels)
    return np.rint(mixed).astype(np.uint8)
