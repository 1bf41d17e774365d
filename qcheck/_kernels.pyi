import numpy as np
from numpy.typing import NDArray

def planarize(image: NDArray[np.uint8], table: NDArray[np.float32]) -> NDArray[np.float32]:
    """(3, H, W) float32 from `image` (H, W, 3): table[c][image[y][x][c]], with `table` (3, 256).

    Both C-contiguous, read-only will do; releases the GIL. TypeError for a wrong dtype, ValueError for a wrong shape,
    layout or an empty image.
    """
