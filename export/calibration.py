"""What the linear layers of a decoder are given over real conversations, for ways to round that look at it.

Photos are judged by a draft of the bundle, rounded to the nearest, and what its decoder was fed is kept. That then goes
through the checkpoint's layers in float32, one layer in memory at a time, each with the weights of the layers before it
as they were rounded. The inputs themselves are not kept, only the sums of their products.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from checkpoint import Checkpoint
from numpy.typing import NDArray
from passing import Passing
from rounding import Matrix
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLDecoderLayer,
    Qwen2_5_VLRMSNorm,
    Qwen2_5_VLRotaryEmbedding,
)

from qcheck.backends import Backend
from qcheck.bundle import Bundle
from qcheck.cache import KVCache
from qcheck.engine import Engine
from qcheck.photo import Photo
from qcheck.probe import Limits, Prober

HEAD: Final = "lm_head"
NORM: Final = "text.norm.weight"
# Layers of the exported graph by what they are called there, and the module whose input is theirs.
INPUT_OF: Final = {
    "self_attn.qkv_proj": "self_attn.q_proj",
    "self_attn.o_proj": "self_attn.o_proj",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.gate_proj",
    "mlp.down_proj": "mlp.down_proj",
}
Fed = tuple[NDArray[np.float32], NDArray[np.int64]]  # embeddings (tokens, hidden) and positions (3, tokens)


class _Fed(Passing):
    """A backend that keeps what its decoder is fed."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.embeds: list[NDArray[np.float32]] = []
        self.positions: list[NDArray[np.int64]] = []

    def step(self, embeds: NDArray[np.float32], positions: NDArray[np.int64], cache: KVCache) -> NDArray[np.float32]:
        self.embeds.append(embeds[0].copy())
        self.positions.append(positions[:, 0].copy())
        return super().step(embeds, positions, cache)


def conversations(draft: Bundle, photos: Iterable[Photo], probes: int, threads: int | None) -> Iterator[Fed]:
    """What the decoder is fed when photos are judged, whole conversations. Raises BundleError, EngineError or
    PhotoError."""
    engine = Engine.open(draft, threads=threads)
    inner = engine.backend
    for photo in photos:
        fed = _Fed(inner)
        engine.backend = fed
        Prober(engine).judge(photo, Limits(probes))
        yield np.concatenate(fed.embeds), np.concatenate(fed.positions, 1)


class Calibration:
    """Serves `rounding.Inputs`. Layers must be asked for in their order, the head last; what was rounded of a layer is
    kept before the next one is asked for."""

    def __init__(self, checkpoint: Checkpoint, fed: Iterable[Fed]) -> None:
        self.checkpoint = checkpoint
        config = Qwen2_5_VLConfig.from_pretrained(checkpoint.directory).text_config
        config._attn_implementation = "sdpa"
        self._config, turner = config, Qwen2_5_VLRotaryEmbedding(config)
        self._hidden, self._turns = list[torch.Tensor](), list[Any]()
        for embeds, positions in fed:
            self._hidden.append(torch.from_numpy(embeds)[None])  # (1, tokens, hidden)
            self._turns.append(turner(self._hidden[-1], torch.from_numpy(positions)[:, None]))
        assert self._hidden, "there is at least one photo"
        self._index, self._layer = -1, None
        self._sums: dict[str, torch.Tensor] = {}

    def hessian(self, name: str) -> NDArray[np.float64]:
        self._go_to(name)
        part = HEAD if name == HEAD else INPUT_OF[name.split(".", 3)[3]]
        tokens = sum(hidden.shape[1] for hidden in self._hidden)
        found: NDArray[np.float64] = self._sums[part].double().numpy() * (2 / tokens)
        return found

    def keep(self, name: str, weight: Matrix) -> None:
        if name == HEAD:
            return
        part = name.split(".", 3)[3]
        rounded = torch.from_numpy(np.ascontiguousarray(weight))
        if part == "self_attn.qkv_proj":
            attention = self._layer.self_attn
            modules = (attention.q_proj, attention.k_proj, attention.v_proj)
            pieces = rounded.split([module.out_features for module in modules])
        else:
            modules, pieces = (self._layer.get_submodule(part),), (rounded,)
        for module, piece in zip(modules, pieces, strict=True):
            module.weight.data = piece

    def _go_to(self, name: str) -> None:
        """Reads the inputs of the layer that a name is of, if they are not those that are known."""
        layers = self.checkpoint.architecture.text.layers
        index = layers if name == HEAD else int(name.split(".")[2])
        assert index >= self._index, "layers come in their order"
        while self._index < index:
            if self._layer is not None:  # with its rounded weights, which give the next layer its inputs
                self._run()
            self._index += 1
            self._sums, self._layer = {}, None  # before the next one is read, so that there is room for it
            if self._index == layers:
                self._read_head()
                return
            self._layer = self._loaded(self._index)
            if self._index == index:
                with self._summing(self._layer):
                    self._run(keep=False)

    @torch.inference_mode()
    def _run(self, *, keep: bool = True) -> None:
        """The layer over all conversations, which take its place if they are to be kept."""
        for number, (hidden, turn) in enumerate(zip(self._hidden, self._turns, strict=True)):
            out = self._layer(hidden, position_embeddings=turn)
            if keep:
                self._hidden[number] = out

    @contextmanager
    def _summing(self, layer: Any) -> Iterator[None]:
        """Adds products of inputs up."""
        hooks = [
            layer.get_submodule(part).register_forward_pre_hook(lambda _, inputs, part=part: self._add(part, inputs[0]))
            for part in set(INPUT_OF.values())
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _add(self, part: str, inputs: torch.Tensor) -> None:
        rows = inputs.reshape(-1, inputs.shape[-1])
        if part not in self._sums:
            self._sums[part] = torch.zeros(rows.shape[1], rows.shape[1])
        self._sums[part].addmm_(rows.T, rows)

    def _loaded(self, index: int) -> Any:
        """A layer with the checkpoint's weights."""
        with torch.device("meta"):
            layer = Qwen2_5_VLDecoderLayer(self._config, index)
        names = [name for name, _ in layer.named_parameters()]
        weights = {name: torch.from_numpy(self.checkpoint.read(f"text.layers.{index}.{name}")) for name in names}
        layer.load_state_dict(weights, assign=True)
        return layer.eval()

    @torch.inference_mode()
    def _read_head(self) -> None:
        text = self.checkpoint.architecture.text
        norm = Qwen2_5_VLRMSNorm(text.hidden, eps=text.norm_eps)
        norm.weight.data = torch.from_numpy(self.checkpoint.read(NORM))
        for hidden in self._hidden:
            self._add(HEAD, norm(hidden))
