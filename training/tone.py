"""The light and the colours of a view as a whole, as its pixels alone tell them.

The summary of a view's cells says how much of everything there is, and nothing of how it lies: rows that a flickering
lamp lit by turns, or colour that runs sideways over edges, leave mean and spread as they are.
`ToneStatistics` measures such things by hand, and two small networks (`Tone`) read the attributes in them: hand-made
numbers need no convolutions, so that lessons cost next to nothing (tone_lessons.py).
"""

from typing import Final

import torch
from bands import BLOCK_PX, FREQUENCIES, Bands
from bands import CHANNELS as PEAKS
from cells import IMAGENET_MEAN, IMAGENET_STD
from layers import reader
from pixel_statistics import LUMA
from torch import Tensor, nn
from torch.nn import functional as F

SAMPLED_PX: Final = 8  # of the pixels, one in as many of each side is counted
# Shares of pixels darker than so much: of red, green, blue, luma, the largest and the least of a pixel's channels.
DARKER: Final = (0.01, 0.03, 0.06, 0.1, 0.17, 0.25, 0.37, 0.5, 0.65, 0.8, 0.9, 0.97)
GREYER: Final = (0.02, 0.05, 0.1, 0.17, 0.27, 0.4, 0.6, 0.8)  # the largest channel less the least
OPPOSED: Final = (-0.35, -0.2, -0.1, -0.04, 0.0, 0.04, 0.1, 0.2, 0.35)  # red less green; yellow less blue
SOFTNESS: Final = 0.013  # of each threshold: by degrees, for rounding must not turn a comparison
GREY: Final = 0.1  # a saturation below which a pixel should have no colour
PLANES: Final = 3  # luma and the two opponents
STEPS: Final = (1, 2, 4)  # blocks, across and down, of those that are compared; closer ones are PixelStatistics'
LEAST_SQUARE: Final = 1e-7
OF_AXIS: Final = 3 * len(FREQUENCIES) + PEAKS
CHANNELS: Final = (
    6 * len(DARKER)
    + len(GREYER)
    + 2 * len(OPPOSED)
    + 2 * PLANES
    + 3 * (PLANES + 1)
    + PLANES
    + len(STEPS) * (3 * PLANES + 2 * (PLANES - 1))
    + 2 * OF_AXIS
)
WIDTHS: Final = (256, 128)
NETWORKS: Final = 2
DROPOUT: Final = 0.3
INPUT_DROPOUT: Final = 0.1
CLIP: Final = 5.0  # standard deviations


