"""The picture of crops: broken and clean ones are told apart where the evidence differs, and only there."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script, tokenizer

torch = library("torch")
library("matplotlib")
crop_bias = script("crop_bias", "benchmarks")
look, nano, defects = script("look"), script("nano"), script("defects")

DEFECT = {"kind": "noise", "level": 3, "box": [0, 0, 200, 200], "cost": 0.4}
SUSPICION = [0.1, 0.1, 0.5, 0.5, "noise", 2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned nothing: what it is shown still moves what it thinks."""
    torch.manual_seed(1)
    path: Path = tmp_path_factory.mktemp("model") / "some.pt"
    model = nano.Nano(nano.config(tokenizer()))
    torch.save({"model": model.state_dict(), "domain": dataclasses.asdict(defects.PHOTOS)}, path)
    return path


def looked(folder: Path, differs: bool) -> Path:
    """Photos with a broken, a clean and a half-broken crop each, read by eyes that see the damage or do not."""
    rng = np.random.default_rng(0)
    writer = look.SeenStore(folder, "local-dev").writer()
    for index in range(40):
        views = []
        for role, box, odds in (
            ("global", [0, 0, 800, 600], 0.0),
            ("truth0", [0, 0, 250, 250], 4.0),
            ("random", [500, 300, 750, 550], -4.0),
            ("near", [150, 0, 400, 250], 0.0),
        ):
            seen = rng.normal(0, 0.3, (3, 3, look.seen_channels())).astype(np.float16)
            seen[..., 0] -= np.float16(odds if differs else 0)
            place = [0.1, 0.1, 0.9, 0.9, odds if differs else 0.0, *[0.05] * 14, *[0.2] * 5, 0.5]  # as of regions.py
            told = {"score": 3.0, "toll": 4.0, "attributes": [4.0] * 5, "places": [place] * 3}
            told["suspicions"] = [SUSPICION] * 3
            views.append(({"role": role, "box": box, **told}, seen))
        known = {"split": "dev", "name": f"{index % 8}.jpg", "width": 800, "height": 600, "score": 3.0}
        writer.add({**known, "defects": [DEFECT]}, iter(views))
    writer.close()
    return folder


@pytest.mark.parametrize("differs", [True, False])
def test_crops_are_told_apart_by_what_they_show(tmp_path: Path, checkpoint: Path, differs: bool, capsys: Any) -> None:
    seen = crop_bias.looks(checkpoint, looked(tmp_path, differs))
    assert seen.broken.tolist() == [True, False] * 40, "edges are neither"
    told = crop_bias.told_apart(seen)
    assert (told["crops"], told["broken"]) == (80, 40)
    assert (told["auc"] > 0.95) if differs else (0.2 < told["auc"] < 0.8)
    if differs:
        crop_bias.draw({"one": seen, "other": seen}, tmp_path / "some.png")
        assert (tmp_path / "some.png").stat().st_size > 10_000
