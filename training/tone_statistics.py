"""What a view's pixels tell of its light and its colours, measured by hand.

The summary of a view's cells says how much of everything there is, and nothing of how it lies or where it ends: a photo
without anything black, colours that run sideways over edges or lie beside them, rows lit by turns. Each such thing has
its numbers here. Shares are told by their logarithm, for what a lifted black or a clipped white changes are the last
few pixels in a thousand.
"""

from collections.abc import Sequence
from typing import Final

import torch
from bands import BLOCK_PX, Bands
from bands import CHANNELS as OF_BANDS
from cells import IMAGENET_MEAN, IMAGENET_STD
from pixel_statistics import LUMA
from torch import Tensor, nn
from torch.nn import functional as F

SAMPLED_PX: Final = 4  # of the pixels, one in as many of each side is counted
# How near to black and to white: shares of red, green, blue, luma, the largest and the least of a pixel's channels.
ENDS: Final = (0.004, 0.012, 0.024, 0.04, 0.06, 0.08, 0.11, 0.15, 0.2, 0.25, 0.3, 0.4)
COLOURFUL: Final = (0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9)  # the largest channel less the least
GREY: Final = (0.01, 0.03, 0.06, 0.1, 0.2, 0.3)
END_SOFTNESS: Final = 0.003  # of thresholds: by degrees, for rounding must not turn a comparison
GREY_SOFTNESS: Final = 0.006
COLOURFUL_SOFTNESS: Final = 0.01
FEW: Final = 3e-4  # a share under every logarithm
LIGHTS: Final = tuple(0.03 + i * 0.94 / 9 for i in range(10))  # luma, around which pixels are looked at together
LIGHT_WIDTH: Final = 0.05
EDGE: Final = 0.15  # a step that is counted no higher
OF_LIGHT: Final = 7  # numbers of each of LIGHTS
PLANES: Final = 3  # luma and two opponents
NEAR_STEPS: Final = (1, 2)  # px
FAR_STEPS: Final = (2, 4, 8)  # pairs of px
OF_STEP: Final = 6 * PLANES + 2 * (PLANES - 2)
LEAST_SQUARE: Final = 1e-7
LEAST_STEP: Final = 1e-4
# Two pixels each way: chequers, columns, rows.
FINEST: Final = (((1.0, -1.0), (-1.0, 1.0)), ((1.0, -1.0), (1.0, -1.0)), ((1.0, 1.0), (-1.0, -1.0)))
FINEST_EVERY: Final = 3  # px, of places where they are looked for; odd, to meet both of a mosaic's rows
REACH: Final = 6  # pairs of px, that one colour may lie beside the other
ASKEW: Final = 4  # as many, on diagonals
DETAIL: Final = 5  # pairs of px, a side of what detail is told from
DETAIL_MOST: Final = 0.1
LOOSE: Final = 1e-9


def places() -> tuple[tuple[int, int], ...]:
    """Where one colour may lie beside the other, (down, right), in pairs of px."""
    straight = range(-REACH, REACH + 1)
    askew = [at for at in range(-ASKEW, ASKEW + 1) if at]
    level, upright = [(0, at) for at in straight], [(at, 0) for at in straight if at]
    return (*level, *upright, *((at, at) for at in askew), *((at, -at) for at in askew))


PLACES: Final = places()
AFTER: Final = tuple(at for at in PLACES if at > (0, 0))  # each has its opposite
TOUCHING: Final = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
OF_ENDS: Final = 12 * len(ENDS) + len(COLOURFUL) + len(GREY)
OF_STEPS: Final = (len(NEAR_STEPS) + len(FAR_STEPS)) * OF_STEP + 2 * len(FINEST) * PLANES
CHANNELS: Final = OF_ENDS + len(LIGHTS) * OF_LIGHT + OF_STEPS + len(PLACES) + len(AFTER) + len(TOUCHING) + 2 * OF_BANDS


