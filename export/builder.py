"""What builders of a checkpoint's graphs share."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from checkpoint import Checkpoint
from graph import Graph
from onnx import TensorProto
from weights import Precision


class Builder(ABC):
    """Writes one graph of a checkpoint. Norms and the residual are float32, what is between them `precision.dtype`."""

    opset: ClassVar[int]

    def __init__(self, checkpoint: Checkpoint, precision: Precision, graph: Graph) -> None:
        self.checkpoint, self.precision, self.graph = checkpoint, precision, graph

    @classmethod
    def write(cls, checkpoint: Checkpoint, precision: Precision, path: Path) -> None:
        """Writes the graph to `path` and its weights to `path`.data. Raises ExportError."""
        with Graph(path, cls.opset) as graph:
            cls(checkpoint, precision, graph).build()

    @abstractmethod
    def build(self) -> None:
        """Adds everything to the graph."""

    def inner(self, x: str) -> str:
        """A float32 value as linear layers take it."""
        return x if self.precision.dtype == TensorProto.FLOAT else self.graph.cast(x, self.precision.dtype)

    def outer(self, x: str) -> str:
        """What a linear layer gave, in float32."""
        return x if self.precision.dtype == TensorProto.FLOAT else self.graph.cast(x, TensorProto.FLOAT)

    def linear(self, x: str, name: str, *, bias: bool) -> str:
        """A linear layer of the checkpoint, from and to `precision.dtype`."""
        read = self.checkpoint.read
        return self.precision.linear(
            self.graph, x, name, read(f"{name}.weight"), read(f"{name}.bias") if bias else None
        )
