"""Whole views as their tokens were read, and the lesson that teaches nano's perception to compare neighbours."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from context import Context
from defects import PHOTOS
from numpy.typing import NDArray
from runs import RunError, descend
from samples import token_truth, tokens_of
from stores import Item
from torch import Tensor
from torch.nn import functional as F
from visual import Perception

from qcheck.tiles import Box

WINDOW: Final = 10  # tokens a side: what is read of a view at once
BATCH: Final = 48  # windows
BROKEN_SHARE: Final = 0.75  # of draws: a window with a damage in it, and the same of its twin
CLEAN_WEIGHT: Final = 0.5  # of a clean token; there are many
SEVERITY_WEIGHT: Final = 0.5
DECAY: Final = 0.1
LONGEST: Final = 1.0  # gradient
# Kinds and severities of what lies outside a view, or is not known.
UNKNOWN: Final = -100


@dataclass(slots=True)
class Field:
    """A view. `inputs`: (rows, cols, context_size) fp16; `kinds`, `severities`: (rows, cols) as of samples.token_truth;
    `twin`: the same view unbroken, if there is one."""

    inputs: NDArray[np.float16]
    kinds: NDArray[np.int64]
    severities: NDArray[np.float32]
    twin: "Field | None" = None

    @property
    def broken(self) -> bool:
        return bool((self.kinds > 0).any())


@torch.inference_mode()
def fields_of(eyes: Perception, items: list[Item], names: tuple[str, ...] = PHOTOS.kinds) -> list[Field]:
    """Every view of samples of one kind, as `eyes` read its tokens. A twin comes with the view whose twin it is."""
    out: list[Field] = []
    before: list[Field] = []
    for item in items:
        fields = []
        for index, view in enumerate(item.sample["views"]):
            cells = item.read(index).astype(np.float32)
            rows, cols = tokens_of(cells)
            truth = token_truth(rows, cols, Box(*view["box"]), item.sample, names)
            inputs = eyes.around(torch.from_numpy(cells)[None])[0].numpy().astype(np.float16)
            fields.append(Field(inputs, truth.kinds.reshape(rows, cols), truth.severities.reshape(rows, cols)))
        if item.sample.get("twin"):
            for one, twin in zip(before, fields, strict=True):
                one.twin = twin
        else:
            out += fields
        before = fields
    return out


@dataclass(slots=True)
class Windows:
    """Windows of fields. `inputs`: (n, WINDOW, WINDOW, context_size); `inside`, `kinds`, `severities`: (n, WINDOW,
    WINDOW)."""

    inputs: Tensor
    inside: Tensor
    kinds: Tensor
    severities: Tensor


class Fields:
    """Fields to draw windows from."""

    def __init__(self, fields: list[Field]) -> None:
        """Raises RunError if there is none."""
        if not fields:
            raise RunError("no view to learn a context from; render more samples")
        self.broken, self.clean = ([f for f in fields if f.broken == wanted] for wanted in (True, False))

    def drawn(self, count: int, rng: np.random.Generator) -> Windows:
        """`count` windows, many of them with a damage and followed by that of the twin."""
        width = (self.broken or self.clean)[0].inputs.shape[-1]
        inputs = np.zeros((count, WINDOW, WINDOW, width), np.float32)
        inside = np.zeros((count, WINDOW, WINDOW), np.float32)
        kinds = np.full((count, WINDOW, WINDOW), UNKNOWN)
        severities = np.full((count, WINDOW, WINDOW), np.nan, np.float32)
        done = 0
        while done < count:
            field, corner = self._place(rng)
            turned = bool(rng.random() < 0.5)
            rows, cols = (slice(first, first + WINDOW) for first in corner)
            for one in [f for f in (field, field.twin) if f is not None][: count - done]:
                for all_, part in ((inputs, one.inputs), (kinds, one.kinds), (severities, one.severities)):
                    seen = part[rows, cols][:, ::-1] if turned else part[rows, cols]
                    all_[done, : seen.shape[0], : seen.shape[1]] = seen
                inside[done, : seen.shape[0], : seen.shape[1]] = 1
                done += 1
        return Windows(*(torch.from_numpy(part) for part in (inputs, inside, kinds, severities)))

    def _place(self, rng: np.random.Generator) -> tuple[Field, list[int]]:
        """A field and the first row and column of a window: around a broken token, if the field has any."""
        broken = bool(self.broken) and (not self.clean or rng.random() < BROKEN_SHARE)
        some = self.broken if broken else self.clean
        field = some[int(rng.integers(len(some)))]
        if broken:
            tokens = np.argwhere(field.kinds > 0)
            wanted = tokens[int(rng.integers(len(tokens)))] - rng.integers(WINDOW, size=2)
        else:
            wanted = rng.integers(np.maximum(1, np.array(field.kinds.shape) - WINDOW + 1))
        return field, [max(0, min(int(at), n - WINDOW)) for at, n in zip(wanted, field.kinds.shape, strict=True)]


def learn_context(context: Context, fields: Fields, steps: int, rate: float, rng: np.random.Generator) -> None:
    """What a context adds to the mean of Damage's networks shall be right."""

    def loss_of() -> Tensor:
        windows = fields.drawn(BATCH, rng)
        more = context(windows.inputs, windows.inside)
        kinds, severity = context.read(windows.inputs)
        broken = windows.kinds > 0
        weights = torch.where(broken, 1.0, CLEAN_WEIGHT) * (windows.kinds >= 0)
        logits = (kinds + more[..., :-1]).flatten(0, 2)
        losses = F.cross_entropy(logits, windows.kinds.flatten(), ignore_index=UNKNOWN, reduction="none")
        loss: Tensor = (losses * weights.flatten()).sum() / weights.sum()
        if bool(broken.any()):
            cost = (severity + more[..., -1:])[..., 0][broken]
            loss = loss + SEVERITY_WEIGHT * F.binary_cross_entropy_with_logits(cost, windows.severities[broken])
        return loss

    descend(context, "context", steps, rate, DECAY, loss_of, LONGEST)
