"""What is said to the model, and the words it answers in: the `probe-json` dialect.

A conversation is: the global view with a request -> the model asks for a crop (a Qwen-style tool call) or answers ->
the crop comes back as the tool's response -> the model says what it sees there and asks again or answers. Everything
the model may say is built from fixed chunks, each of which is ONE token of nano's vocabulary, so that a turn costs as
many decoder steps as it holds decisions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from qcheck.verdict import DEFECT_LEVELS

CALL_OPEN: Final = '<tool_call>{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": ['
CALL_LABEL: Final = '], "label": "'
CALL_CLOSE: Final = '"}}</tool_call>'
THINK_OPEN: Final = "<think>"
THINK_CLEAN: Final = "clean"
FINDING_BOX: Final = " at ["
FINDING_CLOSE: Final = "]"
THINK_CLOSE: Final = "</think>"
ANSWER_OPEN: Final = '<answer>{"score": '
DEFECTS_OPEN: Final = ', "defects": ['
DEFECT_OPEN: Final = '{"kind": "'
DEFECT_LEVEL: Final = '", "level": "'
DEFECT_BOX: Final = '", "bbox_2d": ['
DEFECT_CLOSE: Final = "]}"
DEFECTS_CLOSE: Final = '], "attributes": {'
ANSWER_CLOSE: Final = "}}</answer>"
COMMA: Final = ", "
TURN_END: Final = "<|im_end|>"

CHUNKS: Final[tuple[str, ...]] = (
    CALL_OPEN, CALL_LABEL, CALL_CLOSE, THINK_OPEN, THINK_CLEAN, FINDING_BOX, FINDING_CLOSE, THINK_CLOSE, ANSWER_OPEN,
    DEFECTS_OPEN, DEFECT_OPEN, DEFECT_LEVEL, DEFECT_BOX, DEFECT_CLOSE, DEFECTS_CLOSE, ANSWER_CLOSE, COMMA, TURN_END,
)  # fmt: skip


def attribute_chunk(name: str) -> str:
    return f'"{name}": '


class Said(Protocol):
    """One token that the model said."""

    @property
    def text(self) -> str: ...
    @property
    def probability(self) -> float:
        """Of this token among those the grammar allowed, 0..1."""
        ...

    @property
    def expected(self) -> tuple[float, float] | None:
        """Where a score was read out: its expected value and spread over the score tokens."""
        ...

    @property
    def options(self) -> tuple[tuple[float, float], ...]:
        """There too: each value that could have been said, and its probability."""
        ...


@dataclass(frozen=True, slots=True)
class Sighting:
    """A defect as the model states it: coordinates in the model's space about the view it speaks of."""

    kind: str
    level: str
    coords: tuple[float, ...]
    confidence: float


@dataclass(frozen=True, slots=True)
class Call:
    """A request for a crop."""

    coords: tuple[float, ...]
    label: str


@dataclass(frozen=True, slots=True)
class Answer:
    """`score`: the expected value, of a deviation of `score_std`; `said`: the score that was written, likeliest or
    drawn."""

    score: float
    score_std: float
    said: float
    defects: tuple[Sighting, ...]  # about the global view
    attributes: dict[str, float]


@dataclass(frozen=True, slots=True)
class Turn:
    """What the model said in one turn: after a crop what it found there (None: clean), then a call or an answer.
    `thought`: in its own words, if the dialect has it think aloud; it then states no finding."""

    looked: bool
    finding: Sighting | None
    move: Call | Answer
    thought: str | None = None


class _Reader:
    """Walks the tokens of a turn. The grammar has already refused every other order."""

    def __init__(self, said: Sequence[Said]) -> None:
        self._rest: Iterator[Said] = iter(said)
        self._next: Said | None = next(self._rest, None)

    def take(self, *expected: str) -> Said:
        token = self._next
        if token is None or (expected and token.text not in expected):
            raise AssertionError(f"the grammar let {token and token.text!r} through where {expected} was due")
        self._next = next(self._rest, None)
        return token

    def sees(self, text: str) -> bool:
        return self._next is not None and self._next.text == text

    def coords(self) -> tuple[float, ...]:
        numbers = [float(self.take().text)]
        while self.sees(COMMA):
            self.take()
            numbers.append(float(self.take().text))
        return tuple(numbers)

    def score(self) -> tuple[float, float, float]:
        """Its mean, its deviation, and what was written."""
        token = self.take()
        assert token.expected is not None, "a score token without its read-out"
        return *token.expected, float(token.text)


