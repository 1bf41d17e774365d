"""Boxes, views and the three coordinate spaces; the one place where any of them is converted.

Spaces, all with x to the right and y down:

- **photo**: integer pixels of the upright original, a `Box` is half-open ([x1, x2) x [y1, y2));
- **view**: pixels of one resized picture that the model sees (the global view, or a crop);
- **model**: the numbers a model writes: 0..1000 across the view (nano, Qwen3-VL) or the view's own pixels
  (Qwen2.5-VL, whose boxes are absolute in the picture that its processor resized).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from qcheck import _kernels

CoordinateSpace = Literal["relative_1000", "view_pixels"]
RELATIVE_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open rectangle in integer pixels of the upright original; never empty."""

    x1: int
    y1: int
    x2: int
    y2: int

    def __post_init__(self) -> None:
        if not (0 <= self.x1 < self.x2 and 0 <= self.y1 < self.y2):
            raise ValueError(f"not a box: {self.as_list()} (needs 0 <= x1 < x2 and 0 <= y1 < y2)")

    @property
    def width(self) -> int:
        return self.x2 - self.x1

    @property
    def height(self) -> int:
        return self.y2 - self.y1

    @property
    def area(self) -> int:
        return self.width * self.height

    def as_list(self) -> list[int]:
        return [self.x1, self.y1, self.x2, self.y2]

    def iou(self, other: "Box") -> float:
        """Intersection over union, 0..1."""
        width = min(self.x2, other.x2) - max(self.x1, other.x1)
        height = min(self.y2, other.y2) - max(self.y1, other.y1)
        if width <= 0 or height <= 0:
            return 0.0
        overlap = width * height
        return overlap / (self.area + other.area - overlap)


@dataclass(frozen=True, slots=True)
class View:
    """A picture the model sees: which part of the photo (`box`), at what size in view pixels."""

    box: Box
    width: int
    height: int

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """How views are sized. All sides are multiples of `token_px`; pixels stay within [min_pixels, max_pixels].

    `max_upscale`: the most that a view may enlarge the photo, per side. A whole photo smaller than one token is
    still brought up to one token, because the model cannot see less.
    """

    token_px: int
    min_pixels: int
    max_pixels: int
    max_upscale: float


@dataclass(frozen=True, slots=True)
class CropSpec:
    """How a requested box becomes a crop: `margin` is the context added on each side, as a share of the box's side;
    `min_side_px` the least side of a crop, in pixels of the original."""

    margin: float
    min_side_px: int


def smart_resize(width: int, height: int, spec: ViewSpec) -> tuple[int, int]:
    """Size in view pixels for a picture of `width` x `height` pixels: sides are multiples of `spec.token_px`, the
    area is in the budget, the aspect ratio is kept as closely as that allows.

    Follows Qwen2-VL's `smart_resize` (round to the nearest multiple with Python's banker's rounding, then floor or
    ceil into the budget), but never exceeds the budget for extreme aspect ratios, where the original raises.
    """
    unit = spec.token_px
    out_w = max(unit, round(width / unit) * unit)
    out_h = max(unit, round(height / unit) * unit)
    if out_w * out_h > spec.max_pixels:
        shrink = math.sqrt(width * height / spec.max_pixels)
        out_w = max(unit, math.floor(width / shrink / unit) * unit)
        out_h = max(unit, math.floor(height / shrink / unit) * unit)
    elif out_w * out_h < spec.min_pixels:
        grow = min(math.sqrt(spec.min_pixels / (width * height)), spec.max_upscale)
        out_w = max(unit, math.ceil(width * grow / unit) * unit)
        out_h = max(unit, math.ceil(height * grow / unit) * unit)
    if out_w * out_h > spec.max_pixels:
        # The short side hit the floor of one token, or rounding up went too far: the long side gets what is left.
        if out_w >= out_h:
            out_w = spec.max_pixels // out_h // unit * unit
        else:
            out_h = spec.max_pixels // out_w // unit * unit
    return out_w, out_h


def view_of(box: Box, spec: ViewSpec) -> View:
    """The view of a part of the photo."""
    return View(box, *smart_resize(box.width, box.height, spec))


def whole(width: int, height: int) -> Box:
    """The box of a whole photo of `width` x `height` pixels."""
    return Box(0, 0, width, height)


