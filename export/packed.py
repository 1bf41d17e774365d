"""Linear layers that somebody else rounded: GPTQ, as gptqmodel writes it, and as auto-gptq did, whose format it keeps.

A layer of `out` x `in` weights is stored as

- `qweight` (in * bits / 32, out) int32: steps of neighbouring inputs share a word, the first of them lowest
- `scales` (groups, out): one for each `group` inputs and output
- `qzeros` (groups, out * bits / 32) int32: the step of 0, neighbouring outputs in a word; format "gptq" stores one less
- `g_idx` (in,) int32: the group of each input

and a weight is (step - step of 0) * scale: what MatMulNBits multiplies by, so nothing is rounded again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from errors import ExportError
from numpy.typing import NDArray
from rounding import SMALLEST_BLOCK, Matrix, Rounded
from shards import FLOATS, WORDS, Shards

METHOD: Final = "gptq"
# What is to be added to a stored step of 0, modulo their number.
FORMATS: Final[Mapping[str, int]] = {"gptq": 1, "gptq_v2": 0}
WORD_BITS: Final = 32
BITS: Final = (4, 8)
LARGEST_BLOCK: Final = 256  # of MatMulNBits
WEIGHT: Final = ".weight"
STEPS, ZEROS, SCALES, GROUPS = "qweight", "qzeros", "scales", "g_idx"
PARTS: Final = (STEPS, ZEROS, SCALES, GROUPS)

Read = Callable[[str], NDArray[Any]]  # of a part, by its name


@dataclass(frozen=True, slots=True)
class Packing:
    """How a checkpoint's rounded layers are stored. `offset`: as of FORMATS; `group`: how many inputs share a scale
    where a layer does not tell otherwise, 0: all of them."""

    offset: int
    group: int

    @classmethod
    def of(cls, config: Any, where: str) -> "Packing":
        """From the parsed quantization_config, or quantize_config.json, that `where` names. Raises ExportError."""
        if not isinstance(config, dict):
            raise ExportError(f"{where} is no object")
        method = config.get("quant_method", METHOD)
        if method != METHOD:
            raise ExportError(
                f"{where} is of {method!r}; supported: {METHOD}, as gptqmodel writes it. Or export the checkpoint that"
                " was quantised"
            )
        form = config.get("checkpoint_format", "gptq")
        if form not in FORMATS:
            raise ExportError(f"{where} names the format {form!r}; supported: {', '.join(FORMATS)}")
        group = config.get("group_size", 0)
        if type(group) is not int:
            raise ExportError(f"{where} has the group_size {group!r}; a whole number is needed")
        return cls(FORMATS[form], max(0, group))

    def bits(self, name: str, shape: tuple[int, ...], found: Mapping[str, tuple[int, ...]]) -> int:
        """Of a layer's steps. `shape`: (out, in) of its weight; `found`: of its parts. Raises ExportError where those
        do not fit together."""
        out, columns = shape
        rows = found[STEPS][0] if len(found[STEPS]) == 2 else 0
        bits = rows * WORD_BITS // columns
        if bits not in BITS or rows * WORD_BITS != bits * columns:
            raise ExportError(
                f"{name}: {rows} rows of {STEPS} for {columns} inputs are {rows * WORD_BITS / columns:g} bits a weight;"
                f" supported: {' and '.join(map(str, BITS))}"
            )
        groups = found[SCALES][0] if len(found[SCALES]) == 2 else 0
        wanted = {
            STEPS: (rows, out),
            ZEROS: (groups, out * bits // WORD_BITS),
            SCALES: (groups, out),
            GROUPS: (columns,),
        }
        for part, shape in found.items():
            if shape != wanted[part] or not groups:
                raise ExportError(f"{name}.{part} has the shape {shape} and {wanted[part]} is needed")
        return bits

    def rounded(self, name: str, columns: int, read: Read, ordered: bool) -> Rounded:
        """A layer's steps, scales and steps of 0. `ordered`: whether it has a GROUPS part. Raises ExportError."""
        words, scales = read(STEPS), read(SCALES).astype(np.float32)
        bits = len(words) * WORD_BITS // columns
        groups, out = scales.shape
        fits = self.group and -(-columns // self.group) == groups
        group = self.group if fits else -(-columns // groups)
        if ordered and not np.array_equal(read(GROUPS), np.arange(columns) // group):
            raise ExportError(
                f"{name}: its inputs are grouped out of order (desc_act), and blocks here are of neighbours; quantise"
                " with desc_act=False"
            )
        if not np.isfinite(scales).all():
            raise ExportError(f"{name}.{SCALES} holds numbers that are not finite")
        block = block_of(group, columns, name)
        steps = unpacked(words.T, bits)  # (out, columns)
        zeros = (unpacked(read(ZEROS), bits).T + self.offset) & (2**bits - 1)  # (out, groups)
        blocks = -(-columns // block)
        of_block = np.arange(blocks) * block // group
        scales, zeros = scales.T[:, of_block], zeros[:, of_block].astype(np.uint8)
        filled = np.broadcast_to(zeros[..., None], (out, blocks, block)).reshape(out, -1).copy()
        filled[:, :columns] = steps
        return Rounded(filled.reshape(out, blocks, block), np.ascontiguousarray(scales), np.ascontiguousarray(zeros))


def unpacked(words: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """(rows, words) int32 -> (rows, words * 32 / bits) steps, the lowest bits of a word first."""
    as_bytes = np.ascontiguousarray(words.astype("<i4", copy=False)).view(np.uint8)
    if bits == 8:
        return as_bytes
    halves = np.stack((as_bytes & 15, as_bytes >> 4), -1)
    steps: NDArray[np.uint8] = halves.reshape(len(words), -1)
    return steps


def block_of(group: int, columns: int, name: str) -> int:
    """The largest block of MatMulNBits that groups of so many inputs are made of. Raises ExportError."""
    if group >= columns:  # one group is all there is, whatever it is cut into
        return 128
    block = min(group & -group, LARGEST_BLOCK)
    if block < SMALLEST_BLOCK:
        raise ExportError(f"{name}: groups of {group} inputs are no whole blocks of {SMALLEST_BLOCK} or more")
    return block


@dataclass(frozen=True, slots=True)
class PackedLayers:
    """The rounded layers of a checkpoint, by our names of their weights, all in steps of `bits`. `layers`: what each is
    stored as, and the shape (out, in) of its weight."""

    packing: Packing
    layers: Mapping[str, tuple[str, tuple[int, ...]]]
    bits: int
    shards: Shards

    @classmethod
    def of(
        cls, packing: Packing, wanted: Mapping[str, tuple[str, tuple[int, ...]]], shards: Shards
    ) -> "PackedLayers | None":
        """Those among `wanted`, which are tensors by our names, as they are stored and their shapes; None if there are
        none. Raises ExportError."""
        layers, seen = dict[str, tuple[str, tuple[int, ...]]](), dict[int, str]()
        for ours, (name, shape) in wanted.items():
            base = name.removesuffix(WEIGHT)
            if f"{base}.{STEPS}" not in shards:
                continue
            for part in (ZEROS, SCALES):
                if f"{base}.{part}" not in shards:
                    raise ExportError(
                        f"{shards.path(f'{base}.{STEPS}').parent} has no tensor {base}.{part}; get it again"
                    )
            parts = {part: f"{base}.{part}" for part in PARTS if f"{base}.{part}" in shards}
            found = {part: shards.shape(at, FLOATS if part == SCALES else WORDS) for part, at in parts.items()}
            seen.setdefault(packing.bits(base, shape, found), base)
            bias = f"{base}.bias"  # which auto-gptq gave to layers that have none, of zeros
            if ours.removesuffix(WEIGHT) + ".bias" not in wanted and bias in shards and shards.tensor(bias).any():
                raise ExportError(f"{bias} is not of this architecture, and would be left out")
            layers[ours] = (base, shape)
        if len(seen) > 1:
            each = ", ".join(f"{name} to {bits} bits" for bits, name in sorted(seen.items()))
            raise ExportError(f"layers are rounded in different ways ({each}); quantise all of them alike")
        return cls(packing, layers, next(iter(seen)), shards) if layers else None

    def __contains__(self, name: str) -> bool:
        return name in self.layers

    def rounded(self, name: str) -> Rounded:
        """Raises ExportError."""
        base, (_, columns) = self.layers[name]

        def read(part: str) -> NDArray[Any]:
            tensor = self.shards.tensor(f"{base}.{part}")
            return (tensor.float() if part == SCALES else tensor).numpy()

        return self.packing.rounded(base, columns, read, f"{base}.{GROUPS}" in self.shards)

    def weights(self, name: str) -> Matrix:
        """(out, in) float32: what the steps stand for. Raises ExportError."""
        return self.rounded(name).weights(self.layers[name][1][1])
