"""KADID-10k's moved, lost and strange pixels."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pixels import Pixels, to_u8
from scipy.ndimage import map_coordinates

KADID_AREA_PX = 512 * 384  # of its photos: what it counts a photo is counted a patch of that size here


def jitter(pixels: Pixels, deviation_px: float, rng: np.random.Generator) -> Pixels:
    """Every pixel taken from a little beside it."""
    height, width = pixels.shape[:2]
    places = np.indices((height, width)) + deviation_px * rng.standard_normal((2, height, width))
    channels = [map_coordinates(pixels[..., c].astype(np.float32), places, order=1, mode="nearest") for c in range(3)]
    return to_u8(np.stack(channels, 2))


def _counted(pixels: Pixels, number: float) -> int:
    return max(1, round(number * pixels.shape[0] * pixels.shape[1] / KADID_AREA_PX))


def _corners(pixels: Pixels, count: int, side: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Of squares inside; the first of any number are always the same."""
    room = np.maximum(np.array(pixels.shape[:2]) - side, 0)
    return (rng.random((count, 2)) * (room + 1)).astype(np.int64)


def patches(pixels: Pixels, number: float, rng: np.random.Generator) -> Pixels:
    """Squares of 16 px copied to a place near by (KADID's non-eccentricity patches)."""
    out, side = pixels.copy(), 16
    count = _counted(pixels, number)
    moves = rng.spawn(1)[0].integers(-side // 2, side // 2 + 1, (count, 2))
    room = np.maximum(np.array(pixels.shape[:2]) - side, 0)
    for corner, move in zip(_corners(pixels, count, side, rng), moves, strict=True):
        y, x = np.clip(corner + move, 0, room)
        source = pixels[corner[0] : corner[0] + side, corner[1] : corner[1] + side]
        out[y : y + source.shape[0], x : x + source.shape[1]] = source
    return out


def color_blocks(pixels: Pixels, number: float, rng: np.random.Generator) -> Pixels:
    """Squares of 32 px of one colour."""
    out, side = pixels.copy(), 32
    count = _counted(pixels, number)
    colors = rng.spawn(1)[0].integers(0, 256, (count, 3))
    for (y, x), color in zip(_corners(pixels, count, side, rng), colors, strict=True):
        out[y : y + side, x : x + side] = color
    return out


def pixelate(pixels: Pixels, block_px: float, rng: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    size = (max(1, round(width / block_px)), max(1, round(height / block_px)))
    small = Image.fromarray(pixels).resize(size, Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST))
