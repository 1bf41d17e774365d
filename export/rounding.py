"""How weights become steps: a grid, which is what is stored, and the ways to choose its scales and steps.

Round to nearest and GPTQ are written here; k-quant and HQQ are those of onnxruntime's own quantiser, called on one
matrix at a time, because it would otherwise want the whole model in memory. What of it is not taken as it is, is said
where it is.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from errors import ExportError
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
ROWS_AT_ONCE: Final = 4096  # of a weight that is rounded: a head has 150,000, and several copies are made of them
SMALLEST: Final = np.finfo(np.float32).tiny
SMALLEST_BLOCK: Final = 16
DAMPING: Final = 0.01  # of the mean of the Hessian's diagonal, as GPTQ's authors have it


class Rounded(NamedTuple):
    """A weight is about (step - step of 0) * scale. `steps` (out, blocks, block) uint8, `scales` (out, blocks) float32,
    `zeros` (out, blocks): the step of 0, uint8, or float32 on a fractional grid. The last block is filled up with
    steps of 0."""

    steps: NDArray[np.uint8]
    scales: Matrix
    zeros: NDArray[Any]

    def weights(self, columns: int) -> Matrix:
        """(out, columns) float32: what is multiplied."""
        filled = (self.steps.astype(np.float32) - self.zeros[..., None]) * self.scales[..., None]
        found: Matrix = filled.reshape(len(filled), -1)[:, :columns]
        return found


def joined(parts: Sequence[Rounded]) -> Rounded:
    """Their rows, one part after the other."""
    return Rounded(*(np.concatenate(part) for part in zip(*parts, strict=True)))


Rounding = Callable[[str, Matrix], Rounded]  # of a layer's name and its weight (out, in)


class Inputs(Protocol):
    """What is known of the inputs of linear layers; see calibration.py."""

    def hessian(self, name: str) -> NDArray[np.float64]:
        """(in, in): 2 x xT averaged over the inputs x of a layer."""
        ...

    def keep(self, name: str, weight: Matrix) -> None:
        """Goes on with the weight as it was rounded."""
        ...


@dataclass(frozen=True, slots=True)
class Grid:
    """2^bits steps and a scale for each `block` of weights along `in`. Symmetric: 0 is the middle step. Otherwise each
    block has its own step of 0, which may lie between two steps if the grid is `fractional`."""

    bits: int
    block: int
    symmetric: bool = True
    fractional: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ValueError(f"{self.bits} bits; 4 and 8 are supported")
        if self.block < SMALLEST_BLOCK or self.block & (self.block - 1):
            raise ValueError(f"blocks of {self.block}; a power of two from {SMALLEST_BLOCK} on is needed")
        if self.symmetric and self.fractional:
            raise ValueError("the middle step is whole")

    @property
    def top(self) -> int:
        """The last step."""
        return 2**self.bits - 1

    @property
    def middle(self) -> int:
        return 2 ** (self.bits - 1)

    def blocks(self, weight: Matrix) -> Matrix:
        """(out, in) as (out, blocks, block), filled up with 0."""
        return np.pad(weight, ((0, 0), (0, -weight.shape[1] % self.block))).reshape(len(weight), -1, self.block)


class _ByRows:
    """A way that looks at no other rows of a weight, and so takes some at a time."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def __call__(self, name: str, weight: Matrix) -> Rounded:
        parts = [self.round(weight[row : row + ROWS_AT_ONCE]) for row in range(0, len(weight), ROWS_AT_ONCE)]
        return joined(parts)

    def round(self, weight: Matrix) -> Rounded:
        raise NotImplementedError


class Nearest(_ByRows):
    """To the nearest step."""

    def round(self, weight: Matrix) -> Rounded:
        grid, filled = self.grid, self.grid.blocks(weight)
        scales, zeros = _spans(grid, filled)
        steps = np.clip(np.rint(filled * _inverse(scales)[..., None]) + zeros[..., None], 0, grid.top)
        return Rounded(steps.astype(np.uint8), scales, zeros)


def _spans(grid: Grid, filled: Matrix) -> tuple[Matrix, NDArray[np.uint8]]:
    """Scales and steps of 0, (out, blocks), of (out, blocks, block). Symmetric: the value furthest from 0 of a block
    becomes the lowest step. Otherwise the steps span what a block holds and 0."""
    low, high = filled.min(2), filled.max(2)
    if grid.symmetric:
        scales = np.where(high > -low, high, low) / np.float32(-grid.middle)
        return scales, np.full(scales.shape, grid.middle, np.uint8)
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scales = (high - low) / np.float32(grid.top)
    return scales, np.rint(-low * _inverse(scales)).astype(np.uint8)


def _inverse(scales: Matrix) -> Matrix:
    """0 for a block of zeros, or of numbers whose reciprocal is too large for a float: it becomes zeros."""
    return np.divide(1, scales, out=np.zeros_like(scales), where=np.abs(scales) > SMALLEST)


