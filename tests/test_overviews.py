"""What a photo is as a whole is read at one size, and kept with its first view."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script

from qcheck.tiles import Box, view_of

torch = library("torch")
cells, glance, overviews, spec, stores, visual = (
    script(name) for name in ("cells", "glance", "overviews", "nano_spec", "stores", "visual")
)
rng = np.random.default_rng(4)


def test_what_is_written_is_read() -> None:
    values: Any = rng.normal(0, 2, 528)
    text = overviews.written(values)
    assert isinstance(text, str)
    assert_allclose(overviews.read(text), values, rtol=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (64, 900), (300, 200), (512, 512), (530, 490), (384, 640)])
def test_a_small_photo_is_whole_of_its_view(size: tuple[int, int]) -> None:
    box = Box(0, 0, *size)
    assert overviews.overview_of(box, view_of(box, spec.GLOBAL_VIEW)) is None


@pytest.mark.parametrize("size", [(640, 480), (512, 640), (1536, 1152), (4000, 3000), (9000, 700), (20000, 30)])
def test_a_larger_one_by_a_small_picture_of_all_of_it(size: tuple[int, int]) -> None:
    box = Box(0, 0, *size)
    view = overviews.overview_of(box, view_of(box, spec.GLOBAL_VIEW))
    assert view is not None
    assert view.box == box
    assert view.width * view.height <= 512 * 512
    assert (view.width % 64, view.height % 64) == (0, 0)


def stored(folder: Path, *views: tuple[dict[str, Any], tuple[int, int]]) -> Any:
    """A sample of views of random cells."""
    writer = stores.Store(folder, "local-0", cells.CELL_CHANNELS, np.float16).writer()
    made = [(about, rng.normal(size=(*size, cells.CELL_CHANNELS)).astype(np.float16)) for about, size in views]
    writer.add({"split": "train"}, iter(made))
    writer.close()
    (item,) = stores.items_of(folder, "local", cells.CELL_CHANNELS, np.float16)
    return item


def test_every_view_is_of_the_photo_shown_before_it(tmp_path: Path) -> None:
    glances = [rng.normal(size=glance.CHANNELS) for _ in range(2)]
    over = rng.normal(size=visual.SEEN_CHANNELS)
    item = stored(
        tmp_path,
        ({"role": "global", "box": [0, 0, 320, 256], overviews.GLANCE: overviews.written(glances[0])}, (8, 10)),
        ({"role": "crop"}, (4, 6)),
        (
            {
                "role": "global",
                "box": [0, 0, 2048, 1024],
                overviews.GLANCE: overviews.written(glances[1]),
                overviews.SUMMARY: overviews.written(over),
            },
            (20, 16),
        ),
        ({"role": "crop"}, (4, 6)),
    )
    own = visual.summary(torch.from_numpy(item.read(0).astype(np.float32))[None])[0]
    for index, seen in enumerate((own, own, torch.from_numpy(over), torch.from_numpy(over))):
        expected = np.concatenate((seen, glances[index // 2], [3 * (index // 2)]))  # 2 MP are three times doubled
        assert_allclose(overviews.whole_of(item, index), expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("about", "size", "reason"),
    [({}, (8, 8), "glanced at"), ({"glance": overviews.written(np.zeros(528))}, (18, 16), "large photos")],
)
def test_cells_of_before_are_refused(about: dict[str, str], size: tuple[int, int], reason: str, tmp_path: Path) -> None:
    item = stored(tmp_path, ({"role": "global", **about}, size))
    with pytest.raises(script("runs").RunError, match=f"{reason}.*make them again"):
        overviews.whole_of(item, 0)
