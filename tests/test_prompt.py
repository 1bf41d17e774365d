"""Turns that training spells are read back as what they meant, with the confidences that prompt.py promises."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from qcheck import prompt
from qcheck.prompt import Answer, Call, Sighting, parse_turn
from qcheck.verdict import DEFECT_LEVELS

ATTRIBUTES = ("sharpness", "noise")
BOX = ("120", "0", "1000", "990")
NUMBERS = (120.0, 0.0, 1000.0, 990.0)


@dataclass(frozen=True)
class Word:
    text: str
    probability: float = 1.0
    expected: tuple[float, float] | None = None


def words(texts: Sequence[str], probabilities: dict[int, float] | None = None) -> list[Word]:
    """Said tokens; score tokens are read as their own number plus 0.01, with a spread of a tenth of it."""
    said = []
    for index, text in enumerate(texts):
        number = float(text) + 0.01 if len(text) == 3 and text[1] == "." else None
        expected = None if number is None else (number, number / 10)
        said.append(Word(text, (probabilities or {}).get(index, 1.0), expected))
    return said


def answer(defects: Sequence[tuple[str, str, Sequence[str]]] = (), score: str = "3.4") -> list[str]:
    values = {"sharpness": "2.0", "noise": "4.5"}
    return [prompt.ANSWER_OPEN, score, *prompt.spell_defects(defects), *prompt.spell_attributes(values)]


def test_a_call() -> None:
    turn = parse_turn(words(prompt.spell_call(BOX, "noise")), ATTRIBUTES)
    assert not turn.looked
    assert turn.finding is None
    assert turn.move == Call(NUMBERS, "noise")


@pytest.mark.parametrize("level", DEFECT_LEVELS)
def test_a_finding_then_a_call(level: str) -> None:
    said = prompt.spell_finding(("defocus", level, BOX)) + prompt.spell_call(("10", "20", "30", "40"), "color")
    probabilities = dict.fromkeys(range(len(said)), 0.99) | {said.index("defocus"): 0.625}
    turn = parse_turn(words(said, probabilities), ATTRIBUTES)
    assert turn.looked
    assert turn.finding == Sighting("defocus", level, NUMBERS, 0.625), "only the kind's probability counts"
    assert turn.move == Call((10.0, 20.0, 30.0, 40.0), "color")


def test_a_clean_crop_then_an_answer() -> None:
    turn = parse_turn(words(prompt.spell_finding(None) + answer()), ATTRIBUTES)
    assert turn.looked
    assert turn.finding is None
    assert isinstance(turn.move, Answer)
    assert turn.move.defects == ()
    assert (turn.move.score, turn.move.score_std) == pytest.approx((3.41, 0.341))
    assert turn.move.attributes == {"sharpness": 2.01, "noise": 4.51}


def test_a_finding_then_an_answer() -> None:
    said = prompt.spell_finding(("noise", "slight", BOX)) + answer([("color", "serious", BOX)])
    turn = parse_turn(words(said), ATTRIBUTES)
    assert turn.finding == Sighting("noise", "slight", NUMBERS, 1.0)
    assert isinstance(turn.move, Answer)
    assert turn.move.defects == (Sighting("color", "serious", NUMBERS, 1.0),)


KINDS = ("noise", "defocus", "color", "noise")


@pytest.mark.parametrize("count", range(5))
def test_an_answer_with_defects(count: int) -> None:
    defects = [
        (kind, DEFECT_LEVELS[i], (str(10 * i), "0", str(10 * i + 100), "1000")) for i, kind in enumerate(KINDS[:count])
    ]
    said = answer(defects, "1.7")
    turn = parse_turn(words(said), ATTRIBUTES)
    assert isinstance(turn.move, Answer)
    assert turn.move.score == pytest.approx(1.71)
    assert turn.move.attributes == {"sharpness": 2.01, "noise": 4.51}
    expected = tuple(Sighting(kind, level, tuple(float(c) for c in coords), 1.0) for kind, level, coords in defects)
    assert turn.move.defects == expected


def test_confidence_is_that_one_more_defect_is_named_times_that_it_is_this_kind() -> None:
    said = answer([("noise", "slight", BOX), ("color", "obvious", BOX), ("defocus", "serious", BOX)])
    probabilities = dict.fromkeys(range(len(said)), 0.5)
    opens = [i for i, text in enumerate(said) if text == prompt.DEFECT_OPEN]
    probabilities |= {opens[0]: 0.9, opens[0] + 1: 0.8}
    # From the second on, the choice is the comma; the opening after it is forced.
    probabilities |= {opens[1] - 1: 0.7, opens[1]: 1.0, opens[1] + 1: 0.6}
    probabilities |= {opens[2] - 1: 0.25, opens[2]: 1.0, opens[2] + 1: 0.4}
    turn = parse_turn(words(said, probabilities), ATTRIBUTES)
    assert isinstance(turn.move, Answer)
    assert [d.confidence for d in turn.move.defects] == pytest.approx([0.9 * 0.8, 0.7 * 0.6, 0.25 * 0.4])


def test_a_bundle_without_attributes() -> None:
    said = [prompt.ANSWER_OPEN, "2.2", *prompt.spell_defects([]), *prompt.spell_attributes({})]
    move = parse_turn(words(said), ()).move
    assert isinstance(move, Answer)
    assert move.attributes == {}
    assert move.score == pytest.approx(2.21)


@pytest.mark.parametrize(
    "said",
    [
        [],
        [prompt.THINK_OPEN],
        prompt.spell_finding(None),
        prompt.spell_call(BOX, "noise")[1:],
        prompt.spell_finding(("noise", "enormous", BOX)) + answer(),
        answer()[:-2],
    ],
)
def test_what_the_grammar_refuses_is_our_own_error(said: list[str]) -> None:
    with pytest.raises(AssertionError, match="the grammar let"):
        parse_turn(words(said), ATTRIBUTES)


def test_a_score_without_its_read_out_is_our_own_error() -> None:
    with pytest.raises(AssertionError, match="read-out"):
        parse_turn([Word(text) for text in answer()], ATTRIBUTES)


def test_spelled_turns_read_like_the_json_they_are() -> None:
    assert "".join(prompt.spell_call(("1", "2", "3", "4"), "noise")) == (
        '<tool_call>{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [1, 2, 3, 4], "label": "noise"}}'
        "</tool_call><|im_end|>"
    )
    assert "".join(prompt.spell_finding(("noise", "obvious", ("1", "2", "3", "4")))) == (
        "<think>noise, obvious at [1, 2, 3, 4]</think>"
    )
    assert "".join(answer([("noise", "slight", ("1", "2", "3", "4"))])) == (
        '<answer>{"score": 3.4, "defects": [{"kind": "noise", "level": "slight", "bbox_2d": [1, 2, 3, 4]}], '
        '"attributes": {"sharpness": 2.0, "noise": 4.5}}</answer><|im_end|>'
    )
