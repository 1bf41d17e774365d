"""What the damages of a view cost a photo: one number, read from its most suspicious place."""

from collections.abc import Sequence
from typing import Final

import torch
from nano_spec import SCORE_CENTRE
from regions import Proposals
from torch import Tensor, nn

WORST_SHARE: Final = 0.5  # of the worst view in what several of them cost; the rest is their mean's


class Toll(nn.Module):
    """Places of views, (views, PROPOSALS, place_size) -> (views, 1): the score, 1..5, that a clean photo has once the
    damages that such a view shows are in it. A line on the strength of the first place; until it is taught, it says
    SCORE_CENTRE.

    Networks that read all that was read in a view told it worse: README.md has the figures.
    """

    def __init__(self) -> None:
        super().__init__()
        # `level` is the toll of a place that is as likely broken as not.
        self.level, self.slope = nn.Parameter(torch.full((1,), SCORE_CENTRE)), nn.Parameter(torch.zeros(1))

    def forward(self, places: Tensor) -> Tensor:
        strength = Proposals.of(places).strengths[:, :1]
        told: Tensor = self.level + self.slope * strength
        return told


def overall(tolls: Sequence[float]) -> float:
    """The score of a photo by the tolls of its views: a soft minimum. With their mean alone, a look at a clean place
    would clear the photo; with the least, each more look would be one more chance to be wrong."""
    return WORST_SHARE * min(tolls) + (1 - WORST_SHARE) * sum(tolls) / len(tolls)
