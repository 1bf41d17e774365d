"""The survey: what a photo is like in every cell of 32 x 32 of its own pixels, in the same pass that makes its view.

A view of half a megapixel has averaged away what a faint damage does to an 8 megapixel photo; a model that is to look
there must have seen a trace of it. Eight plain statistics a cell keep that trace. They are computed from a quarter of
the lines: two of every eight, the middle ones, so that JPEG's grid never lies between them. Luma is
(77 R + 150 G + 29 B + 128) // 256. In the order of a map's last axis:

- **luma**: mean, 0..255
- **spread**: standard deviation of luma
- **gradient**: mean square of the steps to the right, plus that of the steps down within a pair of lines
- **noise**: median size of the diagonal Haar coefficients of 2 x 2 pixels over 0.6745, a standard deviation (Donoho and
  Johnstone 1994)
- **blockiness**: mean step across JPEG's columns (a) against that half-way between them (b), (a - b) / (a + b + 1)
  (after Wang, Sheikh and Bovik 2002)
- **clipped**: share of samples whose largest channel is at most 2 or at least 253
- **chroma**: root of the variances of R - G and of (R + G) / 2 - B together (Hasler and Suesstrunk 2003)
- **sharpness**: mean square of the step to the next pixel over that to the fourth plus 1, a ratio of two points of the
  structure function (Kolmogorov 1941)

Noise keeps `sharpness` near 1, blur brings it towards 0; neither depends much on contrast.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from qcheck.tiles import Box

CELL_PX: Final = 32
STATISTICS: Final = ("luma", "spread", "gradient", "noise", "blockiness", "clipped", "chroma", "sharpness")


def empty_map(width: int, height: int) -> NDArray[np.float32]:
    """A map for a photo of `width` x `height` pixels, (rows, columns, 8), for the kernel to fill. Cells that the
    photo's edge cuts are as if its last line and column went on."""
    return np.empty((-(-height // CELL_PX), -(-width // CELL_PX), len(STATISTICS)), np.float32)


def under(survey: NDArray[np.float32], box: Box) -> NDArray[np.float32]:
    """The cells that a part of the photo touches, (1, rows, columns, 8), as a vision graph takes them."""
    rows, columns = (
        slice(first // CELL_PX, -(-last // CELL_PX)) for first, last in ((box.y1, box.y2), (box.x1, box.x2))
    )
    return np.ascontiguousarray(survey[None, rows, columns])
