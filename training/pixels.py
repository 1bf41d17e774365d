"""Pixels in and out of linear light, and filters there. All pixels are (h, w, 3) uint8 sRGB, of any size from 1 x 1."""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import rotate
from scipy.signal import oaconvolve

Pixels = NDArray[np.uint8]
Kernel = NDArray[np.floating]

# sRGB's transfer function (IEC 61966-2-1), of 256 codes.
LINEAR: Final = np.where(
    np.arange(256) <= 10.31475, np.arange(256) / 255 / 12.92, ((np.arange(256) / 255 + 0.055) / 1.055) ** 2.4
)


def to_u8(values: NDArray[np.floating]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def codes(light: NDArray[np.floating]) -> NDArray[np.floating]:
    """Of light 0..1, not yet rounded; what is outside is clipped."""
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def from_linear(light: NDArray[np.floating]) -> Pixels:
    return to_u8(codes(light))


def luma(pixels: Pixels) -> NDArray[np.float32]:
    """(h, w) BT.601 luma, 0..255."""
    return pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def padded(values: NDArray[np.float32], pad: int) -> NDArray[np.float32]:
    """With `pad` more on each side: mirrored, or where there is too little to mirror, repeated."""
    mode = "reflect" if min(values.shape[:2]) > pad else "edge"
    return np.pad(values, ((pad, pad), (pad, pad), (0, 0)), mode=mode)


def filtered(pixels: Pixels, kernel: Kernel) -> Pixels:
    """Convolved in linear light, where lenses and shutters blur."""
    light = padded(LINEAR[pixels].astype(np.float32), kernel.shape[0] // 2)
    return from_linear(oaconvolve(light, kernel.astype(np.float32)[:, :, None], mode="valid", axes=(0, 1)))


def disk(radius_px: float) -> Kernel:
    """A defocus kernel: a disk with an antialiased rim, normalised; side 2*ceil(radius)+1."""
    half = math.ceil(radius_px)
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    kernel = np.clip(radius_px + 0.5 - np.hypot(x, y), 0, 1)
    return kernel / kernel.sum()


def line(length_px: int, angle_deg: float) -> Kernel:
    """A motion kernel: a straight line through the centre, normalised."""
    kernel = np.zeros((length_px | 1, length_px | 1))
    kernel[length_px // 2] = 1
    kernel = np.clip(rotate(kernel, angle_deg, reshape=False, order=1), 0, None)
    return kernel / kernel.sum()
