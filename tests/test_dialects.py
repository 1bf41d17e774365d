"""Dialects of Qwen2.5-VL checkpoints: whatever a model wants, it says whole turns, and its numbers are read."""

import itertools
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script
from qwen import contract_of, tokenizer

from qcheck.dialects import chat, dialect_of
from qcheck.dialects.spelled import Spelled, bytes_of
from qcheck.errors import BundleError
from qcheck.grammar import Grammar, Matcher
from qcheck.prompt import Answer, Call, Turn
from qcheck.verdict import DEFECT_LEVELS, MAX_DEFECTS

DIALECTS = ("qwen-chat", "visualquality-r1", "q-insight")
THINK_TOKENS = 12
MOST_TOKENS = 600
# After a crop or not, with a probe left or not.
TURNS = [("qwen-chat", after, may) for after in (False, True) for may in (False, True)]
TURNS += [("visualquality-r1", False, False), ("q-insight", False, False)]


@dataclass(frozen=True)
class Word:
    text: str
    probability: float = 1.0
    expected: tuple[float, float] | None = None
    options: tuple[tuple[float, float], ...] = ()


@cache
def grammar(dialect: str, think_tokens: int = THINK_TOKENS) -> Grammar:
    return Grammar(contract_of(dialect, think_tokens), tokenizer())


def word(token: int) -> Word:
    return Word(tokenizer().id_to_token(token))


def walk(matcher: Matcher, pick: Callable[[list[int]], int]) -> list[Word]:
    """A turn by a model that picks among what is allowed."""
    said: list[Word] = []
    while True:
        said += map(word, matcher.forced())
        if matcher.done:
            return said
        assert len(said) < MOST_TOKENS, "the grammar does not end"
        token = pick([int(token) for token in matcher.allowed(tokenizer().get_vocab_size())])
        matcher.take([token])
        said.append(word(token))


def spell(matcher: Matcher, text: str) -> list[Word]:
    """Says a text as the tokenizer cuts it. It must be inside the grammar, and the whole turn."""
    tokens = tokenizer().encode(text).ids
    matcher.take(tokens)
    assert matcher.done
    return [word(token) for token in tokens]


def read(dialect: str, said: Sequence[Word], **settings: Any) -> Turn:
    return dialect_of(contract_of(dialect, **settings)).read(said)


@pytest.mark.parametrize(("dialect", "after_crop", "may_call"), TURNS)
def test_every_walk_is_a_whole_turn(dialect: str, after_crop: bool, may_call: bool) -> None:
    moves: set[type] = set()
    for seed in range(25):
        said = walk(grammar(dialect).matcher(after_crop=after_crop, may_call=may_call), random.Random(seed).choice)
        turn, text = read(dialect, said), Spelled(said).text
        moves.add(type(turn.move))
        assert text.startswith("<think>")
        assert text.endswith("<|im_end|>")
        assert turn.thought == text.split("</think>")[0].removeprefix("<think>").strip()
        if isinstance(turn.move, Call):
            inner = json.loads(text.split("<tool_call>")[1].split("</tool_call>")[0])
            assert inner == {
                "name": chat.TOOL,
                "arguments": {"bbox_2d": list(turn.move.coords), "label": turn.move.label},
            }
            continue
        inner = json.loads(text.split("<answer>")[1].split("</answer>")[0])
        score = inner if dialect == "visualquality-r1" else inner["rating" if dialect == "q-insight" else "score"]
        assert 1 <= score <= 5
        assert (turn.move.score, turn.move.score_std) == (pytest.approx(score), pytest.approx(0, abs=1e-6))
        if dialect == "qwen-chat":
            defects = [{"kind": d.kind, "level": d.level, "bbox_2d": list(d.coords)} for d in turn.move.defects]
            assert inner["defects"] == defects
            assert inner["attributes"] == pytest.approx(turn.move.attributes)
            assert len(defects) <= MAX_DEFECTS
        else:
            assert (turn.move.defects, turn.move.attributes) == ((), {})
    assert moves == ({Call, Answer} if may_call else {Answer})


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("budget", [1, 7, 40])
def test_a_thought_without_end_is_closed(dialect: str, budget: int) -> None:
    """Also in the middle of a character, which is left out."""
    for seed in range(40):
        rng, prefer = random.Random(seed), "ðïéäÐ" if seed % 2 else "Ġ."

        def on_and_on(allowed: list[int], rng: random.Random = rng, prefer: str = prefer) -> int:
            texts = {token: tokenizer().id_to_token(token) for token in allowed}
            inside = [token for token, text in texts.items() if "<" not in text]
            liked = [token for token in inside if texts[token][0] in prefer]
            return rng.choice(liked or inside or allowed)

        said = walk(grammar(dialect, budget).matcher(after_crop=False, may_call=False), on_and_on)
        text = [token.text for token in said]
        end = next(place for place, token in enumerate(text) if "</" in token)
        assert end <= 2 + budget, text[: end + 1]  # `<think`, `>`, the budget
        thought = read(dialect, said, think_tokens=budget).thought
        assert thought is not None
        assert "�" not in thought


