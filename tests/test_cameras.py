"""Clean photos as other cameras give them: grain that is there and stays faint, files that are read again."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script

library("scipy")
cameras = script("cameras")


def flat(value: int, height: int = 600, width: int = 700) -> Any:
    return np.full((height, width, 3), value, np.uint8)


@pytest.mark.parametrize("seed", range(8))
def test_grain_lies_within_its_bounds_and_moves_no_light(seed: int) -> None:
    pixels = flat(100)
    found = cameras.grained(pixels, np.random.default_rng(seed)).astype(float)
    # Rounding to codes adds a twelfth to the variance at most, or swallows what is fainter than half a code.
    least, most = cameras.GRAIN
    assert 0.1 * least <= found.std() <= 1.1 * most
    assert abs(found.mean() - 100) < 0.2
    assert (pixels == 100).all(), "what was given is left alone"


def test_grain_is_partly_the_same_in_all_channels_and_softened() -> None:
    like, near = [], []
    for seed in range(20):
        grain = cameras.grained(flat(120), np.random.default_rng(seed)).astype(float) - 120
        if grain.std() > 1:
            like.append(np.corrcoef(grain[..., 0].ravel(), grain[..., 2].ravel())[0, 1])
            near.append(np.corrcoef(grain[:, :-1, 1].ravel(), grain[:, 1:, 1].ravel())[0, 1])
    assert min(like) > 0.3
    assert max(like) > 0.7
    assert min(near) < 0.2
    assert max(near) > 0.6


def test_there_is_no_more_grain_in_light_than_in_shadow() -> None:
    pixels = flat(40)
    pixels[:, 350:] = 220
    weaker = []
    for seed in range(20):
        grain = cameras.grained(pixels, np.random.default_rng(seed)).astype(float) - pixels
        if grain.std() > 1:
            weaker.append(grain[:, 350:].std() / grain[:, :350].std())
    assert max(weaker) < 1.05
    assert min(weaker) < 0.7


def test_a_file_is_read_again_as_it_was_saved() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    assert cameras.Saving(None, 0).of(pixels) is pixels
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90, subsampling=2)
    np.testing.assert_array_equal(cameras.Saving(90, 2).of(pixels), np.array(Image.open(file)))
    drawn = [cameras.Saving.drawn(np.random.default_rng(seed)) for seed in range(200)]
    lossy = [one.quality for one in drawn if one.quality is not None]
    assert 0.6 < len(lossy) / len(drawn) < 0.8
    assert (min(lossy), max(lossy)) >= (85, 97)
    assert max(lossy) < cameras.QUALITIES[1]
    assert {one.subsampling for one in drawn} == {0, 2}


def test_another_camera_gives_the_same_photo_for_the_same_draws() -> None:
    pixels = np.random.default_rng(1).integers(60, 200, (300, 400, 3), dtype=np.uint8)
    shapes = set()
    for seed in range(12):
        one, other = (cameras.varied(pixels, np.random.default_rng(seed)) for _ in range(2))
        np.testing.assert_array_equal(one, other)
        assert one.dtype == np.uint8
        assert 0.6 < one.shape[0] / 300 <= 1
        shapes.add(one.shape)
    assert len(shapes) > 3
