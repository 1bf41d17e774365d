from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Value = TypeVar("Value", np.float32, np.float16)

def render(
    image: NDArray[np.uint8],
    boxes: Sequence[tuple[int, int, int, int]],
    sizes: Sequence[tuple[int, int]],
    table: NDArray[Value],
    patches: tuple[int, int, int] | None = None,
    threads: int = 1,
    processor: str = "",
    survey: NDArray[np.float32] | None = None,
) -> NDArray[Value]:
    """Crops, resizes, normalises and lays out K tiles of `image` (H, W, 3) in one pass.

    Tile i is what `Image.crop(boxes[i]).resize(sizes[i], BICUBIC)` of Pillow 13 gives, to the bit, its bytes replaced
    by `table[channel][byte]`; `table`: (3, 256), its dtype is the result's. Boxes are x1, y1, x2, y2, half-open; sizes
    width, height. Without `patches`: (K, 3, height, width), all of one size. With `patches` (side, merge, repeats):
    Qwen2-VL's packed patches of all tiles, (n, 3 * repeats * side * side), blocks of merge x merge patches together,
    a still picture repeated along time.

    The image's rows may be any distance apart, its pixels must lie side by side; read-only will do. Releases the GIL
    and runs on `threads` threads. `processor`: one of `processors()`, for tests; the fastest if empty. `survey`:
    filled besides with the map of the whole image, (ceil(H / 32), ceil(W / 32), 8), see qcheck/survey.py. ValueError or
    TypeError for anything else.
    """

def processors() -> list[str]:
    """What this build can run on this machine, the fastest first."""

def render_cuda(
    image: Any,
    boxes: Sequence[tuple[int, int, int, int]],
    sizes: Sequence[tuple[int, int]],
    table: NDArray[Value],
    patches: tuple[int, int, int] | None = None,
    out: Any = None,
    stream: int = 0,
    survey: Any = None,
) -> Any:
    """As `render`, the same bits, on the GPU where `image` lies, all tiles in one launch. Only in builds with
    `-Ccmake.define.QCHECK_CUDA=ON`.

    `image`, `out`, `survey`: anything with `__dlpack__` (torch, CuPy, an ONNX Runtime OrtValue); the result is `out`'s
    memory or new, and has `__dlpack__`. `table` is NumPy's. `stream`: a cudaStream_t, on which the work is queued; the
    result is there when the stream is done. RuntimeError with CUDA's own words where CUDA fails.
    """

def cuda_devices() -> int:
    """How many GPUs this build can use now; 0 without a driver, or if it was built without CUDA."""
