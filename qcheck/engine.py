"""The engine: a bundle made ready to talk. It keeps nothing of any photo; a Conversation does."""

import logging
import os
import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from qcheck import tiles
from qcheck.backends import Backend
from qcheck.backends.placement import DEVICES, ON_CPU, ON_CUDA, PLACEMENTS
from qcheck.bundle import Bundle
from qcheck.cache import KVCache
from qcheck.contract import IMAGE_SLOT, Contract
from qcheck.dialects import dialect_of
from qcheck.embeddings import Embeddings
from qcheck.errors import BundleError, DeviceError, UsageError
from qcheck.grammar import Grammar, Matcher
from qcheck.rope import image_positions, text_positions
from qcheck.spent import Spent, ms_since
from qcheck.verdict import EngineInfo, ModelInfo
from qcheck.vision import Sight

Request = Literal["first", "first_final", "crop", "crop_final"]
REQUESTS: Final[tuple[Request, ...]] = ("first", "first_final", "crop", "crop_final")
# Packages that engines of our own need; without them ONNX Runtime has its provider.
NATIVE: Final = ("tensorrt", "cuda")
MOST_TILE_THREADS: Final = 8  # more only wait for memory

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Token:
    """A token that the model said. `probability`: among those the grammar allowed; `expected`: where a score is read,
    the mean and standard deviation of the score tokens, and `options`, the values of all of them with their
    probabilities."""

    id: int
    text: str
    probability: float
    expected: tuple[float, float] | None = None
    options: tuple[tuple[float, float], ...] = ()


