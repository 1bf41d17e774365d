"""The KV cache's bookkeeping: what is valid, what fits, and that a fork is on its own."""

import numpy as np
import pytest

from qcheck.cache import Buffers, KVCache
from qcheck.errors import EngineError


def copied(buffers: Buffers) -> Buffers:
    return {name: value.copy() for name, value in buffers.items()}


def new_cache(capacity: int = 10) -> KVCache:
    return KVCache({"past.0.key": np.zeros((1, 1, capacity, 2), np.float32)}, capacity, copied)


def test_a_new_cache_is_empty() -> None:
    cache = new_cache(10)
    assert (cache.length, cache.room, cache.capacity_tokens) == (0, 10, 10)


def test_advance_counts_up_to_the_last_place() -> None:
    cache = new_cache(10)
    cache.advance(4)
    assert (cache.length, cache.room) == (4, 6)
    cache.advance(6)
    assert (cache.length, cache.room) == (10, 0)
    cache.require(0)


@pytest.mark.parametrize("method", ["advance", "require"])
def test_a_full_cache_says_how_much_was_needed_and_what_to_do(method: str) -> None:
    cache = new_cache(10)
    cache.advance(7)
    with pytest.raises(EngineError) as caught:
        getattr(cache, method)(4)
    message = str(caught.value)
    assert message == "the conversation needs 11 tokens and this model's cache holds 10; lower --max-probes"
    assert cache.length == 7, "a refused step must not count"


def test_require_changes_nothing() -> None:
    cache = new_cache(10)
    cache.require(10)
    assert cache.length == 0


def test_rewind_forgets_the_end_and_leaves_the_buffers() -> None:
    cache = new_cache(10)
    cache.buffers["past.0.key"][:] = 7
    cache.advance(8)
    cache.rewind(3)
    assert (cache.length, cache.room) == (3, 7)
    assert (cache.buffers["past.0.key"] == 7).all()
    cache.rewind(3)
    cache.rewind(0)
    assert cache.length == 0


@pytest.mark.parametrize("length", [-1, 6, 100])
def test_rewind_goes_only_back(length: int) -> None:
    cache = new_cache(10)
    cache.advance(5)
    with pytest.raises(ValueError, match=f"cannot rewind a cache of 5 tokens to {length}"):
        cache.rewind(length)
    assert cache.length == 5


def test_a_fork_has_the_prefix_and_its_own_end() -> None:
    cache = new_cache(10)
    cache.buffers["past.0.key"][:, :, :5] = 1
    cache.advance(5)
    fork = cache.fork()
    assert (fork.length, fork.room, fork.capacity_tokens) == (5, 5, 10)
    np.testing.assert_array_equal(fork.buffers["past.0.key"], cache.buffers["past.0.key"])
    fork.buffers["past.0.key"][:, :, 5] = 9
    fork.advance(1)
    assert (cache.length, fork.length) == (5, 6)
    assert (cache.buffers["past.0.key"][:, :, 5] == 0).all(), "the fork wrote into the original's buffer"
    cache.rewind(0)
    assert fork.length == 6
    assert fork.fork().length == 6, "a fork can be forked"
