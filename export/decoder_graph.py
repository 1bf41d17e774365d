"""The decoder of a checkpoint as an ONNX graph with its KV cache in fixed buffers, written layer by layer.

Two forms take and give tensors of the same names (qcheck/contract.py); `past.*` and `present.*` may be one buffer:

- `Gqa`: for ONNX Runtime, one conversation. Its fused operators, of which attention also turns queries and keys.
- `Std24`: operators of ONNX's opset 24 only, but for what a precision brings, with an explicit mask. Any number of rows
  of different lengths; a step appends equally many tokens to each.

Capacity and number of tokens are free. Logits are those of each row's last token.
"""

from abc import abstractmethod
from typing import ClassVar, Final

import numpy as np
from builder import Builder
from checkpoint import HEAD, Checkpoint
from errors import ExportError
from graph import MICROSOFT, Dim, Graph
from numpy.typing import NDArray
from onnx import TensorProto
from operators import rms_norm, silu
from rotary import Rotary
from weights import Precision

from qcheck.contract import INPUTS_EMBEDS, KV_LENGTH, LOGITS, POSITION_IDS, past_name, present_name

CAPACITY: Final = "capacity"  # tokens that the cache has room for
TOKENS: Final = "tokens"
TURNED_AT_ONCE: Final = 16  # GroupQueryAttention turns no other heads than multiples of it


class Decoder(Builder):
    """What both forms share: the order of things, and everything that is linear."""

    rows: ClassVar[Dim]  # conversations in one call

    def __init__(self, checkpoint: Checkpoint, precision: Precision, graph: Graph) -> None:
        super().__init__(checkpoint, precision, graph)
        self.text = checkpoint.architecture.text
        self.rotary = Rotary.of_text(self.text)
        self.scale = self.text.head_dim**-0.5

    def build(self) -> None:
        text, graph = self.text, self.graph
        x = graph.input(INPUTS_EMBEDS, TensorProto.FLOAT, (self.rows, TOKENS, text.hidden))
        graph.input(POSITION_IDS, TensorProto.INT64, (3, self.rows, TOKENS))
        graph.input(KV_LENGTH, TensorProto.INT64, (self.rows,))
        graph.output(LOGITS, TensorProto.FLOAT, (self.rows, 1, text.vocabulary))
        positions = graph.transpose(POSITION_IDS, 1, 2, 0)  # (rows, tokens, 3)
        self.cos, self.sin = self.rotary.angles(graph, positions)
        self.prepare()
        h = rms_norm(graph, x, self._vector("text.layers.0.input_layernorm"), text.norm_eps)
        for index in range(text.layers):
            layer, last = f"text.layers.{index}", index == text.layers - 1
            out = self.attend(self._qkv(layer, h), *self._cache(index))
            if last:  # only the logits of the last token are asked for, so nothing else needs the rest of this layer
                out, x = (graph.slice(value, 1, -1) for value in (out, x))
            out = self.linear(out, f"{layer}.self_attn.o_proj", bias=False)
            x, h = self.add_and_norm(x, self.outer(out), f"{layer}.post_attention_layernorm")
            out = self._mlp(h, f"{layer}.mlp")
            following = "text.norm" if last else f"text.layers.{index + 1}.input_layernorm"
            x, h = self.add_and_norm(x, out, following)
        head = self.precision.linear(graph, self.inner(h), "lm_head", self.checkpoint.read(HEAD))
        graph.node("Cast", (head,), output=LOGITS, to=TensorProto.FLOAT)

    @abstractmethod
    def prepare(self) -> None:
        """What all layers need of lengths and positions, computed once."""

    @abstractmethod
    def attend(self, qkv: str, past: tuple[str, str], present: tuple[str, str]) -> str:
        """Causal attention of (rows, tokens, queries + keys + values) over the cache, to which it is appended:
        (rows, tokens, heads * head_dim)."""

    @abstractmethod
    def add_and_norm(self, x: str, more: str, norm: str) -> tuple[str, str]:
        """The sum, and the sum normalised by the weights of `norm`."""

    @abstractmethod
    def silu(self, x: str) -> str:
        """x * sigmoid(x)."""

    def _cache(self, index: int) -> tuple[tuple[str, str], tuple[str, str]]:
        """Names of a layer's key and value buffers, as they come and as they go."""
        text, graph, dtype = self.text, self.graph, self.precision.dtype
        shape = (self.rows, text.kv_heads, CAPACITY, text.head_dim)
        past = (past_name(index, "key"), past_name(index, "value"))
        present = (present_name(index, "key"), present_name(index, "value"))
        for before, after in zip(past, present, strict=True):
            graph.input(before, dtype, shape)
            graph.output(after, dtype, shape)
        return past, present

    def _vector(self, name: str) -> NDArray[np.float32]:
        return self.checkpoint.read(f"{name}.weight")

    def _qkv(self, layer: str, h: str) -> str:
        """Queries, keys and values of all heads, by one product."""
        names = [f"{layer}.self_attn.{part}_proj" for part in ("q", "k", "v")]
        weight, bias = (
            np.concatenate([self.checkpoint.read(f"{name}.{kind}") for name in names]) for kind in ("weight", "bias")
        )
        return self.precision.linear(self.graph, self.inner(h), f"{layer}.self_attn.qkv_proj", weight, bias)

    def _mlp(self, h: str, name: str) -> str:
        """From and to float32. The product of gate and up is by far the largest value of a layer, and larger than what
        a float16 holds in some: from there on it is float32, as in the vision tower."""
        graph, wide, weight = self.graph, self.precision.wide, self.checkpoint.read(f"{name}.down_proj.weight")
        h = self.inner(h)
        gate, up = (self.outer(self.linear(h, f"{name}.{part}_proj", bias=False)) for part in ("gate", "up"))
        return wide.linear(graph, graph.node("Mul", (self.silu(gate), up)), f"{name}.down_proj", weight)

    def _end(self) -> str:
        """(rows,) int64: tokens in the cache after this call."""
        return self.graph.node("Add", (KV_LENGTH, self.graph.dim(INPUTS_EMBEDS, 1)))


