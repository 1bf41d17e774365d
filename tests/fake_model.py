"""A model of numpy alone, for tests of the engine and of the loop: it says what a plan tells it, and keeps what it saw.

Embeddings are one-hot, so the backend reads back which tokens it is fed; image tokens carry their number in the last
column. What a conversation was fed lies in its cache's buffers, as the real keys and values do.
"""

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcheck import prompt
from qcheck.cache import KVCache
from qcheck.contract import (
    FORMAT,
    GLANCED,
    IMAGE_SLOT,
    IMAGE_TOKENS,
    JUDGED,
    KNOWN,
    PIXELS,
    SURVEY,
    Contract,
    DecoderSpec,
    FileEntry,
    PixelSpec,
)
from qcheck.engine import Engine
from qcheck.rope import image_positions, text_positions
from qcheck.tiles import CropSpec, ViewSpec
from qcheck.verdict import EngineInfo, ModelInfo

ROOT = Path(__file__).parent.parent
TOKEN_PX = 64
FAR = 100.0  # a logit that wins against everything a plan says
IMAGE_BASE = 1_000_000  # image token i of a conversation is recorded as IMAGE_BASE + i

# What the model wants to say at each place of a turn: a text, or logits by text.
Wanted = str | dict[str, float]
# Number of the turn and its request ("first", "crop_final", ...) -> the whole turn, forced tokens included.
Plan = Callable[[int, str], Sequence[Wanted]]


def script(name: str, folder: str = "training") -> ModuleType:
    """A module out of a folder of scripts. Where its libraries are missing the test is skipped, but fails on CI."""
    path = str(ROOT / folder)
    if path not in sys.path:
        sys.path.insert(0, path)
    return library(name)


def library(name: str) -> ModuleType:
    """A library of the `train` extra. Where it is missing the test is skipped, but fails on CI."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{error}; pip install -e '.[dev]'", allow_module_level=True)


@cache
def tokenizer() -> Any:
    return script("vocabulary").build()


def plain_contract(**changes: Any) -> Contract:
    """A contract with nano's vocabulary, whose normalised pixels are the 8-bit values themselves."""
    words, photos = script("vocabulary"), script("defects").PHOTOS
    plain = Contract(
        format=FORMAT,
        name="fake",
        version="1",
        licence="Apache-2.0",
        precision="fp32",
        kinds=photos.kinds,
        attributes=photos.attributes,
        coordinates="relative_1000",
        pixels=PixelSpec("planar", (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255), survey=False),
        global_view=ViewSpec(TOKEN_PX, 256 * 256, 1024 * 768, 2.0),
        crop_view=ViewSpec(TOKEN_PX, TOKEN_PX**2, 512 * 512, 1.0),
        crop=CropSpec(margin=0.2, min_side_px=448),
        decoder=DecoderSpec(layers=1, kv_heads=1, head_dim=64, hidden=64, max_tokens=4096),
        language=words.language(),
        files={"vision": FileEntry("vision.onnx", 3, "0" * 64)},
    )
    return replace(plain, **changes)


