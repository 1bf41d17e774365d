"""benchmarks/sizes.py: what is shown at each scale, and that what is said is set against what people said."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import script

sizes = script("sizes", "benchmarks")


class Judge:
    """Says how bright a photo is, or, of large ones, how dark."""

    def judge(self, photo: Any, limits: Any) -> Any:
        brightness = float(photo.pixels.mean()) / 64 + 1
        large = photo.width > 64
        return SimpleNamespace(score=6 - brightness if large else brightness, probes=("a crop",) if large else ())


def test_each_scale_is_ranked_by_itself(tmp_path: Path) -> None:
    photos = []
    for number in range(8):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (64, 48), (30 * number,) * 3).save(path)
        photos.append(sizes.Rated(path, 1 + number / 2, "test"))
    assert sizes.enlarged(photos[0].path, 1.5).pixels.shape == (72, 96, 3)
    same, larger = (sizes.row_of(Judge(), photos, scale) for scale in (1.0, 2.0))
    assert (same["srcc"].value, larger["srcc"].value) == (pytest.approx(1), pytest.approx(-1))
    assert (same["probes"], larger["probes"]) == (0, 1)
    assert same["mean"] == pytest.approx(np.mean([30 * n / 64 + 1 for n in range(8)]))
    assert same["spread"] == pytest.approx(larger["spread"])
