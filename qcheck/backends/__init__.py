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

    def encode(self, inputs: Mapping[str, NDArray[np.generic]]) -> Mapping[str, NDArray[np.float32]]:
        """What the vision graph takes of a view, by the names of its inputs (vision.py) -> what it gives, by the names
        of its outputs: the image tokens, (tokens, hidden), and `judged` where the contract has an overview."""
        ...

    def step(self, embeds: NDArray[np.float32], positions: NDArray[np.int64], cache: KVCache) -> NDArray[np.float32]:
        """Appends (1, n, hidden) embeddings at (3, 1, n) positions to the cache, in place; logits (vocabulary,) after
        the last of them."""
        ...