def test_a_call_is_read_and_may_be_written_in_one_line() -> None:
    for line in ("\n", ""):
        text = (
            f'<think>Is that noise?</think>{line}<tool_call>{line}{{"name": "image_zoom_in_tool", "arguments": '
            f'{{"bbox_2d": [0, 34, 256, 17890], "label": "noise é"}}}}{line}</tool_call><|im_end|>'
        )
        said = spell(grammar("qwen-chat", 99).matcher(after_crop=False, may_call=True), text)
        turn = read("qwen-chat", said)
        assert turn == Turn(False, None, Call((0, 34, 256, 17890), "noise é"), "Is that noise?")
        with pytest.raises(AssertionError, match="outside the grammar"):
            spell(grammar("qwen-chat", 99).matcher(after_crop=False, may_call=False), text)


def test_an_answer_is_read() -> None:
    text = (
        '<think>ok</think><answer>{"score": 2.35, "defects": [{"kind": "noise", "level": "obvious", "bbox_2d": '
        '[1, 2, 30, 40]}, {"kind": "dirt", "level": "slight", "bbox_2d": [5, 6, 7, 8]}], "attributes": '
        '{"sharpness": 4.10, "noise": 2.20, "color": 3.00, "exposure": 5.00, "compression": 1.99}}</answer><|im_end|>'
    )
    said = spell(grammar("qwen-chat").matcher(after_crop=True, may_call=True), text)
    half = [replace(one, probability=0.5) if one.text in ("noise", "dirt", "d") else one for one in said]
    move = read("qwen-chat", half).move
    assert isinstance(move, Answer)
    assert move.score == pytest.approx(2.35)
    assert [(d.kind, d.level, d.coords) for d in move.defects] == [
        ("noise", "obvious", (1, 2, 30, 40)),
        ("dirt", "slight", (5, 6, 7, 8)),
    ]
    assert [d.confidence for d in move.defects] == [0.5, 0.5]
    assert move.attributes == pytest.approx(
        {"sharpness": 4.1, "noise": 2.2, "color": 3, "exposure": 5, "compression": 1.99}
    )
    # Without attributes, and without defects.
    plain = '<think>ok</think><answer>{"score": 5.00, "defects": []}</answer><|im_end|>'
    matcher = Grammar(contract_of("qwen-chat", attributes=False), tokenizer()).matcher(after_crop=False, may_call=True)
    assert read("qwen-chat", spell(matcher, plain), attributes=False).move == Answer(5.0, 0.0, 5.0, (), {})


@pytest.mark.parametrize("text", ["5.01", "0.99", "6.00", "3.4", "3.421", "3", " 3.42", "-3.42", "3,42"])
def test_a_score_that_is_none_is_outside_the_grammar(text: str) -> None:
    with pytest.raises(AssertionError, match="outside the grammar"):
        spell(
            grammar("visualquality-r1").matcher(after_crop=False, may_call=False),
            f"<think>ok</think><answer>{text}</answer><|im_end|>",
        )


def test_what_training_teaches_is_inside_the_grammar() -> None:
    pytest.importorskip("trl", reason="needs trl; pip install -e '.[large]'")
    script("defects")
    from large import answers

    defects = [{"kind": "noise", "level": "obvious", "bbox_2d": [1, 2, 3, 4]}]
    for score in (1.0, 2.3, 4.999):
        text = f"<think>obvious noise.</think>{answers.spell(score, defects, {})}<|im_end|>"
        matcher = Grammar(contract_of("qwen-chat", attributes=False), tokenizer()).matcher(
            after_crop=True, may_call=True
        )
        move = read("qwen-chat", spell(matcher, text), attributes=False).move
        assert isinstance(move, Answer)
        assert move.score == pytest.approx(round(score, 2))
        assert move.defects[0].coords == (1, 2, 3, 4)
        assert answers.parse(text) == answers.Answer(round(score, 2), ((1, 2, 3, 4),), {})


# Numbers


