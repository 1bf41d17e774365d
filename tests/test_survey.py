"""The survey: the kernel's map against NumPy's, bit for bit, and what its statistics say of pictures one knows."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFilter

sys.path.insert(0, str(Path(__file__).parent))

import oracle
from oracle import assert_same, photo

from qcheck._kernels import processors, render
from qcheck.survey import STATISTICS, empty_map

TABLE = np.tile(np.arange(256, dtype=np.float32), (3, 1))


def surveyed(
    image: NDArray[np.uint8], box: oracle.Corners | None = None, threads: int = 1, processor: str = ""
) -> NDArray[np.float32]:
    height, width = image.shape[:2]
    out = empty_map(width, height)
    out[:] = np.nan
    size = (max(1, width // 3), max(1, height // 3))
    render(image, [box or (0, 0, width, height)], [size], TABLE, None, threads, processor, out)
    return out


@pytest.mark.parametrize("processor", processors())
def test_equals_the_oracle(processor: str) -> None:
    rng = np.random.default_rng(5)
    for number in range(400):
        height, width = (int(np.exp(rng.uniform(0, np.log(300)))) for _ in range(2))
        image = photo(height, width, number, number % 3)
        got = surveyed(image, None, int(rng.integers(1, 4)), processor)
        assert_same(got, oracle.survey(image), f"{width}x{height}, {processor}")


@pytest.mark.parametrize("size", [(1500, 2000), (33, 5000), (5000, 33), (1000, 31)])
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_bands_leave_no_row_out(size: tuple[int, int], threads: int) -> None:
    """Whichever pass goes first, and where the photo's lines are shared out over many threads."""
    image = photo(*size)
    assert_same(surveyed(image, None, threads), oracle.survey(image))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_map_is_of_the_whole_whatever_the_tiles(threads: int) -> None:
    image = photo(300, 400)
    assert_same(surveyed(image, (10, 20, 300, 200), threads), oracle.survey(image))
    # Sides that stay as they are take other ways through the kernel.
    out = empty_map(400, 300)
    tiles = render(image, [(0, 0, 400, 300)] * 2, [(400, 300)] * 2, TABLE, None, threads, "", out)
    assert_same(out, oracle.survey(image))
    assert_same(tiles[1], oracle.planar(image, (0, 0, 400, 300), (400, 300), TABLE))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_any_layout_of_rows_will_do(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    image = photo(2 * height, width + 3)[:, 1 : 1 + width]
    image = image[data.draw(st.sampled_from([slice(None), slice(None, None, 2), slice(None, None, -1)]))]
    assert_same(surveyed(image), oracle.survey(np.ascontiguousarray(image)))


def scene(seed: int = 3) -> Image.Image:
    """Smooth shapes of some contrast and fine texture, 512 x 512."""
    rng = np.random.default_rng(seed)
    parts = [Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)) for n in (8, 64, 200)]
    layers = [np.asarray(part.resize((512, 512), Image.Resampling.BICUBIC), np.float64) for part in parts]
    return Image.fromarray(np.tensordot((0.7, 0.2, 0.1), layers, 1).astype(np.uint8))


def typical(image: Image.Image) -> dict[str, float]:
    return dict(zip(STATISTICS, np.median(surveyed(np.asarray(image)), (0, 1)).tolist(), strict=True))


def noisy(image: Image.Image, sigma: float) -> Image.Image:
    grain = np.random.default_rng(0).normal(0, sigma, (*image.size[::-1], 1))
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).round().astype(np.uint8))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling=0)
    return Image.open(file).convert("RGB")


def test_noise_is_measured_in_grey_levels() -> None:
    for sigma in (4, 8, 16):
        assert typical(noisy(scene(), sigma))["noise"] == pytest.approx(sigma, rel=0.15)
    assert typical(scene())["noise"] < 1


def test_each_damage_shows_in_its_statistic() -> None:
    clean = scene()
    before = typical(clean)
    assert typical(clean.filter(ImageFilter.GaussianBlur(4)))["sharpness"] < 0.7 * before["sharpness"]
    assert typical(noisy(clean, 12))["sharpness"] > 2 * before["sharpness"]
    blocky = [typical(jpeg(clean, quality))["blockiness"] for quality in (60, 20, 8)]
    assert blocky[0] < blocky[1] < blocky[2]
    assert blocky[2] > before["blockiness"] + 0.2
    assert typical(clean.point(lambda v: min(255, int(1.9 * v))))["clipped"] > before["clipped"] + 0.2
    assert typical(clean.convert("L").convert("RGB"))["chroma"] == 0
    assert typical(clean.point(lambda v: v // 3))["luma"] == pytest.approx(before["luma"] / 3, rel=0.05)
    flat = typical(clean.point(lambda v: 100 + v // 8))
    assert flat["spread"] < before["spread"] / 4
    assert flat["gradient"] < before["gradient"] / 16


def test_a_map_of_the_wrong_kind_is_refused() -> None:
    image = photo(40, 70)
    right = empty_map(70, 40)
    wrong = [
        right[:1],
        right.astype(np.float64),
        np.zeros((2, 3, 9), np.float32),
        np.zeros((2, 3, 16), np.float32)[:, :, ::2],
        np.zeros((4, 3, 8), np.float32)[::2],
        np.zeros(48, np.float32),
    ]
    for survey in wrong:
        with pytest.raises(ValueError, match=r"survey must be float32, contiguous and \(2, 3, 8\)"):
            render(image, [(0, 0, 70, 40)], [(7, 4)], TABLE, None, 1, "", survey)
    right.flags.writeable = False
    with pytest.raises(TypeError):
        render(image, [(0, 0, 70, 40)], [(7, 4)], TABLE, None, 1, "", right)
