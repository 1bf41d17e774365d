"""The probing loop on a fake engine: how often it looks, where, at which pixels, and what it makes of the words."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import IMAGE_BASE, FakeBackend, Plan, Wanted, fake_engine, plain_contract, spelled_answer, where
from jsonschema import validate

from qcheck import prompt
from qcheck.errors import EngineError, UsageError
from qcheck.photo import Photo
from qcheck.probe import Limits, Prober, merged
from qcheck.tiles import Box, CropSpec
from qcheck.verdict import Defect, Verdict, schema

WIDTH, HEIGHT = 2000, 1500
# Every other pixel black: averaged away at any smaller scale, so that only original pixels are these.
CHECKERS = np.repeat((np.indices((HEIGHT, WIDTH)).sum(0) % 2 * 255).astype(np.uint8)[:, :, None], 3, 2)
COORDS = ("400", "400", "500", "500")
# That is [800, 600, 1000, 750]; with its margin smaller than a crop may be, so 448 x 448 around its middle.
CROP = Box(676, 451, 1124, 899)


def photo(width: int = WIDTH, height: int = HEIGHT) -> Photo:
    return Photo("a.jpg", CHECKERS[:height, :width])


def always_calls(turn: int, request: str) -> list[Wanted]:
    looked = prompt.spell_finding(None) if turn else []
    if request.endswith("final"):
        # It still wants the call; the grammar is what holds it back.
        return [*looked, {prompt.CALL_OPEN: 50.0, prompt.ANSWER_OPEN: 1.0}, *spelled_answer()[1:]]
    return [*looked, *prompt.spell_call(COORDS, "noise")]


def judge(plan: Plan, limits: Limits, of: Photo | None = None) -> tuple[Verdict, FakeBackend]:
    engine, backend = fake_engine(plan)
    return Prober(engine).judge(of or photo(), limits), backend


def test_a_photo_that_was_decoded_smaller_is_shown_whole_and_keeps_its_size() -> None:
    half = Photo("a.jpg", np.ascontiguousarray(CHECKERS[::2, ::2]), 2, (WIDTH, HEIGHT))
    defect = [("noise", "slight", COORDS)]
    verdict, backend = judge(lambda *_: spelled_answer(defects=defect), Limits(0), half)
    assert (verdict.width, verdict.height, verdict.decode_scale) == (WIDTH, HEIGHT, 2)
    assert verdict.defects[0].box == Box(800, 600, 1000, 750)
    # Every other pixel of the checkers is black, and so is every view of them.
    assert [view.max() for view in backend.seen] == [0]
    assert backend.seen[0].shape == judge(lambda *_: spelled_answer(), Limits(0))[1].seen[0].shape


def requests(backend: FakeBackend) -> list[str]:
    """The requests of the talk, in order, read back from what was fed."""
    fed: list[int] = backend.caches[0].buffers["fed"]
    found: dict[int, str] = {}
    for end in range(1, len(fed) + 1):
        try:
            turn, request, _ = where(backend.engine, fed[:end])
        except (AssertionError, ValueError):
            continue
        found.setdefault(turn, request)
    return [found[turn] for turn in sorted(found)]


def test_no_probe_means_one_look_and_no_call() -> None:
    verdict, backend = judge(always_calls, Limits(0))
    assert requests(backend) == ["first_final"]
    assert verdict.probes == ()
    assert (verdict.budget.max_probes, verdict.budget.used, verdict.budget.stopped_by) == (0, 0, "max_probes")
    assert len(backend.seen) == 1


@pytest.mark.parametrize("cap", [1, 2, 3])
def test_the_cap_holds_for_a_model_that_never_has_enough(cap: int) -> None:
    verdict, backend = judge(always_calls, Limits(cap))
    assert requests(backend) == ["first", *["crop"] * (cap - 1), "crop_final"]
    assert len(verdict.probes) == verdict.budget.used == cap
    assert verdict.budget.max_probes == cap
    assert verdict.budget.stopped_by == "max_probes"
    assert len(backend.seen) == 1 + cap
    assert {probe.box for probe in verdict.probes} == {CROP}


@pytest.mark.parametrize("used", [0, 1, 2])
def test_a_model_that_has_seen_enough_stops_by_itself(used: int) -> None:
    def plan(turn: int, request: str) -> list[Wanted]:
        looked = prompt.spell_finding(None) if turn else []
        return [*looked, *(prompt.spell_call(COORDS, "color") if turn < used else spelled_answer())]

    verdict, backend = judge(plan, Limits(3))
    assert (verdict.budget.used, verdict.budget.stopped_by) == (used, "model")
    assert requests(backend) == ["first", *["crop"] * used]
    assert [probe.label for probe in verdict.probes] == ["color"] * used


# Sampled runs


def wavers(turn: int, request: str) -> list[Wanted]:
    """As likely to look as not, at one place, where it finds nothing; after a look it thinks better of the photo."""
    looked = prompt.spell_finding(None) if turn else []
    if turn == 0:
        return [{prompt.CALL_OPEN: 5.0, prompt.ANSWER_OPEN: 4.9}, *prompt.spell_call(COORDS, "noise")[1:]]
    return [*looked, prompt.ANSWER_OPEN, {"2.0": 60.0, "4.0": 60.0 + turn}, *spelled_answer()[2:]]


def test_rollouts_leave_the_greedy_run_as_it_is() -> None:
    alone, _ = judge(wavers, Limits(2))
    again, backend = judge(wavers, Limits(2, rollouts=8))
    first = alone.record(), again.record()
    rollouts = first[1].pop("rollouts")
    for record in first:
        record.pop("timing_ms")
    assert first[0] == first[1]
    assert rollouts["k"] == len(rollouts["scores"]) == 8
    assert rollouts["score_mean"] == pytest.approx(np.mean(rollouts["scores"]), abs=1e-3)
    assert rollouts["score_std"] == pytest.approx(np.std(rollouts["scores"]), abs=1e-3)
    assert rollouts["score_std"] > 0, "every run said the same"
    validate(again.record(), schema())
    # Everything that was looked at went through the vision graph once, and the global view through the decoder once.
    assert len(backend.seen) == len({view.tobytes() for view in backend.seen})
    assert len(backend.caches) == 1
    views = [tokens for tokens, _ in backend.feeds if any(t >= IMAGE_BASE for t in tokens)]
    assert sum(len(tokens) > 150 for tokens in views) == 1


def test_rollouts_are_the_same_every_time() -> None:
    one, other = (judge(wavers, Limits(2, rollouts=5))[0].rollouts for _ in range(2))
    assert one == other
    more = judge(wavers, Limits(2, rollouts=8))[0].rollouts
    assert one is not None
    assert more is not None
    assert more.scores[:5] == one.scores


@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_a_rollout_tells_the_score_that_it_drew(top_p: float) -> None:
    """Evenly: of 5 runs over a flat distribution one in each fifth, so that few of them tell how wide it is."""
    flat = lambda *_: [prompt.ANSWER_OPEN, {f"{n / 10:.1f}": 40.0 for n in range(10, 51)}, *spelled_answer()[2:]]  # noqa: E731
    engine, _ = fake_engine(flat, plain_contract(rollout_top_p=top_p))
    rollouts = Prober(engine).judge(photo(), Limits(0, rollouts=5)).rollouts
    assert rollouts is not None
    assert all(score == round(score, 1) for score in rollouts.scores), "an expected value, which nobody said"
    assert len(set(rollouts.scores)) == 5
    assert np.std(rollouts.scores) == pytest.approx(top_p * 4.1 / math.sqrt(12), rel=0.1)


def test_too_many_rollouts_and_a_budget_are_refused() -> None:
    for limits, message in (({"rollouts": 65}, "must be 0 to 64"), ({"rollouts": 2, "budget_ms": 9.0}, "exclude")):
        with pytest.raises(UsageError, match=message):
            Limits(**limits)  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which only a test moves."""
    now = [100.0]
    for module in ("probe", "engine", "vision", "spent"):
        monkeypatch.setattr(f"qcheck.{module}.time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


@pytest.mark.parametrize(
    ("budget_ms", "decode_ms", "used"),
    [
        # A turn takes 125 ms, and a crop is made if it would be done by the end of the budget.
        (1.0, 0.0, 0),  # the first look alone has eaten it: the call is taken back
        (249.0, 0.0, 0),
        (250.0, 0.0, 1),
        (374.0, 0.0, 1),
        (375.0, 0.0, 2),
        (501.0, 0.0, 3),
        (501.0, 125.0, 2),
        (376.0, 375.5, 0),  # decoding has
    ],
)
def test_no_new_crop_that_would_not_fit(clock: list[float], budget_ms: float, decode_ms: float, used: int) -> None:
    def tick() -> None:
        clock[0] += 0.125

    engine, _ = fake_engine(always_calls, on_encode=tick)
    verdict = Prober(engine).judge(photo(), Limits(5, budget_ms), decode_ms=decode_ms)
    assert (verdict.budget.used, verdict.budget.stopped_by) == (used, "budget_ms")
    timing = verdict.timing_ms
    assert timing.decode == decode_ms
    assert timing.vision == pytest.approx(125 * (1 + used))
    assert timing.total == pytest.approx(decode_ms + 125 * (1 + used))


def test_the_budget_does_not_matter_where_the_cap_is_lower(clock: list[float]) -> None:
    verdict, _ = judge(always_calls, Limits(1, 1e9))
    assert (verdict.budget.used, verdict.budget.stopped_by) == (1, "max_probes")


def test_crops_are_cut_from_the_original_pixels() -> None:
    verdict, backend = judge(always_calls, Limits(1))
    view, crop = backend.seen
    assert crop.shape == (448, 448, 3)
    assert_array_equal(crop, CHECKERS[CROP.y1 : CROP.y2, CROP.x1 : CROP.x2])
    assert verdict.probes[0].seen_px == (448, 448)
    assert view.shape[0] * view.shape[1] <= 1024 * 768
    # The whole view is 0.51 of the original's size, so single pixels are gone from it.
    assert np.abs(view[8:-8, 8:-8].astype(int) - 127).max() < 100


def test_a_large_box_is_shown_smaller_and_says_so() -> None:
    def plan(turn: int, request: str) -> list[Wanted]:
        if request == "first":
            return list(prompt.spell_call(("0", "0", "1000", "1000"), "noise"))
        return [*prompt.spell_finding(None), *spelled_answer()]

    verdict, backend = judge(plan, Limits(1))
    assert verdict.probes[0].box == Box(0, 0, WIDTH, HEIGHT)
    height, width = backend.seen[1].shape[:2]
    assert verdict.probes[0].seen_px == (width, height)
    assert width * height <= 512 * 512


def test_boxes_come_back_in_photo_pixels() -> None:
    found = ("250", "500", "750", "1000")
    named = ("100", "200", "300", "400")

    def plan(turn: int, request: str) -> list[Wanted]:
        if request == "first":
            return list(prompt.spell_call(COORDS, "noise"))
        return [
            *prompt.spell_finding(("noise", "obvious", found)),
            *spelled_answer("2.0", [("color", "slight", named)]),
        ]

    verdict, _ = judge(plan, Limits(1))
    boxes = {defect.kind: defect.box for defect in verdict.defects}
    # Of the crop's 448 pixels: a quarter, a half, three quarters, all.
    assert boxes["noise"] == Box(676 + 112, 451 + 224, 676 + 336, 451 + 448)
    assert boxes["color"] == Box(200, 300, 600, 600)
    levels = {defect.kind: defect.level for defect in verdict.defects}
    assert levels == {"noise": "obvious", "color": "slight"}
    assert [d.confidence for d in verdict.defects] == sorted((d.confidence for d in verdict.defects), reverse=True)
    assert verdict.reasoning == "Crop 1 (noise?): obvious noise. Whole view: slight color."
    assert verdict.probes[0].finding == "obvious noise"


def test_absolute_coordinates_are_pixels_of_the_view() -> None:
    contract = plain_contract(coordinates="view_pixels")
    named = ("100", "200", "500", "600")
    engine, backend = fake_engine(lambda turn, request: spelled_answer("2.0", [("color", "slight", named)]), contract)
    verdict = Prober(engine).judge(photo(), Limits(0))
    height, width = backend.seen[0].shape[:2]
    x, y = WIDTH / width, HEIGHT / height
    expected = Box(math.floor(100 * x), math.floor(200 * y), math.ceil(500 * x), math.ceil(600 * y))
    assert verdict.defects[0].box == expected


def test_a_call_beside_the_photo_looks_at_the_whole() -> None:
    contract = plain_contract(coordinates="view_pixels")
    small = photo(256, 256)  # its view is as large as itself, and the numbers go up to 1000

    def plan(turn: int, request: str) -> list[Wanted]:
        if request == "first":
            return list(prompt.spell_call(("900", "900", "1000", "1000"), "noise"))
        found = ("noise", "slight", ("900", "900", "1000", "1000"))
        return [*prompt.spell_finding(found), *spelled_answer("3.0", [("color", "slight", ("300", "0", "900", "10"))])]

    engine, _ = fake_engine(plan, contract)
    verdict = Prober(engine).judge(small, Limits(1))
    assert verdict.probes[0].box == Box(0, 0, 256, 256)
    assert verdict.defects == (), "a box beside the picture is nowhere"


@pytest.mark.parametrize(
    ("coords", "box"),
    [
        (("500", "400", "400", "500"), Box(800, 600, 1000, 750)),  # corners swapped
        (("500", "500", "500", "500"), Box(1000, 750, 1001, 751)),  # a point
        (("1000", "1000", "1000", "1000"), Box(1999, 1499, 2000, 1500)),
        (("0", "0", "0", "1000"), Box(0, 0, 1, 1500)),
    ],
)
def test_degenerate_boxes_keep_at_least_a_pixel(coords: tuple[str, ...], box: Box) -> None:
    def plan(turn: int, request: str) -> list[Wanted]:
        if request == "first":
            return list(prompt.spell_call(coords, "noise"))
        return [*prompt.spell_finding(None), *spelled_answer("3.0", [("color", "slight", coords)])]

    verdict, backend = judge(plan, Limits(1))
    assert verdict.defects[0].box == box
    crop = verdict.probes[0].box
    assert crop.width >= 448
    assert crop.height >= 448
    assert 0 <= crop.x1 <= box.x1
    assert box.x2 <= crop.x2 <= WIDTH
    assert 0 <= crop.y1 <= box.y1
    assert box.y2 <= crop.y2 <= HEIGHT
    assert backend.seen[1].shape[1::-1] == verdict.probes[0].seen_px


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 1500), (2000, 5)])
def test_tiny_and_thin_photos_go_through_the_whole_loop(width: int, height: int) -> None:
    verdict, backend = judge(always_calls, Limits(2), photo(width, height))
    assert verdict.budget.used == 2
    for probe in verdict.probes:
        assert 0 <= probe.box.x1 < probe.box.x2 <= width
        assert 0 <= probe.box.y1 < probe.box.y2 <= height
    assert all(side % 64 == 0 and side > 0 for view in backend.seen for side in view.shape[:2])


