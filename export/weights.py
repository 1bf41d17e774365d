"""How the weights of linear layers are stored and multiplied: one class for each way, all with the same `linear`."""

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from errors import ExportError
from graph import MICROSOFT, Graph
from numpy.typing import NDArray
from onnx import TensorProto, helper

Matrix = NDArray[np.float32]
ROWS_AT_ONCE: Final = 4096  # of a weight that is rounded: a head has 150,000, and several copies are made of them
SMALLEST: Final = np.finfo(np.float32).tiny


class Precision(Protocol):
    """What the builders of graphs know of a precision."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> int:
        """Element type of what linear layers and attention take and give; norms and the residual stay in float32."""
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


@dataclass(frozen=True, slots=True)
class Blocks:
    """Weights rounded to the nearest of 2^bits steps, with a scale for each block along `in` (MatMulNBits).

    Symmetric: the value furthest from 0 of a block becomes the lowest step, and 0 the middle one. Otherwise the steps
    span what a block holds and 0. `accuracy_level`: of MatMulNBits; 1 multiplies in fp32, 4 in int8.
    """

    bits: int
    block: int
    symmetric: bool = True
    accuracy_level: int = 4

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ValueError(f"{self.bits} bits; 4 and 8 are supported")
        if self.block < 16 or self.block & (self.block - 1):
            raise ValueError(f"blocks of {self.block}; a power of two from 16 on is needed")

    @property
    def name(self) -> str:
        return f"int{self.bits}"

    @property
    def dtype(self) -> int:
        return TensorProto.FLOAT

    @property
    def bytes_a_weight(self) -> float:
        scale, zero = 4, 0 if self.symmetric else self.bits / 8
        return self.bits / 8 + (scale + zero) / self.block

    def linear(self, graph: Graph, x: str, name: str, weight: Matrix, bias: Matrix | None = None) -> str:
        steps, scales, zeros = self.round(weight)
        inputs = [
            x,
            graph.constant(self._packed(steps), f"{name}.steps"),
            graph.constant(scales, f"{name}.scales"),
        ]
        if not self.symmetric:
            inputs.append(graph.constant(self._packed(zeros), f"{name}.zeros"))
        product = graph.node(
            "MatMulNBits",
            inputs,
            domain=MICROSOFT,
            K=weight.shape[1],
            N=weight.shape[0],
            bits=self.bits,
            block_size=self.block,
            accuracy_level=self.accuracy_level,
        )
        return _add_bias(graph, product, name, bias, self.dtype)

    def round(self, weight: Matrix) -> tuple[NDArray[np.uint8], Matrix, NDArray[np.uint8]]:
        """Steps (out, blocks, block), scales (out, blocks) and the step of 0, (out, blocks).

        A weight is about (step - step of 0) * scale; the last block is filled up with the step of 0.
        """
        parts = [self._round(weight[row : row + ROWS_AT_ONCE]) for row in range(0, len(weight), ROWS_AT_ONCE)]
        steps, scales, zeros = (np.concatenate(part) for part in zip(*parts, strict=True))
        return steps, scales, zeros

    def _round(self, weight: Matrix) -> tuple[NDArray[np.uint8], Matrix, NDArray[np.uint8]]:
        filled = np.pad(weight, ((0, 0), (0, -weight.shape[1] % self.block))).reshape(len(weight), -1, self.block)
        top, middle = 2**self.bits - 1, 2 ** (self.bits - 1)
        low, high = filled.min(2), filled.max(2)
        if self.symmetric:
            scales = np.where(high > -low, high, low) / np.float32(-middle)
        else:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
            scales = (high - low) / np.float32(top)
        # A block of zeros, or of numbers whose reciprocal is too large for a float, becomes zeros.
        inverse = np.divide(1, scales, out=np.zeros_like(scales), where=np.abs(scales) > SMALLEST)
        zeros = np.full_like(scales, middle) if self.symmetric else np.rint(-low * inverse)
        steps = np.clip(np.rint(filled * inverse[..., None]) + zeros[..., None], 0, top)
        return steps.astype(np.uint8), scales, zeros.astype(np.uint8)

    def _packed(self, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Along the last axis, two steps a byte at 4 bits, the first of them low."""
        if self.bits == 8:
            return values
        even = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, values.shape[-1] % 2)])
        packed: NDArray[np.uint8] = even[..., ::2] | (even[..., 1::2] << 4).astype(np.uint8)
        return packed
