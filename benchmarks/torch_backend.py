"""The PyTorch side of the parity gate: transformers' own Qwen2.5-VL forward behind the runtime's Backend protocol."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from qcheck.cache import KVCache
from qcheck.verdict import EngineInfo

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

from nano import Nano


class TorchBackend:
    """`Backend` over a PyTorch nano in fp32. `trace` keeps the logits of every step."""

    def __init__(self, model: Nano, max_tokens: int) -> None:
        self.model, self.max_tokens = model, max_tokens
        self.info = EngineInfo("cpu", "pytorch", "fp32")
        self.trace: list[NDArray[np.float32]] = []

    def new_cache(self) -> KVCache:
        return KVCache({"cache": DynamicCache()}, self.max_tokens, _unsupported)

    @torch.inference_mode()
    def encode(self, pixels: NDArray[np.float32], survey: NDArray[np.float32] | None) -> NDArray[np.float32]:
        assert survey is None, "nano takes none"
        tokens: NDArray[np.float32] = self.model.model.visual.image_tokens(torch.from_numpy(pixels)).numpy()
        return tokens

    @torch.inference_mode()
    def step(self, embeds: NDArray[np.float32], positions: NDArray[np.int64], cache: KVCache) -> NDArray[np.float32]:
        out = self.model.model.language_model(
            inputs_embeds=torch.from_numpy(embeds),
            position_ids=torch.from_numpy(np.ascontiguousarray(positions)),
            past_key_values=cache.buffers["cache"],
            use_cache=True,
        )
        cache.advance(embeds.shape[1])
        logits: NDArray[np.float32] = self.model.lm_head(out.last_hidden_state[:, -1]).numpy().reshape(-1)
        self.trace.append(logits)
        return logits


def _unsupported(buffers: Any) -> Any:
    raise NotImplementedError("the parity check never forks")
