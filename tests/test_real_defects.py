"""Hits and false alarms among hand-drawn boxes, on answers that are known."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import script

from qcheck.tiles import Box

real = script("real_defects", "benchmarks")
KNOWN = {
    "defects": [{"box": [0, 0, 100, 100], "kinds": ["noise"]}, {"box": [200, 0, 300, 100], "kinds": ["defocus"]}],
    "unclear": [[0, 200, 300, 300]],
}


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ([], (2, 0, 0, 0, 0)),
        ([((10, 10, 40, 40), "noise")], (2, 1, 1, 1, 0)),
        ([((10, 10, 40, 40), "defocus")], (2, 1, 0, 1, 0)),
        ([((10, 10, 40, 40), "noise"), ((50, 50, 90, 90), "dirt")], (2, 1, 1, 2, 0)),
        ([((60, 0, 240, 100), "noise")], (2, 0, 0, 1, 1)),  # on both and mostly between
        ([((10, 210, 90, 290), "defocus")], (2, 0, 0, 1, 0)),  # nobody knows
        ([((120, 110, 180, 180), "noise"), ((210, 10, 310, 90), "defocus")], (2, 1, 1, 2, 1)),
    ],
)
def test_counts(reported: list[Any], expected: tuple[int, ...]) -> None:
    assert real.counted([(Box(*box), kind) for box, kind in reported], KNOWN) == real.Count(*expected)


def test_photos_add_up() -> None:
    assert real.Count(1, 1, 0, 2, 1) + real.Count(2, 0, 0, 1, 1) == real.Count(3, 1, 0, 3, 2)
