"""The attributes of a view by its light and its colours: small networks that read what `ToneStatistics` measures.

Hand-made numbers need no convolutions, so that lessons cost next to nothing (tone_lessons.py).
"""

from typing import Final

import torch
from layers import reader
from tone_statistics import CHANNELS
from torch import Tensor, nn

WIDTHS: Final = (256, 128)
NETWORKS: Final = 2
DROPOUT: Final = 0.15
INPUT_DROPOUT: Final = 0.1
CLIP: Final = 5.0  # standard deviations


class Tone(nn.Module):
    """The attributes of a view, by its statistics, (1, CHANNELS), and those that its cells say, (1, attributes): where
    tone was taught an attribute, it has its share of the answer."""

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
