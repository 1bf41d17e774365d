"""KADID-10k's noises, and what removing one leaves."""

import numpy as np
import pywt
from numpy.typing import NDArray
from pixels import Pixels, to_u8

_TO_YCBCR = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]  # JFIF, without its offsets
)
_FROM_YCBCR = np.linalg.inv(_TO_YCBCR)


def _normal(pixels: Pixels, rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.standard_normal(pixels.shape, dtype=np.float32)


def white(pixels: Pixels, variance: float, rng: np.random.Generator) -> Pixels:
    return to_u8(pixels + 255 * np.sqrt(variance) * _normal(pixels, rng))


def in_ycbcr(pixels: Pixels, variance: float, rng: np.random.Generator) -> Pixels:
    """White noise of each of Y, Cb and Cr: mostly of colour."""
    return to_u8(pixels + 255 * np.sqrt(variance) * _normal(pixels, rng) @ _FROM_YCBCR.T.astype(np.float32))


def impulse(pixels: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Salt and pepper, each sample for itself."""
    drawn = rng.random(pixels.shape, dtype=np.float32)
    return np.where(drawn < share / 2, 0, np.where(drawn < share, 255, pixels)).astype(np.uint8)


def speckle(pixels: Pixels, variance: float, rng: np.random.Generator) -> Pixels:
    """As strong as the light it sits on."""
    return to_u8(pixels * (1 + np.sqrt(variance) * _normal(pixels, rng)))


def denoised(pixels: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """White noise added and taken away with the texture, by soft thresholds on wavelets (Donoho and Johnstone, 1994): a
    smeared photo with a few ringing marks."""
    noisy = pixels + sigma * _normal(pixels, rng)
    height, width = pixels.shape[:2]
    deepest = pywt.dwt_max_level(min(height, width), "db2")
    if deepest < 1:
        return to_u8(noisy)
    coarse, *bands = pywt.wavedec2(noisy, "db2", level=min(4, deepest), axes=(0, 1))
    kept = [tuple(pywt.threshold(band, 2.5 * sigma, "soft") for band in level) for level in bands]
    return to_u8(pywt.waverec2([coarse, *kept], "db2", axes=(0, 1))[:height, :width])
