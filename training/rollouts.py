"""Rollouts: the runtime's own loop, prompts, grammar and tiles over a model that is being taught, kept so that every
choice can be weighed again with gradients."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from defects import Domain
from look import packed, suspicions
from nano import Nano
from nano_contract import contract_of
from narrator import Example, Shown, Speller, Suspicion
from numpy.typing import NDArray
from sights import Sights
from torch import Tensor
from torch_backend import GIVEN, TorchBackend, given
from visual import Evidence, Perception, described

from qcheck import prompt
from qcheck.contract import IMAGE_TOKENS, JUDGED
from qcheck.engine import Conversation, Engine, Mark, Request, Sampler, Token
from qcheck.grammar import Matcher
from qcheck.photo import Photo
from qcheck.probe import Limits, Prober
from qcheck.tiles import Box, View
from qcheck.verdict import ModelInfo, Verdict

MAX_TOKENS = 4096  # of one conversation: fewer than the runtime allows, so that many fit


@dataclass(frozen=True, slots=True)
class Choice:
    """A token that the model chose: its place in the conversation, and the ids it could have chosen."""

    place: int
    allowed: NDArray[np.intp]


@dataclass(slots=True)
class Rollout:
    """One sampled run. `example`: the conversation, as lessons have it; `choices`: what was not forced; `score` and
    `attributes`: the numbers that were said, which were drawn, and not the expected values that a verdict reports."""

    example: Example
    choices: list[Choice]
    score: float
    attributes: dict[str, float]
    verdict: Verdict


@dataclass(slots=True)
class Transcript:
    """What a conversation consists of so far: token ids, and views where they were shown."""

    entries: list[int | View] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    choices: list[tuple[int, NDArray[np.intp]]] = field(default_factory=list)  # index in entries

    def copy(self) -> "Transcript":
        return Transcript(list(self.entries), list(self.requests), list(self.choices))


class SeeingBackend(TorchBackend):
    """Keeps the evidence of what it encodes. `eyes`: that read the cells of a view; None: the model's own. `sights`:
    where what was seen is kept, if neither eyes nor convolutions are taught any more."""

    evidence: Evidence
    eyes: Perception | None = None
    sights: Sights | None = None

    @contextlib.contextmanager
    def unkept(self) -> Iterator[None]:
        """Meanwhile nothing that is seen is kept."""
        kept, self.sights = self.sights, None
        try:
            yield
        finally:
            self.sights = kept

    @torch.inference_mode()
    def seen(self, inputs: Mapping[str, NDArray[Any]]) -> Evidence:
        """What the eyes make of a view."""
        return self.model.model.visual.seen(*given(inputs), self.eyes)[0]

    @torch.inference_mode()
    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        visual = self.model.model.visual
        if self.sights is None:
            self.evidence = self.seen(inputs)
        else:
            readers = (visual.encoder, visual.glance, self.eyes or visual.perception)
            self.evidence = self.sights.of(readers, tuple(map(inputs.get, GIVEN)), lambda: self.seen(inputs))
        tokens = visual.projector(*described(self.evidence)).numpy()
        return {IMAGE_TOKENS: tokens, JUDGED: self.evidence.score[None].numpy()}


class Watched(Matcher):
    """A grammar's matcher that writes down what is said."""

    def __init__(self, inner: Matcher, transcript: Transcript) -> None:
        self.inner, self.transcript = inner, transcript

    def forced(self) -> list[int]:
        tokens = self.inner.forced()
        self.transcript.entries += tokens
        return tokens

    def allowed(self, size: int) -> NDArray[np.intp]:
        found = self.inner.allowed(size)
        self.transcript.choices.append((len(self.transcript.entries), found))
        return found

    def take(self, tokens: Sequence[int]) -> None:
        self.inner.take(tokens)
        self.transcript.entries += tokens

    @property
    def done(self) -> bool:
        return self.inner.done


def shown_of(box: Box, evidence: Evidence, role: str, suspicions: list[Suspicion]) -> Shown:
    """A view as lessons have it, of what was seen of it just now."""
    attributes = tuple(evidence.attributes.tolist())
    score, toll, places = float(evidence.score), float(evidence.toll), evidence.places.tolist()
    return Shown(box, packed(evidence), score, toll, attributes, role, places, suspicions)


