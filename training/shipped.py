"""What a bundle of nano still holds of the model it was made of, so that the next can start where it stands when its
checkpoint is gone.

Convolutions, the projector's plain matrices and the embeddings are there as they were; matrices in blocks of 8 bits
come back rounded.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from qcheck.bundle import EMBEDDINGS_TENSOR, Bundle
from qcheck.embeddings import read_safetensor

ENCODER: Final = "visual.encoder."
PROJECTOR: Final = "visual.projector."
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
        graph = onnx.load(self.bundle.path(part)).graph
        held = {tensor.name: np.array(numpy_helper.to_array(tensor)) for tensor in graph.initializer}
        named = {name: torch.from_numpy(value) for name, value in held.items() if "." in name}
        return named, list(matrices(graph, held))


def matrices(graph: Any, held: dict[str, Any]) -> Iterator[Tensor]:
    """(outputs, inputs), fp32, of every multiplication by a constant matrix."""
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            sizes = {a.name: a.i for a in node.attribute}
            blocks, scales = held[node.input[1]], held[node.input[2]].reshape(sizes["N"], -1, 1)
            whole = (blocks.astype(np.float32) - ZERO_POINT) * scales
            yield torch.from_numpy(whole.reshape(sizes["N"], -1)[:, : sizes["K"]].copy())
        elif node.op_type == "MatMul" and node.input[1] in held:
            yield torch.from_numpy(held[node.input[1]].T.copy())
