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
    return speed.Speaker(Backend(), np.zeros((8, 4), np.float32), [1] * speed.MAX_TOKENS)


@pytest.fixture
def said(speed: Any) -> list[Any]:
    return [speed.Turn((2, 1, 1, 9, 1), 7), speed.Turn((1, 1), 0), speed.Turn((3, 1), 4)]


def test_a_talk_reads_every_token_once(speed: Any, speaker: Any, said: list[Any]) -> None:
    for _ in range(2):  # it begins anew
        speaker.backend.steps.clear()
        speed.talk(speaker, said)
        assert speaker.backend.steps == [speed.VIEW, 2, 1, 1, 9, 1, 7 + speed.CROP, 1, 1, speed.CROP, 3, 1]


def test_transformers_reads_all_of_it_before_it_speaks(speed: Any, said: list[Any]) -> None:
    asked: list[tuple[int, int]] = []

    def generate(ids: Any, max_new_tokens: int, min_new_tokens: int, **_: Any) -> None:
        assert max_new_tokens == min_new_tokens
        asked.append((ids.shape[1], max_new_tokens))

    speed.talk_anew(SimpleNamespace(generate=generate), [1] * speed.MAX_TOKENS, said)
    first, second = speed.VIEW + 21 + speed.CROP, speed.VIEW + 23 + 2 * speed.CROP
    assert asked == [(speed.VIEW, 21), (first, 2), (second, 8)]


def test_only_choices_take_a_step() -> None:
    """In a vocabulary of letters: what is said is all there, and the words of the protocol cost nothing."""
    turns, vocabulary = script("turns", "benchmarks"), letters(script("turns", "benchmarks").END)
    found = turns.turns(vocabulary)
    for turn, text in zip(found, turns.texts(), strict=True):
        assert turn.tokens == len(text) - len(turns.END) + 1
    for turn, thought in zip(found, turns.THOUGHTS, strict=True):
        steps = list(turn.steps)
        assert steps[0] == len("<think>")
        assert steps[1 : 1 + len(thought)] == [1] * len(thought)
        assert len(steps) < len(thought) + 80
    tool = len('image_zoom_in_tool", "arguments": {"bbox_2d": [')
    assert [max(turn.steps) > tool for turn in found] == [True, True, True, False]


def letters(end: str) -> Any:
    """Bytes alone, and one token more."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={one: index for index, one in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([end])
    return made


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
