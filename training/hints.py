"""What networks that nobody taught quality say of a tile, which the convolutions have to tell while they learn damages.

Convolutions that are taught forget what they are not taught with, and it is that which ranks photos of other origin:
README.md has the figures. So a linear map has to tell, from what the taught ones make of a rated tile, what two
networks as ImageNet left them make of it: features as hints (FitNets, Romero et al. 2015), of themselves as they were
(Learning without Forgetting, Li and Hoiem 2016) and of another. No score is told, and none can be learned by heart.
"""

from typing import Final

import numpy as np
import torch
from cells import IMAGENET_MEAN, IMAGENET_STD, VIEW_CHANNELS, CellEncoder
from efficientnet import SUMMARY_CHANNELS, EfficientNetLite
from numpy.typing import NDArray
from summaries import ridge
from torch import Tensor, nn
from visual import summary

OWN: Final = 2 * VIEW_CHANNELS
ALL: Final = OWN + SUMMARY_CHANNELS
MEAN: Final = torch.tensor(IMAGENET_MEAN)[None, :, None, None]
STD: Final = torch.tensor(IMAGENET_STD)[None, :, None, None]
LEAST_SPREAD: Final = 1e-2
# Of 1,066 photos: .40 of the other's variance is left on others (.45 at a fifth of it, .46 at eight times it).
RIDGE_PENALTY: Final = 0.5
FAR: Final = 6.0  # spreads from the mean: what lies further is as far
LEARNED_FAR: Final = 8.0  # the same of what is being taught: further, so that it can come back


def images(pixels: NDArray[np.uint8]) -> Tensor:
    """(n, h, w, 3) -> (n, 3, h, w) of 0..255, channels last in memory, which convolutions on a CPU like."""
    x = torch.tensor(pixels.copy()).permute(0, 3, 1, 2).float()
    return x.contiguous(memory_format=torch.channels_last)


def normalised(pixels: NDArray[np.uint8]) -> Tensor:
    """The same as CellEncoder takes them."""
    x = (images(pixels) / 255 - MEAN) / STD
    return x.contiguous(memory_format=torch.channels_last)


class Untaught:
    """The networks as they learned ImageNet."""

    def __init__(self) -> None:
        self.own = CellEncoder.pretrained().to(memory_format=torch.channels_last)
        self.other = EfficientNetLite.pretrained().to(memory_format=torch.channels_last)

    @torch.no_grad()
    def summaries(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Of pictures (n, h, w, 3), h and w multiples of 32: (n, ALL), MobileNetV2's first."""
        with torch.autocast("cpu", torch.bfloat16):
            own = self.own.view(normalised(pixels)).float()
            other = self.other(images(pixels))
        return torch.cat((summary(own), other), 1)


class Hints(nn.Module):
    """The linear map from what the taught convolutions make of a picture to what untaught ones did."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(ALL))
        self.register_buffer("std", torch.ones(ALL))
        self.map = nn.Linear(OWN, ALL)

    @torch.no_grad()
    def begin(self, summaries: Tensor) -> None:
        """`summaries`: of some pictures, of Untaught. The map begins as what it has to be before anything is taught:
        MobileNetV2's part the same, the rest a ridge regression."""
        self.mean.copy_(summaries.mean(0))
        self.std.copy_(summaries.std(0) + LEAST_SPREAD)
        known = self.known(summaries)
        own, other = known[:, :OWN], known[:, OWN:]
        self.map.weight.copy_(torch.cat((torch.eye(OWN), ridge(own, other, torch.ones(len(own)), RIDGE_PENALTY).T)))
        self.map.bias.zero_()

    def known(self, summaries: Tensor) -> Tensor:
        """(n, ALL), of Untaught -> what has to be told of it, (n, ALL)."""
        return ((summaries - self.mean) / self.std).clamp(-FAR, FAR)

    def told(self, cells: Tensor) -> Tensor:
        """Cells (n, rows, cols, VIEW_CHANNELS) -> (n, ALL)."""
        seen = ((summary(cells) - self.mean[:OWN]) / self.std[:OWN]).clamp(-LEARNED_FAR, LEARNED_FAR)
        told: Tensor = self.map(seen)
        return told

    def errors(self, cells: Tensor, summaries: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squares of what is not told of MobileNetV2's, and of the other's, of whose variance they are shares."""
        wrong = (self.told(cells) - self.known(summaries)) ** 2
        return wrong[:, :OWN].mean(), wrong[:, OWN:].mean()
