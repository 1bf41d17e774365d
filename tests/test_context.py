"""The context: it corrects nothing until it is taught, learns what single tokens cannot show, and its windows keep
readings and truth together."""

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script

torch = library("torch")
context = script("context")
fields = script("fields")
visual = script("visual")
RunError = script("runs").RunError

KINDS, OPINIONS = 3, 4
SIZE = context.context_size(KINDS, OPINIONS)


def untaught() -> Any:
    torch.manual_seed(0)
    return context.Context(KINDS, OPINIONS)


@torch.inference_mode()
def test_an_untaught_context_corrects_nothing() -> None:
    assert_array_equal(untaught().eval()(torch.randn(2, 4, 5, SIZE)), torch.zeros(2, 4, 5, KINDS + 2))


@torch.inference_mode()
def test_what_a_context_reads_is_the_mean_of_all_networks() -> None:
    outputs = 1 + KINDS + KINDS * visual.LEVELS + 1
    opinions = [torch.randn(2, 4, 5, outputs) for _ in range(OPINIONS)]
    inputs = untaught().inputs(opinions, torch.randn(2, 4, 5, context.SURVEY_CHANNELS), torch.zeros(2, 4, 5, 1))
    assert inputs.shape == (2, 4, 5, SIZE)
    kinds, severity = untaught().read(inputs)
    mean = sum(opinions) / OPINIONS
    assert_allclose(kinds, mean[..., : 1 + KINDS], atol=1e-5)
    assert_allclose(severity, mean[..., -1:], atol=1e-5)


@torch.inference_mode()
def test_padding_is_not_seen() -> None:
    """A view in a larger batch is read as it is alone."""
    one = untaught().eval()
    torch.nn.init.normal_(one.leave.weight)
    view = torch.randn(1, 6, 7, SIZE)
    padded, inside = torch.randn(1, 10, 10, SIZE), torch.zeros(1, 10, 10)
    padded[:, :6, :7], inside[:, :6, :7] = view, 1
    assert_allclose(one(padded, inside)[:, :6, :7], one(view), atol=1e-5)
    assert np.ptp(one(view)[..., 0].numpy()) > 1e-3


def numbered(rows: int, cols: int, number: int, broken: tuple[slice, slice] | None = None) -> Any:
    """A field whose tokens tell which they are, and, in their kind too, whether they are broken."""
    kinds = np.zeros((rows, cols), np.int64)
    severities = np.full((rows, cols), np.nan, np.float32)
    inputs = np.zeros((rows, cols, SIZE), np.float16)
    inputs[..., 0] = np.arange(rows)[:, None]
    inputs[..., 1] = np.arange(cols)
    inputs[..., 2] = number
    if broken:
        kinds[broken], severities[broken], inputs[(*broken, 3)] = 2, 0.25, 1
    return fields.Field(inputs, kinds, severities)


def test_windows_keep_readings_and_truth_together() -> None:
    broken = numbered(14, 12, 1, (slice(3, 5), slice(6, 9)))
    broken.twin = numbered(14, 12, 2)
    small = numbered(4, 3, 3, (slice(0, 1), slice(0, 1)))
    some = fields.Fields([broken, numbered(11, 20, 4), small])
    windows = some.drawn(60, np.random.default_rng(0))
    numbers, before = [], None
    for inputs, inside, kinds, severities in zip(
        windows.inputs.numpy(), windows.inside.numpy(), windows.kinds.numpy(), windows.severities.numpy(), strict=True
    ):
        seen = inside > 0
        assert_array_equal(kinds[seen] > 0, inputs[seen][:, 3] > 0)
        assert (severities[kinds > 0] == 0.25).all()
        assert (kinds[~seen] == fields.UNKNOWN).all()
        assert not inputs[~seen].any()
        number = set(inputs[seen][:, 2].tolist())
        assert len(number) == 1
        numbers.append(number.pop())
        if numbers[-1] in (1, 3):
            assert (kinds > 0).any(), "a window around a broken token"
        if numbers[-1] == 2:
            assert before is not None
            assert_array_equal(before[..., :2], inputs[..., :2], "a twin is seen where its broken one is")
        before = inputs
        assert seen.sum() == (12 if numbers[-1] == 3 else 100)
    assert set(numbers) == {1, 2, 3, 4}
    assert all(b == 2 for a, b in itertools.pairwise(numbers) if a == 1)


def test_no_field_is_said() -> None:
    with pytest.raises(RunError, match="no view to learn a context from"):
        fields.Fields([])


def test_neighbours_are_compared() -> None:
    """Of two views, one bright and one dark, each with a place of the other's light: a token's own reading says
    nothing, its neighbours' everything."""
    rng = np.random.default_rng(1)

    def scene(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        light = rng.choice((-1.0, 1.0))
        inputs = rng.normal(0, 0.2, (12, 12, SIZE))
        kinds, severities = np.zeros((12, 12), np.int64), np.full((12, 12), np.nan, np.float32)
        inputs[..., 2 * (KINDS + 2)] += light  # the first of the survey
        if seed % 2:
            y, x = rng.integers(1, 8, 2)
            inputs[y : y + 3, x : x + 3, 2 * (KINDS + 2)] -= 2 * light
            kinds[y : y + 3, x : x + 3], severities[y : y + 3, x : x + 3] = 2, 0.9
        return fields.Field(inputs.astype(np.float16), kinds, severities)

    one = untaught()
    fields.learn_context(one, fields.Fields([scene(seed) for seed in range(60)]), 120, 3e-3, rng)
    right = []
    for seed in range(1001, 1021):
        new = scene(seed)
        with torch.inference_mode():
            inputs = torch.from_numpy(new.inputs.astype(np.float32))[None]
            kinds = (one.read(inputs)[0] + one(inputs)[..., :-1])[0].argmax(-1).numpy()
        right.append((kinds == new.kinds).mean())
    assert np.mean(right) > 0.95
