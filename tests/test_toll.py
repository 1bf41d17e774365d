"""The toll: untaught it says one thing, it learns what damages cost, and several of them come to one score."""

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
glance, overviews = script("glance"), script("overviews")
visual = script("visual")
regions = script("regions")
Box = script("narrator").Box
RunError = script("runs").RunError

KINDS = 3


def places_of(strengths: list[float]) -> Any:
    """Places of views, (views, PROPOSALS, place_size): the first of each of these strengths, the others weaker."""
    places = torch.zeros(len(strengths), regions.PROPOSALS, regions.place_size(KINDS))
    places[..., 2:4] = 0.5
    places[..., 4] = torch.tensor(strengths)[:, None] - torch.arange(float(regions.PROPOSALS))
    return places


@torch.inference_mode()
def test_an_untaught_toll_says_one_thing() -> None:
    said = toll.Toll()(places_of([-3.0, 0.0, 5.0]))
    assert_allclose(said, np.full((3, 1), script("nano_spec").SCORE_CENTRE))


def test_it_learns_what_damages_cost() -> None:
    """Of two kinds of sample, one of them rare, and whole photos and crops: all of them weigh the same."""
    rng = np.random.default_rng(0)

    def some(count: int, height: float, crops: bool) -> Any:
        strengths = torch.tensor(rng.uniform(-2, 4, count), dtype=torch.float32)
        return readings.Readings(strengths, height - 0.4 * strengths, torch.full((count,), crops))

    one = toll.Toll()
    readings.learn_toll(one, [some(4000, 4.4, False), some(40, 3.6, True)])
    with torch.inference_mode():
        assert_allclose(one(places_of([-1.0, 0.0, 2.5]))[:, 0], [4.4, 4.0, 3.0], atol=0.03)


def test_views_of_one_strength_have_no_slope() -> None:
    one = toll.Toll()
    same = readings.Readings(torch.ones(3), torch.tensor([4.0, 3.0, 2.0]), torch.zeros(3, dtype=torch.bool))
    readings.learn_toll(one, [same])
    with torch.inference_mode():
        assert_allclose(one(places_of([-5.0, 5.0]))[:, 0], [3.0, 3.0], atol=1e-5)


def test_nothing_to_learn_from_is_an_error() -> None:
    none = readings.Readings(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    with pytest.raises(RunError, match="render more samples"):
        readings.learn_toll(toll.Toll(), [none])


@pytest.mark.parametrize(
    ("tolls", "score"),
    [([3.2], 3.2), ([4.0, 3.0], 3.125), ([3.0, 4.0, 4.0], 19 / 6), ([2.0, 2.0, 2.0], 2.0)],
)
def test_views_come_to_a_soft_minimum(tolls: list[float], score: float) -> None:
    assert toll.overall(tolls) == pytest.approx(score)


@pytest.mark.parametrize(
    ("places", "whole", "score"),
    [
        (2.0, 4.6, 2.0),  # a broken place of a good photo
        (4.6, 2.0, 2.0 - 0.15 * 2.6),  # nothing in a photo that is bad as a whole
        (4.6, 4.6, 4.6 - 0.3 * np.log(2)),
        (3.0, 3.6, 3.0 - 0.3 * np.log(1 + np.exp(-2)) - 0.15),
        (1.1, 1.0, 1.0),
    ],
)
def test_a_photo_is_no_better_than_its_places_nor_than_the_whole(places: float, whole: float, score: float) -> None:
    assert toll.judged([places], whole) == pytest.approx(score, abs=1e-3)
    assert toll.judged([places, places], whole) == pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize(
    ("tolls", "beliefs", "whole", "score"),
    [
        ([2.0], [0.0], 4.0, 4.0),  # a place that is none
        ([2.0], [1.0], 4.0, 2.0),
        ([2.0, 3.0], [0.25, 1.0], 4.0, 3.0),  # the worse by what is believed
        ([4.5, 4.2], [1.0, 1.0], 4.0, 4.0),
    ],
)
def test_a_small_photo_is_as_good_as_the_whole_unless_a_place_is_believed_broken(
    tolls: list[float], beliefs: list[float], whole: float, score: float
) -> None:
    assert toll.judged_small(tolls, beliefs, whole) == pytest.approx(score)


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
        seen, rows = overviews.written(rng.normal(size=glance.CHANNELS)), 2 + 2 * (number % 2)
        views = [
            ({"role": role, "box": box, overviews.GLANCE: seen}, rng.normal(size=(rows, 4, cells.CELL_CHANNELS)))
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
    for number, strength in zip((0, 1), (seen.strengths[0], seen.strengths[3]), strict=True):
        view = torch.from_numpy(items[number].read(0).astype(np.float32))
        (evidence,) = visual.perceived(eyes, [view], [overviews.whole_of(items[number], 0)])
        assert_allclose(strength, evidence.proposals.strengths.max(), atol=1e-4)
    assert [len(part.tolls) for part in seen.groups()] == [5, 6]
