"""Token embeddings as a bundle's file has them, and one tensor of a safetensors file, which is where they lie."""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcheck.errors import BundleError

# How the element types of embeddings are read; numpy has no bfloat16, so its bits are kept.
DTYPES: Final[dict[str, np.dtype[Any]]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


class Embeddings:
    """A table of (vocabulary, hidden), float32, float16 or the bits of bfloat16; what is looked up comes in float32.

    The table is usually a file that is mapped: only the rows that are said are ever read.
    """

    def __init__(self, table: NDArray[Any]) -> None:
        if table.dtype not in DTYPES.values():
            raise ValueError(f"a table of {table.dtype}")
        self._table = table

    @property
    def shape(self) -> tuple[int, ...]:
        return self._table.shape

    def __getitem__(self, ids: Any) -> NDArray[np.float32]:
        """Rows as numpy indexes them."""
        rows: NDArray[Any] = self._table[ids]
        if rows.dtype == DTYPES["BF16"]:
            wide: NDArray[np.uint32] = rows.astype(np.uint32) << np.uint32(16)
            return wide.view(np.float32)
        return rows.astype(np.float32)


def read_safetensor(path: Path, name: str) -> NDArray[Any]:
    """One float tensor of a safetensors file (8-byte little-endian header length, JSON header, raw data), mapped; of
    BF16 the bits. Raises BundleError.

    Written out here, because a dozen lines do not justify a dependency of every user.
    """
    try:
        data = np.memmap(path, np.uint8, mode="r")
        start = 8 + int.from_bytes(data[:8].tobytes(), "little")
        entry = json.loads(data[8:start].tobytes())[name]
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"tensor {name!r} is {entry['dtype']}, not one of {', '.join(DTYPES)}")
        first, last = entry["data_offsets"]
        values: NDArray[Any] = np.asarray(data[start + first : start + last]).view(DTYPES[entry["dtype"]])
        return values.reshape(entry["shape"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is not the safetensors file this bundle needs ({error})") from None
