"""How the weights of linear layers are stored and multiplied: one class for each way, all with the same `linear`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from errors import ExportError
from graph import MICROSOFT, Graph
from numpy.typing import NDArray
from onnx import TensorProto, helper
from rounding import Grid, Matrix, Nearest, Rounded, Rounding, joined

FLOAT_BYTES: Final = 4


class Precision(Protocol):
    """What the builders of graphs know of a precision."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> int:
        """Element type of what linear layers and attention take and give; norms and the residual stay in float32."""
        ...

    @property
    def wide(self) -> "Precision":
        """For products of activations that may leave the range of `dtype`: of the same size on disk, and of a float32
        `dtype`."""
        ...

    @property
    def bytes_a_weight(self) -> float:
        """That linear layers take on disk."""
        ...

    def linear(self, graph: Graph, x: str, name: str, weight: Matrix, bias: Matrix | None = None) -> str:
        """x (..., in) times `weight` (out, in), plus `bias` (out,): (..., out), both of `dtype`. `name`: of the layer;
        its constants are `name.*`."""
        ...


def _add_bias(graph: Graph, x: str, name: str, bias: Matrix | None, dtype: int) -> str:
    if bias is None:
        return x
    return graph.node("Add", (x, graph.constant(_rounded(bias, f"{name}.bias", dtype), f"{name}.bias")))


def _rounded(values: Matrix, name: str, dtype: int) -> NDArray[np.floating]:
    """In another float type. Raises ExportError if the largest do not fit."""
    with np.errstate(over="ignore"):
        rounded = values.astype(helper.tensor_dtype_to_np_dtype(dtype), copy=False)
    if not np.isfinite(rounded).all():
        raise ExportError(f"{name} holds {np.abs(values).max():.3g}, which is too large for {rounded.dtype}; use fp32")
    return rounded


@dataclass(frozen=True, slots=True)
class Float:
    """Weights as they are, in one float type. `stored`: another that they are kept in."""

    name: str
    dtype: int
    stored: int | None = None

    @property
    def wide(self) -> Precision:
        return self if self.dtype == TensorProto.FLOAT else Float(self.name, TensorProto.FLOAT, stored=self.dtype)

    @property
    def bytes_a_weight(self) -> float:
        return float(helper.tensor_dtype_to_np_dtype(self.stored or self.dtype).itemsize)

    def linear(self, graph: Graph, x: str, name: str, weight: Matrix, bias: Matrix | None = None) -> str:
        stored = graph.constant(_rounded(weight, name, self.stored or self.dtype).T, f"{name}.weight")
        if self.stored is not None:
            stored = graph.cast(stored, self.dtype)
        return _add_bias(graph, graph.node("MatMul", (x, stored)), name, bias, self.dtype)


FP32 = Float("fp32", TensorProto.FLOAT)
FP16 = Float("fp16", TensorProto.FLOAT16)
HALVES = Float("halves", TensorProto.FLOAT, stored=TensorProto.FLOAT16)
BF16 = Float("bf16", TensorProto.FLOAT, stored=TensorProto.BFLOAT16)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Weights in steps of `grid`, multiplied by MatMulNBits. `accuracy_level`: of that operator; 1 multiplies in fp32,
    4 in int8, where steps of 0 are whole. `rounding`: how weights become steps; to the nearest unless given."""

    grid: Grid
    accuracy_level: int = 4
    rounding: Rounding | None = None

    @property
    def name(self) -> str:
        return f"int{self.grid.bits}"

    @property
    def dtype(self) -> int:
        return TensorProto.FLOAT

    @property
    def wide(self) -> "Precision":
        return self

    @property
    def bytes_a_weight(self) -> float:
        grid = self.grid
        zero = 0 if grid.symmetric else 4 if grid.fractional else grid.bits / 8
        return grid.bits / 8 + (FLOAT_BYTES + zero) / grid.block

    def linear(self, graph: Graph, x: str, name: str, weight: Matrix, bias: Matrix | None = None) -> str:
        grid = self.grid
        steps, scales, zeros = (self.rounding or Nearest(grid))(name, weight)
        inputs = [x, graph.constant(self._packed(steps), f"{name}.steps"), graph.constant(scales, f"{name}.scales")]
        if not grid.symmetric:
            inputs.append(graph.constant(zeros if grid.fractional else self._packed(zeros), f"{name}.zeros"))
        product = graph.node(
            "MatMulNBits",
            inputs,
            domain=MICROSOFT,
            K=weight.shape[1],
            N=weight.shape[0],
            bits=grid.bits,
            block_size=grid.block,
            accuracy_level=self.accuracy_level,
        )
        return _add_bias(graph, product, name, bias, self.dtype)

    def _packed(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Along the last axis, two steps a byte at 4 bits, the first of them low."""
        if self.grid.bits == 8:
            return values
        even = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, values.shape[-1] % 2)])
        packed: NDArray[np.uint8] = even[..., ::2] | (even[..., 1::2] << 4).astype(np.uint8)
        return packed


@dataclass(frozen=True, slots=True)
class AsStored:
    """A precision: layers that a checkpoint holds as steps keep them, all others are rounded as `other` says. `stored`:
    those of a weight, by its name, or None."""

    stored: Callable[[str], Rounded | None]
    other: Blocks

    @property
    def name(self) -> str:
        return self.other.name

    @property
    def dtype(self) -> int:
        return self.other.dtype

    @property
    def wide(self) -> Precision:
        return self

    @property
    def bytes_a_weight(self) -> float:
        return self.other.bytes_a_weight

    def linear(self, graph: Graph, x: str, name: str, weight: Matrix, bias: Matrix | None = None) -> str:
        found = self._joined(name)
        if found is None:
            return self.other.linear(graph, x, name, weight, bias)
        bits = self.other.grid.bits
        symmetric = bool((found.zeros == 2 ** (bits - 1)).all())
        grid = Grid(bits, found.steps.shape[2], symmetric)
        return Blocks(grid, self.other.accuracy_level, lambda *_: found).linear(graph, x, name, weight, bias)

    def _joined(self, name: str) -> Rounded | None:
        """Of a layer that may be several of the checkpoint's. Raises ExportError."""
        names = parts_of(name)
        found = [part for part in (self.stored(f"{one}.weight") for one in names) if part is not None]
        if not found:
            return None
        if len(found) < len(names) or len({part.steps.shape[1:] for part in found}) > 1:
            raise ExportError(
                f"{name}: queries, keys and values are rounded in different ways, and are multiplied at once"
            )
        return joined(found)


def parts_of(name: str) -> list[str]:
    """The checkpoint's layers that a layer of a graph is made of, in order."""
    return [name.replace("qkv_proj", f"{part}_proj") for part in "qkv"] if name.endswith(".qkv_proj") else [name]
