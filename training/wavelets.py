"""Structure and texture of a photo, told apart by wavelets."""

from typing import Final

import numpy as np
import pywt
from numpy.typing import NDArray
from PIL import Image
from pixels import Pixels, luma

WAVELET: Final = "db2"
LEVELS: Final = 4  # halvings: what is finer than 16 px is texture
CELL_PX: Final = 32  # of an energy map


def structure(pixels: Pixels) -> NDArray[np.float32]:
    """(h, w, 3) what the coarsest approximation alone makes of a photo."""
    values = pixels.astype(np.float32)
    height, width = pixels.shape[:2]
    deepest = min(LEVELS, pywt.dwt_max_level(min(height, width), WAVELET))
    if deepest < 1:
        return values
    coarse, *bands = pywt.wavedec2(values, WAVELET, level=deepest, axes=(0, 1))
    flat = [tuple(np.zeros_like(band) for band in level) for level in bands]
    whole: NDArray[np.float32] = pywt.waverec2([coarse, *flat], WAVELET, axes=(0, 1))
    return whole[:height, :width]


def with_texture_of(pixels: Pixels, other: Pixels) -> NDArray[np.float32]:
    """(h, w, 3) a photo's structure with another's texture, so that a broken place cannot be told by its mean."""
    return other - structure(other) + structure(pixels)


def texture_energy(pixels: Pixels) -> NDArray[np.float32]:
    """(rows, columns) of cells of CELL_PX: the root mean square of the finest two levels' detail, 8-bit steps."""
    grey = luma(pixels)
    energy = np.zeros((-(-grey.shape[0] // CELL_PX), -(-grey.shape[1] // CELL_PX)), np.float32)
    for _ in range(2):
        if min(grey.shape) < 2:
            break
        grey, bands = pywt.dwt2(grey, WAVELET)
        squares = Image.fromarray(sum(band**2 for band in bands).astype(np.float32))
        energy += np.asarray(squares.resize(energy.shape[::-1], Image.Resampling.BOX))
    return np.sqrt(energy)
