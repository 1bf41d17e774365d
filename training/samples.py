"""Cached samples: what was encoded by cache.py, read back, and what is known of each view."""

from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from cells import CELL_CHANNELS, CellStore
from damage import KINDS, Damage
from nano_spec import CELLS_PER_SIDE
from numpy.typing import NDArray

from qcheck.tiles import Box

UNKNOWN: Final = -100  # what cross-entropy leaves out
TOKEN_FILLED: Final = 0.4  # a token filled this much by a damage is damaged
TOKEN_TOUCHED: Final = 0.08
DAMAGE_INSIDE: Final = 0.3  # so is one that holds this much of a damage

Sample = dict[str, Any]
Item = tuple[Sample, NDArray[np.float16]]  # a sample and the mapped cells of its store


class Samples:
    """All cached samples of one kind, of every worker. A sample's `fold` is its worker: no two workers of cache.py
    share a source photo."""

    def __init__(self, cache: Path, kind: str, channels: int = CELL_CHANNELS) -> None:
        self.items: list[Item] = []
        for index in sorted(cache.glob(f"{kind}-*.jsonl")):
            store = CellStore(cache, index.stem, channels)
            cells = store.cells()
            fold = index.stem.rsplit("-", 1)[1]
            self.items += [({**sample, "fold": fold}, cells) for sample in store.samples()]

    def of(self, split: str) -> list[Item]:
        return [item for item in self.items if item[0]["split"] == split]

    def folds(self) -> list[str]:
        return sorted({item[0]["fold"] for item in self.items})


def read(item: Item, index: int) -> NDArray[np.float16]:
    """The cells (or tokens) of a sample's view, (rows, cols, channels)."""
    view = item[0]["views"][index]
    count = view["rows"] * view["cols"]
    return item[1][view["offset"] : view["offset"] + count].reshape(view["rows"], view["cols"], -1)


def damages(sample: Sample) -> list[Damage]:
    return [Damage(d["kind"], d["level"], tuple(d["box"])) for d in sample.get("defects", ())]


class TokenTruth(NamedTuple):
    """What is wrong with each token of a view, raster order. `kinds`: 0 clean, else 1 + index in KINDS; `levels`: 0..4;
    UNKNOWN where a damage touches a token but does not fill it, and for the level of clean ones. `boxes`: (tokens, 4)
    the visible part of the damage, 0..1 of the view, NaN where there is none."""

    kinds: NDArray[np.int64]
    levels: NDArray[np.int64]
    boxes: NDArray[np.float32]


def token_truth(rows: int, cols: int, box: Box, found: list[Damage]) -> TokenTruth:
    """`rows`, `cols`: tokens of a view that shows `box` (photo pixels)."""
    kinds, levels = np.zeros((rows, cols), np.int64), np.full((rows, cols), UNKNOWN)
    boxes = np.full((rows, cols, 4), np.nan, np.float32)
    x, y = (
        start + length * np.arange(n + 1) / n
        for start, length, n in ((box.x1, box.width, cols), (box.y1, box.height, rows))
    )
    token_area = (x[1] - x[0]) * (y[1] - y[0])
    for damage in found:
        x1, y1, x2, y2 = damage.box
        wide = np.clip(np.minimum(x[1:], x2) - np.maximum(x[:-1], x1), 0, None)
        high = np.clip(np.minimum(y[1:], y2) - np.maximum(y[:-1], y1), 0, None)
        area = high[:, None] * wide[None]
        filled = (area / token_area >= TOKEN_FILLED) | (area / ((x2 - x1) * (y2 - y1)) >= DAMAGE_INSIDE)
        touched = (area / token_area >= TOKEN_TOUCHED) | filled
        kinds[touched & ~filled & (kinds == 0)] = UNKNOWN
        kinds[filled], levels[filled] = 1 + KINDS.index(damage.kind), damage.level - 1
        boxes[touched] = np.clip(
            (
                (x1 - box.x1) / box.width,
                (y1 - box.y1) / box.height,
                (x2 - box.x1) / box.width,
                (y2 - box.y1) / box.height,
            ),
            0,
            1,
        )
    return TokenTruth(kinds.reshape(-1), levels.reshape(-1), boxes.reshape(-1, 4))


def tokens_of(cells: NDArray[np.float16]) -> tuple[int, int]:
    """Rows and columns of tokens of a view's cells."""
    return cells.shape[0] // CELLS_PER_SIDE, cells.shape[1] // CELLS_PER_SIDE


def eyes_file(run: Path, fold: str | None) -> Path:
    """Where perceive.py keeps its eyes: those that never saw a fold, or (None) those that saw all."""
    return run / (f"eyes-without-{fold}.pt" if fold else "eyes.pt")