class KQuant(_ByRows):
    """llama.cpp's k-quant: of 20 scales a block the one with the least weighted error, large weights counting more."""

    def round(self, weight: Matrix) -> Rounded:
        with _quantiser():
            from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu
        grid, filled = self.grid, self.grid.blocks(weight)
        with np.errstate(divide="ignore", invalid="ignore"):  # blocks that are all one number, which it passes over
            steps, scales, zeros = quant_tensor_k_quant_cpu(filled, grid.bits, grid.block)
        found = Rounded(
            steps.astype(np.uint8).reshape(filled.shape),
            scales.astype(np.float32).reshape(filled.shape[:2]),
            zeros.reshape(filled.shape[:2]),
        )
        # It spans what a block holds without 0, and then takes the nearest step for that of 0: a block on one side of 0
        # would be lost. Such a block is rounded to the nearest.
        lost = (filled.min(2) > 0) | (filled.max(2) < 0) | ~filled.any(2)
        nearest = Nearest(grid).round(weight)
        return Rounded(
            np.where(lost[..., None], nearest.steps, found.steps),
            np.where(lost, nearest.scales, found.scales),
            np.where(lost, nearest.zeros, found.zeros),
        )


class Hqq(_ByRows):
    """Half-quadratic quantisation: steps of 0 between the steps, moved until outliers cost little."""

    def round(self, weight: Matrix) -> Rounded:
        with _quantiser():
            from onnxruntime.quantization.matmul_nbits_quantizer import HQQWeightOnlyQuantConfig, HQQWeightOnlyQuantizer
        grid = self.grid
        maker = HQQWeightOnlyQuantizer(HQQWeightOnlyQuantConfig(block_size=grid.block, bits=grid.bits))
        # Its scales are no finer than 1 / 20,000, which small weights would not survive: each block is enlarged to 1.
        filled = grid.blocks(weight)
        sizes = np.maximum(np.abs(filled).max(2), SMALLEST)
        enlarged = torch.from_numpy((filled / sizes[..., None]).reshape(len(weight), -1))
        found = maker.quantize_internal(enlarged, bits=grid.bits, group_size=grid.block)
        steps, scales, zeros = (part.numpy() for part in found)
        return Rounded(steps.astype(np.uint8).reshape(filled.shape), scales * sizes, zeros.astype(np.float32))


class Gptq:
    """GPTQ (arXiv 2210.17323): columns are rounded one after the other, and those that come later make up for the
    error, as far as the inputs of the layer let them.

    Written here, because in onnxruntime 1.32 the error reaches no other column: it multiplies by the half of a
    triangular matrix that is 0, and what comes out is rounded to the nearest.
    """

    def __init__(self, grid: Grid, inputs: Inputs) -> None:
        self.grid, self.inputs = grid, inputs

    def __call__(self, name: str, weight: Matrix) -> Rounded:
        """Raises ExportError for inputs that are not finite."""
        columns = weight.shape[1]
        spread = _spread(name, self.inputs.hessian(name))
        parts = [self._round(weight[row : row + ROWS_AT_ONCE], spread) for row in range(0, len(weight), ROWS_AT_ONCE)]
        found = Rounded(*(np.concatenate(part) for part in zip(*parts, strict=True)))
        self.inputs.keep(name, found.weights(columns))
        return found

    def _round(self, weight: Matrix, spread: NDArray[np.float64]) -> Rounded:
        grid, work = self.grid, weight.astype(np.float64)
        rows, columns = weight.shape
        count = -(-columns // grid.block)
        steps = np.empty((rows, count, grid.block), np.uint8)
        scales, zeros = np.empty((rows, count), np.float32), np.empty((rows, count), np.uint8)
        for index in range(count):
            first, end = index * grid.block, min((index + 1) * grid.block, columns)
            # What is taken off the block is taken off `work`, of which it is a view.
            block, errors = work[:, first:end], np.empty((rows, end - first))
            scale, zero = _spans(grid, grid.blocks(block.astype(np.float32)))
            scales[:, index], zeros[:, index] = scale[:, 0], zero[:, 0]
            inverse, step_of_0 = _inverse(scale)[:, 0], zero[:, 0].astype(np.float64)
            steps[:, index] = zero  # what fills the last block up
            for j in range(end - first):
                chosen = np.clip(np.rint(block[:, j] * inverse) + step_of_0, 0, grid.top)
                steps[:, index, j] = chosen
                errors[:, j] = (block[:, j] - (chosen - step_of_0) * scale[:, 0]) / spread[first + j, first + j]
                block[:, j:] -= (
                    errors[:, j, None] * spread[first + j, first + j : end]
                )  # in `work`, of which it is part
            work[:, end:] -= errors @ spread[first:end, end:]
        return Rounded(steps, scales, zeros)


def _spread(name: str, hessian: NDArray[np.float64]) -> NDArray[np.float64]:
    """Upper triangular: how an error of a column spreads over those after it. `hessian` is used up. Raises
    ExportError."""
    if not np.isfinite(hessian).all():
        raise ExportError(f"{name}: its inputs over the calibration photos are not finite; use rtn, k-quant or hqq")
    diagonal = np.einsum("ii->i", hessian)  # a view
    mean = float(diagonal.mean())
    diagonal[diagonal == 0] = mean or 1.0  # an input that is always 0 has nothing to say
    diagonal += DAMPING * (mean or 1.0)
    found: NDArray[np.float64] = np.linalg.cholesky(np.linalg.inv(hessian)).T
    return found


@contextmanager
def _quantiser() -> Iterator[None]:
    """For imports of onnxruntime's quantiser, which turns everybody's log on; that is taken back. Raises
    ExportError."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    except ImportError as error:
        raise ExportError(f"this onnxruntime has not the quantiser that is asked for ({error}); install 1.32") from None
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
