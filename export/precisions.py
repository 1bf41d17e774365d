"""What a precision means for each part of a bundle."""

from dataclasses import dataclass
from typing import Final

from weights import FP16, FP32, HALVES, Blocks, Precision


@dataclass(frozen=True, slots=True)
class Parts:
    """`halves`: embeddings of float32 are kept in float16."""

    decoder: Precision
    vision: Precision
    halves: bool


BLOCK: Final = 32
# The vision tower multiplies in float32 everywhere: its last MLPs overflow a float16, and 4 bits cost it too much.
_STORED_IN_BYTES: Final = Blocks(8, BLOCK, accuracy_level=1)
PRECISIONS: Final = {
    "fp32": Parts(FP32, FP32, halves=False),
    "fp16": Parts(FP16, HALVES, halves=True),
    "int8": Parts(Blocks(8, BLOCK), _STORED_IN_BYTES, halves=True),
    "int4": Parts(Blocks(4, BLOCK), _STORED_IN_BYTES, halves=True),
}
