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
SCALE, FILTERS = known.OF_SCALE, known.FILTERS
STEPS, GRAIN = slice(0, known.LUMA_FILTERS - 1), known.GRAINS.start
LEAST_GRAIN, LEAST_STEP, GREATEST_STEP = FILTERS, FILTERS + 3, FILTERS + 4
CHROMA_GRAIN = slice(GRAIN + 1, known.GRAINS.stop)
LEAST_CHROMA_GRAIN = slice(LEAST_GRAIN + 1, LEAST_GRAIN + 3)
SPREAD = slice(FILTERS + 5, FILTERS + 9)  # roots of the mean squares of chroma's steps
SAME = slice(FILTERS + 9, FILTERS + 11)


@torch.inference_mode()
def statistics(rgb: NDArray[np.floating]) -> NDArray[np.float32]:
    """Of a photo (h, w, 3), 0..1: (rows, cols, STATISTICS). What is of the grid comes after the first scale; it is
    moved behind everything else, so that all scales look the same."""
    normalised = ((rgb.astype(np.float32) - MEAN) / STD).transpose(2, 0, 1)[None]
    found = known.PixelStatistics(MEAN.tolist(), STD.tolist())(torch.from_numpy(normalised))[0].permute(1, 2, 0).numpy()
    assert found.shape == (rgb.shape[0] // 32, rgb.shape[1] // 32, known.STATISTICS)
    grid = np.r_[SCALE : SCALE + 2]
    return np.concatenate([np.delete(found, grid, 2), found[:, :, grid]], 2)


def photo(seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return 0.5 + 0.05 * rng.standard_normal((64, 96, 3))


def test_a_plain_photo_has_only_its_colour() -> None:
    found = statistics(np.full((64, 96, 3), (0.25, 0.5, 0.75)))
    quiet = np.log(known.QUIET)
    scales = found[:, :, : 3 * SCALE].reshape(2, 3, 3, SCALE)
    assert_allclose(scales[..., : SAME.start], quiet, atol=1e-3)
    assert_allclose(scales[..., SAME], 1)
    assert_allclose(found[0, 0, 3 * SCALE :], [0, 0, 0, 0.25, 0.5, 0.75, 0.5, quiet, 0, 0], atol=1e-3)


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
    for part in (CHROMA_GRAIN, LEAST_CHROMA_GRAIN, known.CHROMA_STEPS, SPREAD):
        assert_allclose(statistics(grey)[:, :, part], np.log(known.QUIET), atol=1e-2)
        assert (statistics(colour)[:, :, part] > np.log(known.QUIET) + 1).all()


def test_colour_that_runs_over_edges_has_small_steps_and_many() -> None:
    """Sideways alone, and the light stays sharp: what chroma_bleed does."""
    from scipy.ndimage import gaussian_filter1d

    rgb = np.full((64, 64, 3), 0.5)
    rgb[8:24, 8:24, 0] = rgb[40:56, 40:56, 0] = 0.9
    luma = (rgb @ np.array(known.LUMA))[..., None]
    change = statistics(luma + gaussian_filter1d(rgb - luma, 3, axis=1)) - statistics(rgb)
    right, below = (
        slice(first, known.CHROMA_STEPS.stop, 2) for first in range(*known.CHROMA_STEPS.indices(99)[:2])[:2]
    )
    assert (np.diagonal(change[:, :, SPREAD])[::2] < -0.5).all()  # to the right, in the cells of the squares
    assert np.abs(np.diagonal(change[:, :, SPREAD])[1::2]).max() < 0.3
    assert (np.diagonal(change[:, :, right])[:] > np.diagonal(change[:, :, SPREAD])[::2]).all()
    assert np.abs(np.diagonal(change[:, :, below])).max() < 0.3


def test_neighbours_that_are_the_same_are_counted() -> None:
    rng = np.random.default_rng(5)
    small = rng.integers(0, 200, (32, 48, 1)).repeat(3, 2) / 255
    enlarged = small.repeat(2, 0).repeat(2, 1)
    found = statistics(enlarged)
    assert_allclose(found[:, :, SAME], 0.5, atol=0.04)
    # At half the size no two are, but for the last of sixteen at the photo's edge, which has no neighbour.
    assert found[:, :, SCALE:][:, :, SAME].max() < 1 / 16 + 0.04
    assert_allclose(
        statistics(np.linspace(0, 63 / 255, 64)[None, :, None].repeat(64, 0).repeat(3, 2))[0, 0, SAME],
        [0, 1],
        atol=0.04,
    )


@pytest.mark.parametrize("phase", [0, 3])
def test_a_grid_stands_out_wherever_it_lies(phase: int) -> None:
    rng = np.random.default_rng(6)
    rgb = 0.5 + 0.01 * rng.standard_normal((64, 96, 1)).repeat(3, 2)
    blocks = 0.1 * rng.standard_normal((1, 14, 1)).repeat(8, 1)[:, phase : phase + 96]
    plain, lined = statistics(rgb), statistics(rgb + blocks)
    assert (lined[:, :, -2] > plain[:, :, -2] + 0.5).all()  # across
    assert_allclose(lined[:, :, -1], plain[:, :, -1], atol=0.2)  # not down
    turned = statistics((rgb + blocks).transpose(1, 0, 2))
    assert_allclose(turned[:, :, -2:], lined[:, :, [-1, -2]].transpose(1, 0, 2), atol=0.2)


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
