"""Networks of one block a stage, with random weights, in place of those that learned ImageNet."""

from typing import Any

import pytest
from fake_model import library, script

torch = library("torch")
cells = script("cells")
efficientnet = script("efficientnet")


def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes all networks small, MobileNetV2 read where the whole one is, and gives them random weights."""
    monkeypatch.setattr(cells, "STAGES", tuple((e, outputs, 1, stride) for e, outputs, _, stride in cells.STAGES))
    monkeypatch.setattr(cells, "TAPS", {1: 2, 2: 4, 3: 8, 4: 16, 5: 16, 7: 32})
    shallow_teacher(monkeypatch)
    monkeypatch.setattr(cells.CellEncoder, "pretrained", classmethod(lambda cls: random_encoder()))
    monkeypatch.setattr(efficientnet.EfficientNetLite, "pretrained", classmethod(lambda cls: random_teacher()))


def shallow_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes EfficientNet-Lite2 small."""
    stages = tuple((e, outputs, 1, side, stride) for e, outputs, _, side, stride in efficientnet.STAGES)
    monkeypatch.setattr(efficientnet, "STAGES", stages)


def random_encoder() -> Any:
    return _random(cells.CellEncoder, 8)


def random_teacher() -> Any:
    return _random(efficientnet.EfficientNetLite, 9)


def _random(network: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    made = network().eval()
    for module in made.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return made
