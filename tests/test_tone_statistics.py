"""Statistics of light and colour answer to what they are for."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script
from shapes import photo

torch = library("torch")
measure, bands = script("tone_statistics"), script("bands")
encode = script("encode")
BANK = script("degradations").BANK


@torch.inference_mode()
def measured(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(h, w, 3) -> (CHANNELS,)."""
    found: NDArray[np.float32] = measure.ToneStatistics()(torch.from_numpy(encode.normalised(pixels)))[0].numpy()
    assert found.shape == (measure.CHANNELS,)
    return found


def after(**counts: int) -> dict[str, slice]:
    """Where in the statistics each group lies."""
    found, at = {}, 0
    for name, count in counts.items():
        found[name] = slice(at, at + count)
        at += count
    assert at == measure.CHANNELS
    return found


GROUPS = after(
    ends=measure.OF_ENDS,
    lights=len(measure.LIGHTS) * measure.OF_LIGHT,
    steps=measure.OF_STEPS,
    near=len(measure.PLACES),
    skew=len(measure.AFTER),
    touching=len(measure.TOUCHING),
    rows=bands.CHANNELS,
    columns=bands.CHANNELS,
)


@torch.inference_mode()
def waves(pixels: NDArray[np.uint8]) -> tuple[Any, Any, Any]:
    """What Bands makes of the light of a photo's rows."""
    small = pixels.reshape(pixels.shape[0] // 4, 4, pixels.shape[1] // 4, 4, 3).mean((1, 3)) / 255
    light = np.log((small @ (0.299, 0.587, 0.114)) ** 2.2 + 0.01)
    return tuple(each.numpy() for each in bands.Bands().waves(torch.from_numpy(light).float()))  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(4))
def test_rolling_bands_show_at_their_frequency(seed: int) -> None:
    """Depth .22, level 4; told from the photo as it was, and from its columns."""
    clean = photo(seed)
    rows = np.arange(clean.shape[0])
    period = (70.0, 90.0, 120.0, 180.0)[seed]
    gain = 1 - 0.22 * (1 + np.sin(2 * np.pi * rows / period + seed)) / 2
    banded = np.clip(clean * gain[:, None, None] ** (1 / 2.2), 0, 255).astype(np.uint8)
    before, now = waves(clean), waves(banded)
    # What so many rows tell apart.
    rise = now[0] - before[0]
    assert abs(bands.FREQUENCIES[int(rise.argmax())] - 1 / period) < 1 / clean.shape[0]
    assert now[2].max() > 1.5 * before[2].max()
    sure = 2  # in CHANNELS
    told = [measured(pixels)[GROUPS[axis]][sure] for pixels in (clean, banded) for axis in ("rows", "columns")]
    assert told[2] > 1.5 * told[0]
    assert abs(told[3] - told[1]) < 0.5 * (told[2] - told[0])


@torch.inference_mode()
def test_a_band_has_the_strength_of_its_amplitude() -> None:
    """Of the logarithm of light: a wave of amplitude a, seen through a sine window, has a / pi."""
    rows, a, f = np.arange(640), 0.05, bands.FREQUENCIES[12]
    light = torch.from_numpy((a * np.sin(2 * np.pi * f * 4 * rows[: 640 // 4]))[:, None].repeat(160, 1)).float()
    together, alike, _ = bands.Bands().waves(light)
    assert_allclose(float(together[12]), a / np.pi, rtol=0.1)
    assert_allclose(float(alike[12]), 1, atol=0.02)


def test_colour_that_runs_sideways_changes_less_across_than_down() -> None:
    clean = photo()
    bled = BANK["chroma_bleed"](clean, 4, 1)
    change = measured(bled)[GROUPS["steps"]] - measured(clean)[GROUPS["steps"]]
    for step in range(len(measure.NEAR_STEPS) + len(measure.FAR_STEPS)):
        at = step * measure.OF_STEP + measure.PLANES
        against = change[at : at + measure.PLANES]
        assert abs(against[0]) < 0.1  # of luma
        assert (against[1:] < -0.3).all()


@pytest.mark.parametrize("move", [(0, 4), (6, 0), (-4, 0), (2, 2), (0, 0)])
def test_one_colour_beside_the_others_correlates_where_it_lies(move: tuple[int, int]) -> None:
    """Green moved by so many px down and right."""
    moved = photo()
    moved[..., 1] = np.roll(moved[..., 1], move, (0, 1))
    near = measured(moved)[GROUPS["near"]]
    assert measure.PLACES[int(near.argmax())] == (-move[0] // 2, -move[1] // 2)
    skew = dict(zip(measure.AFTER, measured(moved)[GROUPS["skew"]], strict=True))
    for (down, right), found in skew.items():
        against = near[measure.PLACES.index((down, right))] - near[measure.PLACES.index((-down, -right))]
        assert_allclose(found, against, atol=1e-5)


def test_ends_tell_what_is_lifted_and_what_is_clipped() -> None:
    """A photo from black to white: lifted, nothing of it is nearly black; clipped, much of it is white."""
    ramp = np.repeat(np.linspace(0, 255, 512).astype(np.uint8)[None, :, None], 128, 0).repeat(3, 2)

    def shares(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(red, green, blue, luma, most, least; from black, from white; ENDS)"""
        count = 12 * len(measure.ENDS)
        return np.exp(measured(pixels)[GROUPS["ends"]][:count].reshape(6, 2, -1)) - measure.FEW

    plain, lifted = shares(ramp), shares((40 + ramp * (215 / 255)).astype(np.uint8))
    bright = shares(np.minimum(ramp.astype(int) * 2, 255).astype(np.uint8))
    assert_allclose(plain, np.broadcast_to(measure.ENDS, plain.shape), atol=0.01)
    assert (lifted[:, 0, :8] < 1e-3).all()  # .15 is darker than the darkest
    assert_allclose(bright[:, 1, 2], 0.5 + measure.ENDS[2] / 2, atol=0.02)


def test_light_is_told_apart_and_with_its_colour() -> None:
    """Dark red beside bright grey."""
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[:, :64] = (90, 20, 20)
    pixels[:, 64:] = 200
    told = measured(pixels)[GROUPS["lights"]].reshape(measure.OF_LIGHT, len(measure.LIGHTS))
    dark, bright = (int(np.abs(np.array(measure.LIGHTS) - luma / 255).argmin()) for luma in (40.9, 200))
    assert np.isin(np.argsort(told[0])[-4:], [dark - 1, dark, dark + 1, bright - 1, bright, bright + 1]).all()
    assert_allclose(told[2, [dark, bright]], [70 / 255, 0], atol=0.02)  # largest channel less the least
    assert_allclose(told[3, [dark, bright]], [70 / 255, 0], atol=0.02)  # red less green


def test_a_flat_photo_has_finite_statistics() -> None:
    for grey in (0, 77, 255):
        assert np.isfinite(measured(np.full((64, 64, 3), grey, np.uint8))).all()
