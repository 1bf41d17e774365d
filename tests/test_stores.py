"""Views on disk, and the cells that an encoder makes of them."""

import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

import oracle
from fake_model import library, script
from small_networks import shallow

torch = library("torch")
library("onnx")
stores = script("stores")
encode = script("encode")
cells = script("cells")
visual = script("visual")
glance, overviews = script("glance"), script("overviews")

Views = list[tuple[dict[str, Any], NDArray[Any]]]


def write(store: Any, *samples: tuple[dict[str, Any], Views]) -> None:
    writer = store.writer()
    for sample, views in samples:
        writer.add(sample, iter(views))
    writer.close()


def view(rows: int, cols: int, seed: int) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    return {"role": "global", "box": [0, 0, cols, rows]}, oracle.photo(rows, cols, seed)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    first, second, third = view(3, 5, 0), view(1, 1, 1), view(7, 2, 2)
    write(
        stores.ViewStore(tmp_path, "local-0"),
        ({"split": "train", "score": 1.5, "name": "ü.jpg"}, [first, second]),
        ({"split": "dev", "defects": []}, []),
    )
    write(stores.ViewStore(tmp_path, "local-1"), ({"split": "train"}, [third]))
    write(stores.ViewStore(tmp_path, "rated-0"), ({"split": "train"}, [second]))
    items = stores.items_of(tmp_path, "local", 3, np.uint8)
    assert [item.sample["fold"] for item in items] == ["0", "0", "1"]
    assert stores.folds(items) == ["0", "1"]
    assert [item.sample["split"] for item in stores.of_split(items, "train")] == ["train", "train"]
    assert (items[0].sample["score"], items[0].sample["name"]) == (1.5, "ü.jpg")
    assert_array_equal(items[0].read(0), first[1])
    assert_array_equal(items[0].read(1), second[1])
    assert items[1].sample["views"] == []
    assert_array_equal(items[2].read(0), third[1])
    about = items[2].sample["views"][0]
    assert (about["role"], about["box"], about["rows"], about["cols"]) == ("global", [0, 0, 2, 7], 7, 2)
    assert stores.items_of(tmp_path, "whole", 3, np.uint8) == []


def test_surveys_keep_their_bits(tmp_path: Path) -> None:
    map_ = oracle.survey(oracle.photo(90, 70))
    write(stores.SurveyStore(tmp_path, "survey-local-0"), ({}, [({"role": "global"}, map_)]))
    ((known, data),) = [
        (sample, stores.SurveyStore(tmp_path, "survey-local-0").data())
        for sample in stores.SurveyStore(tmp_path, "survey-local-0").samples()
    ]
    oracle.assert_same(np.array(stores.Item(known, data).read(0)), map_)


def test_surveys_are_not_taken_for_samples(tmp_path: Path) -> None:
    write(stores.ViewStore(tmp_path, "local-0"), ({"split": "dev"}, [view(2, 2, 0)]))
    write(stores.SurveyStore(tmp_path, "survey-local-0"), ({}, []))
    assert len(stores.items_of(tmp_path, "local", 3, np.uint8)) == 1


def test_a_store_without_samples_holds_none(tmp_path: Path) -> None:
    write(stores.ViewStore(tmp_path, "local-0"))
    assert stores.items_of(tmp_path, "local", 3, np.uint8) == []


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    writer = stores.ViewStore(tmp_path, "local-0").writer()
    with pytest.raises(AssertionError):
        writer.add({}, iter([({"role": "global"}, np.zeros((2, 2, 3), np.float32))]))
    writer.close()


