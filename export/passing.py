"""A backend that passes everything on to another."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcheck.backends import Backend
from qcheck.cache import KVCache


class Passing:
    """Serves `Backend` by `inner`; what overhears one says what it keeps."""

    def __init__(self, inner: Backend) -> None:
        self.inner, self.info = inner, inner.info

    def new_cache(self) -> KVCache:
        return self.inner.new_cache()

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        return self.inner.encode(inputs)

    def step(self, embeds: NDArray[np.float32], positions: NDArray[np.int64], cache: KVCache) -> NDArray[np.float32]:
        return self.inner.step(embeds, positions, cache)
