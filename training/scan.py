"""The rectangles of tokens where evidence adds up."""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST: Final = -20.0  # of what a rectangle has claimed
MOST: Final = 1e9
STEPS: Final = 8  # views are less than 2**8 tokens wide


def scanned(odds: Tensor, count: int) -> Tensor:
    """Of maps (maps, rows, cols), the rectangle whose sum is greatest, then the greatest of what it leaves, and so on:
    (maps, count, 4) x1, y1, x2, y2 in tokens, half-open.

    All rectangles are compared (Kulldorff's spatial scan statistic with independent tokens), so that a damage which no
    single token shows for certain can still be found: of every span of rows the best span of columns, which ends where
    the running sum is farthest above its least before (Kadane).
    """
    maps, rows, cols = odds.shape
    y, x = (torch.arange(side + 1, device=odds.device) for side in (rows, cols))
    high, wide = y[-1] + 1, x[-1]  # tensors, because the exporter takes no symbolic numbers where they are used
    each = torch.arange(maps, device=odds.device)
    found = []
    for _ in range(count):
        total = F.pad(odds.cumsum(1).cumsum(2), (1, 0, 1, 0))
        strips = total[:, None] - total[:, :, None]  # maps, y1, y2, x
        sums = strips[..., 1:] - running_least(strips)[..., :-1]
        best = torch.where((y[:, None] < y)[..., None], sums, LEAST * rows * cols - 1).flatten(1).argmax(1)
        x2, rest = torch.remainder(best, wide) + 1, torch.div(best, wide, rounding_mode="floor")
        y2, y1 = torch.remainder(rest, high), torch.div(rest, high, rounding_mode="floor")
        x1 = torch.where(x < x2[:, None], strips[each, y1, y2], MOST).argmin(1)
        found.append(torch.stack((x1, y1, x2, y2), 1))
        down, across = ((at[:-1] >= a[:, None]) & (at[:-1] < b[:, None]) for at, a, b in ((y, y1, y2), (x, x1, x2)))
        odds = torch.where(down[:, :, None] & across[:, None], LEAST, odds)
    return torch.stack(found, 1)


def running_least(values: Tensor) -> Tensor:
    """The least of each line (..., n) up to each of its places; n is at most 2**STEPS."""
    for step in range(STEPS):
        before = F.pad(values, (1 << step, 0), value=MOST)[..., : values.shape[-1]]
        values = torch.minimum(values, before)
    return values