class ToneStatistics(nn.Module):
    """A view (1, 3, h, w) of sRGB less ImageNet's mean over its deviation, sides multiples of 64 -> (1, CHANNELS)."""

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        for name, values in (("darker", DARKER), ("greyer", GREYER), ("opposed", OPPOSED)):
            self.register_buffer(name, torch.tensor(values), persistent=False)
        self.register_buffer("luma", torch.tensor(LUMA)[:, None, None], persistent=False)
        self.rows = Bands()

    def forward(self, pixels: Tensor) -> Tensor:
        blocks = self.lit(F.avg_pool2d(pixels[0], BLOCK_PX))
        light = (blocks * self.luma).sum(0).clamp(min=0)
        light = torch.log(light**2.2 + 0.01)  # of what fell on the sensor, nearly
        sampled, planes = self.lit(pixels[0, :, 1::SAMPLED_PX, 1::SAMPLED_PX]), torch.stack(self.opponents(blocks))
        steps = [self.steps(planes, far) for far in STEPS]
        return torch.cat((*self.tones(sampled), *steps, self.bands(light), self.bands(light.T)))[None]

    def lit(self, pixels: Tensor) -> Tensor:
        """sRGB, 0..1."""
        return pixels * self.std + self.mean

    def opponents(self, rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Luma, red less green, and yellow less blue, of (3, h, w)."""
        return (rgb * self.luma).sum(0), rgb[0] - rgb[1], (rgb[0] + rgb[1]) / 2 - rgb[2]

    def tones(self, rgb: Tensor) -> list[Tensor]:
        """How dark and how colourful pixels are: shares, means, and what bright, dark and grey ones have for colour."""
        luma, red, yellow = self.opponents(rgb)
        most, least = rgb.amax(0), rgb.amin(0)
        found = [below(plane, self.darker) for plane in (*rgb.unbind(0), luma, most, least)]
        found += [below(most - least, self.greyer), below(red, self.opposed), below(yellow, self.opposed)]
        planes = torch.stack((luma, red, yellow)).flatten(1)
        middle = planes.mean(1, keepdim=True)
        spread = torch.sqrt(((planes - middle) ** 2).mean(1) + 1e-6)
        found += [middle[:, 0], spread]
        for weight in (luma**4, (1 - luma) ** 4, torch.exp(-(((most - least) / GREY) ** 2))):
            weighed = (planes * weight.flatten()).mean(1) / (weight.mean() + 1e-3)
            found += [weighed, weight.mean()[None]]
        first, second, third = ((planes - middle) / (spread[:, None] + 1e-3)).unbind(0)
        found.append(torch.stack(((first * second).mean(), (first * third).mean(), (second * third).mean())))
        return found

    def steps(self, planes: Tensor, far: int) -> Tensor:
        """How much luma and colours change over a distance, across, down and one against the other; and whether colours
        change where luma does."""
        both = [planes[:, :, far:] - planes[:, :, :-far], planes[:, far:] - planes[:, :-far]]
        squares = [(step * step).mean((1, 2)) for step in both]
        across, down = (torch.log(square + LEAST_SQUARE) for square in squares)
        found = [across, down, across - down]
        for step, square in zip(both, squares, strict=True):
            together = (step[1:].abs() * step[:1].abs()).mean((1, 2))
            found.append(together / (torch.sqrt(square[1:] * square[0]) + 1e-6))
        return torch.cat(found)

    def bands(self, light: Tensor) -> Tensor:
        """Whether rows of (rows, cols) are brighter and darker by turns, (OF_AXIS,): for each frequency how much, how
        much alike in all groups of columns, and that over chance; and what stands out of it."""
        together, alike, sure = self.rows.waves(light)
        return torch.cat((torch.log(together + 1e-4), alike, sure, self.rows.peaks(together, alike, sure)))


class Tone(nn.Module):
    """The attributes of a view, by its statistics, (1, CHANNELS), and those that its cells say, (1, attributes): where
    tone was taught an attribute, half way between the two."""

    def __init__(self, attributes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(CHANNELS))
        self.register_buffer("std", torch.ones(CHANNELS))
        self.register_buffer("middle", torch.zeros(attributes))
        self.register_buffer("share", torch.zeros(attributes))  # 0: was never taught it
        self.networks = nn.ModuleList(
            reader(CHANNELS, WIDTHS, attributes, INPUT_DROPOUT, DROPOUT) for _ in range(NETWORKS)
        )

    def votes(self, statistics: Tensor) -> list[Tensor]:
        """What each network says, (n, attributes), of (n, CHANNELS)."""
        x = ((statistics - self.mean) / self.std).clamp(-CLIP, CLIP)
        return [self.middle + network(x) for network in self.networks]

    def forward(self, statistics: Tensor, attributes: Tensor) -> Tensor:
        # With an axis more than it needs: linear maps of plain matrices are exported as Gemm, which is not quantised.
        said = torch.stack(self.votes(statistics[:, None])).mean(0)[:, 0]
        blended: Tensor = attributes + self.share * (said - attributes)
        return blended


def below(plane: Tensor, thresholds: Tensor) -> Tensor:
    """The shares of a plane that are below each of the thresholds, by degrees."""
    return torch.sigmoid((thresholds[:, None] - plane.flatten()) / SOFTNESS).mean(1)
