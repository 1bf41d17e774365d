"""The engine on a backend of numpy alone: what is fed, where, once, and how words and scores are chosen."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

sys.path.insert(0, str(Path(__file__).parent))

import oracle
from fake_model import IMAGE_BASE, FakeBackend, Plan, Wanted, fake_engine, plain_contract, spelled_answer, tokenizer
from oracle import assert_same

from qcheck import prompt
from qcheck.contract import GLANCED, KNOWN, PIXELS, SURVEY
from qcheck.engine import Conversation, Engine, Sampler, Token
from qcheck.errors import EngineError, UsageError
from qcheck.rope import image_positions, text_positions
from qcheck.tiles import Box, View

PHOTO = np.random.default_rng(1).integers(0, 256, (200, 300, 3), np.uint8)
GLOBAL = View(Box(0, 0, 300, 200), 320, 192)  # 3 x 5 tokens
CROP = View(Box(10, 20, 138, 84), 128, 64)  # 1 x 2 tokens
COORDS = ("100", "200", "300", "400")


def calls_then_answers(turn: int, request: str) -> list[Wanted]:
    before = prompt.spell_finding(("noise", "slight", COORDS)) if request.startswith("crop") else []
    return [*before, *(prompt.spell_call(COORDS, "noise") if turn < 2 else spelled_answer())]


def ids(texts: list[str]) -> list[int]:
    return [tokenizer().token_to_id(text) for text in texts]


def say(talk: Conversation, *, after_crop: bool = False, may_call: bool = True) -> list[Token]:
    return talk.say(talk.engine.grammar.matcher(after_crop=after_crop, may_call=may_call))


def texts(said: list[Token]) -> list[str]:
    return [token.text for token in said]


def test_the_photo_is_shown_as_it_is_where_nothing_is_resized() -> None:
    engine, backend = fake_engine(calls_then_answers)
    engine.conversation().show("first", PHOTO, View(Box(37, 41, 37 + 128, 41 + 64), 128, 64))
    assert_array_equal(backend.seen[0], PHOTO[41:105, 37:165])


def test_every_token_is_fed_once_in_order_at_its_position() -> None:
    engine, backend = fake_engine(calls_then_answers)
    talk = engine.conversation()
    whole: list[int] = []
    expected, position = [], 0
    turns = (("first", GLOBAL, 3, 5), ("crop", CROP, 1, 2), ("crop_final", CROP, 1, 2))
    said: list[Token] = []
    for turn, (request, view, rows, cols) in enumerate(turns):
        talk.show(request, PHOTO, view)  # type: ignore[arg-type]
        before, after = engine.requests[request]
        image = [IMAGE_BASE + i for i in range(rows * cols)]
        # Everything up to here has been fed, what was said in the turn before included.
        head, position = text_positions(position, len(said) + len(before))
        middle, position = image_positions(position, rows, cols)
        tail, position = text_positions(position, len(after))
        whole += [token.id for token in said] + before + image + after
        expected += [head, middle, tail]
        assert backend.caches[0].buffers["fed"] == whole
        assert talk.cache.length == len(whole)
        said = say(talk, after_crop=turn > 0, may_call=turn < 2)
        assert texts(said) == calls_then_answers(turn, request)
        # The end of the turn is said but not fed before the next step needs it.
        fed = backend.caches[0].buffers["fed"]
        assert fed == (whole + [token.id for token in said])[: len(fed)]
        assert len(whole) < len(fed) < len(whole) + len(said)
        assert said[-1].text == prompt.TURN_END
        assert talk.cache.length == len(fed)
    last, _ = text_positions(position, len(backend.caches[0].buffers["fed"]) - len(whole))
    positions = np.concatenate([part for _, part in backend.feeds], 1)
    assert_array_equal(positions, np.concatenate([*expected, last], 1))
    assert [token for tokens, _ in backend.feeds for token in tokens] == backend.caches[0].buffers["fed"]
    assert talk.cache.length == positions.shape[1]


def test_forced_tokens_cost_no_step_of_their_own() -> None:
    engine, backend = fake_engine(calls_then_answers)
    talk = engine.conversation()
    talk.show("first", PHOTO, GLOBAL)
    said = say(talk)
    # A call holds six choices: to call, four numbers, the label. The prefill serves the first of them.
    assert len(backend.feeds) == 1 + 5
    assert [tokens for tokens, _ in backend.feeds[1:]] == [
        ids([prompt.CALL_OPEN]),
        *(ids([number, prompt.COMMA]) for number in COORDS[:3]),
        ids([COORDS[3], prompt.CALL_LABEL]),
    ]
    forced = [token.probability for token in said if token.text in (prompt.COMMA, prompt.CALL_LABEL, prompt.TURN_END)]
    assert forced == [1.0] * 5


def test_a_bundle_that_wants_the_survey_gets_what_lies_under_each_view() -> None:
    contract = plain_contract()
    engine, backend = fake_engine(calls_then_answers, replace(contract, pixels=replace(contract.pixels, survey=True)))
    talk = engine.conversation()
    talk.show("first", PHOTO, GLOBAL)
    say(talk)
    talk.show("crop", PHOTO, View(Box(33, 64, 193, 192), 128, 128))
    whole = oracle.survey(PHOTO)
    for got, want in zip(backend.surveys, (whole, whole[2:6, 1:7]), strict=True):
        assert got is not None
        assert_same(got, want[None])
    plain, other = fake_engine(calls_then_answers)
    plain.conversation().show("first", PHOTO, GLOBAL)
    assert other.surveys == [None]


def judging_engine() -> tuple[Any, FakeBackend]:
    """A bundle whose photos are judged by an overview of at most 2 x 2 tokens."""
    contract = plain_contract()
    small = replace(contract.global_view, min_pixels=64**2, max_pixels=128**2)
    pixels = replace(contract.pixels, survey=True, overview=small)
    return fake_engine(calls_then_answers, replace(contract, pixels=pixels))


def test_a_large_photo_is_judged_once_by_a_small_picture_of_all_of_it() -> None:
    engine, backend = judging_engine()
    talk = engine.conversation()
    talk.show("first", PHOTO, GLOBAL)
    say(talk)
    crop = View(Box(33, 64, 193, 192), 128, 128)
    talk.show("crop", PHOTO, crop)
    overview, whole, part = backend.given
    small = (overview[PIXELS].shape[2], overview[PIXELS].shape[3])
    assert small[0] * small[1] <= 128**2 < GLOBAL.width * GLOBAL.height
    assert_same(backend.seen[0], oracle.resized(PHOTO, GLOBAL.box.as_list(), small[::-1]))
    assert_array_equal(overview[GLANCED], overview[PIXELS])
    assert_array_equal(overview[KNOWN], [[0.0]])
    judged = small[0] * small[1] / 64**2  # as the fake does
    for later in (whole, part):
        assert_array_equal(later[KNOWN], [[judged]])
        assert later[GLANCED].shape == (1, 3, 64, 64)
    assert_same(overview[SURVEY], whole[SURVEY])
    assert len(backend.caches) == 1
    assert backend.caches[0].length == len(backend.caches[0].buffers["fed"])
    plain, other = fake_engine(calls_then_answers)
    plain.conversation().show("first", PHOTO, GLOBAL)
    assert set(other.given[0]) == {PIXELS}


def test_a_small_photo_is_judged_by_its_view() -> None:
    engine, backend = judging_engine()
    talk, small = engine.conversation(), np.ascontiguousarray(PHOTO[:100, :120])
    talk.show("first", small, View(Box(0, 0, 120, 100), 128, 128))
    say(talk)
    talk.show("crop", small, View(Box(10, 10, 80, 80), 64, 64))
    assert len(backend.given) == 2
    assert_array_equal(backend.given[0][GLANCED], backend.given[0][PIXELS])
    assert_array_equal(backend.given[1][KNOWN], [[4.0]])


def test_two_conversations_share_nothing() -> None:
    alone, _ = fake_engine(calls_then_answers)
    single = alone.conversation()
    single.show("first", PHOTO, GLOBAL)
    expected = [texts(say(single))]
    single.show("crop", PHOTO, CROP)
    expected.append(texts(say(single, after_crop=True)))
    engine, backend = fake_engine(calls_then_answers)
    talks = [engine.conversation() for _ in range(2)]
    for talk in talks:
        talk.show("first", PHOTO, GLOBAL)
    assert [texts(say(talk)) for talk in talks] == [expected[0]] * 2
    for talk in talks:
        talk.show("crop", PHOTO, CROP)
    assert [texts(say(talk, after_crop=True)) for talk in reversed(talks)] == [expected[1]] * 2
    first, second = (made.buffers["fed"] for made in backend.caches)
    assert first == second == alone.backend.caches[0].buffers["fed"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("may_call", [True, False])
@pytest.mark.parametrize("after_crop", [True, False])
def test_what_the_grammar_forbids_is_never_said(after_crop: bool, may_call: bool) -> None:
    def plan(turn: int, request: str) -> list[Wanted]:
        return [*(prompt.spell_finding(None) if after_crop else []), *spelled_answer("2.7")]

    engine, backend = fake_engine(plan)
    # Allowed nowhere in such a turn, or somewhere else in it, and wanted most everywhere.
    backend.forbidden = ["<|endoftext|>", "<|im_start|>", prompt.TURN_END, prompt.CALL_LABEL]
    backend.forbidden += [] if may_call else [prompt.CALL_OPEN]
    talk = engine.conversation()
    talk.show("first", PHOTO, GLOBAL)
    if after_crop:
        talk.show("crop", PHOTO, CROP)
    said = texts(say(talk, after_crop=after_crop, may_call=may_call))
    assert said == plan(0, "")


def test_a_probability_is_among_what_is_allowed() -> None:
    def plan(turn: int, request: str) -> list[Wanted]:
        return [{prompt.CALL_OPEN: 2.0, prompt.ANSWER_OPEN: 1.0}, {"500": 3.0, "510": 2.5, "noise": 9.0}]

    engine, _ = fake_engine(plan)
    talk = engine.conversation()
    talk.show("first", PHOTO, GLOBAL)
    said = say(talk)
    assert said[0].text == prompt.CALL_OPEN
    assert said[0].probability == pytest.approx(math.e**2 / (math.e**2 + math.e))
    assert said[1].text == "500"
    assert said[1].probability == pytest.approx(math.e**3 / (math.e**3 + math.e**2.5 + 99))  # 101 numbers
    assert said[0].expected is said[1].expected is None


def test_a_score_is_the_mean_over_the_score_tokens_alone() -> None:
    weights = {"1.0": 1.0, "2.5": 2.0, "4.0": 3.0, "5.0": 0.5}
    shut = -60.0  # every other score token; e^-60 is nothing

    def plan(turn: int, request: str) -> list[Wanted]:
        logits = dict.fromkeys(plain_contract().language.score_tokens, shut)
        # Numbers of the coordinates, and anything else, must not count however likely they are.
        logits |= {"500": 9.0, "1000": 9.0, "noise": 9.0}
        logits |= {text: math.log(weight) for text, weight in weights.items()}
        return [prompt.ANSWER_OPEN, logits]

    engine, _ = fake_engine(plan)
    talk = engine.conversation()
    talk.show("first", PHOTO, GLOBAL)
    token = say(talk)[1]
    mean = 20.5 / 6.5  # (1*1 + 2*2.5 + 3*4 + 0.5*5) / (1 + 2 + 3 + 0.5)
    variance = (1 * (1 - mean) ** 2 + 2 * (2.5 - mean) ** 2 + 3 * (4 - mean) ** 2 + 0.5 * (5 - mean) ** 2) / 6.5
    assert token.text == "4.0"
    assert token.probability == pytest.approx(3 / 6.5)
    assert token.expected == pytest.approx((mean, math.sqrt(variance)))


def test_an_undecided_score_is_the_middle() -> None:
    engine, _ = fake_engine(lambda turn, request: [prompt.ANSWER_OPEN])
    talk = engine.conversation()
    talk.show("first", PHOTO, GLOBAL)
    token = say(talk, may_call=False)[1]
    # 41 tokens from 1.0 to 5.0 by 0.1: the variance of a discrete uniform is (41^2 - 1) / 12 steps of 0.01.
    assert token.expected == pytest.approx((3.0, math.sqrt(1680 / 12) * 0.1))
    assert token.probability == pytest.approx(1 / 41)


def test_attributes_and_only_scores_have_a_read_out() -> None:
    engine, _ = fake_engine(lambda turn, request: spelled_answer("1.5", [("noise", "slight", COORDS)]))
    talk = engine.conversation()
    talk.show("first", PHOTO, GLOBAL)
    said = say(talk, may_call=False)
    scores = set(plain_contract().language.score_tokens)
    assert {token.text in scores for token in said} == {True, False}
    for token in said:
        assert (token.expected is not None) == (token.text in scores), token
    means = [token.expected[0] for token in said if token.expected]
    # e^5 against 40 others at 1: pulled to the middle of the scale, as told by hand.
    pulled = [(value * math.e**5 + sum(range(10, 51)) / 10 - value) / (math.e**5 + 40) for value in (1.5, *[4.0] * 5)]
    assert means == pytest.approx(pulled)


def test_huge_logits_do_not_overflow() -> None:
    engine, _ = fake_engine(lambda turn, request: [prompt.ANSWER_OPEN, {"2.0": 3e38, "3.0": -3e38}])
    talk = engine.conversation()
    talk.show("first", PHOTO, GLOBAL)
    token = say(talk)[1]
    assert (token.text, token.probability, token.expected) == ("2.0", 1.0, (2.0, 0.0))


@pytest.mark.parametrize("spare", [0, 1])
def test_a_full_cache_ends_the_talk_with_advice(spare: int) -> None:
    roomy, _ = fake_engine(calls_then_answers)
    talk = roomy.conversation()
    talk.show("first", PHOTO, GLOBAL)
    prefilled = talk.cache.length
    say(talk)
    full = talk.cache.length
    engine, backend = fake_engine(calls_then_answers, max_tokens=full - 1 + spare)
    tight = engine.conversation()
    tight.show("first", PHOTO, GLOBAL)
    if spare:
        assert texts(say(tight)) == calls_then_answers(0, "first")
        assert tight.cache.room == 0
        with pytest.raises(EngineError, match=f"this model's cache holds {full}; lower --max-probes"):
            tight.show("crop", PHOTO, CROP)
    else:
        with pytest.raises(EngineError, match=f"needs {full} tokens and this model's cache holds {full - 1}"):
            say(tight)
    assert prefilled < tight.cache.length <= full - 1 + spare
    assert len(backend.caches) == 1


def test_time_is_booked_where_it_was_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    for module in ("engine", "vision", "spent"):
        monkeypatch.setattr(f"qcheck.{module}.time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Slow(FakeBackend):
        def step(self, *arguments: Any) -> Any:
            now[0] += 0.25
            return super().step(*arguments)

    engine, backend = fake_engine(calls_then_answers)
    slow = Slow(calls_then_answers, on_encode=lambda: now.__setitem__(0, now[0] + 2.0))
    slow.engine, engine.backend = engine, slow
    talk = engine.conversation()
    talk.show("first", PHOTO, GLOBAL)
    spent = talk.spent
    assert (spent.tiles, spent.vision, spent.prefill, spent.generate) == (0, 2000, 250, 0)
    say(talk)
    assert (spent.vision, spent.prefill, spent.generate) == (2000, 250, 5 * 250)
    assert not backend.feeds


@pytest.mark.parametrize("device", ["gpu", "CPU", ""])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(UsageError, match="must be one of auto, cpu, cuda, tensorrt"):
        Engine.open(None, device=device)  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_are_at_least_one(threads: int) -> None:
    with pytest.raises(UsageError, match=f"--threads {threads}: must be 1 or more"):
        Engine.open(None, threads=threads)  # type: ignore[arg-type]


def test_a_plan_is_followed_to_the_word() -> None:
    """The fake itself: without this, tests of the loop could agree with a model that says nothing."""
    plan: Plan = lambda turn, request: spelled_answer("1.2", [("color", "serious", COORDS)], "2.2")  # noqa: E731
    engine, _ = fake_engine(plan)
    talk = engine.conversation()
    talk.show("first_final", PHOTO, GLOBAL)
    assert texts(say(talk, may_call=False)) == plan(0, "first_final")


# Drawn numbers

VALUES = np.array([4.0, 1.0, 3.0, 2.0])  # as tokens lie, not as numbers do
LOGITS = np.log([0.4, 0.1, 0.3, 0.2])


@pytest.mark.parametrize(
    ("quantile", "value"), [(0.0, 1.0), (0.09, 1.0), (0.11, 2.0), (0.31, 3.0), (0.59, 3.0), (0.61, 4.0), (0.999, 4.0)]
)
def test_a_quantile_is_one_of_the_numbers_in_their_order(quantile: float, value: float) -> None:
    assert VALUES[Sampler(1.0, 0, quantile).number(LOGITS, VALUES)] == value


def test_only_the_first_number_of_a_run_is_a_quantile() -> None:
    sampler = Sampler(1.0, 0, 0.05)
    drawn = [VALUES[sampler.number(LOGITS, VALUES)] for _ in range(2000)]
    assert drawn[0] == 1.0
    assert np.mean(drawn) == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize(
    ("top_p", "left"),
    [(0.3, {4.0}), (0.4001, {3.0, 4.0}), (0.69, {3.0, 4.0}), (0.71, {2.0, 3.0, 4.0}), (1.0, {1, 2, 3, 4})],
)
def test_numbers_are_drawn_from_the_likeliest_alone(top_p: float, left: set[float]) -> None:
    sampler = Sampler(1.0, 3, None, top_p)
    drawn = [float(VALUES[sampler.number(LOGITS, VALUES)]) for _ in range(500)]
    assert set(drawn) == left
    if left == {3.0, 4.0}:
        assert np.mean(drawn) == pytest.approx(25 / 7, abs=0.1)


def test_heat_makes_numbers_alike() -> None:
    draws = [
        [VALUES[Sampler(heat, 0, at).number(LOGITS, VALUES)] for at in (0.2, 0.4, 0.6, 0.8)] for heat in (1e9, 1e-9)
    ]
    assert draws == [[1.0, 2.0, 3.0, 4.0], [4.0] * 4]