class RecordedConversation(Conversation):
    """Keeps its transcript, and what was seen of each view."""

    def __init__(self, engine: "RecordingEngine") -> None:
        super().__init__(engine, engine.backend.new_cache())
        self.recorder = engine
        self.transcript = Transcript()
        self.seen: dict[View, Shown] = {}
        self._marked: dict[int, Transcript] = {}

    def show(self, request: Request, pixels: NDArray[np.uint8], view: View) -> None:
        super().show(request, pixels, view)
        if view not in self.seen:
            evidence = self.recorder.eyes.evidence
            about: Any = suspicions(evidence, self.recorder.domain.kinds)["suspicions"]
            self.seen[view] = shown_of(view.box, evidence, request, about)
        before, after = self.engine.requests[request]
        self.transcript.entries += [*before, view, *after]
        self.transcript.requests.append(request)

    def say(self, matcher: Matcher, sampler: Sampler | None = None) -> list[Token]:
        return super().say(Watched(matcher, self.transcript), sampler)

    def mark(self) -> Mark:
        found = super().mark()
        self._marked[found.length] = self.transcript.copy()
        return found

    def back_to(self, mark: Mark) -> None:
        super().back_to(mark)
        self.recorder.finished.append(self.transcript)
        self.transcript = self._marked[mark.length].copy()


class RecordingEngine(Engine):
    """An engine over a PyTorch nano whose conversations are kept."""

    def __init__(self, model: Nano, tokenizer: Any, domain: Domain) -> None:
        self.domain = domain
        self.eyes = SeeingBackend(model, MAX_TOKENS)
        self.finished: list[Transcript] = []
        self.last: RecordedConversation | None = None
        embeddings = model.get_input_embeddings().weight.detach().float().numpy()
        super().__init__(
            contract_of(model, domain, "training", "fp32", {}, MAX_TOKENS),
            ModelInfo("nano", "training", "0" * 64),
            self.eyes,
            tokenizer,
            embeddings,
        )

    def conversation(self) -> RecordedConversation:
        self.finished = []
        self.last = RecordedConversation(self)
        return self.last

    def transcripts(self) -> list[Transcript]:
        """Of all runs of the last conversation, in order."""
        assert self.last is not None
        return [*self.finished, self.last.transcript]


def sampled(
    engine: RecordingEngine, speller: Speller, photo: Photo, limits: Limits, samplers: Iterable[Sampler]
) -> list[Rollout]:
    """One rollout for each sampler."""
    verdicts = Prober(engine).sample(photo, limits, samplers)
    assert engine.last is not None
    pairs = zip(engine.transcripts(), verdicts, strict=True)
    return [_rollout(engine, speller, transcript, verdict) for transcript, verdict in pairs]


def _rollout(engine: RecordingEngine, speller: Speller, transcript: Transcript, verdict: Verdict) -> Rollout:
    example, places, said = Example(), dict[int, int](), list[str]()
    assert engine.last is not None
    requests = iter(transcript.requests)
    index = 0
    while index < len(transcript.entries):
        # What is said, up to the request that brings the next view.
        request = next(requests, None)
        before, after = engine.requests[request] if request else ([], [])
        end = len(transcript.entries)
        if request:
            end = next(i for i in range(index, end) if isinstance(transcript.entries[i], View)) - len(before)
        turn = [entry for entry in transcript.entries[index:end] if isinstance(entry, int)]
        for offset in range(len(turn)):
            places[index + offset] = len(example.tokens) + offset
        speller.say(example, [engine.texts[token] for token in turn], 0.0)
        said += [engine.texts[token] for token in turn]
        index = end
        if request:
            view = transcript.entries[end + len(before)]
            assert isinstance(view, View)
            speller.request(example, getattr(engine.contract.language, request), engine.last.seen[view])
            index = end + len(before) + 1 + len(after)
    choices = [Choice(places[at], allowed) for at, allowed in transcript.choices]
    score = float(said[said.index(prompt.ANSWER_OPEN) + 1])
    attributes = {name: float(said[said.index(prompt.attribute_chunk(name)) + 1]) for name in engine.domain.attributes}
    return Rollout(example, choices, score, attributes, verdict)


def log_probabilities(
    hidden: Tensor, head: torch.nn.Module, ids: Tensor, rollouts: Sequence[Rollout]
) -> tuple[Tensor, Tensor]:
    """Of what each rollout chose among what it could have chosen, (rollouts, most choices), and a mask of the same
    shape. `hidden`: (rollouts, length, hidden) after the last layer; `ids`: (rollouts, length)."""
    most = max(len(r.choices) for r in rollouts)
    logits_at = [(row, c.place - 1) for row, r in enumerate(rollouts) for c in r.choices]
    rows, cols = (torch.tensor(part) for part in zip(*logits_at, strict=True))
    logits = head(hidden[rows, cols]).float()
    barred = torch.full_like(logits, -torch.inf)
    for index, choice in enumerate(c for r in rollouts for c in r.choices):
        barred[index, torch.from_numpy(np.ascontiguousarray(choice.allowed))] = 0
    chosen = ids[rows, cols + 1]
    found = (logits + barred).log_softmax(-1)[torch.arange(len(chosen)), chosen]
    out, mask = torch.zeros(len(rollouts), most), torch.zeros(len(rollouts), most)
    columns = torch.tensor([i for r in rollouts for i in range(len(r.choices))])
    mask[rows, columns] = 1
    return out.index_put((rows, columns), found), mask
