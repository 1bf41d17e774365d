"""What trained convolutions blur or normalise away: plain statistics of the pixels in every 32 px cell.

MobileNetV2 was taught to know objects in any light, and so tells little of light itself, of fine grain, and of how
strong either is. The noise operator is Immerkaer's (1996): it gives nothing on straight edges. The least of a cell's
small blocks is a robust estimate of noise, for some block is nearly always flat; the greatest, of sharpness.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CELL_PX: Final = 32
BLOCK_PX: Final = 4
BLOCKS: Final = CELL_PX // BLOCK_PX  # a side of a cell
SCALES: Final = (1, 2, 4)  # the view reduced by so much
LUMA: Final = (0.299, 0.587, 0.114)
CHROMA: Final = ((1.0, -1.0, 0.0), (-0.299, -0.587, 0.886))  # red against green, blue against luma
QUIET: Final = 1 / 1020  # a quarter of an 8-bit step, under every logarithm
CLIPPED: Final = 0.02
IMMERKAER: Final = ((1.0, -2.0, 1.0), (-2.0, 4.0, -2.0), (1.0, -2.0, 1.0))
# Differences to the neighbours to the right, below, and on both diagonals.
NEIGHBOURS: Final = ((1, 2), (2, 1), (2, 2), (0, 2))
FILTERS: Final = len(NEIGHBOURS) + 1
STATISTICS: Final = len(SCALES) * (FILTERS + 3) + 2 * len(CHROMA) + 3 + 3 + 1 + 1


class PixelStatistics(nn.Module):
    """(1, 3, h, w) sRGB less `mean` over `std`, sides multiples of CELL_PX -> (1, STATISTICS, h/32, w/32)."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std), ("luma", LUMA)):
            self.register_buffer(name, torch.tensor(values)[None, :, None, None], persistent=False)
        grain = torch.tensor(IMMERKAER) / 6
        steps = torch.zeros(len(NEIGHBOURS), 3, 3)
        for index, (row, column) in enumerate(NEIGHBOURS):
            steps[index, 1, 1], steps[index, row, column] = -1.0, 1.0
        # Of sums over colours that make luma or chroma; no filter sees a constant, so `std` alone has to be undone.
        luma = torch.cat((steps, grain[None]))[:, None] * torch.tensor(LUMA)[None, :, None, None]
        chroma = grain[None, None] * torch.tensor(CHROMA)[:, :, None, None]
        scale = torch.tensor(std)[None, :, None, None]
        self.register_buffer("filters", torch.cat((luma, chroma)) * scale, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        parts: list[Tensor] = []
        for scale in SCALES:
            small = F.avg_pool2d(pixels, scale) if scale > 1 else pixels
            # Full size is what costs: everything after the filters happens on the means of blocks.
            filters = self.filters if scale == 1 else self.filters[:FILTERS]
            found = F.conv2d(F.pad(small, (1, 1, 1, 1), mode="replicate"), filters).abs()
            blocks = F.avg_pool2d(found, BLOCK_PX // scale) if scale < BLOCK_PX else found
            steps = blocks[:, :2].sum(1, keepdim=True)
            parts += [torch.log(F.avg_pool2d(blocks, BLOCKS) + QUIET), least(blocks[:, FILTERS - 1 :])]
            parts += [least(steps), greatest(steps)]
        rgb = F.avg_pool2d(pixels, BLOCK_PX) * self.std + self.mean
        luma, brightest = (rgb * self.luma).sum(1, keepdim=True), rgb.amax(1, keepdim=True)
        clipped = torch.cat((luma > 1 - CLIPPED, luma < CLIPPED, brightest > 1 - CLIPPED), 1).to(rgb.dtype)
        centred = luma - F.interpolate(F.avg_pool2d(luma, BLOCKS), scale_factor=float(BLOCKS), mode="nearest")
        parts += [F.avg_pool2d(torch.cat((clipped, rgb, brightest - rgb.amin(1, keepdim=True)), 1), BLOCKS)]
        parts.append(torch.log(torch.sqrt(F.avg_pool2d(centred * centred, BLOCKS)) + QUIET))
        return torch.cat(parts, 1)


def least(blocks: Tensor) -> Tensor:
    """Logarithm of the least block of each cell."""
    return torch.log(QUIET - F.max_pool2d(-blocks, BLOCKS))


def greatest(blocks: Tensor) -> Tensor:
    return torch.log(QUIET + F.max_pool2d(blocks, BLOCKS))