def test_another_aim_is_obeyed() -> None:
    asked: list[tuple[Box, CropSpec, int, int]] = []

    def corner(target: Box, spec: CropSpec, width: int, height: int) -> Box:
        asked.append((target, spec, width, height))
        return Box(0, 0, 64, 128)

    engine, backend = fake_engine(always_calls)
    verdict = Prober(engine, aim=corner).judge(photo(), Limits(1))
    assert asked == [(Box(800, 600, 1000, 750), plain_contract().crop, WIDTH, HEIGHT)]
    assert verdict.probes[0].box == Box(0, 0, 64, 128)
    assert_array_equal(backend.seen[1], CHECKERS[:128, :64])


def test_its_doubt_is_as_wide_as_the_contract_makes_it() -> None:
    plain, scaled = (
        Prober(fake_engine(lambda turn, request: spelled_answer("3.2", ()), contract)[0]).judge(photo(), Limits(0))
        for contract in (plain_contract(), plain_contract(score_std_scale=0.5))
    )
    assert plain.score_std > 0.1
    assert scaled.score_std == pytest.approx(plain.score_std / 2)
    assert scaled.score == plain.score


def test_the_verdict_says_what_the_answer_says() -> None:
    sharp: Callable[[str], Wanted] = lambda text: {text: 80.0}  # noqa: E731
    answer = [sharp(w) if isinstance(w, str) and w[1:2] == "." else w for w in spelled_answer("4.4", (), "2.3")]
    verdict, _ = judge(lambda turn, request: answer, Limits(3))
    assert verdict.score == pytest.approx(4.4)
    assert verdict.score_std == pytest.approx(0, abs=1e-6)
    assert verdict.attributes == pytest.approx(dict.fromkeys(plain_contract().attributes, 2.3))
    assert (verdict.path, verdict.width, verdict.height, verdict.decode_scale) == ("a.jpg", WIDTH, HEIGHT, 1)
    assert verdict.model.name == "fake"
    assert verdict.engine.provider == "fake"
    assert verdict.reasoning == ""


