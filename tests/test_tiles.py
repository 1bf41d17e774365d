"""Properties of the geometry: whatever the photo, the budget and the model's numbers."""

import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image

from qcheck.tiles import (
    RELATIVE_MAX,
    Box,
    CoordinateSpace,
    CropSpec,
    View,
    ViewSpec,
    crop_box,
    model_coords,
    normalise_table,
    photo_box,
    planar,
    smart_resize,
    view_of,
    whole,
)

SIDES = st.integers(1, 20_000)
SPACES: st.SearchStrategy[CoordinateSpace] = st.sampled_from(["relative_1000", "view_pixels"])
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@st.composite
def boxes(draw: st.DrawFn, width: int = 20_000, height: int = 20_000) -> Box:
    x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return Box(x1, y1, draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height)))


@st.composite
def specs(draw: st.DrawFn) -> ViewSpec:
    """Budgets of at least one token, as a contract states them."""
    unit = draw(st.sampled_from([14, 16, 28, 32]))
    max_tokens = draw(st.integers(1, 1024))
    min_tokens = draw(st.integers(1, max_tokens))
    return ViewSpec(unit, min_tokens * unit**2, max_tokens * unit**2, draw(st.floats(1, 8)))


@st.composite
def views(draw: st.DrawFn) -> View:
    return View(draw(boxes()), draw(st.integers(1, 64)) * 28, draw(st.integers(1, 64)) * 28)


# --- smart_resize


@given(SIDES, SIDES, specs())
def test_smart_resize_gives_whole_tokens_within_the_budget(width: int, height: int, spec: ViewSpec) -> None:
    out_w, out_h = smart_resize(width, height, spec)
    assert out_w % spec.token_px == out_h % spec.token_px == 0
    assert min(out_w, out_h) >= spec.token_px
    assert out_w * out_h <= spec.max_pixels


@given(SIDES, SIDES, specs())
def test_smart_resize_enlarges_no_more_than_allowed(width: int, height: int, spec: ViewSpec) -> None:
    for out, side in zip(smart_resize(width, height, spec), (width, height), strict=True):
        # Up to the next whole token beyond the allowed scale: a side cannot end within a token.
        assert out < side * spec.max_upscale + spec.token_px


@given(SIDES, SIDES, specs())
def test_smart_resize_fills_the_least_budget_where_enlarging_allows(width: int, height: int, spec: ViewSpec) -> None:
    out_w, out_h = smart_resize(width, height, spec)
    assume(math.sqrt(spec.min_pixels / (width * height)) <= spec.max_upscale)
    unit = spec.token_px
    # Falls short only where the next whole tokens would not fit the upper budget any more.
    assert out_w * out_h >= spec.min_pixels or (out_w + unit) * (out_h + unit) > spec.max_pixels


@given(SIDES, SIDES, specs())
def test_smart_resize_keeps_the_aspect_ratio_to_a_token(width: int, height: int, spec: ViewSpec) -> None:
    out_w, out_h = smart_resize(width, height, spec)
    unit = spec.token_px
    assume(min(out_w, out_h) > 2 * unit)  # with fewer tokens than that, rounding is most of the shape
    # One scale explains both sides, if each may be off by a token for rounding and one for the budget.
    low = max((out_w - 2 * unit) / width, (out_h - 2 * unit) / height)
    high = min((out_w + 2 * unit) / width, (out_h + 2 * unit) / height)
    assert low <= high


