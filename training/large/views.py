"""Photos as a large model sees them: views cut from the original by the runtime's own rules and tiles."""

from typing import Any, Final

import numpy as np
from PIL import Image

from qcheck.photo import Photo
from qcheck.tiles import (
    Box,
    CropSpec,
    View,
    ViewSpec,
    crop_box,
    model_coords,
    normalise_table,
    photo_box,
    planar,
    view_of,
    whole,
)

TOKEN_PX: Final = 28  # Qwen2.5-VL: patch 14, merge 2
LEAST_PIXELS: Final = 4 * TOKEN_PX**2
CROP: Final = CropSpec(margin=0.1, min_side_px=TOKEN_PX)  # 10% a side, as public tools pad
MOST_UPSCALE: Final = 4.0
RAW: Final = normalise_table((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def spec(max_pixels: int) -> ViewSpec:
    return ViewSpec(TOKEN_PX, LEAST_PIXELS, max_pixels, MOST_UPSCALE)


def shown(photo: Photo, view: View) -> Image.Image:
    """A view as a picture whose sides are whole tokens, so that the processor resizes nothing."""
    pixels = planar(np.ascontiguousarray(photo.pixels), [view], RAW)[0]
    return Image.fromarray(np.rint(pixels * 255).astype(np.uint8).transpose(1, 2, 0))


def global_view(photo: Photo, max_pixels: int) -> View:
    return view_of(whole(photo.width, photo.height), spec(max_pixels))


def zoomed(photo: Photo, view: View, corners: Any, max_pixels: int) -> View:
    """The crop for a call about a view, in absolute pixels of it, as Qwen2.5-VL speaks. Raises ValueError, whose words
    the model reads."""
    if not isinstance(corners, list | tuple) or len(corners) != 4:
        raise ValueError("bbox_2d must be [x1, y1, x2, y2]")
    try:
        target = photo_box([float(c) for c in corners], view, "view_pixels")
    except (TypeError, ValueError) as error:
        raise ValueError("bbox_2d must be four numbers") from error
    if target is None:
        raise ValueError("bbox_2d lies outside the picture")
    return view_of(crop_box(target, CROP, photo.width, photo.height), spec(max_pixels))


def in_view(box: Box, view: View) -> list[int]:
    """A box of the photo in pixels of a view, as it is written in conversations."""
    return [round(c) for c in model_coords(box, view, "view_pixels")]
