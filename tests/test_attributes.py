"""The attribute benchmark: photos are as broken as they are said to be, and a model that sees it is told from one that
does not."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script

ndimage = library("scipy.ndimage")
attributes = script("attributes", "benchmarks")
NAMES = script("defects").PHOTOS.attributes


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clean")
    for index in range(2):
        grain = np.random.default_rng(index).normal(0, 1, (300, 400, 3))
        pixels = 128 + sum(20 * ndimage.gaussian_filter(grain, (s, s, 0)) * s for s in (1, 4))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    return sorted(folder.iterdir())


def test_every_level_of_every_source_comes_up(clean: list[Path]) -> None:
    """And again the same for the same seed."""
    made, again = (list(attributes.broken_photos(clean, 12, seed=3)) for _ in range(2))
    for name in NAMES:
        found = {(b.source, b.level) for b in made if b.attribute == name}
        assert found == {(path.name, level) for path in clean for level in range(6)}
    for one, same in zip(made, again, strict=True):
        np.testing.assert_array_equal(one.photo.pixels, same.photo.pixels)


@pytest.mark.parametrize("sees", [True, False])
def test_a_model_that_sees_is_told_from_one_that_does_not(
    clean: list[Path], sees: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = iter([b.level for b in attributes.broken_photos(clean, 12)])
    rng = np.random.default_rng(0)

    def judge(photo: Any, limits: Any) -> Any:
        level = next(levels)
        said = 5 - 0.7 * level if sees else float(rng.uniform(1, 5))
        return SimpleNamespace(attributes=dict.fromkeys(NAMES, said))

    monkeypatch.setattr(attributes, "Prober", lambda engine: SimpleNamespace(judge=judge))
    rows = attributes.attribute_rows(None, clean, 12)
    assert rows.pop("attribute_photos") == 12
    assert set(rows) == {f"attribute_{name}" for name in NAMES}
    for row in rows.values():
        assert (row.value > 0.99) if sees else (abs(row.value) < 0.8)