def test_a_photo_is_judged_the_same_whatever_came_before() -> None:
    engine, backend = fake_engine(always_calls)
    prober = Prober(engine)
    records = []
    for width in (WIDTH, 300, WIDTH):
        record = prober.judge(photo(width), Limits(2)).record()
        records.append({name: value for name, value in record.items() if name != "timing_ms"})
    assert records[0] == records[2] != records[1]
    assert len(backend.caches) == 3, "one cache a photo"
    assert backend.caches[0].buffers["fed"] == backend.caches[2].buffers["fed"]


def test_a_full_cache_is_an_engine_error_and_no_score() -> None:
    engine, _ = fake_engine(always_calls, max_tokens=330)  # the whole view fits, with one crop; the second does not
    with pytest.raises(EngineError, match="this model's cache holds 330; lower --max-probes"):
        Prober(engine).judge(photo(), Limits(5))
    assert Prober(engine).judge(photo(), Limits(0)).budget.used == 0


# Limits


@pytest.mark.parametrize("probes", [-1, 65, 10**9])
def test_impossible_numbers_of_probes(probes: int) -> None:
    with pytest.raises(UsageError, match=f"--max-probes {probes}: must be 0 to 64"):
        Limits(probes)


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan, math.inf])
def test_impossible_budgets(budget: float) -> None:
    with pytest.raises(UsageError, match=r"--budget-ms .*: must be more than 0"):
        Limits(3, budget)


