"""What a bundle of nano still holds of the model it was made of, so that the next can start where it stands when its
checkpoint is gone.

Convolutions, the projector's plain matrices and the embeddings are there as they were; matrices in blocks of 8 bits
come back rounded. Its eyes are those that saw all photos: of the folds' (perceive.py) a bundle holds nothing.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from nano_spec import LEAST_UNIT
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from qcheck.bundle import EMBEDDINGS_TENSOR, Bundle, BundleError
from qcheck.embeddings import read_safetensor

ENCODER: Final = "visual.encoder."
PROJECTOR: Final = "visual.projector."
EYES: Final = "visual.perception."
TOKEN_STD: Final = "damage.std"  # of visual.Damage: its graph has LEAST_UNIT times it, and no name for that
LAYER: Final = "text.layers."
NORM: Final = "text.norm.weight"
FROM_VIEW: Final = "from_view.weight"
# The matrices of a layer of the decoder, in the order in which its graph multiplies by them.
MULTIPLIED: Final = (
    *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
)
ZERO_POINT: Final = 128  # of symmetric 8-bit blocks


class Shipped:
    """The weights of a bundle, by the names that they have in a checkpoint. Raises BundleError."""

    def __init__(self, directory: Path) -> None:
        self.bundle = Bundle.open(directory)

    def encoder(self) -> dict[str, Tensor]:
        """Of cells.CellEncoder."""
        named, _ = self._weights("vision")
        # Statistics of the pixels are no weights: they are computed anew, in whatever way is today's.
        return {k.removeprefix(ENCODER): v for k, v in named.items() if k.startswith(f"{ENCODER}features.")}

    def projector(self) -> dict[str, Tensor]:
        """Of visual.Projector."""
        named, multiplied = self._weights("vision")
        state = {k.removeprefix(PROJECTOR): v for k, v in named.items() if k.startswith(PROJECTOR)}
        return {FROM_VIEW: multiplied[-1], **state}  # whatever has no name of its own was multiplied by last

    def eyes(self) -> dict[str, Tensor]:
        """Of visual.Perception, whose matrices are known by the biases that are added to them. Raises BundleError."""
        graph, held = self._graph("vision")
        state = {k.removeprefix(EYES): torch.from_numpy(v) for k, v in held.items() if k.startswith(EYES)}
        by_output = dict(matrices(graph, held))
        for node in graph.node:
            bias = next((name for name in node.input if name.startswith(EYES) and name.endswith(".bias")), None)
            factor = next((by_output[name] for name in node.input if name in by_output), None)
            if node.op_type == "Add" and bias and factor is not None:
                state[f"{bias.removeprefix(EYES).removesuffix('bias')}weight"] = factor
        channels = state["regions.feature_std"].shape[0] // 2  # mean and spread of each
        unnamed = [v for k, v in held.items() if "." not in k and v.shape == (channels,) and v.dtype == np.float32]
        if len(unnamed) != 1:
            raise BundleError(f"{self.bundle.path('vision')}: does not tell how its eyes measure tokens")
        return {TOKEN_STD: torch.from_numpy(unnamed[0] / np.float32(LEAST_UNIT)), **state}

    def text(self) -> dict[str, Tensor]:
        """Of the language model: embeddings, layers, norm."""
        named, multiplied = self._weights("decoder")
        state = {k.removeprefix("text."): v for k, v in named.items() if k.startswith(LAYER) or k == NORM}
        for layer in range(self.bundle.contract.decoder.layers):
            for index, name in enumerate(MULTIPLIED, layer * len(MULTIPLIED)):
                state[f"layers.{layer}.{name}"] = multiplied[index]
        embeddings = read_safetensor(self.bundle.path("embeddings"), EMBEDDINGS_TENSOR)
        return {"embed_tokens.weight": torch.from_numpy(np.array(embeddings)), **state}

    def _weights(self, part: str) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The weights of a graph that have kept their names, and the matrices it multiplies by, in its order."""
        graph, held = self._graph(part)
        named = {name: torch.from_numpy(value) for name, value in held.items() if "." in name}
        return named, [matrix for _, matrix in matrices(graph, held)]

    def _graph(self, part: str) -> tuple[Any, dict[str, NDArray[Any]]]:
        """A graph and its constants."""
        graph = onnx.load(self.bundle.path(part)).graph
        return graph, {tensor.name: np.array(numpy_helper.to_array(tensor)) for tensor in graph.initializer}


def matrices(graph: Any, held: dict[str, NDArray[Any]]) -> Iterator[tuple[str, Tensor]]:
    """Of every multiplication by a constant matrix, in order, its output's name and (outputs, inputs), fp32."""
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            sizes = {a.name: a.i for a in node.attribute}
            blocks, scales = held[node.input[1]], held[node.input[2]].reshape(sizes["N"], -1, 1)
            whole = (blocks.astype(np.float32) - ZERO_POINT) * scales
            yield node.output[0], torch.from_numpy(whole.reshape(sizes["N"], -1)[:, : sizes["K"]].copy())
        elif node.op_type == "MatMul" and node.input[1] in held:
            yield node.output[0], torch.from_numpy(held[node.input[1]].T.copy())
