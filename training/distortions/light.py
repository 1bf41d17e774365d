"""KADID-10k's changes of tone and sharpness."""

import numpy as np
from numpy.typing import NDArray
from pixels import Pixels, luma, to_u8
from scipy.ndimage import gaussian_filter


def _curve(pixels: Pixels, middle: float) -> Pixels:
    """Through (0, 0), (0.5, `middle`) and (1, 1), as a parabola."""
    x = np.arange(256) / 255
    return to_u8(255 * (x + 4 * (middle - 0.5) * x * (1 - x)))[pixels]


def brighten(pixels: Pixels, amount: float, rng: np.random.Generator) -> Pixels:
    return _curve(pixels, 0.5 + amount / 2)


def darken(pixels: Pixels, amount: float, rng: np.random.Generator) -> Pixels:
    return _curve(pixels, 0.5 - amount / 2)


def mean_shift(pixels: Pixels, amount: float, rng: np.random.Generator) -> Pixels:
    return to_u8(pixels + 255 * amount * (1 if rng.random() < 0.5 else -1))


def contrast(pixels: Pixels, factor: float, rng: np.random.Generator) -> Pixels:
    """About mid-grey; half of the time flattened, half of the time as much steeper."""
    factor = factor if rng.random() < 0.5 else 1 / factor
    return to_u8(127.5 + factor * (pixels - 127.5))


def sharpen(pixels: Pixels, gain: float, rng: np.random.Generator) -> Pixels:
    return raised(pixels, gain, 3.0)


def raised(pixels: Pixels, gain: float, sigma_px: float) -> Pixels:
    """Unsharp masking of the luma alone."""
    grey = luma(pixels)
    added: NDArray[np.float32] = gain * (grey - gaussian_filter(grey, sigma_px, mode="nearest"))
    return to_u8(pixels + added[..., None])
