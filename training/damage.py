"""Local degradations: how a clean photo is broken in one place, with the truth kept.

Every degradation takes and returns (h, w, 3) uint8 sRGB and a level 1..5 whose parameters stand in one table below.
The tables are ours, set by eye so that level 1 is just visible at full resolution and level 5 cannot be missed; blur
radii, noise deviations and JPEG qualities span the ranges of KADID-10k's five levels.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from pixels import LINEAR, Pixels, disk, filtered, from_linear, line, to_u8
from scipy.ndimage import convolve1d, gaussian_filter

Degradation = Callable[[Pixels, int, np.random.Generator], Pixels]

DEFOCUS_RADIUS_PX: Final = (1.6, 2.6, 4.2, 6.8, 11.0)
MOTION_LENGTH_PX: Final = (5, 9, 15, 25, 41)
NOISE_SIGMA: Final = (7.0, 12.0, 19.0, 29.0, 44.0)  # of 255
JPEG_QUALITY: Final = (34, 22, 14, 9, 5)
PIXEL_BLOCK_PX: Final = (2, 3, 5, 8, 13)
SHARPEN_AMOUNT: Final = (1.2, 2.2, 3.6, 5.6, 9.0)
OVER_GAIN: Final = (1.4, 1.8, 2.4, 3.2, 4.5)  # in linear light
UNDER_GAIN: Final = (0.6, 0.42, 0.28, 0.18, 0.1)
COLOR_SHIFT: Final = (14.0, 24.0, 38.0, 56.0, 80.0)  # of 255, opposite ways in two channels


def defocus(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    return filtered(pixels, disk(DEFOCUS_RADIUS_PX[level - 1] * rng.uniform(0.9, 1.1)))


def motion_blur(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    return filtered(pixels, line(MOTION_LENGTH_PX[level - 1], rng.uniform(0, 180)))


def noise(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Gaussian noise, half of the time stronger in the shadows (as after a tone curve) and sometimes blotchy."""
    sigma = NOISE_SIGMA[level - 1] * rng.uniform(0.9, 1.1)
    shape = pixels.shape if rng.random() < 0.7 else (*pixels.shape[:2], 1)  # colour or luminance noise
    grain = rng.standard_normal(shape, dtype=np.float32)
    if rng.random() < 0.3:
        grain = gaussian_filter(grain, (0.7, 0.7, 0))
        grain /= grain.std() + 1e-6
    strength = 1.3 - 0.6 * pixels.mean(2, keepdims=True) / 255 if rng.random() < 0.5 else 1.0
    return to_u8(pixels + sigma * strength * grain)


def compression(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    buffer = io.BytesIO()
    quality = JPEG_QUALITY[level - 1] + int(rng.integers(-1, 2))
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=2)
    return np.asarray(Image.open(buffer).convert("RGB"))