def number(written: str, chances: Sequence[dict[int, float]], most: float = 5.0) -> tuple[float, float]:
    """What is read of a number, each digit of which was chosen among others with these probabilities."""
    digits = iter(chances)
    said = [Word("Ġ[")]
    for char in written:
        if char == ".":
            said.append(Word("."))
        else:
            options = tuple((float(value), chance) for value, chance in next(digits).items())
            # A forced digit comes without options.
            said.append(Word(char, dict(options)[float(char)], None, options if len(options) > 1 else ()))
    spelled = Spelled([*said, Word("]")])
    assert spelled.text == f" [{written}]"
    return spelled.number((2, 2 + len(written)), most)


def enumerated(written: str, chances: Sequence[dict[int, float]], most: float = 5.0) -> tuple[float, float]:
    """The same by writing every number out."""
    numbers: dict[float, float] = {}
    reached, digits = 1.0, [int(char) for char in written if char != "."]
    for place, options in enumerate(chances):
        for digit, chance in options.items():
            rest = [] if digit == digits[place] else list(itertools.product(range(10), repeat=len(digits) - place - 1))
            found = [sum(d / 10**i for i, d in enumerate((*digits[:place], digit, *end))) for end in rest]
            found = [value for value in found if value <= most + 1e-9]
            for value in found:
                numbers[value] = numbers.get(value, 0) + reached * chance / len(found)
        reached *= options[digits[place]]
    value = sum(digit / 10**i for i, digit in enumerate(digits))
    numbers[value] = numbers.get(value, 0) + reached
    assert sum(numbers.values()) == pytest.approx(1)
    mean = sum(value * chance for value, chance in numbers.items())
    return mean, math.sqrt(sum(chance * (value - mean) ** 2 for value, chance in numbers.items()))


SURE: dict[int, float] = {0: 1.0}


def test_a_number_without_doubt_is_itself() -> None:
    assert number("3.42", [{3: 1}, {4: 1}, {2: 1}]) == (pytest.approx(3.42), pytest.approx(0, abs=1e-6))


def test_a_second_digit_that_could_have_been_counts() -> None:
    mean, spread = number("4.10", [{3: 0.5, 4: 0.5}, {1: 1.0}, SURE])
    assert mean == pytest.approx((3.495 + 4.10) / 2)
    assert spread > 0.3


def test_nothing_is_put_above_the_largest_score() -> None:
    mean, _ = number("4.10", [{4: 0.5, 5: 0.5}, {1: 1.0}, SURE])
    assert mean == pytest.approx((5 + 4.1) / 2)


def test_read_outs_equal_every_number_written_out() -> None:
    rng = random.Random(7)
    for _ in range(40):
        chances = []
        for place in range(3):
            digits = rng.sample(range(1, 6) if place == 0 else range(10), rng.randint(1, 5))
            weights = [rng.random() for _ in digits]
            chances.append({digit: weight / sum(weights) for digit, weight in zip(digits, weights, strict=True)})
        digits = [rng.choice(list(options)) for options in chances]
        if digits[0] == 5:
            chances[1:], digits[1:] = [SURE, SURE], [0, 0]
        written = f"{digits[0]}.{digits[1]}{digits[2]}"
        mean, spread = number(written, chances)
        expected = enumerated(written, chances)
        assert mean == pytest.approx(expected[0])
        assert spread == pytest.approx(expected[1], abs=1e-6)
        assert 1 <= mean <= 5


# Tokens


def test_tokens_are_their_bytes() -> None:
    """Whatever a text is, its tokens spell it, also where a character is cut into several."""
    text = "<|im_start|>Grün, 漢字 😀\n\t<tool_call> ok"
    said = [word(token) for token in tokenizer().encode(text).ids]
    assert Spelled(said).text == text
    assert b"".join(bytes_of(one.text) for one in said) == text.encode()
    assert len(said) > len(text) / 2
    assert bytes_of("<漢>") == "<漢>".encode()


def test_what_the_vocabulary_lacks_is_named() -> None:
    from tokenizers import Tokenizer, models

    bare = Tokenizer(models.WordLevel({"<|im_end|>": 0, "a": 1}, unk_token="a"))
    with pytest.raises(BundleError, match=r"the tokenizer has no token '\.', which this bundle's dialect needs"):
        Grammar(contract_of("visualquality-r1"), bare)
    whole = {text: place for place, text in enumerate(["<|im_end|>", ".", *"0123456789"])}
    with pytest.raises(BundleError, match=r"cannot be held to a grammar \(.*\); it must be byte-level"):
        Grammar(contract_of("visualquality-r1"), Tokenizer(models.WordLevel(whole, unk_token=".")))


def test_the_lists_are_what_the_grammar_names() -> None:
    rules = dialect_of(contract_of("qwen-chat")).rules(tokenizer().token_to_id, after_crop=False, may_call=True)
    for name in (*contract_of("qwen-chat").kinds, *DEFECT_LEVELS):
        assert f'"{name}"' in rules
    assert library("llguidance") is not None
