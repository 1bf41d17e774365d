"""Which patches of a view attend to each other, as a vision graph of patches takes it; made on the host, of numpy
alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Names of the vision graph's tensors beside its output, `image_tokens`.
PATCHES: Final = "patches"  # (patches, channels * patch_px^2) float32, normalised; by channel, row, column
PATCH_POSITIONS: Final = "patch_positions"  # (patches, 2) int64: row and column in the own image, in patches
WINDOWS: Final = "windows"  # prefix of the segments of blocks with window attention
IMAGES: Final = "images"  # prefix of the segments of blocks where whole images attend

INDEX: Final = "index"  # (segments, longest) int64: the patches of each segment; 0 where it is shorter
MASK: Final = "mask"  # (segments, longest) bool: which of these are meant
PLACE: Final = "place"  # (patches,) int64: where in the flattened index each patch stands


@dataclass(frozen=True, slots=True)
class Segments:
    """Patches in groups of different sizes, padded to the longest."""

    index: NDArray[np.int64]
    mask: NDArray[np.bool_]
    place: NDArray[np.int64]

    @classmethod
    def of(cls, groups: NDArray[np.int64]) -> "Segments":
        """`groups`: (patches,) the number of each patch's group, from 0 without gaps."""
        sizes = np.bincount(groups)
        order = np.argsort(groups, kind="stable")
        groups = groups[order]
        within = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[groups]
        index = np.zeros((len(sizes), sizes.max()), np.int64)
        index[groups, within] = order
        place = np.empty_like(order)
        place[order] = groups * index.shape[1] + within
        return cls(index, np.arange(index.shape[1]) < sizes[:, None], place)

    def inputs(self, prefix: str) -> dict[str, NDArray[np.generic]]:
        """By the names of the graph's inputs."""
        return {f"{prefix}.{INDEX}": self.index, f"{prefix}.{MASK}": self.mask, f"{prefix}.{PLACE}": self.place}


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the patches of any number of stills lie, and which attend to each other.

    Patches come image by image, and in an image token by token in raster order, each token's merge x merge patches
    together, row by row: the order of Qwen's processor.
    """

    positions: NDArray[np.int64]
    windows: Segments
    images: Segments

    @classmethod
    def of(cls, grids: Sequence[tuple[int, int]], merge: int, window_tokens: int) -> "Layout":
        """`grids`: rows and columns of each image in patches; `merge`: patches a side of a token; `window_tokens`: side
        of a window. Raises ValueError for no image, or one that is not whole tokens."""
        positions, windows, images = list[NDArray[np.int64]](), list[NDArray[np.int64]](), list[NDArray[np.int64]]()
        before = 0  # windows of the images so far
        for number, (rows, cols) in enumerate(grids):
            if min(rows, cols) < merge or rows % merge or cols % merge:
                raise ValueError(f"{rows} x {cols} patches are not whole tokens of {merge} x {merge}")
            token, part = np.divmod(np.arange(rows * cols), merge**2)
            row, col = np.divmod(token, cols // merge)
            positions.append(np.stack((row * merge + part // merge, col * merge + part % merge), 1))
            across = -(-cols // (merge * window_tokens))
            windows.append(before + row // window_tokens * across + col // window_tokens)
            images.append(np.full(rows * cols, number))
            before = int(windows[-1].max()) + 1
        if not positions:
            raise ValueError("no image")
        return cls(np.concatenate(positions), Segments.of(np.concatenate(windows)), Segments.of(np.concatenate(images)))

    def inputs(self) -> dict[str, NDArray[np.generic]]:
        """All inputs of the vision graph but the patches."""
        return {PATCH_POSITIONS: self.positions, **self.windows.inputs(WINDOWS), **self.images.inputs(IMAGES)}
