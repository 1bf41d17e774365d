"""Rectangles of a view: the scan finds the best, what is pooled in them is there, and boxes stay in the view."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script

torch = library("torch")
scan = script("scan")
regions = script("regions")
candidates = script("candidates")
cells = script("cells")
samples = script("samples")
RunError = script("runs").RunError
Box = script("narrator").Box

KINDS = 3
OPINIONS = 2


def best_rectangle(odds: Any) -> tuple[float, tuple[int, int, int, int]]:
    """Of all sums over rectangles the greatest, the slow way."""
    rows, cols = odds.shape
    return max(
        (float(odds[y1:y2, x1:x2].sum()), (x1, y1, x2, y2))
        for y1 in range(rows)
        for y2 in range(y1 + 1, rows + 1)
        for x1 in range(cols)
        for x2 in range(x1 + 1, cols + 1)
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1), (5, 7), (8, 8)])
@pytest.mark.parametrize("seed", range(3))
def test_a_scan_finds_the_best_rectangles(size: tuple[int, int], seed: int) -> None:
    """Of each of several maps, in order."""
    maps = np.random.default_rng(seed).normal(-0.5, 1, (2, *size)).astype(np.float32)
    for left, boxes in zip(maps.astype(np.float64), scan.scanned(torch.from_numpy(maps), 3), strict=True):
        for x1, y1, x2, y2 in boxes.tolist():
            assert left[y1:y2, x1:x2].sum() == pytest.approx(best_rectangle(left)[0], abs=1e-3)
            left[y1:y2, x1:x2] = scan.LEAST


def test_weak_evidence_adds_up() -> None:
    """No token of the damage is as suspicious as the one that stands alone."""
    odds = torch.full((1, 10, 12), -2.0)
    odds[0, 2:6, 3:8], odds[0, 8, 10] = 0.7, 2.5
    assert scan.scanned(odds, 2).tolist() == [[[3, 2, 8, 6], [10, 8, 11, 9]]]


def maps_of(rows: int, cols: int, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    sizes = ((), (OPINIONS,), (1 + KINDS,), (1,), (cells.CELL_CHANNELS,))
    return regions.Maps(*(torch.randn(rows, cols, *size) for size in sizes), torch.tensor([-1.0]))


def untaught() -> Any:
    torch.manual_seed(1)
    return regions.Regions(KINDS, OPINIONS).eval()


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (6, 9)])
@torch.inference_mode()
def test_untaught_regions_say_what_the_scan_does(size: tuple[int, int]) -> None:
    maps = maps_of(*size)
    places = untaught()(maps)
    assert places.shape == (regions.PROPOSALS, regions.place_size(KINDS))
    found = regions.Proposals.of(places)
    first = scan.scanned((regions.standing_out(maps.odds) - 0.5)[None], 1)[0, 0]
    unit = torch.tensor([size[1], size[0]] * 2)
    assert_allclose(found.boxes[0] * unit, first, atol=1e-5)
    assert (found.strengths == 0).all()
    assert_allclose(found.kinds, 1 / (1 + KINDS), atol=1e-6)
    assert_allclose(found.levels, 1 / regions.LEVELS, atol=1e-6)


@torch.inference_mode()
def test_candidates_stand_out_from_their_view() -> None:
    """What is far from likely is a candidate where the rest is less likely still; so is what the survey shows alone."""
    maps = maps_of(8, 9)
    maps.odds[:] = -6 + 0.1 * torch.randn(8, 9)
    maps.odds[2:5, 1:4] = -3.0
    maps.features[..., -cells.SURVEY_CHANNELS :] *= 0.1
    maps.features[5:8, 6:9, -cells.SURVEY_CHANNELS :] = 4.0
    found = regions.candidates_of(maps).tolist()
    assert len(found) == regions.CANDIDATES
    assert [1, 2, 4, 5] in found
    assert [6, 5, 9, 8] in found


@torch.inference_mode()
def test_what_is_pooled() -> None:
    """A rectangle of whole tokens and one whose sides cut tokens: the same as by hand."""
    rows, cols = 7, 8
    maps = maps_of(rows, cols)
    whole, cut = [3.0, 2.0, 5.0, 5.0], [2.5, 1.0, 4.0, 3.25]
    readings, features = regions.pooled(maps, torch.tensor([whole, cut]))
    assert readings.shape == (2, regions.region_size(KINDS, OPINIONS))
    own, against = features.split(cells.CELL_CHANNELS, 1)
    inside = maps.features[2:5, 3:5].mean((0, 1))
    around = (maps.features[0:7, 1:7].sum((0, 1)) - maps.features[2:5, 3:5].sum((0, 1))) / (42 - 6)
    assert_allclose(own[0], inside, atol=1e-5)
    assert_allclose(against[0], inside - around, atol=1e-5)
    # Half of a column, a whole one; two rows and a quarter of one.
    weights = torch.outer(torch.tensor([1, 1, 0.25]), torch.tensor([0.5, 1]))
    assert_allclose(readings[1, 0], (maps.odds[1:4, 2:4] * weights).sum() / weights.sum(), atol=1e-5)
    near = 1 + OPINIONS + 2
    tokens = near + 3 + 1 + KINDS + 1
    strips = readings[:, 2 * tokens : 2 * tokens + 16 * near].unflatten(1, (4, 4, near))[..., 0]  # from, side
    assert_allclose(strips[0, 1, 0], maps.odds[2:5, 2].mean(), atol=1e-5)  # left of it
    assert_allclose(strips[0, 2, 1], maps.odds[2:5, 4].mean(), atol=1e-5)  # its right end
    assert_allclose(strips[0, 0, 2], maps.odds[0, 3:5].mean(), atol=1e-5)  # two above it
    assert_allclose(strips[0, 3, 3], maps.odds[3, 3:5].mean(), atol=1e-5)  # one above its lowest
    assert_allclose(strips[1, 0, 2], regions.OUTSIDE)  # there is no row above its first but one


@torch.inference_mode()
def test_sides_move_inside_of_the_view() -> None:
    boxes = torch.tensor([[1.0, 1, 3, 2], [1, 1, 3, 2], [4, 2, 5, 3]])
    shifts = torch.tensor([[0.5, 0, 0.25, -0.25], [-9, -9, 9, 9], [1, 1, -1, -1]])
    moved = regions.shifted(boxes, shifts, torch.tensor(5.0), torch.tensor(3.0))
    assert_allclose(moved, [[2, 1, 3.5, 1.75], [0, 0, 5, 3], [4.5, 2.5, 5, 3]])


@torch.inference_mode()
def test_proposals_are_of_different_places() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5], [6, 6, 8, 8], [0, 0, 4, 4.5]])
    assert regions.distinct(boxes, torch.tensor([1.0, 3, 2, 3]), 4).tolist() == [1, 2, 3, 0]


def test_overlaps_are_those_of_boxes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        corners = rng.integers(0, 20, (2, 2, 2))
        boxes = [(*pair.min(0), *(pair.max(0) + 1)) for pair in corners]
        one, other = (torch.tensor([float(v) for v in box]) for box in boxes)
        assert float(regions.overlap_of(one, other)) == pytest.approx(Box(*boxes[0]).iou(Box(*boxes[1])), abs=1e-6)


def test_a_rectangle_is_of_the_damage_it_is_nearest_to() -> None:
    truth = samples.TokenTruth(
        np.array([0, 2, 1, samples.UNKNOWN]),
        np.array([samples.UNKNOWN, 4, 1, samples.UNKNOWN]),
        np.array([np.nan, 0.7, 0.2, np.nan], np.float32),
        np.full((4, 4), np.nan, np.float32),
    )
    boxes = np.array([[0, 0, 2, 2], [4, 4, 6, 8]], np.float32)
    found = torch.tensor([[0.0, 0, 2, 1], [4, 4, 6, 8], [3, 3, 4, 4]])
    truths, overlaps, kinds, levels, severities = candidates.nearest(found, boxes, truth, np.array([1, 2]))
    assert_allclose(overlaps, [0.5, 1, 0])
    assert_allclose(truths[:2], boxes)
    assert (kinds[:2].tolist(), levels[:2].tolist()) == ([2, 1], [4, 1])
    assert_allclose(severities[:2], [0.7, 0.2])
    _, overlaps, kinds, *_ = candidates.nearest(found, boxes[:0], truth, np.array([], np.intp))
    assert overlaps.tolist() == [0, 0, 0]
    assert (kinds == samples.UNKNOWN).all()


def rectangles(overlap: float) -> Any:
    size, many = regions.region_size(KINDS, OPINIONS), 6
    boxes = torch.tensor([0.0, 0, 2, 2]).expand(many, 4)
    parts = (torch.randn(many, size), torch.randn(many, 2 * cells.CELL_CHANNELS), boxes, boxes)
    words = torch.ones(many, dtype=torch.long)
    return candidates.Rectangles(*parts, torch.full((many,), overlap), words, words, torch.full((many,), 0.5))


@pytest.mark.parametrize("views", [[], [1.0], [0.0]])
def test_nothing_to_tell_apart_is_an_error(views: list[float]) -> None:
    with pytest.raises(RunError, match="render more samples"):
        candidates.learn_regions(untaught(), [rectangles(v) for v in views], 2, 1e-3, np.random.default_rng(0))


def test_what_is_not_known_of_a_rectangle_teaches_nothing() -> None:
    """Neither a kind between clean and found, nor sides, levels or costs of what meets no damage."""
    some = candidates.Rectangles.joined([rectangles(overlap) for overlap in (0.0, 0.2, 0.6)])
    sizes = ((), (), (4,), (1 + KINDS,), (KINDS, regions.LEVELS), (1,))
    said = regions.Judged(*(torch.randn(18, *size, requires_grad=True) for size in sizes))
    candidates.lesson(said, some, torch.arange(18)).backward()
    taught = [part.grad.reshape(3, 6, -1).abs().sum((1, 2)) > 0 for part in said]
    assert [part.tolist() for part in taught] == [
        [True, True, True],
        [True, True, True],
        [False, False, True],
        [True, False, True],
        [False, False, True],
        [False, False, True],
    ]
