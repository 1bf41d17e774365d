"""Where people look: the image signature (Hou, Harel and Koch, "Image Signature: Highlighting Sparse Salient Regions",
2012), which keeps the signs of each channel's cosine transform and sees what stands out come back.

Another map can take its place: any function from (h, w, 3) uint8 to a map 0..1 of any size, named on the command line
of vista.py as MODULE:FUNCTION, for instance one that asks a stronger annotator.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pixels import Pixels
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2lab

LONG_SIDE: Final = 96  # of the map; the paper works at 64 px
SPREAD: Final = 0.045  # of the blur, of the long side, as in the paper
CENTRE: Final = 0.35  # how much lies in the middle anyway: photographers aim (Judd et al., 2009)

Importance = Callable[[Pixels], NDArray[np.float32]]


def image_signature(pixels: Pixels) -> NDArray[np.float32]:
    """(rows, columns) fp32 in 0..1: the share of places in the photo that matter no more than this one."""
    height, width = pixels.shape[:2]
    scale = LONG_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    lab = rgb2lab(np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX)))
    shown = sum(idctn(np.sign(dctn(lab[..., c], norm="ortho")), norm="ortho") ** 2 for c in range(3))
    map_ = gaussian_filter(shown, SPREAD * LONG_SIDE)
    y, x = (np.linspace(-1, 1, n) for n in size[::-1])
    middle = np.exp(-(y[:, None] ** 2 + x[None] ** 2) / 0.5)
    mixed = (1 - CENTRE) * map_ / max(float(map_.max()), 1e-12) + CENTRE * middle
    order = mixed.ravel().argsort(kind="stable").argsort(kind="stable")
    return (order / max(1, mixed.size - 1)).reshape(mixed.shape).astype(np.float32)


def mean_inside(map_: NDArray[np.float32], box: tuple[int, int, int, int], width: int, height: int) -> float:
    """The mean of a map of a whole photo in a part of it: x1, y1, x2, y2 in photo pixels."""
    rows, columns = map_.shape
    left, top = int(box[0] * columns / width), int(box[1] * rows / height)
    right, bottom = max(left + 1, -(-box[2] * columns // width)), max(top + 1, -(-box[3] * rows // height))
    return float(map_[top:bottom, left:right].mean())
