"""What a vision graph is given of a view, in the layout that the contract names."""

import numpy as np
from numpy.typing import NDArray

from qcheck import tiles
from qcheck.contract import PIXELS, PixelSpec
from qcheck.windows import PATCHES, Layout

Inputs = dict[str, NDArray[np.generic]]


def vision_inputs(
    spec: PixelSpec,
    pixels: NDArray[np.uint8],
    view: tiles.View,
    table: NDArray[np.float32],
    threads: int,
    survey: NDArray[np.float32] | None = None,
) -> Inputs:
    """By the names of the graph's inputs, all but the survey: a view of the photo `pixels` (H, W, 3), normalised by
    `table`. `survey`: an empty map to fill on the way, see tiles.planar."""
    patches = spec.patches
    if patches is None:
        return {PIXELS: tiles.planar(pixels, [view], table, threads, survey)}
    grid = (view.height // patches.patch_px, view.width // patches.patch_px)
    layout = Layout.of([grid], patches.merge, patches.window_tokens)
    return {PATCHES: tiles.packed(pixels, [view], table, patches.patch_px, patches.merge, threads), **layout.inputs()}
