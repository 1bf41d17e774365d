"""The KV cache: fixed buffers that an engine writes in place, and how much of them is valid."""

from collections.abc import Callable, Mapping
from typing import Any

from qcheck.errors import EngineError

Buffers = Mapping[str, Any]


class KVCache:
    """One conversation's keys and values. Created by the caller and passed to every step; nobody else keeps it.

    `buffers`: for each layer a key and a value buffer of the backend's own kind,
    (1, kv_heads, capacity_tokens, head_dim). Only the first `length` tokens of them mean anything.
    """

    def __init__(self, buffers: Buffers, capacity_tokens: int, clone: Callable[[Buffers], Buffers]) -> None:
        """`clone` copies the buffers, for `fork`."""
        self.buffers = buffers
        self.capacity_tokens = capacity_tokens
        self._clone = clone
        self._length = 0

    @property
    def length(self) -> int:
        """Tokens that are valid."""
        return self._length

    @property
    def room(self) -> int:
        """Tokens that still fit."""
        return self.capacity_tokens - self._length

    def require(self, count: int) -> None:
        """Raises EngineError if `count` more tokens do not fit; call it before the buffers are written."""
        if count > self.room:
            raise EngineError(
                f"the conversation needs {self._length + count} tokens and this model's cache holds "
                f"{self.capacity_tokens}; lower --max-probes"
            )

    def advance(self, count: int) -> None:
        """Declares that the next `count` tokens were written."""
        self.require(count)
        self._length += count

    def rewind(self, length: int) -> None:
        """Forgets all but the first `length` tokens; the buffers are not touched."""
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot rewind a cache of {self._length} tokens to {length}")
        self._length = length

    def fork(self) -> "KVCache":
        """An independent copy with the same prefix, for another continuation."""
        other = KVCache(self._clone(self.buffers), self.capacity_tokens, self._clone)
        other._length = self._length
        return other