class Gqa(Decoder):
    opset = 18
    rows = 1

    def prepare(self) -> None:
        graph, half = self.graph, self.text.head_dim // 2
        if self.text.head_dim % TURNED_AT_ONCE:
            raise ExportError(
                f"heads of {self.text.head_dim} values: the form gqa needs a multiple of {TURNED_AT_ONCE}; use std24"
            )
        end = self._end()
        self.last = graph.cast(graph.node("Sub", (end, graph.ints(1))), TensorProto.INT32)
        self.total = graph.cast(graph.node("Squeeze", (end, graph.ints(0))), TensorProto.INT32)
        # The operator looks a token up in its table by the token's place in the cache, not by its M-RoPE position. So
        # the table is made for each call: rows that are never read for what is cached, then those of the new tokens.
        before = graph.concat((KV_LENGTH, graph.ints(0, 0, 0)), 0)
        self.cos, self.sin = (
            graph.node("Pad", (self.inner(graph.reshape(angle, -1, half)), before)) for angle in (self.cos, self.sin)
        )

    def attend(self, qkv: str, past: tuple[str, str], present: tuple[str, str]) -> str:
        attended = f"attended_{present[0]}"
        self.graph.nodes(
            "GroupQueryAttention",
            (qkv, "", "", *past, self.last, self.total, self.cos, self.sin),
            (attended, *present),
            domain=MICROSOFT,
            num_heads=self.text.heads,
            kv_num_heads=self.text.kv_heads,
            scale=self.scale,
            do_rotary=1,
        )
        return attended

    def add_and_norm(self, x: str, more: str, norm: str) -> tuple[str, str]:
        graph, weight = self.graph, self.graph.constant(self._vector(norm))
        outputs = (f"{norm}.out", "", "", f"{norm}.sum")
        graph.nodes(
            "SkipSimplifiedLayerNormalization",
            (more, x, weight),
            outputs,
            domain=MICROSOFT,
            epsilon=self.text.norm_eps,
        )
        return outputs[3], outputs[0]

    def silu(self, x: str) -> str:
        return self.graph.node("QuickGelu", (x,), domain=MICROSOFT, alpha=1.0)


class Std24(Decoder):
    opset = 24
    rows = "rows"

    def prepare(self) -> None:
        graph = self.graph
        self.cos, self.sin = (
            graph.node("Unsqueeze", (self.inner(angle), graph.ints(1))) for angle in (self.cos, self.sin)
        )  # (rows, 1, tokens, head_dim / 2)
        first, one = graph.number(0, TensorProto.INT64), graph.number(1, TensorProto.INT64)

        def places(tensor: str, axis: int) -> str:
            count = graph.node("Squeeze", (graph.dim(tensor, axis), graph.ints(0)))
            return graph.node("Range", (first, count, one))

        tokens = graph.node("Unsqueeze", (places(INPUTS_EMBEDS, 1), graph.ints(0, 2)))
        ends = graph.node("Add", (graph.node("Unsqueeze", (KV_LENGTH, graph.ints(1, 2))), tokens))
        seen = graph.node("LessOrEqual", (places(past_name(0, "key"), 2), ends))  # (rows, tokens, capacity)
        self.mask = graph.node("Unsqueeze", (seen, graph.ints(1)))

    def attend(self, qkv: str, past: tuple[str, str], present: tuple[str, str]) -> str:
        graph, text = self.graph, self.text
        sizes = graph.ints(text.heads, text.kv_heads, text.kv_heads)
        heads = graph.transpose(graph.reshape(qkv, 0, 0, -1, text.head_dim), 0, 2, 1, 3)
        q, k, v = graph.nodes("Split", (heads, sizes), 3, axis=1)
        q, k = (self.rotary.turn(graph, part, self.cos, self.sin) for part in (q, k))
        for before, new, after in zip(past, (k, v), present, strict=True):
            graph.node("TensorScatter", (before, new, KV_LENGTH), output=after, axis=2, mode="linear")
        out = graph.node("Attention", (q, *present, self.mask), scale=self.scale)
        return graph.reshape(graph.transpose(out, 0, 2, 1, 3), 0, 0, -1)

    def add_and_norm(self, x: str, more: str, norm: str) -> tuple[str, str]:
        total = self.graph.node("Add", (x, more))
        return total, rms_norm(self.graph, total, self._vector(norm), self.text.norm_eps)

    def silu(self, x: str) -> str:
        return silu(self.graph, x)


FORMS: Final[dict[str, type[Decoder]]] = {"gqa": Gqa, "std24": Std24}
