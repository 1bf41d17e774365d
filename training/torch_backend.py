"""nano in PyTorch behind the runtime's Backend protocol: for the parity gate, and for rollouts of a model that is being
taught."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from nano import Nano
from numpy.typing import NDArray
from torch import Tensor

from qcheck.cache import KVCache
from qcheck.contract import GLANCED, IMAGE_TOKENS, JUDGED, KNOWN, PIXELS, SURVEY

# Last, so that no script of the other room hides one of this.
sys.path.append(str(Path(__file__).resolve().parent.parent / "export"))

from torch_decoder import TorchDecoder

GIVEN: Final = (PIXELS, SURVEY, GLANCED, KNOWN)  # as NanoVisual takes them


def given(inputs: Mapping[str, NDArray[Any]]) -> tuple[Tensor, ...]:
    """What a vision graph is given, as NanoVisual takes it."""
    return tuple(torch.from_numpy(inputs[name]) for name in GIVEN)


class TorchBackend(TorchDecoder):
    """`Backend` over a PyTorch nano in fp32. `trace` keeps the logits of every step."""

    def __init__(self, model: Nano, max_tokens: int) -> None:
        super().__init__(model.model.language_model, model.lm_head, max_tokens)
        self.model = model
        self.trace: list[NDArray[np.float32]] = []

    @torch.inference_mode()
    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        tokens, judged = self.model.model.visual.image_tokens(*given(inputs))
        return {IMAGE_TOKENS: tokens.numpy(), JUDGED: judged.numpy()}

    def step(self, embeds: NDArray[np.float32], positions: NDArray[np.int64], cache: KVCache) -> NDArray[np.float32]:
        logits = super().step(embeds, positions, cache)
        self.trace.append(logits)
        return logits