class ToneStatistics(nn.Module):
    """A view (1, 3, h, w) of sRGB less ImageNet's mean over its deviation, sides multiples of 64 -> (1, CHANNELS)."""

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD), ("luma", LUMA)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        for name, thresholds in (("ends", ENDS), ("colourful", COLOURFUL), ("grey", GREY), ("lights", LIGHTS)):
            self.register_buffer(name, torch.tensor(thresholds)[:, None], persistent=False)
        self.register_buffer("finest", torch.tensor(FINEST)[:, None], persistent=False)
        self.bands = Bands()

    def forward(self, pixels: Tensor) -> Tensor:
        rgb = pixels[0] * self.std + self.mean
        blocks = F.avg_pool2d(rgb, BLOCK_PX)
        light = torch.log((blocks * self.luma).sum(0).clamp(min=0) ** 2.2 + 0.01)  # of what fell on the sensor, nearly
        found = [self.range(rgb[:, 1::SAMPLED_PX, 1::SAMPLED_PX]), self.by_light(blocks), *self.steps(rgb)]
        found += [*self.beside(rgb), self.bands(light), self.bands(light.T)]
        return torch.cat(found)[None]

    def opponents(self, rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Luma, red less green, and yellow less blue, of (3, h, w)."""
        return (rgb * self.luma).sum(0), rgb[0] - rgb[1], (rgb[0] + rgb[1]) / 2 - rgb[2]

    def range(self, rgb: Tensor) -> Tensor:
        """How much is nearly black, nearly white, colourful and grey, (OF_ENDS,)."""
        found, most, least = list[Tensor](), rgb.amax(0), rgb.amin(0)
        for plane in (*rgb.unbind(0), (rgb * self.luma).sum(0), most, least):
            found += [share(self.ends - plane.flatten(), END_SOFTNESS)]
            found += [share(self.ends - 1 + plane.flatten(), END_SOFTNESS)]
        colour = (most - least).flatten()
        found += [share(colour - self.colourful, COLOURFUL_SOFTNESS), share(self.grey - colour, GREY_SOFTNESS)]
        return torch.cat(found)

    def by_light(self, rgb: Tensor) -> Tensor:
        """Of pixels of each of LIGHTS: how many there are, how much their neighbours differ, how colourful they are,
        what colour they have and how much of it."""
        luma, red, yellow = self.opponents(rgb)
        weights = torch.exp(-(((luma.flatten() - self.lights) / LIGHT_WIDTH) ** 2))  # (LIGHTS, pixels)
        step = F.pad((luma[:, 1:] - luma[:, :-1]).abs(), (0, 1)) + F.pad((luma[1:] - luma[:-1]).abs(), (0, 0, 0, 1))
        planes = (step.clamp(max=EDGE), rgb.amax(0) - rgb.amin(0), red, yellow, red.abs(), yellow.abs())
        there, pixels = weights.mean(1, keepdim=True), torch.ones_like(luma).sum()
        means = weights @ torch.stack(planes).flatten(1).T / pixels / (there + 1e-3)
        return torch.cat((torch.log(there + 1e-3), torch.log(means[:, :1] + 1e-3), means[:, 1:]), 1).T.flatten()

    def steps(self, rgb: Tensor) -> list[Tensor]:
        """How much luma and colours change over a distance, across and down, (OF_STEPS,) in all."""
        planes = torch.stack(self.opponents(rgb))
        pairs, found = F.avg_pool2d(planes, 2), list[Tensor]()
        # Of every other row, or column, there are enough.
        for far in NEAR_STEPS:
            found += changes(planes[:, ::2], planes[:, :, ::2], far)
        for far in FAR_STEPS:
            found += changes(pairs, pairs, far)
        for each in (planes, pairs):
            finest = F.conv2d(each[:, None], self.finest, stride=FINEST_EVERY)
            found.append(torch.log(finest.abs().mean((2, 3)) + LEAST_STEP).flatten())
        return found

    def beside(self, rgb: Tensor) -> list[Tensor]:
        """Whether the detail of red and blue lies where that of green does: their correlation when moved to each of
        PLACES, and how it differs from the opposite one; and that of red and blue."""
        small = F.avg_pool2d(rgb, 2)
        detail = small - F.avg_pool2d(small[None], DETAIL, 1, DETAIL // 2, count_include_pad=False)[0]
        red, green, blue = (DETAIL_MOST * torch.tanh(detail / DETAIL_MOST)).unbind(0)
        near = correlations(green, (red + blue) / 2, PLACES)
        opposite = [PLACES.index((-down, -right)) for down, right in AFTER]
        skew = near[[PLACES.index(at) for at in AFTER]] - near[opposite]
        return [near, skew, correlations(red, blue, TOUCHING)]


def share(above: Tensor, softness: float) -> Tensor:
    """The logarithm of the share of (thresholds, pixels) that is above 0, by degrees."""
    return torch.log(torch.sigmoid(above / softness).mean(1) + FEW)


def changes(rows: Tensor, columns: Tensor, far: int) -> list[Tensor]:
    """Of (PLANES, h, w): mean squares, across and down, one against the other, whether few edges are sharp or many
    soft, colours against luma, and whether colours change where luma does; (OF_STEP,) in all. `rows`, `columns`: those
    to be looked along."""
    both = [(rows[:, :, far:] - rows[:, :, :-far]).abs(), (columns[:, far:] - columns[:, :-far]).abs()]
    squares = [(step * step).mean((1, 2)) for step in both]
    across, down = (torch.log(square + LEAST_SQUARE) for square in squares)
    soft = [torch.log(step.mean((1, 2)) + LEAST_STEP) for step in both]
    found = [across + down, across - down, across - 2 * soft[0], down - 2 * soft[1]]
    found += [across[1:] - across[:1], down[1:] - down[:1]]
    for step, square in zip(both, squares, strict=True):
        together = (step[1:] * step[:1]).mean((1, 2))
        found.append(together / torch.sqrt(square[1:] * square[0] + LOOSE))
    return found


def correlations(here: Tensor, there: Tensor, at: Sequence[tuple[int, int]]) -> Tensor:
    """Of two planes of one size, the second moved up and left by each of the places, none farther than REACH."""
    height, width = here.shape
    inner = (slice(REACH, height - REACH), slice(REACH, width - REACH))
    still, moved = here[inner], there[inner]
    products = [
        (still * there[REACH + down : height - REACH + down, REACH + right : width - REACH + right]).mean()
        for down, right in at
    ]
    return torch.stack(products) / torch.sqrt((still * still).mean() * (moved * moved).mean() + LOOSE)
