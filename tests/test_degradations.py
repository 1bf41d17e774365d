"""The degradation bank: every level farther from the original than the last, on any size, and fixed by its seed."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import script

bank = script("degradations")
kernels = script("pixels")
PHOTOS = script("defects").PHOTOS
likeness = script("vista_score").likeness  # SSIMULACRA2: 100 is equal, less is worse

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = sorted(bank.BANK)
KADID_COUNT = 25
Pixels = NDArray[np.uint8]


def photo(height: int = 288, width: int = 320) -> Pixels:
    with Image.open(EXAMPLES / "coffee.jpg") as image:
        middle = np.asarray(image.convert("RGB"))
    top, left = (middle.shape[0] - height) // 2, (middle.shape[1] - width) // 2
    return np.ascontiguousarray(middle[top : top + height, left : left + width])


def test_the_bank_holds_all_of_kadid_and_more() -> None:
    assert len(NAMES) >= KADID_COUNT + 15
    for each in bank.BANK.values():
        assert each.kind in PHOTOS.kinds
        assert len(each.levels) == 5
        steps = np.diff(each.levels)
        assert (steps > 0).all() or (steps < 0).all(), each.name
        assert each.unit
        assert each.source


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [3, 4])
def test_every_level_is_farther_from_the_original(name: str, seed: int) -> None:
    original = photo()
    found = [likeness(original, bank.BANK[name](original, level, seed)) for level in range(1, 6)]
    assert found[0] < 99.5, found  # level 1 does something
    assert found[4] < 75, found
    assert all(a > b for a, b in itertools.pairwise(found)), found


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_fixes_the_pixels_and_the_input_stays(name: str) -> None:
    original = photo(96, 130)
    before = original.copy()
    first, again = (bank.BANK[name](original, 3, 11) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(original, before)
    assert first.dtype == np.uint8
    assert not np.array_equal(first, original)


def test_what_spoils_a_photo_as_a_whole_is_never_done_to_a_place() -> None:
    anywhere, in_places = (bank.chances(of_places=flag) for flag in (False, True))
    assert set(anywhere) == set(bank.BANK)
    assert set(anywhere) - set(in_places) == {name for name, each in bank.BANK.items() if each.everywhere}
    assert {"too_little_light", "too_much_light", "white_balance"} == set(anywhere) - set(in_places)
    assert set(in_places) == set(script("vista").IN_PLACES)


@pytest.mark.parametrize(("name", "sign"), [("too_little_light", -1), ("too_much_light", 1)])
def test_an_exposure_is_in_stops(name: str, sign: int) -> None:
    """Of linear light, where it is not clipped."""
    light = kernels.LINEAR[np.full((8, 8, 3), 128, np.uint8)]
    for level, stops in enumerate(bank.BANK[name].levels, 1):
        found = kernels.LINEAR[bank.BANK[name](np.full((8, 8, 3), 128, np.uint8), level, 0)]
        expected = np.minimum(light * 2.0 ** (sign * stops), 1)
        np.testing.assert_allclose(found, expected, atol=0.005)


def test_a_wrong_white_balance_keeps_the_luma_of_grey() -> None:
    casts = [kernels.LINEAR[bank.BANK["white_balance"](np.full((4, 4, 3), 90, np.uint8), 3, s)] for s in range(20)]
    rgb = np.array([one[0, 0] for one in casts])
    np.testing.assert_allclose(rgb @ [0.2126, 0.7152, 0.0722], kernels.LINEAR[90], rtol=0.05)
    warmer = np.log2(rgb[:, 0] / rgb[:, 2])
    np.testing.assert_allclose(np.abs(warmer), bank.BANK["white_balance"].levels[2], atol=0.06)
    assert {-1.0, 1.0} == set(np.sign(warmer))


@pytest.mark.parametrize("radius", [0.5, 1.6, 2, 6.5, 11])
def test_a_disk_keeps_the_light(radius: float) -> None:
    kernel = kernels.disk(radius)
    assert kernel.sum() == pytest.approx(1)
    np.testing.assert_array_equal(kernel, kernel[::-1, ::-1])
    grey = np.full((64, 64, 3), 90, np.uint8)
    assert np.abs(kernels.filtered(grey, kernel).astype(int) - 90).max() <= 1


@pytest.mark.parametrize("length", [1, 3, 9, 40])
def test_a_line_keeps_the_light(length: int) -> None:
    for angle in (0.0, 30.0, 90.0):
        assert kernels.line(length, angle).sum() == pytest.approx(1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 2), (7, 5), (61, 83)])
@pytest.mark.parametrize("level", [1, 5])
def test_any_size(name: str, size: tuple[int, int], level: int) -> None:
    original = photo()[: size[0], : size[1]]
    assert bank.BANK[name](original, level, 2).shape == original.shape


@pytest.mark.parametrize(
    ("pixels", "level", "message"),
    [
        (np.zeros((4, 4, 3), np.uint8), 0, "level must be 1..5, got 0"),
        (np.zeros((4, 4, 3), np.uint8), 6, "level must be 1..5, got 6"),
        (np.zeros((4, 4, 3), np.float32), 3, "pixels must be"),
        (np.zeros((4, 4), np.uint8), 3, "pixels must be"),
        (np.zeros((0, 4, 3), np.uint8), 3, "pixels must be"),
    ],
)
def test_wrong_input_is_said(pixels: NDArray[np.generic], level: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bank.BANK["jpeg"](pixels, level, 0)
