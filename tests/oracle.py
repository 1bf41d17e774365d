"""The tile kernel's oracle: Pillow and NumPy, the slow and plain way; and pictures to try it on."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

Corners = tuple[int, int, int, int]


def resized(image: NDArray[np.uint8], box: Corners, size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).crop(box).resize(size, Image.Resampling.BICUBIC))


def planar(image: NDArray[np.uint8], box: Corners, size: tuple[int, int], table: NDArray[Any]) -> NDArray[Any]:
    pixels = resized(image, box, size)
    return np.stack([table[channel][pixels[:, :, channel]] for channel in range(3)])


def patched(planes: NDArray[Any], side: int, merge: int, repeats: int) -> NDArray[Any]:
    """Qwen2-VL's order, the way its processor gets there: repeat along time, cut, move the axes, flatten."""
    _, height, width = planes.shape
    rows, cols = height // side, width // side
    cut = np.broadcast_to(planes, (repeats, *planes.shape))
    cut = cut.reshape(1, repeats, 3, rows // merge, merge, side, cols // merge, merge, side)
    return cut.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(rows * cols, 3 * repeats * side * side)


def survey(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The map of qcheck/survey.py, (rows, columns, 8), from its words alone."""
    height, width = image.shape[:2]
    rows, columns = -(-height // 32), -(-width // 32)
    padded = np.pad(image, ((0, 32 * rows - height), (0, 32 * columns - width), (0, 0)), mode="edge").astype(np.int64)
    cells = padded.reshape(rows, 4, 8, columns, 32, 3)[:, :, 3:5]  # row, block, line of two, column, x, channel
    cells = cells.transpose(0, 3, 1, 2, 4, 5).reshape(rows, columns, 4, 2, 32, 3)
    red, green, blue = np.moveaxis(cells, -1, 0)
    luma = (77 * red + 150 * green + 29 * blue + 128) // 256
    samples = (2, 3, 4)
    steps = np.diff(luma, axis=-1)
    across = (steps**2).mean(samples)
    along = ((luma[:, :, :, 1] - luma[:, :, :, 0]) ** 2).mean((2, 3))
    lagged = ((luma[..., 4:] - luma[..., :-4]) ** 2).mean(samples)
    haar = luma[..., 0, 0::2] - luma[..., 0, 1::2] - luma[..., 1, 0::2] + luma[..., 1, 1::2]
    median = np.sort(np.minimum(np.abs(haar), 255).reshape(rows, columns, 64), -1)[..., 32]
    at_grid, between = np.abs(steps[..., 7::8]).mean(samples), np.abs(steps[..., 3::8]).mean(samples)
    largest = cells.max(-1)

    def scatter(values: NDArray[np.int64]) -> NDArray[np.float64]:
        """Variances times the square of the count: whole numbers, which no order of sums can change."""
        return (256 * (values**2).sum(samples) - values.sum(samples) ** 2).astype(np.float64)

    statistics = (
        luma.mean(samples),
        np.sqrt(scatter(luma)) / 256,
        across + along,
        median / 2 / 0.6745,
        (at_grid - between) / (at_grid + between + 1),
        ((largest <= 2) | (largest >= 253)).mean(samples),
        np.sqrt(scatter(red - green) + scatter(red + green - 2 * blue) / 4) / 256,
        across / (lagged + 1),
    )
    return np.stack(statistics, -1).astype(np.float32)


def assert_same(got: NDArray[Any], want: NDArray[Any], about: str = "") -> None:
    assert got.dtype == want.dtype
    assert got.shape == want.shape, about
    bits = np.dtype(f"u{want.dtype.itemsize}")
    bad = np.argwhere(got.view(bits) != np.ascontiguousarray(want).view(bits))
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        pytest.fail(f"{about}: {len(bad)} of {got.size} differ, first at {at}: {got[at]!r}, want {want[at]!r}")


def photo(height: int, width: int, seed: int = 0, kind: int = 0) -> NDArray[np.uint8]:
    """Noise, black and white (where weights overshoot most), or a gradient."""
    rng = np.random.default_rng(seed)
    if kind == 1:
        return (rng.integers(0, 2, (height, width, 3)) * 255).astype(np.uint8)
    if kind == 2:
        ramp = np.linspace(0, 255, height * width * 3).reshape(height, width, 3)
        return ramp.astype(np.uint8)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_box(rng: np.random.Generator, width: int, height: int) -> Corners:
    x1, y1 = int(rng.integers(0, width)), int(rng.integers(0, height))
    return x1, y1, int(rng.integers(x1 + 1, width + 1)), int(rng.integers(y1 + 1, height + 1))
