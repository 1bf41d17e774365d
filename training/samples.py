"""What is known of each view of a sample."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from defects import CLEAN_SCORE, PHOTOS, Defect
from nano_spec import CELLS_PER_SIDE
from numpy.typing import NDArray
from stores import Sample
from vista_score import score, size_factor

from qcheck.tiles import Box

UNKNOWN: Final = -100  # what cross-entropy leaves out
TOKEN_FILLED: Final = 0.4  # a token filled this much by a defect is damaged
TOKEN_TOUCHED: Final = 0.08
DAMAGE_INSIDE: Final = 0.3  # so is one that holds this much of a defect
FOLDS: Final = "folds.json"  # beside eyes: the fold of every training photo, by file name
WINDOW_ROLE: Final = "window"  # of a part of a small photo, which stands for a crop
SEEN_SHARE: Final = 0.25  # a crop that holds less than this of a damage does not show it


def defects_of(sample: Sample) -> list[Defect]:
    """The known ones, the costliest first."""
    return [Defect(d["kind"], d["level"], tuple(d["box"]), d["cost"]) for d in sample.get("defects", ())]


class TokenTruth(NamedTuple):
    """What is wrong with each token of a view, raster order. `kinds`: 0 clean, else 1 + index in the domain's kinds;
    `levels`: 0..4; UNKNOWN where a defect touches a token but does not fill it, and for the level of clean ones.
    `severities`: of the defect, NaN where none fills a token. `boxes`: (tokens, 4) the visible part of the defect, 0..1
    of the view, NaN where there is none."""

    kinds: NDArray[np.int64]
    levels: NDArray[np.int64]
    severities: NDArray[np.float32]
    boxes: NDArray[np.float32]

    @property
    def edge_alone(self) -> bool:
        """Whether the view shows the edge of a damage and fills no token with any: neither clean nor broken."""
        return bool((self.kinds != 0).any() and not (self.kinds > 0).any())


def severity(found: Defect, photo_px: int) -> float:
    """What a defect costs a photo of `photo_px` pixels, less its size (vista_score.py), 0..1."""
    x1, y1, x2, y2 = found.box
    return min(1.0, found.cost / size_factor((x2 - x1) * (y2 - y1) / photo_px))


def token_truth(rows: int, cols: int, box: Box, sample: Sample, names: tuple[str, ...] = PHOTOS.kinds) -> TokenTruth:
    """`rows`, `cols`: tokens of a view that shows `box` (photo pixels) of a sample; `names`: of the kinds."""
    found = defects_of(sample)
    kinds, levels = np.zeros((rows, cols), np.int64), np.full((rows, cols), UNKNOWN)
    severities = np.full((rows, cols), np.nan, np.float32)
    boxes = np.full((rows, cols, 4), np.nan, np.float32)
    x, y = (
        start + length * np.arange(n + 1) / n
        for start, length, n in ((box.x1, box.width, cols), (box.y1, box.height, rows))
    )
    token_area = (x[1] - x[0]) * (y[1] - y[0])
    for defect in found:
        x1, y1, x2, y2 = defect.box
        wide = np.clip(np.minimum(x[1:], x2) - np.maximum(x[:-1], x1), 0, None)
        high = np.clip(np.minimum(y[1:], y2) - np.maximum(y[:-1], y1), 0, None)
        area = high[:, None] * wide[None]
        filled = (area / token_area >= TOKEN_FILLED) | (area / ((x2 - x1) * (y2 - y1)) >= DAMAGE_INSIDE)
        touched = (area / token_area >= TOKEN_TOUCHED) | filled
        kinds[touched & ~filled & (kinds == 0)] = UNKNOWN
        kinds[filled], levels[filled] = 1 + names.index(defect.kind), defect.level - 1
        severities[filled] = severity(defect, sample["width"] * sample["height"])
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
    return TokenTruth(kinds.reshape(-1), levels.reshape(-1), severities.reshape(-1), boxes.reshape(-1, 4))


def overlap(a: Box, b: Box) -> Box | None:
    x1, y1, x2, y2 = max(a.x1, b.x1), max(a.y1, b.y1), min(a.x2, b.x2), min(a.y2, b.y2)
    return Box(x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def holds(found: Defect, box: Box) -> bool:
    """Whether a part of the photo shows a good part of a damage, or is filled by it, however little of it that is."""
    part = overlap(Box(*found.box), box)
    return part is not None and part.area >= SEEN_SHARE * min(Box(*found.box).area, box.area)


def toll_of(sample: Sample, box: Box) -> float | None:
    """The score of a clean photo with the damages that a part of the sample shows; None if it only shows the edge of
    one, for that is neither seen nor absent."""
    seen = [found for found in defects_of(sample) if overlap(Box(*found.box), box)]
    return score(CLEAN_SCORE, [found.cost for found in seen]) if all(holds(found, box) for found in seen) else None


def tokens_of(cells: NDArray[np.float16]) -> tuple[int, int]:
    """Rows and columns of tokens of a view's cells."""
    return cells.shape[0] // CELLS_PER_SIDE, cells.shape[1] // CELLS_PER_SIDE


def is_twin(sample: Sample) -> bool:
    """Whether a sample is the one before it, unbroken."""
    return bool(sample.get("twin"))


def spoilt(samples: Sequence[Sample]) -> list[bool]:
    """Of samples of one kind, in order, which are bad all over, or the twin of one that is."""
    found: list[bool] = []
    for sample in samples:
        whole = [0, 0, sample.get("width"), sample.get("height")]
        all_over = any(defect["box"] == whole for defect in sample.get("defects", ()))
        found.append(found[-1] if found and is_twin(sample) else all_over)
    return found


def eyes_file(run: Path, fold: str | None) -> Path:
    """Where perceive.py keeps its eyes: those that never saw a fold, or (None) those that saw all."""
    return run / (f"eyes-without-{fold}.pt" if fold else "eyes.pt")
