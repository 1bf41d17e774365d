"""Conversations with a model that are written down, and said again word for word to another model."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from passing import Passing

from qcheck.backends import Backend
from qcheck.cache import KVCache
from qcheck.contract import Contract
from qcheck.dialects import dialect_of
from qcheck.engine import Conversation, Engine, Request, Sampler, Token
from qcheck.errors import EngineError
from qcheck.grammar import Grammar, Matcher
from qcheck.photo import Photo
from qcheck.probe import Limits, Prober
from qcheck.tiles import View
from qcheck.verdict import Verdict

_MOVES = "(call | answer)"  # what a turn may end in, as the dialects' grammars write it


@dataclass(slots=True)
class Turn:
    """A view that was shown, and what was said about it. `logits`: (vocabulary,) after each step, of which the first
    read the view; `choices`: how many tokens were not forced; `agreed`: how many of these the model would have chosen
    itself, which is all of them unless it was dictated to."""

    view: View
    said: list[int] = field(default_factory=list)
    logits: list[NDArray[np.float32]] = field(default_factory=list)
    choices: int = 0
    agreed: int = 0


@dataclass(frozen=True, slots=True)
class Talk:
    """A photo's conversation from its first turn to the verdict; `ms`: all it took."""

    turns: list[Turn]
    verdict: Verdict
    ms: float

    @property
    def tokens(self) -> int:
        """That were said."""
        return sum(len(turn.said) for turn in self.turns)


class _Watched(Passing):
    """A backend that keeps the logits of its steps until they are taken."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.logits: list[NDArray[np.float32]] = []

    def step(self, embeds: NDArray[np.float32], positions: NDArray[np.int64], cache: KVCache) -> NDArray[np.float32]:
        logits = super().step(embeds, positions, cache)
        self.logits.append(logits)
        return logits


class _Counting(Matcher):
    """A matcher that says how many tokens were chosen."""

    def __init__(self, inner: Matcher, turn: Turn) -> None:
        self.inner, self.turn = inner, turn

    def forced(self) -> list[int]:
        return self.inner.forced()

    def allowed(self, size: int) -> NDArray[np.intp]:
        return self.inner.allowed(size)

    def take(self, tokens: Sequence[int]) -> None:
        self.turn.choices += 1
        self.turn.agreed += 1
        self.inner.take(tokens)

    @property
    def done(self) -> bool:
        return self.inner.done


class _Dictating(_Counting):
    """Allows nothing but the tokens of another conversation, and keeps what the model would have chosen."""

    def __init__(self, inner: Matcher, turn: Turn, backend: _Watched, said: Sequence[int]) -> None:
        super().__init__(inner, turn)
        self.backend, self.said, self.place = backend, said, 0
        self.choosable: NDArray[np.intp]

    def forced(self) -> list[int]:
        tokens = self.inner.forced()
        self.place += len(tokens)
        return tokens

    def allowed(self, size: int) -> NDArray[np.intp]:
        self.choosable = self.inner.allowed(size)
        return np.array([self.said[self.place]])

    def take(self, tokens: Sequence[int]) -> None:
        own = self.choosable[self.backend.logits[-1][self.choosable].argmax()]
        self.turn.choices += 1
        self.turn.agreed += int(own == self.said[self.place])
        self.place += 1
        self.inner.take(tokens)


class _Written(Conversation):
    """Writes its turns down. `script`: turns of another conversation to say word for word."""

    def __init__(self, engine: "TalkingEngine", script: Sequence[Turn] | None) -> None:
        super().__init__(engine, engine.backend.new_cache())
        self._watched, self._script = engine.watched, script
        self.turns: list[Turn] = []

    def show(self, request: Request, pixels: NDArray[np.uint8], view: View) -> None:
        self._watched.logits = []
        super().show(request, pixels, view)
        self.turns.append(Turn(view))

    def say(self, matcher: Matcher, sampler: Sampler | None = None) -> list[Token]:
        turn = self.turns[-1]
        if self._script is None:
            matcher = _Counting(matcher, turn)
        else:
            matcher = _Dictating(matcher, turn, self._watched, self._script[len(self.turns) - 1].said)
        said = super().say(matcher, sampler)
        turn.said, turn.logits = [token.id for token in said], self._watched.logits
        return said


class _Insistent(Grammar):
    """A grammar that asks for a crop wherever one may be asked for."""

    def __init__(self, contract: Contract, tokenizer: Any) -> None:
        import llguidance

        super().__init__(contract, tokenizer)
        dialect = dialect_of(contract)
        for after_crop in (False, True):
            rules = dialect.rules(tokenizer.token_to_id, after_crop=after_crop, may_call=True)
            assert _MOVES in rules, "the dialects write their turns in other words now"
            self._grammars[after_crop, True] = llguidance.grammar_from("lark", rules.replace(_MOVES, "call"))


class TalkingEngine(Engine):
    """An engine whose conversations are written down, also those that have to be said word for word."""

    def __init__(self, contract: Contract, model: Any, backend: Backend, tokenizer: Any, *rest: Any) -> None:
        self.watched, self.tokenizer = _Watched(backend), tokenizer
        super().__init__(contract, model, self.watched, tokenizer, *rest)
        self._free = self.grammar
        self._insistent = _Insistent(contract, tokenizer) if contract.language.zooms else self.grammar
        self._script: Sequence[Turn] | None = None
        self._last: _Written

    def conversation(self) -> Conversation:
        self._last = _Written(self, self._script)
        return self._last

    def talk(self, photo: Photo, probes: int, *, insist: bool = False, script: Sequence[Turn] | None = None) -> Talk:
        """Judges a photo greedily. `insist`: crops are asked for as long as any is left, where the dialect knows any;
        `script`: what to say instead, of a talk about the same photo under the same settings. Raises EngineError."""
        self.grammar, self._script = self._insistent if insist else self._free, script
        started = time.perf_counter()
        verdict = Prober(self).judge(photo, Limits(probes))
        ms = (time.perf_counter() - started) * 1e3
        if script is not None and [turn.view for turn in self._last.turns] != [turn.view for turn in script]:
            raise EngineError("the same words led to other views; were both models given the same contract?")
        return Talk(self._last.turns, verdict, ms)
