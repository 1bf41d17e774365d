"""The tile kernel on an NVIDIA GPU: the bits of Pillow and NumPy, memory shared with torch."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import oracle
from fake_model import library
from oracle import assert_same, patched, photo, planar, random_box

from qcheck import _kernels
from qcheck.tiles import normalise_table

torch = library("torch")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not (hasattr(_kernels, "render_cuda") and _kernels.cuda_devices() and torch.cuda.is_available()),
        reason="needs an NVIDIA GPU, a CUDA build of torch and a build with -Ccmake.define.QCHECK_CUDA=ON",
    ),
]
TABLE = normalise_table((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def render(image: Any, *request: Any, **options: Any) -> Any:
    """On the current stream, back as NumPy."""
    stream = torch.cuda.current_stream()
    out = torch.from_dlpack(_kernels.render_cuda(image, *request, stream=stream.cuda_stream, **options))
    stream.synchronize()
    return out.cpu().numpy()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_ten_thousand_boxes_equal_pillow(dtype: type) -> None:
    rng, table = np.random.default_rng(1), TABLE.astype(dtype)
    for number in range(10_000 if dtype is np.float32 else 2_000):
        height, width = (int(np.exp(rng.uniform(0, np.log(2000 if number % 20 == 0 else 160)))) for _ in range(2))
        image = photo(height, width, number, number % 3)
        boxes = [random_box(rng, width, height) for _ in range(int(rng.integers(1, 4)))]
        size = tuple(int(np.exp(rng.uniform(0, np.log(120)))) for _ in range(2))
        got = render(torch.from_numpy(image).cuda(), boxes, [size] * len(boxes), table)
        for tile, box in zip(got, boxes, strict=True):
            assert_same(tile, planar(image, box, size, table), f"{width}x{height} {box} to {size}")


@pytest.mark.parametrize("patches", [(14, 2, 2), (16, 4, 1), (14, 2, 1), (1, 1, 1), (2, 3, 3)])
def test_patches_are_in_the_order_of_the_processor(patches: tuple[int, int, int]) -> None:
    image, unit = photo(300, 400), patches[0] * patches[1]
    boxes, sizes = [(0, 0, 400, 300), (100, 50, 220, 200)], [(3 * unit, 2 * unit), (unit, 4 * unit)]
    got = render(torch.from_numpy(image).cuda(), boxes, sizes, TABLE, patches)
    want = [patched(planar(image, box, size, TABLE), *patches) for box, size in zip(boxes, sizes, strict=True)]
    assert_same(got, np.concatenate(want))


def test_a_cut_out_of_a_tensor_will_do() -> None:
    """Whose rows begin anywhere and lie apart."""
    image = photo(240, 330)
    for left in range(17):
        part = image[3:-2, left : 300 + left]
        got = render(torch.from_numpy(image).cuda()[3:-2, left : 300 + left], [(1, 2, 299, 233)], [(64, 96)], TABLE)
        assert_same(got[0], planar(np.ascontiguousarray(part), (1, 2, 299, 233), (64, 96), TABLE))


def test_the_result_goes_where_it_is_told() -> None:
    image = photo(100, 120)
    out = torch.full((1, 3, 32, 64), torch.nan, device="cuda")
    _kernels.render_cuda(torch.from_numpy(image).cuda(), [(0, 0, 120, 100)], [(64, 32)], TABLE, out=out)
    torch.cuda.synchronize()
    assert_same(out.cpu().numpy()[0], planar(image, (0, 0, 120, 100), (64, 32), TABLE))
    for wrong in (out[:, :, :, :63], out.half(), out.cpu(), out[0]):
        with pytest.raises((ValueError, TypeError)):
            _kernels.render_cuda(torch.from_numpy(image).cuda(), [(0, 0, 120, 100)], [(64, 32)], TABLE, out=wrong)


def test_the_survey_equals_numpy() -> None:
    rng = np.random.default_rng(5)
    for number in range(400):
        height, width = (int(np.exp(rng.uniform(0, np.log(700)))) for _ in range(2))
        image = photo(height, width, number, number % 3)
        out = torch.full(oracle.survey(image).shape, torch.nan, device="cuda")
        render(torch.from_numpy(image).cuda(), [(0, 0, width, height)], [(28, 28)], TABLE, survey=out)
        assert_same(out.cpu().numpy(), oracle.survey(image), f"{width}x{height}")
    with pytest.raises(TypeError):
        render(torch.from_numpy(image).cuda(), [(0, 0, width, height)], [(28, 28)], TABLE, survey=out.cpu())


def test_the_result_outlives_the_photo_and_its_stream() -> None:
    image = photo(200, 300)
    with torch.cuda.stream(torch.cuda.Stream()):
        got = render(torch.from_numpy(image).cuda(), [(0, 0, 300, 200)], [(64, 32)], TABLE)
    assert_same(got[0], planar(image, (0, 0, 300, 200), (64, 32), TABLE))
