"""The vision tower of a checkpoint as one ONNX graph: any number of stills of any sizes in a call.

A still shows both temporal halves of a patch the same picture, so the halves of the patch weights are added once and a
patch is channels * patch_px^2 numbers. Patches stay in the order in which they come; for attention they are gathered
into padded segments (qcheck/windows.py). Operators of ONNX's opset 18 only, but for what a precision brings. Scores are
in memory at once: heads * longest^2 numbers for each image of a call, of which a runtime may make several copies.
"""

import numpy as np
from architecture import VISION_NORM_EPS
from builder import Builder
from checkpoint import Checkpoint
from graph import Graph
from onnx import TensorProto, helper
from operators import gelu, rms_norm, silu
from rotary import Rotary
from weights import Precision

from qcheck.contract import IMAGE_TOKENS
from qcheck.windows import IMAGES, INDEX, MASK, PATCH_POSITIONS, PATCHES, PLACE, WINDOWS


class VisionTower(Builder):
    """Builds the graph."""

    opset = 18

    def __init__(self, checkpoint: Checkpoint, precision: Precision, graph: Graph) -> None:
        super().__init__(checkpoint, precision, graph)
        self.vision = checkpoint.architecture.vision
        self.rotary = Rotary.of_vision(self.vision)

    def build(self) -> None:
        vision, graph = self.vision, self.graph
        patches = graph.input(PATCHES, TensorProto.FLOAT, (PATCHES, vision.patch_values))
        graph.input(PATCH_POSITIONS, TensorProto.INT64, (PATCHES, 2))
        biases = {prefix: self._segments(prefix) for prefix in (WINDOWS, IMAGES)}
        graph.output(IMAGE_TOKENS, TensorProto.FLOAT, (IMAGE_TOKENS, vision.out_hidden))
        cos, sin = self.rotary.angles(graph, PATCH_POSITIONS)
        # (patches, 1, 1, head_dim / 2), against queries and keys (patches, 2, heads, head_dim)
        self.cos, self.sin = (self.inner(graph.node("Unsqueeze", (part, graph.ints(1, 2)))) for part in (cos, sin))
        kernel = self.checkpoint.read("visual.patch_embed.proj.weight").sum(2).reshape(vision.hidden, -1)
        x = self.outer(self.precision.linear(graph, self.inner(patches), "visual.patch_embed", kernel))
        for index in range(vision.blocks):
            block, prefix = f"visual.blocks.{index}", IMAGES if index in vision.full_blocks else WINDOWS
            h = self.linear(self._norm(x, f"{block}.norm1"), f"{block}.attn.qkv", bias=True)
            h = self.linear(self._attend(h, prefix, biases[prefix]), f"{block}.attn.proj", bias=True)
            x = graph.node("Add", (x, self.outer(h)))
            h = self._norm(x, f"{block}.norm2")
            gate, up = (self.linear(h, f"{block}.mlp.{part}_proj", bias=True) for part in ("gate", "up"))
            h = self.linear(graph.node("Mul", (silu(graph, gate), up)), f"{block}.mlp.down_proj", bias=True)
            x = graph.node("Add", (x, self.outer(h)))
        h = graph.reshape(self._norm(x, "visual.merger.ln_q"), -1, vision.hidden * vision.merge**2)
        h = gelu(graph, self.linear(h, "visual.merger.mlp.0", bias=True), self.precision.dtype)
        tokens = self.linear(h, "visual.merger.mlp.2", bias=True)
        graph.node("Cast", (tokens,), output=IMAGE_TOKENS, to=TensorProto.FLOAT)

    def _segments(self, prefix: str) -> str:
        """Declares the inputs of segments; what to add to their scores, (segments, 1, 1, longest)."""
        graph, padded, dtype = self.graph, (prefix, f"{prefix}.longest"), self.precision.dtype
        graph.input(f"{prefix}.{INDEX}", TensorProto.INT64, padded)
        mask = graph.input(f"{prefix}.{MASK}", TensorProto.BOOL, padded)
        graph.input(f"{prefix}.{PLACE}", TensorProto.INT64, (PATCHES,))
        lowest = float(np.finfo(helper.tensor_dtype_to_np_dtype(dtype)).min)
        bias = graph.node("Where", (mask, graph.number(0.0, dtype), graph.number(lowest, dtype)))
        return graph.node("Unsqueeze", (bias, graph.ints(1, 2)))

    def _attend(self, qkv: str, prefix: str, bias: str) -> str:
        """Attention within segments of (patches, 3 * hidden) queries, keys and values: (patches, hidden)."""
        graph, vision = self.graph, self.vision
        parts = graph.reshape(qkv, -1, 3, vision.heads, vision.head_dim)
        turning, values = graph.nodes("Split", (parts, graph.ints(2, 1)), 2, axis=1)
        turned = graph.concat((self.rotary.turn(graph, turning, self.cos, self.sin), values), 1)
        # (segments, longest, 3, heads, head_dim) to (3, segments, heads, longest, head_dim)
        gathered = graph.transpose(graph.node("Gather", (turned, f"{prefix}.{INDEX}"), axis=0), 2, 0, 3, 1, 4)
        q, k, v = (
            graph.node("Squeeze", (part, graph.ints(0)))
            for part in graph.nodes("Split", (gathered, graph.ints(1, 1, 1)), 3, axis=0)
        )
        q = graph.node("Mul", (q, graph.number(vision.head_dim**-0.5, self.precision.dtype)))
        scores = graph.node("Add", (graph.node("MatMul", (q, graph.transpose(k, 0, 1, 3, 2))), bias))
        seen = graph.node("MatMul", (graph.node("Softmax", (scores,), axis=-1), v))
        rows = graph.reshape(graph.transpose(seen, 0, 2, 1, 3), -1, vision.hidden)
        return graph.node("Gather", (rows, f"{prefix}.{PLACE}"), axis=0)

    def _norm(self, x: str, name: str) -> str:
        weight = self.checkpoint.read(f"{name}.weight")
        return self.inner(rms_norm(self.graph, x, weight, VISION_NORM_EPS))
