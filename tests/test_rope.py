"""Positions that are built turn by turn equal those that transformers computes for the whole conversation."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import script, spelled_conversation, tokenizer

from qcheck.rope import image_positions, text_positions

torch = script("torch")
nano = script("nano")


@pytest.fixture(scope="module")
def model() -> Any:
    return nano.Nano(nano.config(tokenizer(), hidden=64, layers=1))


SIZES = [
    [(1, 1)],
    [(12, 16)],
    [(16, 12), (7, 7)],
    [(1, 9), (9, 1), (3, 4)],  # extreme shapes: text goes on after the larger side
    [(12, 16), (7, 7), (8, 8), (4, 16), (1, 1)],
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_equal_to_transformers(model: Any, sizes: list[tuple[int, int]]) -> None:
    tokens, ours = spelled_conversation(sizes)
    ids = torch.tensor([tokens])
    grid = torch.tensor([[1, rows * nano.MERGE, cols * nano.MERGE] for rows, cols in sizes])
    kinds = (ids == model.config.image_token_id).int()
    theirs, _ = model.model.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grid)
    assert ours.dtype == np.int64
    assert_array_equal(ours, theirs[:, 0].numpy())


def test_text() -> None:
    positions, after = text_positions(5, 3)
    assert_array_equal(positions, [[5, 6, 7]] * 3)
    assert after == 8
    positions, after = text_positions(5, 0)
    assert positions.shape == (3, 0)
    assert after == 5


@pytest.mark.parametrize(("rows", "cols", "after"), [(2, 3, 13), (3, 2, 13), (1, 1, 11)])
def test_image(rows: int, cols: int, after: int) -> None:
    positions, following = image_positions(10, rows, cols)
    expected = [(10, 10 + y, 10 + x) for y in range(rows) for x in range(cols)]
    assert_array_equal(positions.T, expected)
    assert following == after
