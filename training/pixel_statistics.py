"""What trained convolutions blur or normalise away: plain statistics of the pixels in every 32 px cell.

MobileNetV2 was taught to know objects in any light, and so tells little of light itself, of fine grain, and of how
strong either is. The noise operator is Immerkaer's (1996): it gives nothing on straight edges. The least of a cell's
small blocks is a robust estimate of noise, for some block is nearly always flat; the greatest, of sharpness. Steps of
colour are told by their mean and by the root of their mean square, whose ratio says whether few edges are sharp or many
soft; the share of neighbours that are the same, and how much the steps at one of eight columns stand out, tell of
quantised tones, of enlarged pixels and of JPEG's grid, wherever it lies.
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
GRID: Final = 8  # pixels, of JPEG's blocks
SAME: Final = 1 / 510  # half of an 8-bit step: what differs by much more is not the same
# Differences to the neighbours to the right, below, and on both diagonals; chroma has the first two.
NEIGHBOURS: Final = ((1, 2), (2, 1), (2, 2), (0, 2))
LUMA_FILTERS: Final = len(NEIGHBOURS) + 1
GRAINS: Final = slice(LUMA_FILTERS - 1, LUMA_FILTERS + len(CHROMA))  # of luma, then of chroma
CHROMA_STEPS: Final = slice(GRAINS.stop, GRAINS.stop + 2 * len(CHROMA))
FILTERS: Final = CHROMA_STEPS.stop
# Of one scale: means of all filters; least grains; least and greatest luma step; roots of chroma steps' mean squares;
# shares of neighbours that are the same, to the right and below.
OF_SCALE: Final = FILTERS + (1 + len(CHROMA)) + 2 + 2 * len(CHROMA) + 2
# Of all: of the grid, across and down; shares of clipped samples; colour; the largest channel less the least; spread.
STATISTICS: Final = len(SCALES) * OF_SCALE + 2 + 3 + 3 + 1 + 1


class PixelStatistics(nn.Module):
    """(1, 3, h, w) sRGB less `mean` over `std`, sides multiples of CELL_PX -> (1, STATISTICS, h/32, w/32)."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std), ("luma", LUMA)):
            self.register_buffer(name, torch.tensor(values)[None, :, None, None], persistent=False)
        grain = torch.tensor(IMMERKAER)[None] / 6
        steps = torch.zeros(len(NEIGHBOURS), 3, 3)
        for index, (row, column) in enumerate(NEIGHBOURS):
            steps[index, 1, 1], steps[index, row, column] = -1.0, 1.0
        # Of sums over colours that make luma or chroma; no filter sees a constant, so `std` alone has to be undone.
        filters = [of(LUMA, steps), of(LUMA, grain)]
        filters += [of(colours, grain) for colours in CHROMA] + [of(colours, steps[:2]) for colours in CHROMA]
        scale = torch.tensor(std)[None, :, None, None]
        self.register_buffer("filters", torch.cat(filters) * scale, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        parts: list[Tensor] = []
        for scale in SCALES:
            small = F.avg_pool2d(pixels, scale) if scale > 1 else pixels
            # Full size is what costs: nearly everything after the filters happens on the means of blocks.
            found = F.conv2d(F.pad(small, (1, 1, 1, 1), mode="replicate"), self.filters).abs()
            blocks = F.avg_pool2d(found, BLOCK_PX // scale) if scale < BLOCK_PX else found
            steps = blocks[:, :2].sum(1, keepdim=True)
            parts += [torch.log(F.avg_pool2d(blocks, BLOCKS) + QUIET), least(blocks[:, GRAINS])]
            parts += [least(steps), greatest(steps)]
            parts.append(root(F.avg_pool2d(found[:, CHROMA_STEPS] ** 2, CELL_PX // scale)))
            # By degrees, and flat at nothing: rounding turns a comparison, and is magnified by a slope.
            parts.append(F.avg_pool2d(torch.exp(-((found[:, :2] / SAME) ** 2)), CELL_PX // scale))
            if scale == 1:
                parts += [stands_out(found[:, :1]), stands_out(found[:, 1:2].transpose(2, 3)).transpose(2, 3)]
        rgb = F.avg_pool2d(pixels, BLOCK_PX) * self.std + self.mean
        luma, brightest = (rgb * self.luma).sum(1, keepdim=True), rgb.amax(1, keepdim=True)
        clipped = torch.cat((luma > 1 - CLIPPED, luma < CLIPPED, brightest > 1 - CLIPPED), 1).to(rgb.dtype)
        centred = luma - F.interpolate(F.avg_pool2d(luma, BLOCKS), scale_factor=float(BLOCKS), mode="nearest")
        parts += [F.avg_pool2d(torch.cat((clipped, rgb, brightest - rgb.amin(1, keepdim=True)), 1), BLOCKS)]
        parts.append(root(F.avg_pool2d(centred * centred, BLOCKS)))
        return torch.cat(parts, 1)


def of(colours: Sequence[float], filters: Tensor) -> Tensor:
    """Filters (n, 3, 3) of a weighted sum of the channels, (n, 3, 3, 3)."""
    return filters[:, None] * torch.tensor(colours)[None, :, None, None]


def least(blocks: Tensor) -> Tensor:
    """Logarithm of the least block of each cell."""
    return torch.log(QUIET - F.max_pool2d(-blocks, BLOCKS))


def greatest(blocks: Tensor) -> Tensor:
    return torch.log(QUIET + F.max_pool2d(blocks, BLOCKS))


def root(squares: Tensor) -> Tensor:
    """Logarithm of the root."""
    return torch.log(torch.sqrt(squares) + QUIET)


def stands_out(steps: Tensor) -> Tensor:
    """How many times the steps across one of eight columns, the strongest, are as strong as those across all, in each
    cell: the logarithm. `steps`: (1, 1, h, w)."""
    columns = F.avg_pool2d(steps, (CELL_PX, 1)).unflatten(-1, (-1, CELL_PX // GRID, GRID)).mean(-2)
    return torch.log((columns.amax(-1) + QUIET) / (columns.mean(-1) + QUIET))
