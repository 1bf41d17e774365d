"""A decoder of transformers behind the runtime's Backend protocol: what every model in PyTorch shares that is compared
with a bundle, or taught through the runtime's own loop."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from qcheck.cache import Buffers, KVCache
from qcheck.verdict import EngineInfo


class TorchDecoder(ABC):
    """Serves `Backend` in float32. `decoder`: a language model of transformers' Qwen2.5-VL; `head`: what makes logits
    of what it gives."""

    def __init__(self, decoder: Any, head: torch.nn.Module, max_tokens: int) -> None:
        self.decoder, self.head, self.max_tokens = decoder, head, max_tokens
        self.info = EngineInfo("cpu", "pytorch", "fp32")

    def new_cache(self) -> KVCache:
        return KVCache({"cache": DynamicCache()}, self.max_tokens, _copied)

    @abstractmethod
    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """See Backend."""

    @torch.inference_mode()
    def step(self, embeds: NDArray[np.float32], positions: NDArray[np.int64], cache: KVCache) -> NDArray[np.float32]:
        cache.require(embeds.shape[1])
        past = cache.buffers["cache"]
        if (beyond := past.get_seq_length() - cache.length) > 0:  # it was rewound
            past.crop(-beyond)
        places = torch.from_numpy(np.ascontiguousarray(positions))
        # By place: the cache's name is another one in newer versions.
        out = self.decoder(None, None, places, past, torch.from_numpy(embeds), use_cache=True)
        cache.advance(embeds.shape[1])
        logits: NDArray[np.float32] = self.head(out.last_hidden_state[:, -1]).numpy().reshape(-1)
        return logits


def _copied(buffers: Buffers) -> Buffers:
    return deepcopy(dict(buffers))
