"""What stands around a token: the part of nano's perception that compares it with its neighbours."""

from collections.abc import Sequence
from typing import Final

import torch
from cells import SURVEY_CHANNELS
from layers import zeroed
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH: Final = 64
DROPOUT: Final = 0.1
DILATIONS: Final = (1, 2, 1)  # of 3x3 convolutions: nine tokens across are compared
READING_UNIT: Final = 4.0  # logits
SURVEY_UNIT: Final = 2.0  # standard deviations of the view


class Context(nn.Module):
    """Corrects what is read in each token by what is read around it, (views, rows, cols, .) -> (views, rows, cols,
    1 + kinds + 1): what to add to the logits of its kinds and of its severity.

    It sees no feature of the photo, only readings and how the survey stands out from the rest of its view: by those no
    photo can be known again. Until it is taught it corrects nothing.
    """

    def __init__(self, kinds: int, opinions: int) -> None:
        """`opinions`: how many networks Damage has."""
        super().__init__()
        self.kinds, self.opinions = kinds, opinions
        self.enter = nn.Linear(context_size(kinds, opinions), WIDTH)
        self.drop = nn.Dropout(DROPOUT)
        self.around = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=step, dilation=step) for step in DILATIONS)
        self.back = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 1) for _ in DILATIONS)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.leave = zeroed(nn.Linear(WIDTH, 1 + kinds + 1))

    def inputs(self, opinions: Sequence[Tensor], survey: Tensor, size: Tensor) -> Tensor:
        """(..., context_size) of the outputs of Damage's networks (..., outputs), the survey against its view
        (..., SURVEY_CHANNELS), and the view's size (..., 1), as Damage reads it."""
        read = [part for out in opinions for part in (out[..., : 1 + self.kinds], out[..., -1:])]
        return torch.cat((torch.cat(read, -1) / READING_UNIT, survey / SURVEY_UNIT, size), -1)

    def read(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """What the networks read on average, from `inputs`: logits of kinds (..., 1 + kinds), of severity (..., 1)."""
        each = inputs[..., : self.opinions * (2 + self.kinds)].unflatten(-1, (self.opinions, 2 + self.kinds))
        read = READING_UNIT * each.mean(-2)
        return read[..., :-1], read[..., -1:]

    def forward(self, inputs: Tensor, inside: Tensor | None = None) -> Tensor:
        """`inside`: (views, rows, cols) 1 where a view is, 0 where a batch only pads it; None: everywhere."""
        here = None if inside is None else inside[:, None]
        x = self.drop(F.gelu(self.enter(inputs))).permute(0, 3, 1, 2)
        x = x if here is None else x * here
        for around, back in zip(self.around, self.back, strict=True):
            x = x + back(F.gelu(around(x)))
            x = x if here is None else x * here
        corrected: Tensor = self.leave(self.drop(F.gelu(self.middle(x.permute(0, 2, 3, 1)))))
        return corrected


def context_size(kinds: int, opinions: int) -> int:
    """Of what Context reads of a token: kinds and severity as each network reads them, the survey, the view's size."""
    return opinions * (1 + kinds + 1) + SURVEY_CHANNELS + 1
