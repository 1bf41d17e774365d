"""A photo as the vision graph sees it: what the graph is given of each view, in the layout that the contract names.

Of a photo as a whole two things are found once, with its first view, and go with every later one: its survey
(survey.py) and, where the contract has an overview, its score as a whole. That is read from a small picture of all of
it, so that it does not hang on how many pixels there are; a photo whose view is no larger is judged by its view.
"""

import time

import numpy as np
from numpy.typing import NDArray

from qcheck import survey, tiles
from qcheck.backends import Backend
from qcheck.contract import GLANCED, IMAGE_TOKENS, JUDGED, KNOWN, PIXELS, SURVEY, Contract, PixelSpec
from qcheck.spent import Spent, ms_since
from qcheck.windows import PATCHES, Layout

Inputs = dict[str, NDArray[np.generic]]


class Sight:
    """One photo's views as image tokens. `spent`: where the time it takes is added."""

    def __init__(
        self, contract: Contract, backend: Backend, table: NDArray[np.float32], threads: int, spent: Spent
    ) -> None:
        """`table`: of tiles.normalise_table; `threads`: that cut tiles."""
        self.contract, self.backend, self.spent = contract, backend, spent
        self._table, self._threads = table, threads
        self._survey: NDArray[np.float32] | None = None
        self._judged: NDArray[np.float32] | None = None

    def tokens(self, pixels: NDArray[np.uint8], view: tiles.View) -> NDArray[np.float32]:
        """(tokens, hidden) of a view of the photo `pixels` (H, W, 3); the first one shows all of it."""
        clock, spec = time.perf_counter(), self.contract.pixels
        inputs = self._inputs(pixels, view)
        self.spent.tiles += ms_since(clock)
        if spec.overview is not None and self._judged is None:
            clock = time.perf_counter()
            small = tiles.view_of(view.box, spec.overview)
            if small.size != view.size:
                given = vision_inputs(spec, pixels, small, self._table, self._threads)
                self.spent.tiles += ms_since(clock)
                self._encoded(given, small)
        return self._encoded(inputs, view)

    def _inputs(self, pixels: NDArray[np.uint8], view: tiles.View) -> Inputs:
        spec, to_fill = self.contract.pixels, None
        if spec.survey and self._survey is None:
            self._survey = to_fill = survey.empty_map(pixels.shape[1], pixels.shape[0])
        return vision_inputs(spec, pixels, view, self._table, self._threads, to_fill)

    def _encoded(self, inputs: Inputs, view: tiles.View) -> NDArray[np.float32]:
        clock, contract = time.perf_counter(), self.contract
        if self._survey is not None:
            inputs[SURVEY] = survey.under(self._survey, view.box)
        if contract.pixels.overview is not None:
            known, one = self._judged, contract.pixels.overview.token_px
            inputs[KNOWN] = np.zeros((1, 1), np.float32) if known is None else known
            inputs[GLANCED] = inputs[PIXELS] if known is None else np.zeros((1, 3, one, one), np.float32)
        seen = self.backend.encode(inputs)
        self._judged = seen.get(JUDGED)
        self.spent.vision += ms_since(clock)
        return seen[IMAGE_TOKENS]


def vision_inputs(
    spec: PixelSpec,
    pixels: NDArray[np.uint8],
    view: tiles.View,
    table: NDArray[np.float32],
    threads: int,
    survey: NDArray[np.float32] | None = None,
) -> Inputs:
    """By the names of the graph's inputs, those that are made of pixels: a view of the photo `pixels` (H, W, 3),
    normalised by `table`. `survey`: an empty map to fill on the way, see tiles.planar."""
    patches = spec.patches
    if patches is None:
        return {PIXELS: tiles.planar(pixels, [view], table, threads, survey)}
    grid = (view.height // patches.patch_px, view.width // patches.patch_px)
    layout = Layout.of([grid], patches.merge, patches.window_tokens)
    return {PATCHES: tiles.packed(pixels, [view], table, patches.patch_px, patches.merge, threads), **layout.inputs()}
