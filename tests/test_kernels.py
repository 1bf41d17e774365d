"""The tile kernel against Pillow and NumPy, bit for bit; a failure names the first bad coordinate."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from oracle import Corners, assert_same, patched, photo, planar, random_box

from qcheck import _kernels
from qcheck._kernels import processors, render
from qcheck.tiles import normalise_table

Patches = tuple[int, int, int]
BYTES = np.tile(np.arange(256, dtype=np.float32), (3, 1))  # a table that changes nothing
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.mark.parametrize("processor", processors())
def test_ten_thousand_boxes_equal_pillow(processor: str) -> None:
    """Of all scales, both ways, with sides that stay as they are, and in both orders of the passes."""
    rng = np.random.default_rng(1)
    for number in range(10_000 if processor == processors()[0] else 2_000):
        height, width = (int(math.exp(rng.uniform(0, math.log(160)))) for _ in range(2))
        image = photo(height, width, number, number % 3)
        box = random_box(rng, width, height)
        size = [int(math.exp(rng.uniform(0, math.log(120)))) for _ in range(2)]
        for axis in range(2):
            if rng.random() < 0.1:
                size[axis] = box[2 + axis] - box[axis]
        got = render(image, [box], [(size[0], size[1])], BYTES, None, int(rng.integers(1, 4)), processor)
        want = planar(image, box, (size[0], size[1]), BYTES)
        assert_same(got[0], want, f"{width}x{height} {box} to {size}, {processor}")


@pytest.mark.parametrize("box", [(0, 0, 3000, 2000), (1100, 700, 1996, 1596), (2999, 0, 3000, 2000)])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_large_photos_equal_pillow(box: Corners, threads: int) -> None:
    image = photo(2000, 3000)
    table = normalise_table(CLIP_MEAN, CLIP_STD)
    got = render(image, [box], [(448, 336)], table, None, threads)
    assert_same(got[0], planar(image, box, (448, 336), table))


@pytest.mark.parametrize("patches", [(14, 2, 2), (16, 4, 1), (14, 2, 1), (1, 1, 1), (2, 3, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_patches_are_in_the_order_of_the_processor(patches: Patches, dtype: type) -> None:
    image, table = photo(300, 400), normalise_table(CLIP_MEAN, CLIP_STD).astype(dtype)
    unit = patches[0] * patches[1]
    boxes = [(0, 0, 400, 300), (100, 50, 220, 200)]
    sizes = [(3 * unit, 2 * unit), (unit, 4 * unit)]
    got = render(image, boxes, sizes, table, patches, 2)
    want = [patched(planar(image, box, size, table), *patches) for box, size in zip(boxes, sizes, strict=True)]
    assert_same(got, np.concatenate(want))


def test_half_precision_is_rounded_to_even() -> None:
    """By the table: 256 values a channel are all there is."""
    image = photo(40, 50)
    table = normalise_table(CLIP_MEAN, CLIP_STD)
    full = render(image, [(0, 0, 50, 40)], [(28, 28)], table)
    assert_same(render(image, [(0, 0, 50, 40)], [(28, 28)], table.astype(np.float16)), full.astype(np.float16))


def test_values_pass_through_untouched() -> None:
    table = np.random.default_rng(0).normal(size=(3, 256)).astype(np.float32)
    table[:, ::3], table[:, 1::3], table[:, 2::3] = np.nan, -np.inf, -0.0
    image = photo(30, 64)
    assert_same(render(image, [(0, 0, 64, 30)], [(64, 30)], table)[0], planar(image, (0, 0, 64, 30), (64, 30), table))


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_layout_of_rows_will_do(data: st.DataObject) -> None:
    """Cut-outs, every other row, upside down, read-only."""
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    image = photo(2 * height, width + 3)[:, 1 : 1 + width]
    rows = data.draw(st.sampled_from([slice(None), slice(None, None, 2), slice(None, None, -1), slice(-1, None, -2)]))
    image = image[rows] if data.draw(st.booleans()) else image[rows].copy()[::-1]
    image.flags.writeable = False
    box = random_box(np.random.default_rng(data.draw(st.integers(0, 99))), width, image.shape[0])
    size = (data.draw(st.integers(1, 50)), data.draw(st.integers(1, 50)))
    got = render(image, [box], [size], BYTES)[0]
    assert_same(got, planar(np.ascontiguousarray(image), box, size, BYTES))


def test_tiles_of_a_batch_are_what_each_is_alone() -> None:
    image, rng = photo(400, 500), np.random.default_rng(3)
    boxes = [random_box(rng, 500, 400) for _ in range(20)]
    together = render(image, boxes, [(64, 96)] * 20, BYTES, None, 3)
    for box, tile in zip(boxes, together, strict=True):
        assert_same(tile, render(image, [box], [(64, 96)], BYTES)[0])


def test_threads_do_not_disturb_each_other() -> None:
    samples = [photo(101, 103, seed) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda image: render(image, [(1, 2, 100, 99)], [(60, 50)], BYTES, None, 2), samples))
    for image, result in zip(samples, results, strict=True):
        assert_same(result[0], planar(image, (1, 2, 100, 99), (60, 50), BYTES))


def test_the_result_is_its_own_and_outlives_the_photo() -> None:
    image = photo(20, 30)
    want = planar(image, (0, 0, 30, 20), (15, 10), BYTES)
    result = render(image, [(0, 0, 30, 20)], [(15, 10)], BYTES)
    del image
    assert_same(result[0], want)
    result += 1
    assert result.flags.c_contiguous


IMAGE = photo(40, 60)
WHOLE = (0, 0, 60, 40)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image": IMAGE.astype(np.int8)}, "uint8"),
        ({"image": IMAGE.astype(np.float32)}, "uint8"),
        ({"image": IMAGE[0]}, r"\(60, 3\)"),
        ({"image": np.zeros((4, 6, 4), np.uint8)}, r"\(4, 6, 4\)"),
        ({"image": IMAGE[:0]}, "not empty"),
        ({"image": IMAGE[:, :0]}, "not empty"),
        ({"image": IMAGE[:, ::2]}, "side by side"),
        ({"image": IMAGE[:, :, ::-1]}, "side by side"),
        ({"image": np.broadcast_to(IMAGE[:1], IMAGE.shape)}, "overlap"),
        ({"boxes": []}, "no boxes"),
        ({"boxes": [WHOLE, WHOLE]}, "as many sizes"),
        ({"boxes": [(-1, 0, 60, 40)]}, "must lie in the image of 60x40"),
        ({"boxes": [(0, 0, 61, 40)]}, "must lie in the image"),
        ({"boxes": [(0, 0, 60, 41)]}, "must lie in the image"),
        ({"boxes": [(5, 5, 5, 9)]}, "not be empty"),
        ({"boxes": [(9, 5, 5, 9)]}, "not be empty"),
        ({"boxes": [(0, 0, 2**62, 2**62)]}, "must lie in the image"),
        ({"boxes": [(math.nan, 0, 1, 1)]}, None),
        ({"boxes": [(0, 0, 1.5, 1)]}, None),
        ({"sizes": [(0, 5)]}, "1..1048576"),
        ({"sizes": [(5, -1)]}, "1..1048576"),
        ({"sizes": [(2**40, 2**40)]}, "1..1048576"),
        ({"sizes": [(2**20, 2**20)]}, "too large"),
        ({"sizes": [(30, 28)], "patches": (14, 2, 2)}, "multiples of 28, got 30x28"),
        ({"patches": (0, 2, 2)}, "1..256"),
        ({"patches": (14, 2**40, 2)}, "1..256"),
        ({"boxes": [WHOLE] * 2, "sizes": [(28, 28), (28, 56)]}, "of one size"),
        ({"table": BYTES.astype(np.float64)}, "float32 or float16"),
        ({"table": BYTES[:, :255]}, r"\(3, 255\)"),
        ({"table": BYTES[0]}, r"\(256\)"),
        ({"table": np.asfortranarray(BYTES)}, "contiguous"),
        ({"threads": 0}, "threads"),
        ({"processor": "abacus"}, "no abacus"),
    ],
)
def test_wrong_input_is_refused(changed: dict[str, Any], message: str | None) -> None:
    right = {"image": IMAGE, "boxes": [WHOLE], "sizes": [(28, 28)], "table": BYTES}
    assert render(**right).shape == (1, 3, 28, 28)
    with pytest.raises((ValueError, TypeError), match=message):
        render(**(right | changed))


ODD_NUMBERS = st.sampled_from(
    [-(2**63), -1, 0, 1, 2, 7, 28, 40, 56, 60, 61, 2**31, 2**40, 2**63, 1.5, math.nan, None, "7"]
)
ODD_IMAGES = st.sampled_from(
    [
        IMAGE,
        IMAGE[::-1],
        IMAGE[::2, 1:],
        IMAGE[:, ::2],
        IMAGE[:0],
        IMAGE[..., :2],
        IMAGE.astype(np.uint16),
        np.asfortranarray(IMAGE),
        np.lib.stride_tricks.as_strided(IMAGE, (40, 60, 3), (1, 3, 1)),
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((40, 60, 3), ">f4"),
        IMAGE.tobytes(),
        None,
    ]
)
ODD_TABLES = st.sampled_from([BYTES, BYTES.astype(np.float16), BYTES[:2], BYTES.T, BYTES.astype(np.int32), None])
ODD_MAPS = st.sampled_from([None, np.zeros((2, 2, 8), np.float32), np.zeros((1, 1, 8), np.float32), BYTES])


@given(
    image=ODD_IMAGES,
    boxes=st.lists(st.tuples(*[ODD_NUMBERS] * 4) | st.just(WHOLE), max_size=3),
    sizes=st.lists(st.tuples(*[ODD_NUMBERS] * 2) | st.just((28, 56)), max_size=3),
    table=ODD_TABLES,
    patches=st.none() | st.tuples(*[ODD_NUMBERS] * 3) | st.just((14, 2, 2)),
    threads=ODD_NUMBERS,
    survey=ODD_MAPS,
)
@settings(max_examples=2000, deadline=None)
def test_whatever_comes_is_served_or_refused(
    image: Any, boxes: Any, sizes: Any, table: Any, patches: Any, threads: Any, survey: Any
) -> None:
    try:
        got = render(image, boxes, sizes, table, patches, threads, "", survey)
    except (ValueError, TypeError):
        return
    tiles = [planar(np.ascontiguousarray(image), box, size, table) for box, size in zip(boxes, sizes, strict=True)]
    want = np.concatenate([patched(tile, *patches) for tile in tiles]) if patches else np.stack(tiles)
    assert_same(got, want)


def test_the_kernel_says_what_it_is() -> None:
    assert processors()[-1] == "baseline"
    assert _kernels.render.__doc__
