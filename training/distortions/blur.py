"""KADID-10k's three blurs, in linear light."""

import numpy as np
from pixels import Pixels, disk, filtered, line


def gaussian(pixels: Pixels, sigma_px: float, rng: np.random.Generator) -> Pixels:
    half = max(1, round(3 * sigma_px))
    bell = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * sigma_px**2))
    kernel = np.outer(bell, bell)
    return filtered(pixels, kernel / kernel.sum())


def lens(pixels: Pixels, radius_px: float, rng: np.random.Generator) -> Pixels:
    return filtered(pixels, disk(radius_px))


def motion(pixels: Pixels, length_px: float, rng: np.random.Generator) -> Pixels:
    """In a straight line, any way."""
    return filtered(pixels, line(round(length_px), rng.uniform(0, 180)))
