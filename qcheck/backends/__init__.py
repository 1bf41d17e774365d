"""What the engine needs of an inference runtime: one small protocol, a module each that serves it."""

from collections.abc import Mapping
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

    def encode(self, inputs: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """What the vision graph takes of a view, by the names of its inputs (vision.py, and the survey if the contract
        says so) -> (tokens, hidden) float32."""
        ...

    def step(self, embeds: NDArray[np.float32], positions: NDArray[np.int64], cache: KVCache) -> NDArray[np.float32]:
        """Appends (1, n, hidden) embeddings at (3, 1, n) positions to the cache, in place; logits (vocabulary,) after
        the last of them."""
        ...
