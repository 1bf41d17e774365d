"""What the convolutions are not to forget: told by a map that begins true and learns."""

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script
from small_networks import random_encoder, random_teacher, shallow

torch = library("torch")
library("sklearn")
cells = script("cells")
hints = script("hints")
visual = script("visual")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shallow(monkeypatch)


def pictures(count: int) -> NDArray[np.uint8]:
    """Of many grains and colours."""
    rng = np.random.default_rng(2)
    lights, grains = rng.uniform(40, 200, (count, 1, 1, 3)), rng.uniform(1, 50, (count, 1, 1, 1))
    return np.clip(lights + grains * rng.normal(0, 1, (count, 64, 128, 3)), 0, 255).astype(np.uint8)


def test_pixels_are_normalised_as_the_encoder_wants_them() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)[:, :, ::-1]
    found = hints.normalised(pixels)
    expected = (pixels / 255 - cells.IMAGENET_MEAN) / cells.IMAGENET_STD
    assert found.shape == (2, 3, 64, 96)
    assert_allclose(found.permute(0, 2, 3, 1), expected, atol=1e-5)
    assert_allclose(hints.images(pixels).permute(0, 2, 3, 1), pixels)


@torch.inference_mode()  # type: ignore[misc]
def test_untaught_summaries_are_of_both_networks() -> None:
    pixels = pictures(3)
    found = hints.Untaught().summaries(pixels)
    own = visual.summary(random_encoder().view(hints.normalised(pixels)))
    other = random_teacher()(hints.images(pixels))
    # Within what sixteen bits of brain float leave of several layers.
    for part, expected in ((found[:, : hints.OWN], own), (found[:, hints.OWN :], other)):
        assert part.shape == expected.shape
        assert np.corrcoef(part.flatten(), expected.flatten())[0, 1] > 0.995


@torch.inference_mode()  # type: ignore[misc]
def test_the_map_begins_true_of_what_nobody_taught() -> None:
    """All of MobileNetV2's is told, and more of the other's than by chance, also of pictures that it did not begin
    with."""
    untaught, map_ = hints.Untaught(), hints.Hints()
    pixels = pictures(640)
    summaries = untaught.summaries(pixels)
    map_.begin(summaries[:600])
    with torch.autocast("cpu", torch.bfloat16):
        seen = untaught.own.view(hints.normalised(pixels[600:])).float()
    own, other = map_.errors(seen, summaries[600:])
    assert float(own) < 1e-3
    assert float(other) < 0.6 * float((map_.known(summaries[600:])[:, hints.OWN :] ** 2).mean())


def test_what_was_forgotten_is_learned_again() -> None:
    """Convolutions that were shaken tell less; the hints alone teach them."""
    torch.manual_seed(0)
    untaught, map_, encoder = hints.Untaught(), hints.Hints(), random_encoder().train()
    pixels = pictures(64)
    summaries = untaught.summaries(pixels)
    map_.begin(summaries)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(0.3 * weight.std(correction=0) * torch.randn_like(weight))
    optimizer, losses = torch.optim.AdamW(encoder.parameters(), lr=1e-3), []
    x = hints.normalised(pixels)
    for _ in range(15):
        own, other = map_.errors(encoder.view(x), summaries)
        losses.append((float(own.detach()), float(other.detach())))
        optimizer.zero_grad()
        (own + other).backward()
        optimizer.step()
    assert losses[0][0] > 0.05, "nothing was forgotten"
    assert (np.array(losses[-1]) < 0.7 * np.array(losses[0])).all(), losses
