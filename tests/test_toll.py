"""The toll: untaught it says one thing, its inputs hold what was read, and it learns what damages cost."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script

torch = library("torch")
readings = script("readings")
samples = script("samples")
stores = script("stores")
toll = script("toll")
cells = script("cells")
glance = script("glance")
visual = script("visual")
regions = script("regions")
Box = script("narrator").Box
RunError = script("runs").RunError

KINDS = 3
SIZE = toll.toll_size(KINDS)


def untaught() -> Any:
    torch.manual_seed(0)
    return toll.Toll(KINDS)


def places_of(odds: list[float], severity: float) -> Any:
    """Places of views, (views, PROPOSALS, place_size): a quarter of the view with these log odds, and two more with one
    less each."""
    places = torch.zeros(len(odds), regions.PROPOSALS, regions.place_size(KINDS))
    places[..., 2:4] = 0.5
    places[..., 4] = torch.tensor(odds)[:, None] - torch.arange(float(regions.PROPOSALS))
    places[..., -1] = severity
    return places


def views_of(odds: list[float], severity: float = 0.5, rows: int = 2, cols: int = 3) -> Any:
    """Inputs of views whose tokens all have these log odds of one kind of damage."""
    kinds = torch.full((len(odds), rows, cols, 1 + KINDS), -30.0)
    kinds[..., 0] = 0
    kinds[..., 1] = torch.tensor(odds)[:, None, None]
    severities, scores = torch.full((len(odds), rows, cols, 1), severity), torch.full((len(odds), 1), 3.5)
    return toll.Toll.inputs(kinds, severities, scores, places_of(odds, severity))


@torch.inference_mode()
def test_an_untaught_toll_says_one_thing() -> None:
    assert_allclose(untaught().eval()(torch.randn(5, SIZE)), np.full((5, 1), script("nano_spec").SCORE_CENTRE))


@torch.inference_mode()
def test_inputs_hold_what_was_read() -> None:
    rows = views_of([-2.0, 3.0], severity=0.5)
    assert rows.shape == (2, SIZE)
    odds, chance = np.array([-2.0, 3.0]), 1 / (1 + np.exp([2.0, -3.0]))
    for column, by in enumerate(toll.SHARPNESSES):
        assert_allclose(rows[:, column], odds + np.log(6) / by, atol=1e-4)
    after = len(toll.SHARPNESSES)
    truth = [
        odds,
        odds,
        odds.clip(0),
        chance,
        np.log(6 * chance),
        chance / 2,
        chance / 2,
        np.log(3 * chance),
        [0.5, 0.5],
        np.full(2, np.log2(6 / script("nano_spec").COUNT_UNIT)),
        [0.5, 0.5],
    ]
    assert_allclose(rows[:, after : after + len(truth)].T, truth, atol=1e-4)
    kinds, places = rows[:, after + len(truth) :].split((2 * KINDS, 4 * regions.PROPOSALS), 1)
    assert_allclose(kinds[:, [0, KINDS]], np.stack((odds, odds), 1), atol=1e-4)
    assert (kinds[:, [1, 2]] == -30).all()
    met = odds[:, None] - np.arange(regions.PROPOSALS)
    truth = [met, np.full((2, 3), 0.5), 0.5 / (1 + np.exp(-met)), np.full((2, 3), np.log(0.25))]
    assert_allclose(places, np.concatenate(truth, 1), atol=1e-4)


@torch.inference_mode()
def test_order_of_tokens_does_not_matter() -> None:
    kinds, severity, score = torch.randn(1, 4, 6, 1 + KINDS), torch.rand(1, 4, 6, 1), torch.tensor([[3.0]])
    order = torch.randperm(24)
    mixed = (part.flatten(1, 2)[:, order].unflatten(1, (4, 6)) for part in (kinds, severity))
    more = (score, places_of([1.0], 0.3))
    assert_allclose(toll.Toll.inputs(*mixed, *more), toll.Toll.inputs(kinds, severity, *more), atol=1e-4)


@pytest.mark.parametrize("odds", [-60.0, 60.0])
@torch.inference_mode()
def test_inputs_are_finite(odds: float) -> None:
    assert torch.isfinite(views_of([odds], rows=1, cols=1)).all()


def test_it_learns_what_damages_cost() -> None:
    """Of two kinds of sample, one of them rare: both are learned."""
    rng = np.random.default_rng(0)

    def some(count: int, low: float, crops: bool) -> Any:
        odds = rng.uniform(low, low + 4, count)
        truth = torch.tensor(4.6 - 0.5 * (odds + 4), dtype=torch.float32)
        return readings.Readings(views_of(odds.tolist()), truth, torch.full((count,), crops))

    torch.manual_seed(0)
    one = untaught()
    readings.learn_toll(one, [some(400, -4, False), some(12, 0, True)], 400, 4e-3, rng)
    assert not one.training
    with torch.inference_mode():
        assert_allclose(one(views_of([-3.0, -1.0, 1.0, 3.0]))[:, 0], [4.1, 3.1, 2.1, 1.1], atol=0.35)


def test_nothing_to_learn_from_is_an_error() -> None:
    none = readings.Readings(torch.zeros(0, SIZE), torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    with pytest.raises(RunError, match="render more samples"):
        readings.learn_toll(untaught(), [none], 2, 1e-3, np.random.default_rng(0))


DEFECT = {"kind": "noise", "level": 3, "box": [100, 100, 300, 200], "cost": 0.5}


@pytest.mark.parametrize(
    ("box", "truth"),
    [
        ([0, 0, 1000, 800], 2.8),  # 1 + 3.6 / 2
        ([0, 0, 200, 300], 2.8),  # half of it
        ([120, 120, 180, 180], 2.8),  # is filled by it
        ([0, 0, 110, 300], None),  # an edge
        ([400, 0, 700, 300], 4.6),
    ],
)
def test_a_view_is_charged_for_what_it_shows(box: list[int], truth: float | None) -> None:
    known = samples.toll_of({"width": 1000, "height": 800, "defects": [DEFECT]}, Box(*box))
    assert known == (None if truth is None else pytest.approx(truth))


@torch.inference_mode()
def test_every_view_is_read_with_its_toll(tmp_path: Path) -> None:
    """In order, whatever their sizes; edges are left out."""
    writer = stores.Store(tmp_path, "local-0", cells.CELL_CHANNELS, np.float16).writer()
    boxes = {"global": [0, 0, 1000, 800], "edge": [0, 0, 110, 300], "crop": [400, 0, 700, 300]}
    rng = np.random.default_rng(0)
    for number in range(5):
        seen, rows = glance.written(rng.normal(size=glance.CHANNELS)), 2 + 2 * (number % 2)
        views = [
            ({"role": role, "box": box, glance.KEY: seen}, rng.normal(size=(rows, 4, cells.CELL_CHANNELS)))
            for role, box in boxes.items()
        ]
        views = [(about, view.astype(np.float16)) for about, view in views]
        writer.add({"split": "train", "width": 1000, "height": 800, "defects": [DEFECT] if number else []}, iter(views))
    writer.close()
    torch.manual_seed(0)
    eyes = visual.Perception(KINDS).eval()
    items = stores.items_of(tmp_path, "local", cells.CELL_CHANNELS, np.float16)
    seen = readings.readings_of(eyes, items)
    # The first photo is sound: what is an edge in the others is a clean view of it.
    assert seen.tolls.tolist() == pytest.approx([4.6] * 3 + [2.8, 4.6] * 4)
    assert seen.crops.tolist() == [False, True, True] + [False, True] * 4
    whole = [seen.inputs[0], seen.inputs[3]]
    for number, row in zip((0, 1), whole, strict=True):
        glanced = glance.glance_of(items[number].sample["views"][0])
        view = torch.from_numpy(items[number].read(0).astype(np.float32))
        (evidence,) = visual.perceived(eyes, [view], [glanced])
        seen_of = (evidence.kinds, evidence.severity, evidence.score, evidence.places)
        inputs = toll.Toll.inputs(*(part[None] for part in seen_of))
        assert_allclose(row, inputs[0], atol=1e-4)
    assert [len(part.tolls) for part in seen.groups()] == [5, 6]
