"""A glance: what another network's last stages make of a photo at half its size."""

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script
from small_networks import random_teacher, shallow

torch = library("torch")
cells = script("cells")
efficientnet = script("efficientnet")
glance = script("glance")
rng = np.random.default_rng(4)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shallow(monkeypatch)


@torch.inference_mode()  # type: ignore[misc]
def test_a_glance_is_the_mean_of_the_last_stages_at_half_size() -> None:
    pixels = rng.integers(0, 256, (2, 128, 192, 3))
    mean, std = (np.array(part) for part in (cells.IMAGENET_MEAN, cells.IMAGENET_STD))
    shown = torch.from_numpy((pixels / 255 - mean) / std).permute(0, 3, 1, 2).float()
    found = glance.Glance.pretrained()(shown)
    half = torch.from_numpy(pixels.reshape(2, 64, 2, 96, 2, 3).mean((2, 4))).permute(0, 3, 1, 2).float()
    stages = list(random_teacher().taps(half))[4:]
    assert len(stages) == 3
    assert_allclose(found, torch.cat([stage.mean((2, 3)) for stage in stages], 1), rtol=1e-3, atol=1e-3)
    assert found.shape == (2, glance.CHANNELS)
    assert not torch.allclose(found[0], found[1])
