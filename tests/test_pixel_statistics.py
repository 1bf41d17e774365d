"""Statistics of pixels: each answers to what it is for, and to nothing else."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script

torch = library("torch")
known = script("pixel_statistics")
cells = script("cells")

MEAN, STD = np.float32(cells.IMAGENET_MEAN), np.float32(cells.IMAGENET_STD)
FILTERS = known.FILTERS
SCALE = FILTERS + 3  # statistics of one scale: means of all filters, least grain, least and greatest step
STEPS, GRAIN = slice(0, FILTERS - 1), FILTERS - 1
LEAST_GRAIN, LEAST_STEP, GREATEST_STEP = FILTERS, FILTERS + 1, FILTERS + 2


@torch.inference_mode()
def statistics(rgb: NDArray[np.floating]) -> NDArray[np.float32]:
    """Of a photo (h, w, 3), 0..1: (rows, cols, STATISTICS). At full size the chroma filters come after the luma ones;
    they are moved behind everything else, so that all scales look the same."""
    normalised = ((rgb.astype(np.float32) - MEAN) / STD).transpose(2, 0, 1)[None]
    found = known.PixelStatistics(MEAN.tolist(), STD.tolist())(torch.from_numpy(normalised))[0].permute(1, 2, 0).numpy()
    chroma = np.r_[FILTERS : FILTERS + 2, FILTERS + 3 : FILTERS + 5]  # their means and leasts
    assert found.shape == (rgb.shape[0] // 32, rgb.shape[1] // 32, known.STATISTICS)
    return np.concatenate([np.delete(found, chroma, 2), found[:, :, chroma]], 2)


def photo(seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return 0.5 + 0.05 * rng.standard_normal((64, 96, 3))


def test_a_plain_photo_has_only_its_colour() -> None:
    found = statistics(np.full((64, 96, 3), (0.25, 0.5, 0.75)))
    quiet = np.log(known.QUIET)
    assert_allclose(found[:, :, : 3 * SCALE], quiet, atol=1e-3)
    assert_allclose(found[0, 0, 3 * SCALE : 3 * SCALE + 8], [0, 0, 0, 0.25, 0.5, 0.75, 0.5, quiet], atol=1e-3)
    assert_allclose(found[:, :, -4:], quiet, atol=1e-3)


def test_grain_equals_a_plain_computation() -> None:
    """Immerkaer's operator on luma, at full size and halved."""
    from scipy.ndimage import convolve

    rgb = photo()
    luma = rgb @ np.array(known.LUMA)
    for scale, start in ((1, 0), (2, SCALE)):
        small = luma.reshape(64 // scale, scale, 96 // scale, scale).mean((1, 3))
        grain = np.abs(convolve(small, np.array(known.IMMERKAER) / 6, mode="nearest"))
        side = 32 // scale
        mean = grain.reshape(2, side, 3, side).mean((1, 3))
        assert_allclose(statistics(rgb)[:, :, start + GRAIN], np.log(mean + known.QUIET), atol=1e-4)
        block = 4 // scale
        least = grain.reshape(2, 8, block, 3, 8, block).mean((2, 5)).min((1, 3))
        assert_allclose(statistics(rgb)[:, :, start + LEAST_GRAIN], np.log(least + known.QUIET), atol=1e-4)


def test_straight_edges_are_no_grain() -> None:
    rgb = np.zeros((64, 64, 3))
    rgb[:, 20:] = 1
    found = statistics(rgb)
    assert_allclose(found[:, :, GRAIN], np.log(known.QUIET), atol=1e-3)
    assert (found[:, 0, 0] > np.log(known.QUIET) + 2).all()  # a step to the right
    assert_allclose(found[:, 0, 1], np.log(known.QUIET), atol=1e-3)  # none below
    assert (found[:, 0, GREATEST_STEP] > found[:, 0, LEAST_STEP] + 3).all()


@pytest.mark.parametrize("sigma", [0.01, 0.03, 0.1])
def test_grain_is_proportional_to_noise(sigma: float) -> None:
    rng = np.random.default_rng(1)
    noise = sigma * rng.standard_normal((128, 128, 1)).repeat(3, 2)
    grain = np.exp(statistics(0.5 + noise)[:, :, GRAIN]) - known.QUIET
    # The operator, over 6, has a norm of 1 on white noise; the mean of its magnitude is sqrt(2/pi) of that.
    assert_allclose(grain, sigma * np.sqrt(2 / np.pi), rtol=0.1)


def test_motion_shows_in_one_direction() -> None:
    sharp = photo(2)
    moved = np.mean([np.roll(sharp, shift, 1) for shift in range(9)], 0)
    change = (statistics(moved) - statistics(sharp))[:, :, STEPS].mean((0, 1))
    assert change[0] < change[1] - 0.5  # to the right much more than below


def test_clipping_and_light_are_counted() -> None:
    rgb = np.full((32, 64, 3), 0.5)
    rgb[:16, :32], rgb[:8, 32:] = 1.0, 0.0
    found = statistics(rgb)[0, :, 3 * SCALE :]
    assert_allclose(found[:, :3], [[0.5, 0, 0.5], [0, 0.25, 0]], atol=1e-5)
    assert_allclose(found[:, 3:6], [[0.75] * 3, [0.375] * 3], atol=1e-4)


def test_coloured_noise_shows_in_chroma() -> None:
    rng = np.random.default_rng(4)
    grey = 0.5 + 0.05 * rng.standard_normal((64, 64, 1)).repeat(3, 2)
    colour = 0.5 + 0.05 * rng.standard_normal((64, 64, 3))
    assert_allclose(statistics(grey)[:, :, -4:], np.log(known.QUIET), atol=1e-2)
    assert (statistics(colour)[:, :, -4:] > np.log(known.QUIET) + 1).all()


def test_the_encoder_appends_them() -> None:
    torch.manual_seed(0)
    pixels: Any = torch.randn(1, 3, 64, 96)
    survey: Any = 20 * torch.rand(1, 5, 7, 8)
    encoder = cells.CellEncoder().eval()
    with torch.inference_mode():
        found = encoder(pixels, survey)
        seen = encoder.view(pixels)
        own = known.PixelStatistics(cells.IMAGENET_MEAN, cells.IMAGENET_STD)(pixels)[0].permute(1, 2, 0)
    assert found.shape == (1, 2, 3, cells.CELL_CHANNELS)
    assert seen.shape == (1, 2, 3, cells.VIEW_CHANNELS)
    assert_allclose(found[:, :, :, : cells.VIEW_CHANNELS], seen)
    assert_allclose(seen[0, :, :, -known.STATISTICS :], own)
    assert_allclose(found[0, :, :, cells.VIEW_CHANNELS :], cells.surveyed(survey, 2, 3)[0])
