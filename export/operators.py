"""Functions of a model that ONNX has no operator for at every opset, spelled in those that it has.

Runtimes know these spellings and fuse them; `x` and what is returned are names of float32 values unless said otherwise.
"""

from math import sqrt

import numpy as np
from graph import Graph
from numpy.typing import NDArray
from onnx import TensorProto


def rms_norm(graph: Graph, x: str, weight: NDArray[np.float32], eps: float) -> str:
    """x / sqrt(mean(x^2) + eps) * weight along the last axis."""
    squares = graph.node("Pow", (x, graph.number(2.0)))
    mean = graph.node("ReduceMean", (squares, graph.ints(-1)), keepdims=1)
    root = graph.node("Sqrt", (graph.node("Add", (mean, graph.number(eps))),))
    return graph.node("Mul", (graph.node("Div", (x, root)), graph.constant(weight)))


def silu(graph: Graph, x: str) -> str:
    """x * sigmoid(x), of any float type."""
    return graph.node("Mul", (x, graph.node("Sigmoid", (x,))))


def gelu(graph: Graph, x: str, dtype: int = TensorProto.FLOAT) -> str:
    """x / 2 * (1 + erf(x / sqrt 2)), exact and not the tanh's; `dtype`: of x."""
    erf = graph.node("Erf", (graph.node("Div", (x, graph.number(sqrt(2), dtype))),))
    doubled = graph.node("Mul", (x, graph.node("Add", (erf, graph.number(1.0, dtype)))))
    return graph.node("Mul", (doubled, graph.number(0.5, dtype)))
