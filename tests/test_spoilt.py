"""The benchmark of large photos that are bad all over: each way spoils, and a model that sees it is told from one that
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

library("scipy")
spoilt = script("spoilt", "benchmarks")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clean")
    for index in range(3):
        pixels = np.random.default_rng(index).integers(60, 250, (300, 400, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("way", list(spoilt.WAYS))
def test_each_way_spoils_all_of_a_photo(clean: list[Path], way: str) -> None:
    image = Image.open(clean[0]).convert("RGB")
    before, after = (np.asarray(one, np.float64) for one in (image, spoilt.WAYS[way](image)))
    assert after.shape == before.shape
    blocks = np.abs(after - before).reshape(6, 50, 8, 50, 3).mean((1, 3, 4))
    assert blocks.min() > 10


@pytest.mark.parametrize("sees", [True, False])
def test_a_model_that_sees_is_told_from_one_that_does_not(
    clean: list[Path], sees: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    originals = [np.asarray(Image.open(path)) for path in clean]

    def judge(photo: Any, limits: Any) -> Any:
        as_it_was = any(np.array_equal(photo.pixels, one) for one in originals)
        return SimpleNamespace(score=4.5 if as_it_was or not sees else 2.0)

    monkeypatch.setattr(spoilt, "Prober", lambda engine: SimpleNamespace(judge=judge))
    rows = spoilt.spoilt_rows(None, clean)
    assert rows["spoilt_photos"] == 3
    assert rows["spoilt_told"].value == (1 if sees else 0)
    assert {name for name in rows if name.startswith("spoilt_drop_")} == {f"spoilt_drop_{way}" for way in spoilt.WAYS}
    for way in spoilt.WAYS:
        assert rows[f"spoilt_drop_{way}"].value == (2.5 if sees else 0)
