"""What the damages of a view cost a photo: one number, read from its most suspicious place; and what a photo scores by
that and by what it is as a whole."""

import math
from collections.abc import Sequence
from typing import Final

import torch
from defects import CLEAN_SCORE
from nano_spec import SCORE_CENTRE
from regions import Proposals
from torch import Tensor, nn

from qcheck.verdict import SCORE_MAX, SCORE_MIN

WORST_SHARE: Final = 0.75  # of the worst view in what several of them cost; the rest is their mean's
SOFTNESS: Final = 0.3  # points, within which the worse of two alone decides
# What is left, where places decide, of how good the photo is as a whole, against one that has nothing wrong.
WHOLE_SHARE: Final = 0.15


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


def judged(tolls: Sequence[float], whole: float) -> float:
    """The score, 1..5, of a photo by the tolls of its views and by what it is as a whole, `whole`: no better than
    either, a soft minimum. README.md has the figures of others."""
    places = overall(tolls)
    worse = -SOFTNESS * math.log(math.exp(-places / SOFTNESS) + math.exp(-whole / SOFTNESS))
    return min(max(worse + WHOLE_SHARE * (whole - CLEAN_SCORE), SCORE_MIN), SCORE_MAX)


def judged_small(tolls: Sequence[float], beliefs: Sequence[float], whole: float) -> float:
    """The score of a photo that is no larger than its overview: `whole`, which has seen all there is, less what it
    lacks of its views' tolls as far as those are believed (0..1). A soft minimum would cost rated photos ranks, for
    most of their places are no damages."""
    return min(whole - belief * max(0.0, whole - toll) for toll, belief in zip(tolls, beliefs, strict=True))