def parse_turn(said: Sequence[Said], attributes: Sequence[str]) -> Turn:
    """The turn that the tokens spell. They must follow grammar.py's grammar; anything else is our own error."""
    reader = _Reader(said)
    looked, finding = reader.sees(THINK_OPEN), None
    if looked:
        finding = _finding(reader)
    if reader.sees(CALL_OPEN):
        reader.take()
        coords = reader.coords()
        reader.take(CALL_LABEL)
        label = reader.take().text
        reader.take(CALL_CLOSE)
        return Turn(looked, finding, Call(coords, label))
    return Turn(looked, finding, _answer(reader, attributes))


def _finding(reader: _Reader) -> Sighting | None:
    reader.take(THINK_OPEN)
    first = reader.take()
    finding = None
    if first.text != THINK_CLEAN:
        reader.take(COMMA)
        level = reader.take(*DEFECT_LEVELS)
        reader.take(FINDING_BOX)
        finding = Sighting(first.text, level.text, reader.coords(), first.probability)
        reader.take(FINDING_CLOSE)
    reader.take(THINK_CLOSE)
    return finding


def _answer(reader: _Reader, attributes: Sequence[str]) -> Answer:
    reader.take(ANSWER_OPEN)
    score = reader.score()
    reader.take(DEFECTS_OPEN)
    defects: list[Sighting] = []
    while reader.sees(DEFECT_OPEN) or reader.sees(COMMA):
        # The choice to name one more defect is the choice of its opening token, or of the comma before it.
        presence = reader.take().probability
        if defects:
            reader.take(DEFECT_OPEN)
        kind = reader.take()
        reader.take(DEFECT_LEVEL)
        level = reader.take(*DEFECT_LEVELS)
        reader.take(DEFECT_BOX)
        defects.append(Sighting(kind.text, level.text, reader.coords(), presence * kind.probability))
        reader.take(DEFECT_CLOSE)
    reader.take(DEFECTS_CLOSE)
    values = {}
    for index, name in enumerate(attributes):
        if index:
            reader.take(COMMA)
        reader.take(attribute_chunk(name))
        values[name] = reader.score()[0]
    reader.take(ANSWER_CLOSE)
    return Answer(*score, tuple(defects), values)


# The same words the other way round: what training spells.


def spell_coords(coords: Sequence[str]) -> list[str]:
    return [part for i, c in enumerate(coords) for part in ((COMMA, c) if i else (c,))]


def spell_call(coords: Sequence[str], label: str) -> list[str]:
    return [CALL_OPEN, *spell_coords(coords), CALL_LABEL, label, CALL_CLOSE, TURN_END]


def spell_finding(found: tuple[str, str, Sequence[str]] | None) -> list[str]:
    """`found`: kind, level, coordinates; None for a clean crop."""
    if found is None:
        return [THINK_OPEN, THINK_CLEAN, THINK_CLOSE]
    kind, level, coords = found
    return [THINK_OPEN, kind, COMMA, level, FINDING_BOX, *spell_coords(coords), FINDING_CLOSE, THINK_CLOSE]


def spell_defects(defects: Sequence[tuple[str, str, Sequence[str]]]) -> list[str]:
    said: list[str] = [DEFECTS_OPEN]
    for index, (kind, level, coords) in enumerate(defects):
        said += [COMMA] if index else []
        said += [DEFECT_OPEN, kind, DEFECT_LEVEL, level, DEFECT_BOX, *spell_coords(coords), DEFECT_CLOSE]
    return said


def spell_attributes(attributes: dict[str, str]) -> list[str]:
    said: list[str] = [DEFECTS_CLOSE]
    for index, (name, value) in enumerate(attributes.items()):
        said += [COMMA] if index else []
        said += [attribute_chunk(name), value]
    return [*said, ANSWER_CLOSE, TURN_END]
