"""What a photo is as a whole, as Quality reads it: at one size whatever its own, for the same photo has fewer and other
pixels to show when it is larger, and is no worse a photo.

Kept in the index of cells, with every first view of a photo: the glance at its overview and, where the overview is
another picture than the view, the summary of the overview's cells.
"""

import base64
from typing import Any, Final

import numpy as np
import torch
from cells import CELL_PX
from nano_spec import OVERVIEW
from numpy.typing import NDArray
from runs import RunError
from stores import Item
from torch import Tensor
from visual import doublings, summary

from qcheck.survey import empty_map
from qcheck.tiles import Box, View, view_of

GLANCE: Final = "glance"
SUMMARY: Final = "overview"


def overview_of(box: Box, shown: View) -> View | None:
    """At what size a photo, `box`, is judged as a whole; None where that is the view that is `shown` of it."""
    view = view_of(box, OVERVIEW)
    return None if view.size == shown.size else view


def is_larger(rows: int, cols: int, side_px: int) -> bool:
    """Whether a view of as many cells or tokens, of `side_px` a side, is larger than any overview."""
    return rows * cols * side_px**2 > OVERVIEW.max_pixels


def written(values: NDArray[Any]) -> str:
    """(n,) as fp16 for an index."""
    return base64.b64encode(values.astype(np.float16).tobytes()).decode()


def read(text: str) -> Tensor:
    """What was `written`, fp32."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), np.float16).astype(np.float32))


def whole_of(item: Item, index: int) -> Tensor:
    """(WHOLE_CHANNELS,) of the photo that a view of a sample of cells shows, or a part of which it shows. Raises
    RunError where nobody glanced at it."""
    views = item.sample["views"]
    first = max(at for at in range(index + 1) if views[at]["role"] == "global")
    view = views[first]
    if GLANCE not in view:
        raise RunError("these cells were made before photos were glanced at; make them again (encode.py)")
    if SUMMARY in view:
        seen = read(view[SUMMARY])
    elif is_larger(view["rows"], view["cols"], CELL_PX):
        raise RunError("these cells were made before large photos had an overview; make them again (encode.py)")
    else:
        seen = summary(torch.from_numpy(item.read(first).astype(np.float32))[None])[0]
    box = Box(*view["box"])
    rows, cols, _ = empty_map(box.width, box.height).shape
    return torch.cat((seen, read(view[GLANCE]), doublings(torch.tensor([float(rows * cols)]))))
