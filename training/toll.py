"""What the damages of a view cost a photo: one number, read from everything that was read in the view."""

from typing import Final

import torch
from cells import size_of
from layers import zeroed
from nano_spec import SCORE_CENTRE
from regions import PROPOSALS, Proposals
from torch import Tensor, nn

NETWORKS: Final = 3
WIDTHS: Final = (128, 64)
INPUT_DROPOUT: Final = 0.05
DROPOUTS: Final = (0.2, 0.1)
CLIP: Final = 5.0  # standard deviations
SHARPNESSES: Final = (0.5, 1.0, 2.0)  # of soft maxima: how many tokens a damage must show in
LEAST: Final = 1e-3  # summed probability


class Toll(nn.Module):
    """Readings of views -> (views, 1): the score, 1..5, that a clean photo has once the damages that such a view shows
    are in it.

    The decoder could add up the tokens itself, and learned to do so badly from the few hundred photos it is told of:
    small networks on pooled readings ranked photos better than it did. A few of them are averaged.
    """

    def __init__(self, kinds: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(toll_size(kinds)))
        self.register_buffer("std", torch.ones(toll_size(kinds)))
        self.networks = nn.ModuleList(self.network(toll_size(kinds)) for _ in range(NETWORKS))

    @staticmethod
    def network(size: int) -> nn.Sequential:
        first, second = WIDTHS
        return nn.Sequential(
            nn.Dropout(INPUT_DROPOUT),
            nn.Linear(size, first),
            nn.GELU(),
            nn.Dropout(DROPOUTS[0]),
            nn.Linear(first, second),
            nn.GELU(),
            nn.Dropout(DROPOUTS[1]),
            zeroed(nn.Linear(second, 1)),
        )

    @staticmethod
    def inputs(kinds: Tensor, severity: Tensor, score: Tensor, places: Tensor) -> Tensor:
        """(views, toll_size) of what Perception reads: logits of kinds (views, rows, cols, 1 + kinds), severity (views,
        rows, cols, 1), 0..1, score (views, 1) and places (views, PROPOSALS, place_size)."""
        each = (kinds[..., 1:] - kinds[..., :1]).flatten(1, 2)  # views, tokens, kinds
        odds = each.logsumexp(-1)
        damaged = odds.sigmoid()
        costs = damaged * severity.flatten(1)
        softest = [torch.logsumexp(odds * by, 1) / by for by in SHARPNESSES]
        pooled = (
            *softest,
            odds.amax(1),
            odds.mean(1),
            odds.clamp(min=0).mean(1),
            damaged.mean(1),
            damaged.sum(1).clamp(min=LEAST).log(),
            costs.amax(1),
            costs.mean(1),
            costs.sum(1).clamp(min=LEAST).log(),
            (damaged * costs).sum(1) / (damaged * damaged).sum(1).clamp(min=LEAST**2),
            size_of(torch.ones_like(odds).sum(1)),
            score[:, 0] - SCORE_CENTRE,
        )
        found = Proposals.of(places)
        met, cost = found.strengths, found.severities[..., 0]
        size = (found.boxes[..., 2:] - found.boxes[..., :2]).prod(-1).clamp(min=LEAST).log()
        of_places = (met, cost, met.sigmoid() * cost, size)
        return torch.cat((torch.stack(pooled, 1), each.amax(1), each.mean(1), *of_places), 1)

    def normalised(self, inputs: Tensor) -> Tensor:
        """(views, toll_size), as of `inputs`, in standard deviations of all views."""
        return ((inputs - self.mean) / self.std).clamp(-CLIP, CLIP)

    def forward(self, inputs: Tensor) -> Tensor:
        # With an axis more than it needs, as in Quality: else it is exported as Gemm, which is not quantised.
        x = self.normalised(inputs)[:, None]
        votes = torch.stack([network(x) for network in self.networks]).mean(0)
        return SCORE_CENTRE + votes[:, 0]


def toll_size(kinds: int) -> int:
    """Of what Toll reads of a view."""
    return len(SHARPNESSES) + 11 + 2 * kinds + 4 * PROPOSALS
