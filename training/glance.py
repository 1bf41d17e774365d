"""A glance at a view: what EfficientNet-Lite2, which nobody taught quality, makes of it at half its size, on the whole.

It helps to score photos of other origin than those that were learned from (README.md has the figures), and tells
nothing about places. Only the means over the view of the last stages are kept: nothing else of it helped.
"""

import base64
from typing import Any, Final

import numpy as np
import torch
from cells import IMAGENET_MEAN, IMAGENET_STD
from efficientnet import STAGES, EfficientNetLite
from numpy.typing import NDArray
from runs import RunError
from torch import Tensor, nn
from torch.nn import functional as F

LAST: Final = 3  # stages that are read
CHANNELS: Final = sum(channels for _, channels, *_ in STAGES[-LAST:])
KEY: Final = "glance"  # of the entry of a view in an index


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


def written(glance: NDArray[Any]) -> str:
    """(CHANNELS,) as fp16 for an index."""
    return base64.b64encode(glance.astype(np.float16).tobytes()).decode()


def glance_of(view: dict[str, Any]) -> Tensor:
    """That at a view, by its entry in an index: (CHANNELS,). Raises RunError for a view that nobody glanced at."""
    if KEY not in view:
        raise RunError("these cells were made before views were glanced at; make them again (encode.py)")
    values = np.frombuffer(base64.b64decode(view[KEY]), np.float16)
    return torch.from_numpy(values.astype(np.float32))