@given(SIDES, SIDES, specs())
def test_smart_resize_turns_with_the_photo(width: int, height: int, spec: ViewSpec) -> None:
    out_w, out_h = smart_resize(width, height, spec)
    assume(spec.max_pixels >= 4 * spec.min_pixels)  # in a tighter budget, one side of a square has to yield
    assert smart_resize(height, width, spec) == (out_h, out_w)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (644, 476)),  # rounded to the nearest token
        ((8000, 6000), (1148, 840)),  # into the budget from above
        ((28, 28), (56, 56)),  # into the budget from below
        ((1, 1), (28, 28)),  # one token, however far that enlarges
        ((1, 20_000), (28, 19_992)),  # extreme, and just in the budget
        ((1, 60_000), (28, 35_840)),  # extreme: the long side gets what one token leaves
    ],
)
def test_smart_resize_examples(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert smart_resize(*size, ViewSpec(28, 4 * 28**2, 1280 * 28**2, 4.0)) == expected


# --- boxes


@pytest.mark.parametrize("corners", [(0, 0, 0, 1), (0, 0, 1, 0), (2, 0, 1, 1), (-1, 0, 1, 1), (0, -1, 1, 1)])
def test_a_box_is_never_empty_or_negative(corners: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="not a box"):
        Box(*corners)


@given(boxes())
def test_box_sides(box: Box) -> None:
    assert box.as_list() == [box.x1, box.y1, box.x1 + box.width, box.y1 + box.height]
    assert box.area == box.width * box.height > 0


@given(boxes(60, 60), boxes(60, 60))
def test_iou_is_symmetric_and_counts_pixels(a: Box, b: Box) -> None:
    canvas = np.zeros((2, 60, 60), bool)
    for plane, box in zip(canvas, (a, b), strict=True):
        plane[box.y1 : box.y2, box.x1 : box.x2] = True
    assert a.iou(b) == b.iou(a) == (canvas[0] & canvas[1]).sum() / (canvas[0] | canvas[1]).sum()
    assert 0 <= a.iou(b) <= 1
    assert (a.iou(b) == 1) == (a == b)


@given(st.data(), SIDES, SIDES, st.floats(0, 2), st.integers(1, 2000))
def test_crop_lies_in_the_photo_and_holds_its_target(
    data: st.DataObject, width: int, height: int, margin: float, min_side_px: int
) -> None:
    target = data.draw(boxes(width, height))
    crop = crop_box(target, CropSpec(margin, min_side_px), width, height)
    assert crop.x1 <= target.x1 < target.x2 <= crop.x2 <= width
    assert crop.y1 <= target.y1 < target.y2 <= crop.y2 <= height
    for side, wanted, limit in (
        (crop.width, target.width * (1 + 2 * margin), width),
        (crop.height, target.height * (1 + 2 * margin), height),
    ):
        assert side >= min(limit, min_side_px)
        assert side >= min(limit, math.floor(wanted))
        assert side <= max(min_side_px, math.ceil(wanted))


def test_crop_is_centred_then_shifted_at_the_edge() -> None:
    spec = CropSpec(margin=0.5, min_side_px=10)
    assert crop_box(Box(100, 100, 120, 140), spec, 1000, 1000) == Box(90, 80, 130, 160)
    assert crop_box(Box(0, 990, 4, 1000), spec, 1000, 1000) == Box(0, 980, 10, 1000)
    assert crop_box(Box(0, 0, 5, 5), spec, 7, 1000) == Box(0, 0, 7, 10)


# --- coordinate spaces


@given(st.data(), views(), SPACES)
def test_a_box_survives_the_round_trip_exactly(data: st.DataObject, view: View, space: CoordinateSpace) -> None:
    inner = data.draw(boxes(view.box.width, view.box.height))
    box = Box(inner.x1 + view.box.x1, inner.y1 + view.box.y1, inner.x2 + view.box.x1, inner.y2 + view.box.y1)
    assert photo_box(model_coords(box, view, space), view, space) == box


@given(st.data(), views(), SPACES)
def test_whole_numbers_cost_at_most_their_own_step(data: st.DataObject, view: View, space: CoordinateSpace) -> None:
    """What a model writes is rounded to whole numbers; an edge then moves by half of one, and a pixel for ours."""
    inner = data.draw(boxes(view.box.width, view.box.height))
    box = Box(inner.x1 + view.box.x1, inner.y1 + view.box.y1, inner.x2 + view.box.x1, inner.y2 + view.box.y1)
    written = [round(c) for c in model_coords(box, view, space)]
    assume(written[0] < written[2] and written[1] < written[3])
    back = photo_box(written, view, space)
    assert back is not None
    spans = (RELATIVE_MAX, RELATIVE_MAX) if space == "relative_1000" else view.size
    steps = (view.box.width / spans[0], view.box.height / spans[1]) * 2
    for edge, meant, step in zip(back.as_list(), box.as_list(), steps, strict=True):
        assert abs(edge - meant) <= 0.5 * step + 1


COORDS = st.floats(allow_nan=True, allow_infinity=True) | st.floats(-500, 2500) | st.integers(-500, 2500)


@given(st.lists(COORDS, min_size=4, max_size=4), views(), SPACES)
@example([0, 0, 1e-9, 1e-9], View(Box(0, 0, 1, 1), 28, 28), "relative_1000")
@example([999.9999999, 0, 2000, 1], View(Box(7, 7, 8, 9), 28, 28), "relative_1000")
@example([5e-324, 0, 1, 1], View(Box(0, 0, 20_000, 20_000), 28, 28), "view_pixels")
def test_any_numbers_give_a_box_in_the_view_or_none(coords: list[float], view: View, space: CoordinateSpace) -> None:
    box = photo_box(coords, view, space)
    if box is not None:
        assert all(math.isfinite(c) for c in coords)
        assert view.box.x1 <= box.x1 < box.x2 <= view.box.x2
        assert view.box.y1 <= box.y1 < box.y2 <= view.box.y2


@given(st.lists(st.floats(-500, 1500), min_size=4, max_size=4), views(), SPACES)
def test_reversed_corners_are_put_in_order(coords: list[float], view: View, space: CoordinateSpace) -> None:
    x1, y1, x2, y2 = coords
    assert photo_box([x1, y1, x2, y2], view, space) == photo_box([x2, y2, x1, y1], view, space)
    assert photo_box([x1, y1, x2, y2], view, space) == photo_box([x2, y1, x1, y2], view, space)


@given(views())
def test_beyond_the_view_is_cut_off(view: View) -> None:
    assert photo_box([-50, -1e9, 1e9, 1001], view, "relative_1000") == view.box
    assert photo_box([-1, -1, view.width + 1, view.height + 1], view, "view_pixels") == view.box


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(4))
def test_numbers_that_are_none_give_no_box(bad: float, place: int) -> None:
    coords = [100.0, 100.0, 200.0, 200.0]
    coords[place] = bad
    assert photo_box(coords, View(Box(0, 0, 1000, 1000), 448, 448), "relative_1000") is None


