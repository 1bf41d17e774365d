"""Rotary position embeddings: which angle each pair of a head's values turns by, and the turning."""

from collections.abc import Sequence

import numpy as np
import torch
from architecture import TextArchitecture, VisionArchitecture
from graph import Graph
from numpy.typing import NDArray
from onnx import TensorProto


class Rotary:
    """Turns value i of a head against value i + head_dim / 2, by the sum over axes of position times `table`.

    `table`: (axes, head_dim / 2) float32. Each frequency follows one axis, so a column has one number that is not 0,
    and a sum of products is exactly that product.
    """

    def __init__(self, table: NDArray[np.float32]) -> None:
        self.table = table

    @classmethod
    def of_text(cls, text: TextArchitecture) -> "Rotary":
        """M-RoPE: sections of the frequencies follow time, height and width."""
        axes = np.repeat(np.arange(len(text.rope_sections)), text.rope_sections)
        return cls._following(axes, _frequencies(text.rope_theta, text.head_dim))

    @classmethod
    def of_vision(cls, vision: VisionArchitecture) -> "Rotary":
        """The same frequencies for the row of a patch, then for its column."""
        frequencies = _frequencies(vision.rope_theta, vision.head_dim // 2)
        return cls._following(np.repeat([0, 1], len(frequencies)), np.tile(frequencies, 2))

    @classmethod
    def _following(cls, axes: Sequence[int] | NDArray[np.intp], frequencies: NDArray[np.float32]) -> "Rotary":
        table = np.zeros((max(axes) + 1, len(frequencies)), np.float32)
        table[axes, np.arange(len(frequencies))] = frequencies
        return cls(table)

    def angles(self, graph: Graph, positions: str) -> tuple[str, str]:
        """Cosine and sine, (..., head_dim / 2) float32, of `positions` (..., axes) of any integer type.

        Not a MatMul: some providers would round the positions to the ten bits of TF32.
        """
        known = graph.node("Unsqueeze", (graph.cast(positions, TensorProto.FLOAT), graph.ints(-1)))
        turned = graph.node("Mul", (known, graph.constant(self.table)))
        angle = graph.node("ReduceSum", (turned, graph.ints(-2)), keepdims=0)
        return graph.node("Cos", (angle,)), graph.node("Sin", (angle,))

    def turn(self, graph: Graph, x: str, cos: str, sin: str) -> str:
        """`x` (..., head_dim), turned; cos and sin must broadcast against (..., head_dim / 2)."""
        half = self.table.shape[1]
        first, second = graph.nodes("Split", (x, graph.ints(half, half)), 2, axis=-1)

        def product(a: str, b: str) -> str:
            return graph.node("Mul", (a, b))

        low = graph.node("Sub", (product(first, cos), product(second, sin)))
        high = graph.node("Add", (product(second, cos), product(first, sin)))
        return graph.concat((low, high), -1)


def _frequencies(theta: float, size: int) -> NDArray[np.float32]:
    """(ceil(size / 2),) turns a position in radians, rounded as PyTorch rounds: the models were trained with those."""
    powers = torch.arange(0, size, 2, dtype=torch.float) / size
    return (1.0 / theta**powers).numpy()
