"""How well scorers agree with people on rated images, and find what is broken in a Vista-like set.

    python benchmarks/accuracy.py SET --scorers nano@0 nano@3 [--split test] [--limit N] [--results FILE] [--json]

SET is a folder in any layout of rated_sets.py; scorers are named in scorers.py. Agreement: rank correlations (SRCC,
KRCC), Pearson's after a four-parameter logistic fit to the whole set (PLCC) and the error left after it (RMSE), on the
set's own scale. A Vista-like set has two scales, its proxy's and people's (images made of rated photos); each is ranked
by itself, the latter under names that end in _people. On such a set also, of at most four boxes an image, the most
confident first: the IoU of the first with the nearest region; precision, recall and F1 of those that meet a region at
IoU .5; whether they name its kind; how many images of no defect get a box, clean ones and those of natural bokeh or
panning; and by how many points the score moves when a look at a clean place is forced. Intervals are 95% bootstraps by
source image.

With --results, what was judged is kept line by line and not judged again. It knows a scorer by its name alone: another
model at the same path needs another file.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from measures import Estimate, bootstrap, fitted, flat, krcc, mean, pearson, rmse, srcc
from rated_sets import LAYOUTS, Case, SetError, read_set
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scorers import BOKEH, ForcedClean, Judged, Scorer, UnknownScorer, scorer

from qcheck.errors import QcheckError
from qcheck.tiles import Box

MATCH_IOU: Final = 0.5
MOST_BOXES: Final = 4
LEAST_IMAGES: Final = 3
AGREEMENT: Final = {"srcc": (srcc, False), "plcc": (pearson, True), "krcc": (krcc, False), "rmse": (rmse, True)}
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Matched:
    """Boxes of one image against its regions."""

    iou: float  # of the most confident box with the nearest region; 0 without a box
    found: int  # boxes that meet a region of their own
    right: int  # of those, with its kind
    boxes: int
    regions: int


def matched(judged: Judged, case: Case) -> Matched:
    """The most confident box takes the nearest region first; each region is met once."""
    boxes = [(Box(*b[:4]), b[4]) for b in (judged.boxes or [])[:MOST_BOXES]]
    left = [(Box(*r["box"]), r["kind"]) for r in case.regions or ()]
    first = max((boxes[0][0].iou(region) for region, _ in left), default=0.0) if boxes else 0.0
    found = right = 0
    total = len(left)
    for box, kind in boxes:
        best = max(left, key=lambda r: box.iou(r[0]), default=None)
        if best is not None and box.iou(best[0]) >= MATCH_IOU:
            found, right = found + 1, right + (kind == best[1])
            left.remove(best)
    return Matched(first, found, right, len(boxes), total)


def agreement(cases: Sequence[Case], judged: Sequence[Judged]) -> dict[str, Estimate]:
    """An image that a scorer fails on gets its worst score."""
    guess = np.array([j.score for j in judged])
    guess[~np.isfinite(guess)] = np.nanmin(guess)
    truth, groups = [c.score for c in cases], [c.group for c in cases]
    on_scale = fitted(guess, np.array(truth)).tolist()
    return {
        name: bootstrap(figure, on_scale if after_fit else guess.tolist(), truth, groups=groups)
        for name, (figure, after_fit) in AGREEMENT.items()
    }


def _ratio(over: Any, under: Any) -> float:
    return float(np.sum(over) / np.sum(under)) if np.sum(under) else 0.0


def _f1(found: Any, boxes: Any, regions: Any) -> float:
    return _ratio(2 * found, boxes + regions)


def localisation(cases: Sequence[Case], judged: Sequence[Judged]) -> dict[str, Estimate]:
    known = [i for i, c in enumerate(cases) if c.regions is not None]
    groups = [cases[i].group for i in known]
    each = [matched(judged[i], cases[i]) for i in known]
    found, boxes, regions = ([float(getattr(m, name)) for m in each] for name in ("found", "boxes", "regions"))
    rows = {
        "precision": bootstrap(_ratio, found, boxes, groups=groups),
        "recall": bootstrap(_ratio, found, regions, groups=groups),
        "f1": bootstrap(_f1, found, boxes, regions, groups=groups),
        "kind_right": bootstrap(_ratio, [float(m.right) for m in each], found, groups=groups),
    }
    damaged = [(m.iou, g) for m, g in zip(each, groups, strict=True) if m.regions]
    if damaged:
        rows["iou"] = bootstrap(mean, [iou for iou, _ in damaged], groups=[g for _, g in damaged])
    for name, wanted in (("false_alarms_clean", False), ("false_alarms_bokeh", True)):
        quiet = [i for i in known if not cases[i].regions and (cases[i].scene in BOKEH) is wanted]
        if quiet:
            alarms = [float(bool(judged[i].boxes)) for i in quiet]
            rows[name] = bootstrap(mean, alarms, groups=[cases[i].group for i in quiet])
    return rows


def judgements(each: Scorer, cases: Sequence[Case], root: Path, results: Path | None) -> Iterator[Judged]:
    """Of each image in turn. Raises SetError for an image that cannot be read."""
    kept = kept_of(results, each.name)
    for case in track(cases, each.name, console=Console(stderr=True), disable=not sys.stderr.isatty()):
        name = case.path.relative_to(root).as_posix()
        if name not in kept:
            try:
                kept[name] = each.judge(case)
            except QcheckError as error:
                raise SetError(f"{error}") from error
            if results is not None:
                with results.open("a") as file:
                    file.write(json.dumps({"scorer": each.name, "image": name, **asdict(kept[name])}) + "\n")
        yield kept[name]


def kept_of(results: Path | None, name: str) -> dict[str, Judged]:
    """What a scorer made of each image, by the image's name, as far as a file of results holds it."""
    kept = {}
    if results is not None and results.exists():
        for line in results.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the line that was being written when it was killed
                continue
            if row.pop("scorer") == name:
                image = row.pop("image")
                kept[image] = Judged(**row)
    return kept