def pixelation(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    block = PIXEL_BLOCK_PX[level - 1]
    height, width = pixels.shape[:2]
    small = Image.fromarray(pixels).resize((max(1, width // block), max(1, height // block)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST))


def oversharpen(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    sharp = ImageFilter.UnsharpMask(
        radius=rng.uniform(1.2, 2.0), percent=int(100 * SHARPEN_AMOUNT[level - 1]), threshold=0
    )
    return np.asarray(Image.fromarray(pixels).filter(sharp))


def overexposure(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    return from_linear(LINEAR[pixels] * (OVER_GAIN[level - 1] * rng.uniform(0.95, 1.05)))


def underexposure(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    return from_linear(LINEAR[pixels] * (UNDER_GAIN[level - 1] * rng.uniform(0.95, 1.05)))


def color(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    shift = np.zeros(3)
    up, down = rng.permutation(3)[:2]
    shift[up], shift[down] = COLOR_SHIFT[level - 1], -COLOR_SHIFT[level - 1] * rng.uniform(0.3, 1)
    return to_u8(pixels + shift)


BANK: Final[dict[str, Degradation]] = {
    "defocus": defocus,
    "motion_blur": motion_blur,
    "noise": noise,
    "compression": compression,
    "pixelation": pixelation,
    "oversharpen": oversharpen,
    "overexposure": overexposure,
    "underexposure": underexposure,
    "color": color,
}
KINDS: Final = tuple(BANK)
# What each kind takes from which attribute; the others stay untouched.
ATTRIBUTE_OF: Final = {
    "defocus": "sharpness",
    "motion_blur": "sharpness",
    "oversharpen": "sharpness",
    "pixelation": "sharpness",
    "noise": "noise",
    "compression": "compression",
    "overexposure": "exposure",
    "underexposure": "exposure",
    "color": "color",
}
ATTRIBUTES: Final = ("sharpness", "noise", "color", "exposure", "compression")
# These change nothing where the photo is smooth, so their places are drawn from the textured part.
NEED_TEXTURE: Final = frozenset({"defocus", "motion_blur", "pixelation", "oversharpen", "compression"})


@dataclass(frozen=True, slots=True)
class Damage:
    """One damaged region. `box`: x1, y1, x2, y2 in photo pixels, half-open; `level` 1..5."""

    kind: str
    level: int
    box: tuple[int, int, int, int]


def soft_mask(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(height, width) float32 in 0..1: a superellipse that reaches its box at half strength, with a soft rim."""
    power = rng.uniform(2, 6)
    y = np.abs(np.linspace(-1, 1, height))[:, None] ** power
    x = np.abs(np.linspace(-1, 1, width))[None] ** power
    rim = rng.uniform(0.08, 0.3)
    distance = (x + y) ** (1 / power)  # 1 on the rim
    return np.clip((1 + rim / 2 - distance) / rim, 0, 1).astype(np.float32)


def texture(gray: NDArray[np.floating]) -> float:
    """Mean absolute gradient of a (h, w) grey patch, in 8-bit steps a pixel."""
    return float(
        np.abs(convolve1d(gray, [0.5, 0, -0.5], axis=0)).mean()
        + np.abs(convolve1d(gray, [0.5, 0, -0.5], axis=1)).mean()
    )


MIN_TEXTURE: Final = 3.0
MIN_CHANGE: Final = 1.2  # mean absolute change inside the mask, 8-bit steps: below it nobody sees the damage


def damage(
    pixels: Pixels,
    kind: str,
    level: int,
    rng: np.random.Generator,
    *,
    size: tuple[float, float],
    avoid: list[Damage],
    tries: int = 30,
) -> Damage | None:
    """Damages one region of `pixels` (H, W, 3; changed in place) and says where, or None if no place suits.

    `size`: least and greatest side of the region as a share of the photo's sides (log-uniform). Regions of `avoid`
    are not touched.
    """
    height, width = pixels.shape[:2]
    for _ in range(tries):
        w, h = (int(side * math.exp(rng.uniform(math.log(size[0]), math.log(size[1])))) for side in (width, height))
        w, h = max(w, 48), max(h, 48)
        if w >= width or h >= height:
            continue
        x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
        if any(x < d.box[2] and d.box[0] < x + w and y < d.box[3] and d.box[1] < y + h for d in avoid):
            continue
        patch = pixels[y : y + h, x : x + w]
        if kind in NEED_TEXTURE and texture(patch[::2, ::2].mean(2)) < MIN_TEXTURE:
            continue
        mask = soft_mask(h, w, rng)[:, :, None]
        mixed = to_u8(patch + mask * (BANK[kind](np.ascontiguousarray(patch), level, rng).astype(np.float32) - patch))
        if np.abs(mixed.astype(np.int16) - patch).mean() < MIN_CHANGE:
            continue
        patch[:] = mixed
        return Damage(kind, level, (x, y, x + w, y + h))
    return None


CLEAN_SCORE: Final = 4.6
WORST_SCORE: Final = 1.0


def score_drop(level: int, area_share: float) -> float:
    """Points a damaged region takes from a photo's score: grows with its level and its share of the photo's area.

    A proxy of our own, not a human rating: level 5 over 8% of the photo or more costs 3.4 points.
    """
    return 3.4 * (level / 5) ** 0.9 * (0.5 + 0.5 * math.sqrt(min(1.0, area_share / 0.08)))


def damaged_score(clean: float, damages: list[Damage], width: int, height: int) -> float:
    """The score of a photo of `clean` score after its damages: the worst counts in full, each further one a third."""
    drops = sorted(
        (score_drop(d.level, (d.box[2] - d.box[0]) * (d.box[3] - d.box[1]) / (width * height)) for d in damages),
        reverse=True,
    )
    return max(WORST_SCORE, clean - sum(drop if i == 0 else drop / 3 for i, drop in enumerate(drops)))
