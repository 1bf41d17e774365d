"""A photo that tests make themselves."""

import numpy as np
from numpy.typing import NDArray


def photo(seed: int = 0, height: int = 512, width: int = 640) -> NDArray[np.uint8]:
    """Coloured shapes on a soft ground, with grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([90 + x * 60 / width, 120 - y * 50 / height, 100 + 20 * np.sin(x / 90)], 2)
    for _ in range(14):
        top, left = rng.integers(0, height), rng.integers(0, width)
        pixels[top : top + height // 5, left : left + width // 6] += rng.uniform(-80, 80, 3)
    return np.clip(pixels + rng.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8)
