"""Layers that several parts of the model are made of."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def zeroed(layer: nn.Linear) -> nn.Linear:
    """The layer, with zeros for weights and biases: it says nothing until it is taught."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def reader(inputs: int, widths: tuple[int, int], outputs: int, input_dropout: float, dropout: float) -> nn.Sequential:
    """A network of two strongly dropped-out layers that reads many measures; it says nothing until it is taught."""
    first, second = widths
    return nn.Sequential(
        nn.Dropout(input_dropout),
        nn.Linear(inputs, first),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(first, second),
        nn.GELU(),
        nn.Dropout(dropout),
        zeroed(nn.Linear(second, outputs)),
    )


class SourceDropout(nn.Module):
    """While it is taught, leaves out of each row (..., channels + more) all channels of some of their sources, so that
    no one of them is relied upon. What comes after the channels stays."""

    def __init__(self, sources: Sequence[int], share: float) -> None:
        """`sources`: how many channels come from one place each, in order; `share`: of them that is left out."""
        super().__init__()
        self.sources, self.share = tuple(sources), share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        channels = sum(self.sources)
        kept = (torch.rand(*x.shape[:-1], len(self.sources), device=x.device) > self.share).to(x.dtype)
        kept = kept / (1 - self.share)
        mask = kept.repeat_interleave(torch.tensor(self.sources, device=x.device), -1, output_size=channels)
        return torch.cat((x[..., :channels] * mask, x[..., channels:]), -1)
