"""Rows of a long measurement, kept part by part, so that one that was stopped goes on where it was."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from measures import Estimate, flat

Row = Estimate | float | None
Rows = dict[str, Row]


@dataclass(frozen=True, slots=True)
class KeptRows:
    """`path`: one JSON line a part; None keeps nothing. `of`: all that decides what the rows are (a model's checksum,
    the data's names); a line that was measured of something else is not used."""

    path: Path | None
    of: dict[str, str | int | None]

    def part(self, name: str, measure: Callable[[], Mapping[str, Row]]) -> Rows:
        """The rows of a part: those that were kept, or else measured now and kept."""
        rows = self._kept(name)
        if rows is None:
            rows = dict(measure())
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps({"part": name, "of": self.of, "rows": flat(rows)}) + "\n")
        return rows

    def _kept(self, name: str) -> Rows | None:
        if self.path is None or not self.path.exists():
            return None
        for text in self.path.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # the line that was being written when it was killed
                continue
            if line["part"] == name and line["of"] == self.of:
                return {n: Estimate(*v) if isinstance(v, list) else v for n, v in line["rows"].items()}
        return None
