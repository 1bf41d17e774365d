"""A model in PyTorch behind the runtime's Backend protocol, by transformers' own Qwen2.5-VL forward: for the parity
gate, and for rollouts of a model that is being taught."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from nano import Nano
from numpy.typing import NDArray
from transformers import DynamicCache

from qcheck.cache import KVCache
from qcheck.contract import PIXELS, SURVEY
from qcheck.verdict import EngineInfo


class TorchBackend:
    """`Backend` over a PyTorch nano in fp32. `trace` keeps the logits of every step."""

    def __init__(self, model: Nano, max_tokens: int) -> None:
        self.model, self.max_tokens = model, max_tokens
        self.info = EngineInfo("cpu", "pytorch", "fp32")
        self.trace: list[NDArray[np.float32]] = []

    def new_cache(self) -> KVCache:
        return KVCache({"cache": DynamicCache()}, self.max_tokens, _unsupported)

    @torch.inference_mode()
    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        seen = self.model.model.visual.image_tokens(torch.from_numpy(inputs[PIXELS]), torch.from_numpy(inputs[SURVEY]))
        tokens: NDArray[np.float32] = seen.numpy()
        return tokens

    @torch.inference_mode()
    def step(self, embeds: NDArray[np.float32], positions: NDArray[np.int64], cache: KVCache) -> NDArray[np.float32]:
        past = cache.buffers["cache"]
        if (beyond := past.get_seq_length() - cache.length) > 0:  # it was rewound
            past.crop(-beyond)
        out = self.model.model.language_model(
            inputs_embeds=torch.from_numpy(embeds),
            position_ids=torch.from_numpy(np.ascontiguousarray(positions)),
            past_key_values=past,
            use_cache=True,
        )
        cache.advance(embeds.shape[1])
        logits: NDArray[np.float32] = self.model.lm_head(out.last_hidden_state[:, -1]).numpy().reshape(-1)
        self.trace.append(logits)
        return logits


def _unsupported(buffers: Any) -> Any:
    raise NotImplementedError("the parity check never forks")