def test_possible_limits() -> None:
    assert (Limits().max_probes, Limits().budget_ms) == (3, None)
    assert (Limits(0).max_probes, Limits(64, 0.001).budget_ms) == (0, 0.001)


# merged


def defect(x: int, confidence: float, kind: str = "noise", size: int = 100, level: str = "slight") -> Defect:
    return Defect(kind, level, Box(x, 0, x + size, 100), confidence)


def test_nothing_is_merged_into_nothing() -> None:
    assert merged([]) == ()


def test_defects_are_sorted_and_at_most_four() -> None:
    defects = [defect(1000 * i, confidence) for i, confidence in enumerate((0.2, 0.9, 0.5, 0.7, 0.1, 0.6))]
    assert [d.confidence for d in merged(defects)] == [0.9, 0.7, 0.6, 0.5]


def test_of_equal_confidence_the_first_stays_first() -> None:
    defects = [defect(1000, 0.5), defect(0, 0.5)]
    assert merged(defects) == tuple(defects)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (defect(0, 0.9), True),
        (defect(53, 0.9), True),  # IoU 47 / 153 = 0.307
        (defect(54, 0.9), False),  # IoU 46 / 154 = 0.2987, and 0.46 of the smaller
        (defect(0, 0.9, size=10), True),  # inside the other, IoU 0.1
        (defect(94, 0.9, size=10), True),  # six tenths of the small one
        (defect(95, 0.9, size=10), False),
        (defect(0, 0.9, size=1000), True),  # around the other
        (defect(100, 0.9), False),  # side by side
        (defect(0, 0.9, kind="color"), False),
    ],
)
def test_one_place_and_kind_is_one_defect(other: Defect, same: bool) -> None:
    first = defect(0, 0.4, level="serious")
    expected = (other,) if same else (other, first)
    assert merged([first, other]) == expected
    assert merged([other, first]) == expected


def test_repeats_do_not_use_up_the_four() -> None:
    repeats = [defect(0, 0.9 - i / 100) for i in range(6)]
    others = [defect(1000 * (i + 1), 0.1) for i in range(3)]
    assert merged(repeats + others) == (repeats[0], *others)


def test_a_crop_and_the_whole_view_that_agree_are_one_defect() -> None:
    def plan(turn: int, request: str) -> list[Wanted]:
        if request == "first":
            return list(prompt.spell_call(COORDS, "noise"))
        finding = prompt.spell_finding(("noise", "obvious", ("280", "330", "720", "670")))
        return [*finding, *spelled_answer("2.0", [("noise", "slight", COORDS)])]

    verdict, _ = judge(plan, Limits(1))
    assert len(verdict.defects) == 1
    # The finding is the surer of the two: naming a defect at all is a choice of its own in the answer.
    assert verdict.defects[0].level == "obvious"
    assert verdict.defects[0].box == Box(801, 598, 999, 752)
