"""What a precision means for each part of a bundle, and what runs it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from rounding import Gptq, Grid, Hqq, Inputs, KQuant, Nearest, Rounding
from weights import BF16, FP16, FP32, HALVES, Blocks, Precision

from qcheck.errors import UsageError


@dataclass(frozen=True, slots=True)
class Parts:
    """`table`: what embeddings of float32 are kept in."""

    decoder: Precision
    vision: Precision
    table: Literal["float32", "float16", "bfloat16"]


BLOCKS: Final = (32, 128)
BITS: Final[Mapping[str, int]] = {"int8": 8, "int4": 4}
# The vision tower multiplies in float32 everywhere: its last MLPs overflow a float16, and 4 bits cost it too much.
_STORED_IN_BYTES: Final = Blocks(Grid(8, 32), accuracy_level=1)
# With weights rounded to the nearest, in blocks of 32.
PRECISIONS: Final = {
    "fp32": Parts(FP32, FP32, "float32"),
    "fp16": Parts(FP16, HALVES, "float16"),
    "bf16": Parts(BF16, BF16, "bfloat16"),
    "int8": Parts(Blocks(Grid(8, 32, symmetric=False)), _STORED_IN_BYTES, "float16"),
    "int4": Parts(Blocks(Grid(4, 32)), _STORED_IN_BYTES, "float16"),
}
# Whether a way to round can make symmetric blocks, and others; the first is taken at 4 bits where nothing is said.
ALGORITHMS: Final[Mapping[str, tuple[bool, ...]]] = {
    "rtn": (True, False),
    "k-quant": (False,),
    "hqq": (False,),
    "gptq": (True, False),
}

Provider = Literal["cpu", "cuda", "tensorrt"]
# What to do instead for a precision and a form that a provider of ONNX Runtime cannot run. README.md has all of it.
_FLOAT32_ATTENTION: Final = "CUDA's GroupQueryAttention takes float16; use --precision fp16, or --form std24"
_MICROSOFT_ATTENTION: Final = "TensorRT does not know the operators of the form gqa; use --form std24"
_MICROSOFT_BLOCKS: Final = "TensorRT does not know MatMulNBits; use --precision fp16 or bf16"


def refusal(precision: str, form: str, provider: Provider) -> str | None:
    """Why a provider would not run a bundle, and what to do; None if it would, as far as its operators go."""
    if provider == "cuda" and form == "gqa" and precision != "fp16":
        return _FLOAT32_ATTENTION
    if provider == "tensorrt":
        return _MICROSOFT_BLOCKS if precision in BITS else _MICROSOFT_ATTENTION if form == "gqa" else None
    return None


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How the decoder of an integer precision is rounded. `symmetric`: None is what the algorithm takes first at 4
    bits; at 8, where a byte for its own 0 adds a thirtieth to a block, none is symmetric. `calibration`: a folder of
    photos, which only GPTQ looks at. Raises UsageError."""

    algorithm: str = "rtn"
    block: int = BLOCKS[0]
    symmetric: bool | None = None
    calibration: Path | None = None

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise UsageError(f"--algorithm {self.algorithm}: must be one of {', '.join(ALGORITHMS)}")
        if self.block not in BLOCKS:
            raise UsageError(f"--block {self.block}: must be one of {', '.join(map(str, BLOCKS))}")
        if self.symmetric is not None and self.symmetric not in ALGORITHMS[self.algorithm]:
            raise UsageError(f"--symmetric: {self.algorithm} gives each block its own step of 0; use rtn or gptq")
        if (self.algorithm == "gptq") != (self.calibration is not None):
            wrong = "--calibration is for --algorithm gptq; leave it out"
            missing = "--algorithm gptq: needs --calibration FOLDER, photos like those that will be judged"
            raise UsageError(wrong if self.calibration else missing)

    def check(self, precision: str) -> None:
        """Raises UsageError if a precision has no blocks to be rounded and it was said how, or cannot have such."""
        if self.algorithm == "hqq" and precision == "int8":
            raise UsageError(
                "--algorithm hqq: ONNX Runtime multiplies by its steps of 0 at 4 bits only; use int4 or rtn"
            )
        if precision not in BITS and self != Quantisation():
            raise UsageError(
                f"--algorithm, --block, --symmetric and --calibration are of {' and '.join(BITS)}; leave them out, or"
                f" --precision {precision}"
            )

    def described(self, bits: int) -> str:
        kind = "symmetric blocks" if self.grid(bits).symmetric else "blocks"
        return f"{self.algorithm}, {kind} of {self.block}"

    def grid(self, bits: int) -> Grid:
        usual = bits < BITS["int8"] and ALGORITHMS[self.algorithm][0]
        symmetric = usual if self.symmetric is None else self.symmetric
        return Grid(bits, self.block, symmetric, fractional=self.algorithm == "hqq")

    def rounding(self, bits: int, inputs: Inputs | None) -> Rounding:
        """`inputs`: of the decoder's layers, which GPTQ needs."""
        grid = self.grid(bits)
        if self.algorithm == "gptq":
            assert inputs is not None, "GPTQ is calibrated first"
            return Gptq(grid, inputs)
        ways: dict[str, type[Nearest] | type[KQuant] | type[Hqq]] = {"rtn": Nearest, "k-quant": KQuant, "hqq": Hqq}
        return ways[self.algorithm](grid)


def decoder_of(precision: str, how: Quantisation, inputs: Inputs | None = None) -> Precision:
    """The decoder's precision; without the inputs that an algorithm needs, rounded to the nearest on the same grid."""
    if precision not in BITS:
        return PRECISIONS[precision].decoder
    bits = BITS[precision]
    nearest = how.algorithm == "gptq" and inputs is None
    return Blocks(how.grid(bits), rounding=None if nearest else how.rounding(bits, inputs))