def photo_box(coords: Sequence[float], view: View, space: CoordinateSpace) -> Box | None:
    """A box that a model wrote about `view`, in photo pixels.

    `coords`: x1, y1, x2, y2 in the model's space. Reversed corners are put in order, parts outside the view are cut
    off, and edges are rounded outwards so that the box never loses a pixel of what was meant. None if it is not four
    finite numbers or nothing of it lies in the view.
    """
    if len(coords) != 4 or not all(math.isfinite(c) for c in coords):
        return None
    span_x, span_y = (RELATIVE_MAX, RELATIVE_MAX) if space == "relative_1000" else view.size
    xa, xb = sorted((coords[0] / span_x, coords[2] / span_x))
    ya, yb = sorted((coords[1] / span_y, coords[3] / span_y))
    if xa > 1 or ya > 1 or xb < 0 or yb < 0:
        return None
    box = view.box

    def along(low: float, high: float, start: int, length: int) -> tuple[int, int]:
        # 1e-6 px absorbs the rounding of the division, so that an edge that was a whole pixel stays that pixel.
        first = min(math.floor(max(0.0, low) * length + 1e-6), length - 1)
        last = max(math.ceil(min(1.0, high) * length - 1e-6), first + 1)
        return start + first, start + last

    x1, x2 = along(xa, xb, box.x1, box.width)
    y1, y2 = along(ya, yb, box.y1, box.height)
    return Box(x1, y1, x2, y2)


def model_coords(box: Box, view: View, space: CoordinateSpace) -> tuple[float, float, float, float]:
    """A photo box in the model's numbers about `view`, cut to the view. The inverse of `photo_box` up to rounding."""
    span_x, span_y = (RELATIVE_MAX, RELATIVE_MAX) if space == "relative_1000" else view.size

    def along(value: int, start: int, length: int, span: int) -> float:
        return min(1.0, max(0.0, (value - start) / length)) * span

    return (
        along(box.x1, view.box.x1, view.box.width, span_x),
        along(box.y1, view.box.y1, view.box.height, span_y),
        along(box.x2, view.box.x1, view.box.width, span_x),
        along(box.y2, view.box.y1, view.box.height, span_y),
    )


def crop_box(target: Box, spec: CropSpec, width: int, height: int) -> Box:
    """The crop for a requested box: the box plus its context margin, at least `min_side_px` a side where the photo has
    that many, shifted (not cut) to lie inside the photo of `width` x `height` pixels."""

    def side(start: int, end: int, limit: int) -> tuple[int, int]:
        length = end - start
        wanted = min(limit, max(math.ceil(length * (1 + 2 * spec.margin)), spec.min_side_px))
        first = (start + end - wanted) // 2
        first = min(max(first, 0), limit - wanted)
        return first, first + wanted

    x1, x2 = side(target.x1, target.x2, width)
    y1, y2 = side(target.y1, target.y2, height)
    return Box(x1, y1, x2, y2)


def planar(
    pixels: NDArray[np.uint8],
    views: Sequence[View],
    table: NDArray[np.float32],
    threads: int = 1,
    survey: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Views of one size as the model's input, (views, 3, height, width) float32, from the photo's (H, W, 3): crop,
    bicubic with antialias (Pillow's, to the bit), then `table` (3, 256), a channel a row. In one pass, on any number of
    `threads` with the same result. `survey`: an empty map (see survey.py) to fill with the whole photo's on the way."""
    boxes = [(view.box.x1, view.box.y1, view.box.x2, view.box.y2) for view in views]
    return _kernels.render(pixels, boxes, [view.size for view in views], table, None, threads, "", survey)


def packed(
    pixels: NDArray[np.uint8],
    views: Sequence[View],
    table: NDArray[np.float32],
    patch_px: int,
    merge: int,
    threads: int = 1,
) -> NDArray[np.float32]:
    """Views of any sizes as patches, (patches, 3 * patch_px^2) float32, in the order of Qwen's processor: merge x merge
    patches of a token together, tokens in raster order, view by view. Otherwise as `planar`."""
    boxes = [(view.box.x1, view.box.y1, view.box.x2, view.box.y2) for view in views]
    return _kernels.render(pixels, boxes, [view.size for view in views], table, (patch_px, merge, 1), threads)


def normalise_table(mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """(3, 256) float32: what each 8-bit value becomes, by channel: (value / 255 - mean) / std."""
    value = (np.arange(256, dtype=np.float64) / 255).astype(np.float32)
    rows = [(value - np.float32(m)) / np.float32(s) for m, s in zip(mean, std, strict=True)]
    return np.ascontiguousarray(np.stack(rows), np.float32)
