"""A glance at a photo: what EfficientNet-Lite2, which nobody taught quality, makes of it at half its size, on the
whole.

It helps to score photos of other origin than those that were learned from (README.md has the figures), and tells
nothing about places. Only the means of the last stages are kept: nothing else of it helped.
"""

from typing import Final

import torch
from cells import IMAGENET_MEAN, IMAGENET_STD
from efficientnet import STAGES, EfficientNetLite
from torch import Tensor, nn
from torch.nn import functional as F

LAST: Final = 3  # stages that are read
CHANNELS: Final = sum(channels for _, channels, *_ in STAGES[-LAST:])


class Glance(nn.Module):
    """Normalised pixels (n, 3, h, w), h and w multiples of 64 -> (n, CHANNELS)."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetLite()
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    @classmethod
    def pretrained(cls) -> "Glance":
        """Raises RunError where its weights are not installed."""
        glance = cls()
        glance.network = EfficientNetLite.pretrained()
        return glance.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        half = F.avg_pool2d(pixels, 2) * self.std + self.mean
        return torch.cat([tap.float().mean((2, 3)) for tap in list(self.network.taps(half))[-LAST:]], 1)