@pytest.mark.parametrize(
    "coords",
    [
        [1001, 0, 1200, 500],  # right of the view
        [0, 1001, 500, 1200],  # below
        [-300, 0, -1, 500],  # left
        [0, -300, 500, -1],  # above
        [],
        [1, 2, 3],
        [1, 2, 3, 4, 5],
    ],
)
def test_nothing_in_the_view_gives_no_box(coords: list[float]) -> None:
    assert photo_box(coords, View(Box(10, 10, 500, 500), 448, 448), "relative_1000") is None


def test_a_line_a_point_or_an_edge_is_a_pixel_wide() -> None:
    view = View(Box(10, 10, 500, 500), 448, 448)
    assert photo_box([100, 100, 100, 200], view, "relative_1000") == Box(59, 59, 60, 108)
    assert photo_box([100, 100, 100, 100], view, "relative_1000") == Box(59, 59, 60, 60)
    assert photo_box([1000, 0, 1200, 500], view, "relative_1000") == Box(499, 10, 500, 255)
    assert photo_box([-300, 1000, 0, 1000], view, "relative_1000") == Box(10, 499, 11, 500)


def test_edges_are_rounded_outwards() -> None:
    view = View(Box(100, 200, 110, 210), 28, 28)
    assert photo_box([150, 250, 151, 349], view, "relative_1000") == Box(101, 202, 102, 204)
    assert photo_box([14, 14, 14.5, 28], view, "view_pixels") == Box(105, 205, 106, 210)


# --- pixels


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_planar_at_full_resolution_is_the_pixels_themselves() -> None:
    pixels = picture(60, 80)
    table = np.tile(np.arange(256, dtype=np.float32), (3, 1))
    views = [View(Box(10, 4, 66, 32), 56, 28), View(Box(0, 30, 56, 58), 56, 28)]
    got = planar(pixels, views, table, 2)
    assert got.shape == (2, 3, 28, 56)
    for plane, view in zip(got, views, strict=True):
        box = view.box
        np.testing.assert_array_equal(plane, pixels[box.y1 : box.y2, box.x1 : box.x2].transpose(2, 0, 1))


def test_view_of_a_whole_photo() -> None:
    spec = ViewSpec(28, 4 * 28**2, 256 * 28**2, 2.0)
    assert view_of(whole(640, 480), spec) == View(Box(0, 0, 640, 480), *smart_resize(640, 480, spec))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (57, 91), (200, 33)])
def test_planar_equals_oracle(width: int, height: int) -> None:
    pixels = picture(height, width)
    view = view_of(whole(width, height), ViewSpec(28, 28**2, 16 * 28**2, 2.0))
    (got,) = planar(pixels, [view], normalise_table(IMAGENET_MEAN, IMAGENET_STD))
    resized = np.asarray(Image.fromarray(pixels).resize(view.size, Image.Resampling.BICUBIC))
    unit = (resized / 255).astype(np.float32)
    want = (unit - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
    assert got.shape == (3, view.height, view.width)
    np.testing.assert_array_equal(got, want.transpose(2, 0, 1))


def test_normalise_table_maps_black_and_white() -> None:
    table = normalise_table((0.5, 0.5, 0.5), (0.5, 0.5, 0.25))
    assert table.shape == (3, 256)
    assert table.dtype == np.float32
    assert table.flags.c_contiguous
    np.testing.assert_array_equal(table[:, 0], [-1, -1, -2])
    np.testing.assert_array_equal(table[:, 255], [1, 1, 2])
    with pytest.raises(ValueError, match="zip"):
        normalise_table((0.5, 0.5, 0.5), (0.5, 0.5))
