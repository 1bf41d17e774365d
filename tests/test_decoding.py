"""What benchmarks/decoder.py lets both sides do: the same tokens, each read once by the cache."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script

library("torch")
library("transformers")
script("architecture", "export")
script("smollm2", "benchmarks")
speeds = script("decoder", "benchmarks")


@pytest.fixture(scope="module")
def speed() -> Any:
    return speeds


class Cache:
    length = 0

    def rewind(self, length: int) -> None:
        assert length <= self.length
        self.length = length


class Backend:
    """Writes down how many tokens each step got, and where they were put."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def new_cache(self) -> Cache:
        return Cache()

    def step(self, embeds: Any, positions: Any, cache: Cache) -> Any:
        count = embeds.shape[1]
        assert positions.shape == (3, 1, count)
        np.testing.assert_array_equal(positions[0, 0], np.arange(cache.length, cache.length + count))
        self.steps.append(count)
        cache.length += count
        return np.zeros(4)


@pytest.fixture
def speaker(speed: Any) -> Any:
    return speed.Speaker(Backend(), np.zeros((8, 4), np.float32), [1] * 2048)


def test_a_talk_reads_every_token_once(speed: Any, speaker: Any) -> None:
    for _ in range(2):  # it begins anew
        speaker.backend.steps.clear()
        speed.talk(speaker)
        said = speed.PROBES * speed.SAID + speed.ANSWER
        assert sum(speaker.backend.steps) == speed.VIEW + speed.PROBES * speed.CROP + said
        assert speaker.backend.steps.count(1) == said


def test_transformers_reads_all_of_it_before_it_speaks(speed: Any) -> None:
    asked: list[tuple[int, int]] = []

    def generate(ids: Any, max_new_tokens: int, min_new_tokens: int, **_: Any) -> None:
        assert max_new_tokens == min_new_tokens
        asked.append((ids.shape[1], max_new_tokens))

    speed.talk_anew(SimpleNamespace(generate=generate), [1] * 2048)
    turn = speed.SAID + speed.CROP
    assert asked == [
        *((speed.VIEW + index * turn, speed.SAID) for index in range(speed.PROBES)),
        (speed.VIEW + speed.PROBES * turn, speed.ANSWER),
    ]


def test_what_is_timed_is_what_it_says(speed: Any, speaker: Any) -> None:
    calls = speed.spoken(speaker)
    assert list(calls) == ["prefill", "decode", "append", "reprefill"]
    for call in calls.values():
        assert call() > 0
    steps = speaker.backend.steps
    assert steps[0] == speed.PREFILL
    assert steps[1 : 1 + speed.DECODED] == [1] * speed.DECODED
    assert steps[1 + speed.DECODED :] == [speed.TALK, speed.CROP, speed.TALK + speed.CROP]


def test_medians_leave_the_first_round_out(speed: Any) -> None:
    numbers = iter([100.0, 1.0, 5.0, 3.0])
    assert speed.medians({"one": lambda: next(numbers)}, 3) == {"one": 3.0}
