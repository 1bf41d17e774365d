"""Unseen degradations: the benchmark's figures on eyes whose sight is known."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script

torch = library("torch")
library("sklearn")
cross = script("cross_degradation", "benchmarks")
stores, cells, encode, glance, overviews = (
    script(name) for name in ("stores", "cells", "encode", "glance", "overviews")
)
NAMES = script("defects").PHOTOS.kinds


@pytest.mark.parametrize(("sight", "expected"), [(1.0, 1.0), (-1.0, 0.0), (0.0, 0.5)])
def test_tokens_are_told_apart_as_the_eyes_see_them(
    sight: float, expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eyes that read the first channel, in views whose broken tokens have it raised."""
    writer = encode.CellStore(tmp_path, "local-0").writer()
    same = {overviews.GLANCE: overviews.written(np.zeros(glance.CHANNELS))}
    for index in range(6):
        view = np.zeros((8, 8, cells.CELL_CHANNELS), np.float16)
        view[:4, :4, 0] = 1
        defect = {"kind": "noise", "level": 2, "box": [0, 0, 200, 200], "cost": 0.2, "name": "white_noise"}
        known = {"split": "dev", "name": f"{index}.jpg", "width": 400, "height": 400, "defects": [defect]}
        writer.add(known, iter([({"role": "global", "box": [0, 0, 400, 400], **same}, view)]))
    writer.close()

    def perceived(_: Any, views: list[Any], summaries: list[Any]) -> list[Any]:
        assert len(summaries) == len(views)
        tokens = views[0][::2, ::2, 0]
        return [SimpleNamespace(log_odds=lambda: sight * tokens)]

    monkeypatch.setattr(cross, "perceived", perceived)
    items = stores.items_of(tmp_path, "local", cells.CELL_CHANNELS, np.float16)
    assert cross.found(None, items, NAMES).value == expected
