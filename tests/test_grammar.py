"""Whatever a model wants, what it says is a whole turn: random walks through the grammar with nano's own vocabulary."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import plain_contract, tokenizer

from qcheck import prompt
from qcheck.errors import BundleError
from qcheck.grammar import Grammar, Matcher
from qcheck.prompt import Answer, Call, parse_turn
from qcheck.verdict import DEFECT_LEVELS, MAX_DEFECTS

CONTRACT = plain_contract()
TOKENIZER = tokenizer()
GRAMMAR = Grammar(CONTRACT, TOKENIZER)
SIZE = TOKENIZER.get_vocab_size()
SCORES = frozenset(CONTRACT.language.score_tokens)
COORDINATES = frozenset(CONTRACT.language.coordinate_tokens)
KINDS = frozenset(CONTRACT.kinds)
# start, finding and its kind, level and box; the score, four defects of seven choices each, the attributes.
MOST_TOKENS = 120


@dataclass(frozen=True)
class Word:
    text: str
    probability: float = 1.0
    expected: tuple[float, float] | None = None


@dataclass
class Walk:
    """A turn by a model without preferences. `choices`: for each token the texts it was chosen from (forced: one)."""

    said: list[Word]
    choices: list[frozenset[str]]

    @property
    def text(self) -> str:
        return "".join(word.text for word in self.said)

    @property
    def move(self) -> Call | Answer:
        return parse_turn(self.said, CONTRACT.attributes).move


def word(token: int) -> Word:
    text = TOKENIZER.id_to_token(token)
    return Word(text, expected=(float(text), 0.0) if text in SCORES else None)


def walk(matcher: Matcher, draw: "st.DataObject | list[int]") -> Walk:
    """Follows the grammar; `draw`: picks, or the picks themselves (each modulo the number of allowed tokens)."""
    made, picks = Walk([], []), iter(draw) if isinstance(draw, list) else None
    while True:
        forced = matcher.forced()
        made.said += map(word, forced)
        made.choices += [frozenset((word(token).text,)) for token in forced]
        if matcher.done:
            return made
        assert len(made.said) < MOST_TOKENS, "the grammar does not end"
        allowed = matcher.allowed(SIZE)
        assert len(allowed) > 1, f"a choice of {len(allowed)} should have been forced, after {made.text}"
        pick = draw.draw(st.integers(0, len(allowed) - 1)) if picks is None else next(picks) % len(allowed)
        token = int(allowed[pick])
        matcher.take([token])
        made.said.append(word(token))
        made.choices.append(frozenset(word(int(other)).text for other in allowed))


STARTS = [(after, may) for after in (False, True) for may in (False, True)]


@pytest.mark.parametrize(("after_crop", "may_call"), STARTS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_walk_is_a_whole_turn(after_crop: bool, may_call: bool, data: st.DataObject) -> None:
    made = walk(GRAMMAR.matcher(after_crop=after_crop, may_call=may_call), data)
    assert made.said[-1].text == prompt.TURN_END
    turn = parse_turn(made.said, CONTRACT.attributes)
    assert turn.looked == after_crop
    assert (made.said[0].text == prompt.THINK_OPEN) == after_crop
    if turn.finding:
        assert turn.finding.kind in KINDS
        assert turn.finding.level in DEFECT_LEVELS
        assert len(turn.finding.coords) == 4
    if isinstance(turn.move, Call):
        assert may_call, "a call although none is left"
        told = made.text.partition("<tool_call>")[2].partition("</tool_call>")[0]
        call = json.loads(told)
        assert call["name"] == "image_zoom_in_tool"
        assert call["arguments"] == {"bbox_2d": [int(c) for c in turn.move.coords], "label": turn.move.label}
        assert turn.move.label in KINDS
        return
    answer = json.loads(made.text.partition("<answer>")[2].partition("</answer>")[0])
    assert answer["score"] == turn.move.score
    assert 1 <= answer["score"] <= 5
    assert answer["attributes"] == turn.move.attributes
    assert tuple(answer["attributes"]) == CONTRACT.attributes
    said = [(d["kind"], d["level"], tuple(map(float, d["bbox_2d"]))) for d in answer["defects"]]
    assert said == [(d.kind, d.level, d.coords) for d in turn.move.defects]
    assert len(said) <= MAX_DEFECTS


@pytest.mark.parametrize("kind", ["call", "finding", "answer"])
def test_walks_reach_everything(kind: str) -> None:
    """The test above would pass on a grammar that knows one turn only."""
    found: set[object] = set()
    for seed in range(40):
        picks = [(seed * 7919 + i * 104729) % 997 for i in range(MOST_TOKENS)]
        turn = parse_turn(walk(GRAMMAR.matcher(after_crop=True, may_call=True), picks).said, CONTRACT.attributes)
        if kind == "finding":
            found.add(turn.finding is None)
        elif isinstance(turn.move, Call) and kind == "call":
            found.add(turn.move.label)
        elif isinstance(turn.move, Answer) and kind == "answer":
            found.add(len(turn.move.defects))
    assert len(found) >= 2, found


@pytest.mark.parametrize(("after_crop", "may_call"), STARTS)
def test_the_first_choice(after_crop: bool, may_call: bool) -> None:
    matcher = GRAMMAR.matcher(after_crop=after_crop, may_call=may_call)
    forced = [word(token).text for token in matcher.forced()]
    if not after_crop and not may_call:
        assert forced == [prompt.ANSWER_OPEN], "the only way on is no choice"
        return
    assert forced == ([prompt.THINK_OPEN] if after_crop else [])
    first = {word(int(token)).text for token in matcher.allowed(SIZE)}
    assert first == ({prompt.THINK_CLEAN} | KINDS if after_crop else {prompt.CALL_OPEN, prompt.ANSWER_OPEN})


def say(matcher: Matcher, texts: list[str]) -> None:
    """Takes texts one at a time, forced or chosen."""
    due: list[int] = []
    for text in texts:
        due = due or matcher.forced()
        token = TOKENIZER.token_to_id(text)
        if due:
            assert due.pop(0) == token, text
        else:
            assert token in matcher.allowed(SIZE), text
            matcher.take([token])
    assert not due


def allowed_texts(matcher: Matcher) -> set[str]:
    return {word(int(token)).text for token in matcher.allowed(SIZE)}


def test_the_call_goes_away_when_none_is_left() -> None:
    with_calls, without = (GRAMMAR.matcher(after_crop=True, may_call=may) for may in (True, False))
    say(with_calls, [prompt.THINK_OPEN, prompt.THINK_CLEAN, prompt.THINK_CLOSE])
    assert allowed_texts(with_calls) == {prompt.CALL_OPEN, prompt.ANSWER_OPEN}
    assert [word(t).text for t in without.forced()] == [prompt.THINK_OPEN]
    without.take([TOKENIZER.token_to_id(prompt.THINK_CLEAN)])
    assert [word(t).text for t in without.forced()] == [prompt.THINK_CLOSE, prompt.ANSWER_OPEN]


def test_a_fifth_defect_cannot_be_named() -> None:
    defect = [prompt.DEFECT_OPEN, "noise", prompt.DEFECT_LEVEL, "slight", prompt.DEFECT_BOX]
    defect += prompt.spell_coords(["0", "0", "10", "10"])
    matcher = GRAMMAR.matcher(after_crop=False, may_call=False)
    said = [prompt.ANSWER_OPEN, "3.0", prompt.DEFECTS_OPEN, *defect]
    for _ in range(MAX_DEFECTS - 1):
        say(matcher, [*said, prompt.DEFECT_CLOSE])
        assert allowed_texts(matcher) == {prompt.COMMA, prompt.DEFECTS_CLOSE}
        said = [prompt.COMMA, *defect]
    say(matcher, said)
    first_attribute = prompt.attribute_chunk(CONTRACT.attributes[0])
    forced = [word(token).text for token in matcher.forced()]
    assert forced == [prompt.DEFECT_CLOSE, prompt.DEFECTS_CLOSE, first_attribute], "the end is no choice any more"


def test_decisions_are_over_exactly_one_list_each() -> None:
    lists = {SCORES, COORDINATES, KINDS, frozenset(DEFECT_LEVELS), KINDS | {prompt.THINK_CLEAN}}
    lists |= {frozenset((prompt.CALL_OPEN, prompt.ANSWER_OPEN)), frozenset((prompt.DEFECT_OPEN, prompt.DEFECTS_CLOSE))}
    lists |= {frozenset((prompt.COMMA, prompt.DEFECTS_CLOSE))}
    seen: set[frozenset[str]] = set()
    for seed in range(20):
        picks = [(seed * 7919 + i * 104729) % 997 for i in range(MOST_TOKENS)]
        seen |= set(walk(GRAMMAR.matcher(after_crop=True, may_call=True), picks).choices)
    assert {choice for choice in seen if len(choice) > 1} == lists


@pytest.mark.parametrize(("after_crop", "may_call"), STARTS)
def test_a_token_outside_the_grammar_is_our_own_error(after_crop: bool, may_call: bool) -> None:
    matcher = GRAMMAR.matcher(after_crop=after_crop, may_call=may_call)
    with pytest.raises(AssertionError, match="outside the grammar"):
        matcher.take([TOKENIZER.token_to_id("1.0")])


def test_matchers_do_not_share_their_place() -> None:
    one, other = (GRAMMAR.matcher(after_crop=False, may_call=True) for _ in range(2))
    say(one, [prompt.CALL_OPEN, "500"])
    assert allowed_texts(other) == {prompt.CALL_OPEN, prompt.ANSWER_OPEN}


def test_a_chunk_that_is_not_one_token_is_named() -> None:
    contract = plain_contract(kinds=(*CONTRACT.kinds, "haze"))
    with pytest.raises(BundleError, match="no token 'haze'"):
        Grammar(contract, TOKENIZER)
