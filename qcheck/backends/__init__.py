"""What the engine needs of an inference runtime: one small protocol, a module each that serves it."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qcheck.cache import KVCache
from qcheck.verdict import EngineInfo


class Backend(Protocol):
    """Runs the two graphs of a bundle. Holds no state of any conversation."""

    @property
    def info(self) -> EngineInfo: ...

    def new_cache(self) -> KVCache:
        """An empty cache in this backend's memory."""
        ...

    def encode(self, pixels: NDArray[np.float32], survey: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """(1, 3, height, width) normalised pixels of a view -> (tokens, hidden). `survey`: (1, rows, columns, 8), what
        lies under the view; there if the contract says so."""
        ...

    def step(self, embeds: NDArray[np.float32], positions: NDArray[np.int64], cache: KVCache) -> NDArray[np.float32]:
        """Appends (1, n, hidden) embeddings at (3, 1, n) positions to the cache, in place; logits (vocabulary,) after
        the last of them."""
        ...