# Cells


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block a stage: whole networks take too long to export."""
    shallow(monkeypatch)


def photos() -> Iterator[tuple[dict[str, Any], Views, Views]]:
    """Three samples, their views and their surveys; the second shows two photos, one of them in a crop besides, and the
    third one that is larger than its overview."""
    one, two, three = oracle.photo(64, 128, 3), oracle.photo(200, 128, 4), oracle.photo(128, 192, 5)
    box = [32, 40, 96, 168]
    yield (
        {"split": "train", "score": 2.5},
        [({"role": "global", "box": [0, 0, 128, 64]}, one)],
        [({"role": "global", "box": [0, 0, 128, 64]}, oracle.survey(one))],
    )
    crop = np.ascontiguousarray(two[box[1] : box[3], box[0] : box[2]])
    whole = oracle.resized(two, (0, 0, 128, 200), (128, 192))
    yield (
        {"split": "dev", "score": 4.0},
        [
            ({"role": "global", "box": [0, 0, 128, 200]}, whole),
            ({"role": "truth0", "box": box}, crop),
            ({"role": "global", "box": [0, 0, 192, 128]}, three),
        ],
        [
            ({"role": "global", "box": [0, 0, 128, 200]}, oracle.survey(two)),
            ({"role": "global", "box": [0, 0, 192, 128]}, oracle.survey(three)),
        ],
    )
    large = oracle.photo(576, 640, 6)
    yield (
        {"split": "train", "score": 3.0},
        [({"role": "global", "box": [0, 0, 640, 576]}, large)],
        [({"role": "global", "box": [0, 0, 640, 576]}, oracle.survey(large))],
    )


def test_cells_and_glances_of_a_store_are_the_networks(
    small_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The views of these photos are smaller than the runtime's would be, and so are their overviews.
    monkeypatch.setattr(overviews, "OVERVIEW", replace(overviews.OVERVIEW, min_pixels=64**2))
    samples = list(photos())
    write(stores.ViewStore(tmp_path, "local-0"), *((sample, views) for sample, views, _ in samples))
    write(stores.SurveyStore(tmp_path, "survey-local-0"), *(({}, surveys) for _, _, surveys in samples))
    torch.manual_seed(2)
    encoder, glances = cells.CellEncoder().eval(), glance.Glance().eval()
    for module in (*encoder.modules(), *glances.modules()):
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    out = tmp_path / "cells"
    out.mkdir()
    encode.export_sight(encoder, glances, out / "encoder.onnx")
    encode.work("local-0", Namespace(views=tmp_path, out=out))
    items = stores.items_of(out, "local", cells.CELL_CHANNELS, np.float16)
    assert [item.sample["score"] for item in items] == [2.5, 4.0, 3.0]
    # What lies under each view, in the order of the samples above.
    maps = [oracle.survey(pixels) for pixels in (oracle.photo(64, 128, 3), oracle.photo(200, 128, 4))]
    large = oracle.photo(576, 640, 6)
    under = [[maps[0]], [maps[1], maps[1][1:6, 1:3], oracle.survey(oracle.photo(128, 192, 5))], [oracle.survey(large)]]
    mean, std = (np.array(part, np.float32) for part in (cells.IMAGENET_MEAN, cells.IMAGENET_STD))

    def planes(shown: Any) -> Any:
        return torch.from_numpy(((shown / np.float32(255) - mean) / std).transpose(2, 0, 1)[None].astype(np.float32))

    for item, (_, views, _), surveys in zip(items, samples, under, strict=True):
        for index, ((about, shown), map_) in enumerate(zip(views, surveys, strict=True)):
            maps_of = torch.from_numpy(np.ascontiguousarray(map_[None]))
            with torch.inference_mode():
                expected = encoder(planes(shown), maps_of)[0]
            found = item.read(index)
            assert found.dtype == np.float16
            assert found.shape == (shown.shape[0] // 32, shown.shape[1] // 32, cells.CELL_CHANNELS)
            assert_allclose(found.astype(np.float32), expected, rtol=1e-2, atol=1e-2)
            kept = item.sample["views"][index]
            assert (kept["role"], kept["box"]) == (about["role"], about["box"])
            small = shown if shown is not samples[2][1][0][1] else oracle.resized(large, (0, 0, 640, 576), (512, 448))
            if about["role"] == "global":
                with torch.inference_mode():
                    whole = visual.summary_of(encoder(planes(small), maps_of), glances(planes(small)))[0]
                assert_allclose(overviews.whole_of(item, index)[:-1], whole, rtol=2e-2, atol=2e-2)
                assert (overviews.SUMMARY in kept) == (small is not shown)
            else:
                assert overviews.GLANCE not in kept


def test_views_and_surveys_of_other_samples_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of surveys that has lost a sample is an error, not another photo's survey."""
    samples = list(photos())
    write(stores.ViewStore(tmp_path, "local-0"), *((sample, views) for sample, views, _ in samples))
    write(stores.SurveyStore(tmp_path, "survey-local-0"), ({}, samples[0][2]))

    class Nothing:
        def __init__(self, path: Path) -> None:
            pass

        def at(self, shown: NDArray[np.uint8], map_: NDArray[np.float32]) -> NDArray[np.float16]:
            return np.zeros((1, 1, cells.CELL_CHANNELS), np.float16)

        def whole(self, shown: Any, map_: Any, box: Any) -> tuple[NDArray[np.float16], dict[str, str]]:
            return self.at(shown, map_), {}

    (tmp_path / "cells").mkdir()
    monkeypatch.setattr(encode, "Look", Nothing)
    with pytest.raises(ValueError, match="shorter"):
        encode.work("local-0", Namespace(views=tmp_path, out=tmp_path / "cells"))
