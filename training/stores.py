"""Views on disk: pixels, cells or tokens of many samples in one flat file, with a JSON line a sample."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qcheck.survey import STATISTICS

Sample = dict[str, Any]


class Store:
    """Arrays (rows, cols, channels) of one dtype. `DIR/NAME.bin`: one after the other; `DIR/NAME.jsonl`: one sample a
    line; its `views` list names each view's offset (in places), rows and cols. Append-only; readers map it."""

    def __init__(self, directory: Path, name: str, channels: int, dtype: type[np.generic]) -> None:
        self.channels, self.dtype = channels, np.dtype(dtype)
        self.data_path, self.index_path = directory / f"{name}.bin", directory / f"{name}.jsonl"

    def writer(self) -> "Writer":
        return Writer(self)

    def samples(self) -> list[Sample]:
        return [json.loads(line) for line in self.index_path.read_text().splitlines()]

    def data(self) -> NDArray[Any]:
        """(places, channels), mapped."""
        count = self.data_path.stat().st_size // (self.dtype.itemsize * self.channels)
        if not count:
            return np.empty((0, self.channels), self.dtype)
        return np.memmap(self.data_path, self.dtype, "r", shape=(count, self.channels))


class ViewStore(Store):
    """Pixels, uint8."""

    def __init__(self, directory: Path, name: str) -> None:
        super().__init__(directory, name, 3, np.uint8)


class SurveyStore(Store):
    """Surveys of whole photos (qcheck/survey.py), fp32."""

    def __init__(self, directory: Path, name: str) -> None:
        super().__init__(directory, name, len(STATISTICS), np.float32)


class Writer:
    def __init__(self, store: Store) -> None:
        self.dtype = store.dtype
        self.data, self.index, self.offset = store.data_path.open("wb"), store.index_path.open("w"), 0

    def add(self, sample: Sample, views: Iterator[tuple[dict[str, Any], NDArray[Any]]]) -> None:
        """Writes one sample: `views` yields (what the view is, its array)."""
        entries = []
        for about, array in views:
            assert array.dtype == self.dtype
            entries.append({**about, "offset": self.offset, "rows": array.shape[0], "cols": array.shape[1]})
            self.data.write(np.ascontiguousarray(array).tobytes())
            self.offset += array.shape[0] * array.shape[1]
        self.data.flush()
        self.index.write(json.dumps({**sample, "views": entries}) + "\n")
        self.index.flush()

    def close(self) -> None:
        self.data.close()
        self.index.close()


class Item(NamedTuple):
    """A sample and the mapped data of its store."""

    sample: Sample
    data: NDArray[Any]

    def read(self, index: int) -> NDArray[Any]:
        """One of its views, (rows, cols, channels)."""
        view = self.sample["views"][index]
        count = view["rows"] * view["cols"]
        return self.data[view["offset"] : view["offset"] + count].reshape(view["rows"], view["cols"], -1)


def items_of(directory: Path, kind: str, channels: int, dtype: type[np.generic]) -> list[Item]:
    """All samples of one kind, of every worker. A sample's `fold` is its worker: no two workers of render.py share a
    source photo."""
    items = []
    for index in sorted(directory.glob(f"{kind}-*.jsonl")):
        store = Store(directory, index.stem, channels, dtype)
        data = store.data()
        fold = index.stem.rsplit("-", 1)[1]
        items += [Item({**sample, "fold": fold}, data) for sample in store.samples()]
    return items


def of_split(items: list[Item], split: str) -> list[Item]:
    return [item for item in items if item.sample["split"] == split]


def folds(items: list[Item]) -> list[str]:
    return sorted({item.sample["fold"] for item in items})
