"""The kernel against a NumPy oracle, on odd shapes; a failure names the first bad coordinate."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from qcheck._kernels import planarize

# Single pixels, rows, columns, primes, powers of two and their neighbours, and one of a real view's size.
SHAPES = [(1, 1), (1, 7), (13, 1), (3, 5), (31, 33), (64, 64), (65, 127), (448, 448)]


def oracle(image: NDArray[np.uint8], table: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.stack([table[channel][image[:, :, channel]] for channel in range(3)])


def assert_bitwise_equal(got: NDArray[np.float32], want: NDArray[np.float32]) -> None:
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    bad = np.argwhere(got.view(np.uint32) != want.view(np.uint32))
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        pytest.fail(f"{len(bad)} of {got.size} differ, first at (channel, y, x) = {at}: {got[at]!r}, want {want[at]!r}")


def sample(shape: tuple[int, int], seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    return image, rng.normal(size=(3, 256)).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_oracle(shape: tuple[int, int]) -> None:
    image, table = sample(shape)
    assert_bitwise_equal(planarize(image, table), oracle(image, table))


def test_every_level_of_every_channel() -> None:
    image = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    table = np.arange(768, dtype=np.float32).reshape(3, 256)
    assert_bitwise_equal(planarize(image, table), table[:, None, :])


def test_values_pass_through_untouched() -> None:
    image, table = sample((4, 64))
    table[:, ::3] = np.nan
    table[:, 1::3] = -np.inf
    table[:, 2::3] = -0.0
    assert_bitwise_equal(planarize(image, table), oracle(image, table))


def test_read_only_inputs_and_an_own_writable_result() -> None:
    image, table = sample((5, 6))
    image.flags.writeable = table.flags.writeable = False
    result = planarize(image, table)
    del image, table
    assert result.flags.c_contiguous
    result += 1
    assert result.shape == (3, 5, 6)


def test_axes_of_length_one_may_have_any_stride() -> None:
    image, table = sample((9, 9))
    for part in (image[4:5], image[:, 2:3].copy()[::-1][:1], image[3:4, 4:5]):
        assert_bitwise_equal(planarize(part, table), oracle(part, table))


def test_threads_do_not_disturb_each_other() -> None:
    samples = [sample((101, 103), seed) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda pair: planarize(*pair), samples))
    for (image, table), result in zip(samples, results, strict=True):
        assert_bitwise_equal(result, oracle(image, table))


IMAGE, TABLE = sample((4, 6))


@pytest.mark.parametrize(
    ("image", "table", "error", "message"),
    [
        (IMAGE.astype(np.int8), TABLE, TypeError, "image must be uint8"),
        (IMAGE.astype(np.float32), TABLE, TypeError, "image must be uint8"),
        (IMAGE, TABLE.astype(np.float64), TypeError, "table must be float32"),
        (IMAGE[0], TABLE, ValueError, r"image must be \(height, width, 3\) and not empty, got \(6, 3\)"),
        (np.zeros((4, 6, 4), np.uint8), TABLE, ValueError, r"got \(4, 6, 4\)"),
        (IMAGE[:0], TABLE, ValueError, r"not empty, got \(0, 6, 3\)"),
        (IMAGE[:, :0], TABLE, ValueError, r"not empty, got \(4, 0, 3\)"),
        (IMAGE, TABLE[:, :255], ValueError, r"table must be \(3, 256\), got \(3, 255\)"),
        (IMAGE, TABLE[0], ValueError, r"table must be \(3, 256\), got \(256\)"),
        (IMAGE[:, ::2], TABLE, ValueError, "image must be C-contiguous"),
        (IMAGE[::-1], TABLE, ValueError, "image must be C-contiguous"),
        (IMAGE, np.asfortranarray(TABLE), ValueError, "table must be C-contiguous"),
        ([[[0, 0, 0]]], TABLE, TypeError, "planarize"),
        (IMAGE, None, TypeError, "planarize"),
    ],
)
def test_wrong_input_is_refused(image: object, table: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        planarize(image, table)  # type: ignore[arg-type]
