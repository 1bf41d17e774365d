"""M-RoPE positions (time, height, width), built turn by turn; equal to transformers' `get_rope_index` for stills.

Text advances all three together. An image of rows x cols tokens starts at the next free position: its tokens share
the time, and count rows and columns from there; text goes on after the larger of the two.
"""

import numpy as np
from numpy.typing import NDArray


def text_positions(start: int, count: int) -> tuple[NDArray[np.int64], int]:
    """(3, count) positions of `count` text tokens from `start`, and the next free position."""
    return np.broadcast_to(np.arange(start, start + count, dtype=np.int64), (3, count)), start + count


def image_positions(start: int, rows: int, cols: int) -> tuple[NDArray[np.int64], int]:
    """(3, rows*cols) positions of an image's tokens in raster order from `start`, and the next free position."""
    y, x = np.divmod(np.arange(rows * cols, dtype=np.int64), cols)
    return np.stack([np.full_like(y, start), start + y, start + x]), start + max(rows, cols)
