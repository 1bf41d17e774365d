"""Whether the rows of a view are brighter and darker by turns, as a rolling shutter makes them under a flickering
lamp."""

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK_PX: Final = 4  # of which one row is the mean of
# How often they come, from once in 230 px to once in 56 px, as rolling shutters have them.
FREQUENCIES: Final = tuple(1 / 230 + i * (1 / 56 - 1 / 230) / 27 for i in range(28))
APART: Final = 2  # rows that are compared
EDGE: Final = 0.1  # logarithm of light: what differs by more is an edge, not a band
GROUPS: Final = 8  # of columns, which are lit alike by a lamp and by nothing else
AROUND: Final = 13  # frequencies that a peak stands out from
CHANNELS: Final = 8


class Bands(nn.Module):
    """Logarithm of light in blocks, (rows, cols), multiples of 16 -> (CHANNELS,): the most that any frequency has of
    its strength, of being alike in all groups of columns, of that over chance, and of how it stands out; and how strong
    all are."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turns", 2 * math.pi * torch.tensor(FREQUENCIES)[:, None], persistent=False)

    def forward(self, light: Tensor) -> Tensor:
        return self.peaks(*self.waves(light))

    def peaks(self, together: Tensor, alike: Tensor, sure: Tensor) -> Tensor:
        """(CHANNELS,) of `waves`."""
        strength = torch.log(together + 1e-4)
        around = F.pad(strength[None, None], (AROUND // 2, AROUND // 2), mode="replicate")
        peak = strength - F.avg_pool1d(around, AROUND, 1)[0, 0]
        said = (strength, alike, sure, torch.log((together * alike**2).clamp(min=1e-5)), peak, peak * alike)
        most = [each.amax(0) for each in (*said, peak.clamp(min=0) * sure)]
        return torch.stack((*most, strength.mean()))

    def waves(self, light: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each of FREQUENCIES: how strong it is in all columns together, what share that is of its strength in
        single groups of them, and how many standard errors."""
        step = EDGE * torch.tanh((light[APART:] - light[:-APART]) / EDGE)
        groups = step.unflatten(1, (GROUPS, -1)).mean(2)  # (rows, GROUPS)
        groups = groups - groups.mean(0)
        ones = torch.ones_like(groups[:, 0])
        count, row = ones.sum(), ones.cumsum(0) - 1
        window = torch.sin(math.pi * (row + 0.5) / count) / count
        angle = BLOCK_PX * self.turns * row
        # What the difference of two rows makes of a wave is undone.
        gain = 2 * torch.sin(self.turns * (BLOCK_PX * APART / 2))
        real, imaginary = ((wave * window) @ groups / gain for wave in (torch.cos(angle), torch.sin(angle)))
        together = torch.sqrt(real.mean(1) ** 2 + imaginary.mean(1) ** 2)
        single = torch.sqrt(real**2 + imaginary**2).mean(1)
        scatter = [((part - part.mean(1, keepdim=True)) ** 2).mean(1) for part in (real, imaginary)]
        sure = together / (torch.sqrt((scatter[0] + scatter[1]) / GROUPS) + 1e-3)
        return together, together / (single + 1e-4), sure
