"""The cells of a view: MobileNetV2 with its normalisations folded in, and the survey on the view's grid."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

import oracle
from fake_model import library, script

torch = library("torch")
cells = script("cells")
imagenet = script("imagenet")
nn = torch.nn


def normed(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[Any]:
    padding = (kernel - 1) // 2
    return [nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(outputs)]


class Block(nn.Module):  # type: ignore[misc, name-defined]
    """As torchvision's InvertedResidual, whose names it has."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        first = [] if expansion == 1 else [nn.Sequential(*normed(inputs, hidden, 1), nn.ReLU6())]
        depthwise = nn.Sequential(*normed(hidden, hidden, 3, stride, hidden), nn.ReLU6())
        self.conv = nn.Sequential(*first, depthwise, *normed(hidden, outputs, 1))
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Any) -> Any:
        return x + self.conv(x) if self.skip else self.conv(x)


def unfolded() -> Any:
    """MobileNetV2 as torchvision has it, all its normalisations different, with the parts that nobody reads."""
    torch.manual_seed(4)
    blocks, channels = [nn.Sequential(*normed(3, 32, 3, 2), nn.ReLU6())], 32
    for expansion, outputs, count, stride in cells.STAGES:
        for index in range(count):
            blocks.append(Block(channels, outputs, stride if index == 0 else 1, expansion))
            channels = outputs
    blocks.append(nn.Sequential(*normed(channels, 1280, 1), nn.ReLU6()))
    model = nn.Module()
    model.features = nn.Sequential(*blocks)
    model.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.01, 0.2)
    return model.eval()


@torch.inference_mode()  # type: ignore[misc]
def test_folded_equals_unfolded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = unfolded()
    (tmp_path / "weights").mkdir()
    torch.save(reference.state_dict(), tmp_path / "weights" / "mobilenet_v2-b0353104.pth")
    monkeypatch.setattr(imagenet, "files", lambda package: tmp_path)
    encoder, reference = cells.CellEncoder.pretrained().double(), reference.double()
    x = torch.randn(1, 3, 64, 96).double()
    for index, block in enumerate(encoder.features):
        expected = reference.features[index](x)
        assert expected.std() > 0.05, "nothing is left to compare"
        assert_allclose(block(x), expected, atol=1e-6 * float(expected.abs().max()), err_msg=f"block {index}")
        x = expected
    assert index == max(cells.TAPS)


def test_tuned_weights_are_read_back(tmp_path: Path) -> None:
    torch.manual_seed(1)
    encoder = cells.CellEncoder()
    torch.save({"encoder": encoder.state_dict(), "heads": {}}, tmp_path / "encoder.pt")
    again = cells.CellEncoder.tuned(tmp_path / "encoder.pt")
    assert not again.training
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@torch.inference_mode()  # type: ignore[misc]
def test_a_tap_is_mean_and_spread_in_each_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network whose every block halves or keeps its input: what is read of it can be computed by hand."""
    encoder = cells.CellEncoder()
    pixels = torch.randn(1, 3, 64, 96)
    taps, channels = {}, iter(cells.TAP_CHANNELS)
    for index, stride in cells.TAPS.items():
        taps[index] = torch.randn(1, next(channels), 64 // stride, 96 // stride)
    encoder.features = nn.ModuleList(_Constant(taps.get(index)) for index in range(18))
    seen = encoder.view(pixels)[0].numpy()
    means, spreads = [], []
    for index, stride in cells.TAPS.items():
        side = 32 // stride
        blocks = taps[index][0].numpy().reshape(-1, 2, side, 3, side)
        means.append(blocks.mean((2, 4)))
        if side > 1:
            spreads.append(blocks.std((2, 4)))
    expected = np.concatenate([*means, *spreads]).transpose(1, 2, 0)
    assert_allclose(seen[..., : expected.shape[2]], expected, atol=1e-4)
    assert seen.shape == (2, 3, cells.VIEW_CHANNELS)


class _Constant(nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Any) -> Any:
        return x if self.value is None else self.value


# The survey on the grid of a view

SIZES = [(1, 1), (1, 5), (5, 1), (4, 4), (6, 3), (7, 3), (3, 7), (97, 24), (13, 18)]


def by_hand(count: int, to: int) -> NDArray[np.float64]:
    """Each of `count` parts in `to` pieces and the other way round: whole numbers of pieces of one size."""
    pieces = np.arange(count * to)
    inside = np.zeros((to, count))
    np.add.at(inside, (pieces // count, pieces // to), 1 / count)
    return inside


@pytest.mark.parametrize(("count", "to"), SIZES)
def test_shares_are_of_the_line_that_is_covered(count: int, to: int) -> None:
    found = cells.shares(count, to, torch.zeros(1))
    assert found.shape == (to, count)
    assert_allclose(found.sum(1), np.ones(to), atol=1e-5)
    assert_allclose(found, by_hand(count, to), atol=1e-5)
    if count == to:
        assert_allclose(found, np.eye(count), atol=0)


def survey(rows: int, cols: int, seed: int = 0) -> Any:
    """Of a made-up photo."""
    return torch.from_numpy(oracle.survey(oracle.photo(32 * rows, 32 * cols, seed)))[None]


def test_on_an_equal_grid_the_mean_is_exact() -> None:
    known = survey(4, 6)
    found = cells.surveyed(known, 4, 6)
    assert found.shape == (1, 4, 6, cells.SURVEY_CHANNELS)
    mean, spread = found.chunk(2, -1)
    assert torch.equal(mean, cells.scaled(known))
    assert_allclose(spread, np.full(spread.shape, 1e-3), atol=2e-3)  # rounding, under the root


@pytest.mark.parametrize(
    ("rows", "cols", "to_rows", "to_cols"), [(8, 12, 4, 3), (5, 7, 2, 3), (3, 4, 6, 8), (1, 1, 2, 5)]
)
def test_a_cell_has_mean_and_spread_of_what_it_shows(rows: int, cols: int, to_rows: int, to_cols: int) -> None:
    known = survey(rows, cols, 1)
    values = cells.scaled(known)[0].double().numpy()
    down, across = by_hand(rows, to_rows), by_hand(cols, to_cols)
    mean, spread = np.split(cells.surveyed(known, to_rows, to_cols)[0].numpy(), 2, -1)
    for y in range(to_rows):
        for x in range(to_cols):
            weights = np.outer(down[y], across[x])
            expected = np.average(values, axis=(0, 1), weights=np.broadcast_to(weights[..., None], values.shape))
            var = np.average(
                (values - expected) ** 2, axis=(0, 1), weights=np.broadcast_to(weights[..., None], values.shape)
            )
            assert_allclose(mean[y, x], expected, atol=1e-5)
            assert_allclose(spread[y, x], np.sqrt(var), atol=4e-3)


def test_statistics_are_numbers_of_about_one() -> None:
    """Of noise as strong as 8 bits hold, of black and white, of a gradient and of one colour."""
    pictures = [oracle.photo(96, 128, 2, kind) for kind in range(3)] + [np.full((96, 128, 3), 255, np.uint8)]
    for picture in pictures:
        found = cells.scaled(torch.from_numpy(oracle.survey(picture))[None])
        assert torch.isfinite(found).all()
        assert float(found.min()) >= -1
        assert float(found.max()) < 12