class Sampler:
    """Draws among allowed tokens at a temperature; the same draws for the same seed.

    `quantile`: where in its distribution the first number of a run is drawn, 0..1; None: anywhere. Runs whose quantiles
    lie evenly tell the spread of that distribution far better than as many runs that draw for themselves. `top_p`:
    numbers are drawn from the fewest tokens whose probabilities come to so much (Holtzman and others 2020).
    """

    def __init__(self, temperature: float, seed: int, quantile: float | None = None, top_p: float = 1.0) -> None:
        self.temperature, self.rng = temperature, np.random.default_rng(seed)
        self.quantile, self.top_p = quantile, top_p

    def __call__(self, logits: NDArray[np.float64]) -> int:
        """An index into logits."""
        return int(self.rng.choice(len(logits), p=self._chances(logits)))

    def number(self, logits: NDArray[np.float64], values: NDArray[np.float64]) -> int:
        """An index into the logits of tokens that stand for `values`."""
        at, self.quantile = self.rng.random() if self.quantile is None else self.quantile, None
        chances, order = self._chances(logits), np.argsort(values)
        likeliest = np.argsort(-chances)
        enough = int(np.searchsorted(np.cumsum(chances[likeliest]), self.top_p)) + 1
        chances[likeliest[enough:]] = 0
        reached = np.cumsum(chances[order])
        return int(order[np.searchsorted(reached, at * reached[-1], side="right").clip(max=len(order) - 1)])

    def _chances(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        weights: NDArray[np.float64] = np.exp((logits - logits.max()) / self.temperature)
        weights /= weights.sum()
        return weights


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a conversation to come back to."""

    length: int
    next_position: int
    after_view: tuple[int, int]
    pending: tuple[int, ...]
    logits: NDArray[np.float32] | None


class Engine:
    """Weights, vocabulary and grammars of a bundle; safe to share between conversations, one at a time."""

    def __init__(
        self,
        contract: Contract,
        model: ModelInfo,
        backend: Backend,
        tokenizer: Any,
        embeddings: Embeddings | NDArray[np.float32],
        threads: int = 1,
    ) -> None:
        """`tokenizer`: a `tokenizers.Tokenizer`; `embeddings`: (vocabulary, hidden); `threads`: that cut tiles."""
        self.threads = threads
        self.contract, self.model, self.backend, self.embeddings = contract, model, backend, embeddings
        self.dialect, self.grammar = dialect_of(contract), Grammar(contract, tokenizer)
        self.table = tiles.normalise_table(contract.pixels.mean, contract.pixels.std)
        language = contract.language
        self.texts: list[str] = [tokenizer.id_to_token(i) or "" for i in range(tokenizer.get_vocab_size())]
        self.requests: dict[str, tuple[list[int], list[int]]] = {}
        for request in REQUESTS if language.zooms else REQUESTS[:2]:
            before, after = getattr(language, request).split(IMAGE_SLOT)
            self.requests[request] = (tokenizer.encode(before).ids, tokenizer.encode(after).ids)
        # Value of each token id that is a score, or a digit of one; NaN where it is none.
        self.scores = np.full(len(self.texts), np.nan)
        for text in self.dialect.numbers:
            self.scores[tokenizer.token_to_id(text)] = float(text)

    @classmethod
    def open(cls, bundle: Bundle, *, device: str = "auto", threads: int | None = None) -> "Engine":
        """Loads a bundle's graphs. `auto` is CUDA where that runs this model, else the CPU. Raises UsageError,
        BundleError, DeviceError."""
        if device not in DEVICES:
            raise UsageError(f"--device {device}: must be one of {', '.join(DEVICES)}")
        if threads is not None and threads < 1:
            raise UsageError(f"--threads {threads}: must be 1 or more")
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(bundle.path("tokenizer")))
        except Exception as error:  # tokenizers raises plain Exception
            raise BundleError(f"{bundle.path('tokenizer')} is not a tokenizer ({error})") from None
        backend = _backend(bundle, device, threads)
        for_tiles = min(threads or os.cpu_count() or 1, MOST_TILE_THREADS)
        return cls(bundle.contract, bundle.info, backend, tokenizer, bundle.embeddings(), for_tiles)

    @property
    def info(self) -> EngineInfo:
        return self.backend.info

    def sight(self, spent: Spent | None = None) -> Sight:
        """Of a photo that is looked at for the first time."""
        return Sight(self.contract, self.backend, self.table, self.threads, spent or Spent())

    def conversation(self) -> "Conversation":
        """A new conversation with its own, empty cache."""
        return Conversation(self, self.backend.new_cache())


class Conversation:
    """One photo's talk with the model. Owns its KVCache; every token goes through the decoder exactly once."""

    def __init__(self, engine: Engine, cache: KVCache) -> None:
        self.engine, self.cache, self.spent = engine, cache, Spent()
        self._next_position = 0
        self._sight = engine.sight(self.spent)
        # Image tokens of what was shown, for runs that come back to a mark and may ask for the same crops.
        self._encoded: dict[tiles.View, NDArray[np.float32]] = {}
        self._came_back = False
        # Said or asked but not yet in the cache; they go in with the next step.
        self._pending: list[int] = []
        self._logits: NDArray[np.float32] | None = None
        # Cache length and next position right after the last view, where `ask_again` goes back to.
        self._after_view = (0, 0)

    def show(self, request: Request, pixels: NDArray[np.uint8], view: tiles.View) -> None:
        """Appends a request with a view of the photo `pixels` (H, W, 3), and prefills it."""
        engine = self.engine
        if not self._came_back or view not in self._encoded:
            self._encoded[view] = self._sight.tokens(pixels, view)
        image, clock = self._encoded[view], time.perf_counter()
        before, after = engine.requests[request]
        token_px = engine.contract.global_view.token_px
        rows, cols = view.height // token_px, view.width // token_px
        assert len(image) == rows * cols, "the vision graph and the contract disagree on the token size"
        head = [*self._pending, *before]
        first, position = text_positions(self._next_position, len(head))
        middle, position = image_positions(position, rows, cols)
        last, self._next_position = text_positions(position, len(after))
        embeds = np.concatenate((engine.embeddings[head], image, engine.embeddings[after]))
        self._pending = []
        self._after_view = (self.cache.length + len(head) + len(image), position)
        self._step(embeds, np.concatenate((first, middle, last), 1))
        self.spent.prefill += ms_since(clock)

    def ask_again(self, request: Request) -> None:
        """Takes back what was asked and said since the last view and asks `request` about it instead. The view itself
        stays in the cache; only the few tokens of the question are prefilled anew."""
        clock = time.perf_counter()
        length, position = self._after_view
        self.cache.rewind(length)
        _, after = self.engine.requests[request]
        positions, self._next_position = text_positions(position, len(after))
        self._pending = []
        self._step(self.engine.embeddings[after], positions)
        self.spent.prefill += ms_since(clock)

    def mark(self) -> Mark:
        """Where the conversation stands now."""
        return Mark(self.cache.length, self._next_position, self._after_view, tuple(self._pending), self._logits)

    def back_to(self, mark: Mark) -> None:
        """Forgets what came after a mark: another continuation begins, and nothing before it is prefilled again."""
        self.cache.rewind(mark.length)
        self._next_position, self._after_view = mark.next_position, mark.after_view
        self._pending, self._logits = list(mark.pending), mark.logits
        self._came_back = True

    def say(self, matcher: Matcher, sampler: Sampler | None = None) -> list[Token]:
        """Lets the model speak one turn inside the grammar, greedily or as a sampler draws."""
        clock, engine, said = time.perf_counter(), self.engine, list[Token]()
        while True:
            forced = matcher.forced()
            self._pending += forced
            said += [Token(token, engine.texts[token], 1.0) for token in forced]
            if matcher.done:
                break
            token = self._choose(matcher.allowed(len(engine.texts)), sampler)
            matcher.take([token.id])
            self._pending.append(token.id)
            said.append(token)
        self.spent.generate += ms_since(clock)
        return said

    def _choose(self, allowed: NDArray[np.intp], sampler: Sampler | None) -> Token:
        """The likeliest allowed token after everything said so far, or one that is drawn."""
        if self._pending:
            positions, self._next_position = text_positions(self._next_position, len(self._pending))
            embeds, self._pending = self.engine.embeddings[self._pending], []
            self._step(embeds, positions)
        assert self._logits is not None and len(allowed), "nothing was shown, or the grammar allows nothing"
        logits = self._logits[allowed].astype(np.float64)
        weights = np.exp(logits - logits.max())
        weights /= weights.sum()
        values, expected, options = self.engine.scores[allowed], None, list[tuple[float, float]]()
        numeric = not np.isnan(values).any()
        if sampler is None:
            best = int(weights.argmax())
        else:
            best = sampler.number(logits, values) if numeric else sampler(logits)
        if numeric:
            mean = float(weights @ values)
            expected = (mean, float(np.sqrt(weights @ (values - mean) ** 2)))
            options = list(zip(values.tolist(), weights.tolist(), strict=True))
        chosen = int(allowed[best])
        return Token(chosen, self.engine.texts[chosen], float(weights[best]), expected, tuple(options))

    def _step(self, embeds: NDArray[np.float32], positions: NDArray[np.int64]) -> None:
        self._logits = self.engine.backend.step(embeds[None], positions[:, None], self.cache)


def _backend(bundle: Bundle, device: str, threads: int | None) -> Backend:
    from qcheck.backends.onnxruntime import OnnxRuntime

    if device == "tensorrt" and all(map(find_spec, NATIVE)):
        from qcheck.backends.tensorrt import TensorRt

        return TensorRt(bundle)
    if device != "auto":
        return OnnxRuntime(bundle, threads, PLACEMENTS[device])
    try:
        return OnnxRuntime(bundle, threads, ON_CUDA)
    except DeviceError as error:
        _log.debug("auto takes the CPU: %s", error)
        return OnnxRuntime(bundle, threads, ON_CPU)