def drawn(cases: list[Case], limit: int | None) -> list[Case]:
    """So many of them at most, evenly; None is all."""
    return [cases[i] for i in sorted({round(i) for i in np.linspace(0, len(cases) - 1, limit)})] if limit else cases


def by_scale(cases: Sequence[Case], judged: Sequence[Judged]) -> Row:
    """Agreement on each scale that a set has; one of fewer than LEAST_IMAGES cannot be ranked."""
    row: Row = {}
    scales = dict.fromkeys(c.by_people for c in cases)
    for people in sorted(scales):
        some = [i for i, c in enumerate(cases) if c.by_people is people]
        suffix = "_people" if people and len(scales) > 1 else ""
        row[f"images{suffix}"] = len(some)
        if len(some) >= LEAST_IMAGES:
            figures = agreement([cases[i] for i in some], [judged[i] for i in some])
            row |= {f"{name}{suffix}": figure for name, figure in figures.items()}
    return row


def measured(each: Scorer, cases: Sequence[Case], root: Path, results: Path | None) -> Row:
    judged = list(judgements(each, cases, root, results))
    row: Row = {"scorer": each.name, **by_scale(cases, judged)}
    if any(c.regions is not None for c in cases) and all(j.boxes is not None for j in judged):
        row |= localisation(cases, judged)
    shifts = [(j.shift, c.group) for j, c in zip(judged, cases, strict=True) if j.shift is not None]
    if isinstance(each, ForcedClean) and not shifts:
        raise UnknownScorer(f"{each.name}: needs a set whose regions are known (vista.jsonl)")
    if shifts:
        row["crop_shift"] = bootstrap(mean, [s for s, _ in shifts], groups=[g for _, g in shifts])
    row["ms"] = float(np.median([j.ms for j in judged]))
    row["probes"] = float(np.mean([j.probes for j in judged]))
    return row


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def show(rows: list[Row], title: str) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row if name != "scorer"))
    grid = Table("", *(row["scorer"] for row in rows), title=title)
    for name in names:
        grid.add_row(name, *(_cell(row.get(name)) for row in rows))
    Console(width=max(80, 26 + 24 * len(rows))).print(grid)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path)
    parser.add_argument("--layout", choices=LAYOUTS, help="where it is not seen from the files")
    parser.add_argument("--scorers", nargs="+", default=["nano@0", "nano@3"])
    parser.add_argument("--split", choices=("train", "dev", "test"), help="of a Vista-like set")
    parser.add_argument("--limit", type=int, help="only so many images, drawn evenly from the set")
    parser.add_argument("--peers-python", type=Path)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    try:
        layout, cases = read_set(args.set, args.layout)
        cases = [c for c in cases if args.split in (None, c.split)]
        cases = drawn(cases, args.limit)
        if len(cases) < LEAST_IMAGES:
            raise SetError(f"{args.set}: {len(cases)} images of that split are too few to rank")
        rows = [measured(scorer(name, args.peers_python), cases, args.set, args.results) for name in args.scorers]
    except (SetError, UnknownScorer, QcheckError) as error:
        print(f"accuracy.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("accuracy.py: stopped; with --results the same command goes on from here", file=sys.stderr)
        return 130
    if args.json:
        told = {"set": args.set.name, "layout": layout, "split": args.split, "rows": [flat(row) for row in rows]}
        print(json.dumps(told))
    else:
        show(rows, f"{args.set.name} ({layout}{f', {args.split}' if args.split else ''})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