class FakeBackend:
    """Serves `Backend`. `seen`: the pixels of every view, as 8-bit (h, w, 3); `surveys`: what lay under each;
    `given`: all that was given of each; `caches`: one a conversation; `feeds`: for every step the tokens and their
    positions. `on_encode` is called before a view is encoded."""

    def __init__(self, plan: Plan, max_tokens: int = 4096, on_encode: Callable[[], None] = lambda: None) -> None:
        self.plan, self.max_tokens, self.on_encode = plan, max_tokens, on_encode
        self.info = EngineInfo("cpu", "fake", "fp32")
        self.seen: list[NDArray[np.uint8]] = []
        self.surveys: list[NDArray[np.float32] | None] = []
        self.given: list[Mapping[str, NDArray[Any]]] = []
        self.caches: list[KVCache] = []
        self.feeds: list[tuple[list[int], NDArray[np.int64]]] = []
        self.forbidden: list[str] = []  # texts that the model wants most, everywhere
        self.engine: Engine

    def new_cache(self) -> KVCache:
        made = KVCache({"fed": []}, self.max_tokens, lambda buffers: {"fed": list(buffers["fed"])})
        self.caches.append(made)
        return made

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        self.on_encode()
        self.surveys.append(inputs.get(SURVEY))
        pixels = inputs[PIXELS]
        assert pixels.shape[:2] == (1, 3)
        assert pixels.dtype == np.float32
        values = np.rint(pixels[0]).astype(np.uint8).transpose(1, 2, 0)
        np.testing.assert_allclose(pixels[0].transpose(1, 2, 0), values, atol=1e-3)
        self.seen.append(values)
        count = pixels.shape[2] // TOKEN_PX * (pixels.shape[3] // TOKEN_PX)
        rows = np.zeros((count, self.engine.embeddings.shape[1]), np.float32)
        rows[:, -1] = np.arange(1, count + 1)
        self.given.append(inputs)
        judged = {JUDGED: self.judge(inputs)} if KNOWN in inputs else {}
        return {IMAGE_TOKENS: rows, **judged}

    @staticmethod
    def judge(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """By how large the picture is that is glanced at: 1 to 5 tokens."""
        known: NDArray[np.float32] = inputs[KNOWN]
        return np.where(known > 0, known, np.float32(inputs[GLANCED].size / (3 * TOKEN_PX**2)))

    def step(self, embeds: NDArray[np.float32], positions: NDArray[np.int64], cache: KVCache) -> NDArray[np.float32]:
        assert embeds.shape[0] == 1
        assert positions.shape == (3, 1, embeds.shape[1])
        cache.require(embeds.shape[1])
        fed: list[int] = cache.buffers["fed"]
        del fed[cache.length :]
        tokens = [IMAGE_BASE + int(row[-1]) - 1 if row[-1] else int(row.argmax()) for row in embeds[0]]
        fed += tokens
        self.feeds.append((tokens, positions[:, 0].copy()))
        cache.advance(len(tokens))
        return self._logits(fed)

    def _logits(self, fed: list[int]) -> NDArray[np.float32]:
        logits = np.zeros(len(self.engine.texts), np.float32)
        turn, request, said = where(self.engine, fed)
        turns = self.plan(turn, request)
        if said < len(turns):
            wanted = turns[said]
            for text, value in ({wanted: 5.0} if isinstance(wanted, str) else wanted).items():
                logits[self.engine.texts.index(text)] = value
        for text in self.forbidden:
            logits[self.engine.texts.index(text)] = FAR
        return logits


def where(engine: Engine, fed: Sequence[int]) -> tuple[int, str, int]:
    """In a conversation that was fed these tokens: the turn (from 0), its request, how many tokens were said in it."""
    starts = [i for i, token in enumerate(fed) if token == IMAGE_BASE]
    end = max(i for i, token in enumerate(fed) if token >= IMAGE_BASE) + 1
    for request, (before, after) in engine.requests.items():
        if list(fed[starts[-1] - len(before) : starts[-1]]) != before or list(fed[end : end + len(after)]) != after:
            continue
        if request.startswith("first") == (len(starts) == 1):
            return len(starts) - 1, request, len(fed) - end - len(after)
    raise AssertionError(f"no request is spelled around the last image of {list(fed)}")


def fake_engine(plan: Plan, contract: Contract | None = None, **settings: Any) -> tuple[Engine, FakeBackend]:
    """An engine that follows a plan, and its backend."""
    words, backend = tokenizer(), FakeBackend(plan, **settings)
    size = words.get_vocab_size()
    embeddings = np.eye(size, size + 1, dtype=np.float32)
    engine = Engine(contract or plain_contract(), ModelInfo("fake", "1", "0" * 64), backend, words, embeddings)
    backend.engine = engine
    return engine, backend


def spelled_answer(
    score: Wanted = "3.0", defects: Sequence[tuple[str, str, Sequence[str]]] = (), attribute: str = "4.0"
) -> list[Wanted]:
    """A whole answer turn; `attribute`: the score of every attribute."""
    names = script("defects").PHOTOS.attributes
    ends = prompt.spell_attributes(dict.fromkeys(names, attribute))
    return [prompt.ANSWER_OPEN, score, *prompt.spell_defects(defects), *ends]


def spelled_conversation(sizes: Sequence[tuple[int, int]]) -> tuple[list[int], NDArray[np.int64]]:
    """Tokens, and their positions by qcheck.rope, of a talk that shows images of (rows, cols) tokens, with a few words
    said after each."""
    vocabulary, words = tokenizer(), script("vocabulary")
    spoken = words.language()
    image: int = vocabulary.token_to_id(words.IMAGE)
    said = [vocabulary.token_to_id(text) for text in prompt.spell_call(["0", "10", "20", "30"], "noise")]
    tokens: list[int] = []
    parts: list[NDArray[np.int64]] = []
    start = 0
    for index, (rows, cols) in enumerate(sizes):
        before, after = (spoken.crop if index else spoken.first).split(IMAGE_SLOT)
        head, tail = vocabulary.encode(before).ids, vocabulary.encode(after).ids + said[: 3 + 2 * index]
        tokens += [*head, *[image] * (rows * cols), *tail]
        first, start = text_positions(start, len(head))
        middle, start = image_positions(start, rows, cols)
        last, start = text_positions(start, len(tail))
        parts += [first, middle, last]
    return tokens, np.concatenate(parts, 1)
