"""Does what was learned on made defects carry over to real ones? Photos straight from cameras, boxed by hand.

    python benchmarks/real_defects.py --photos DATA/photos [--model BUNDLE] [--boxes benchmarks/real_defects.json]

The boxes were drawn by one person at full resolution, before any model was asked, on eight photos that no training sees
any more (nano 0.4.0's took them for clean ones). A defect is hit where a reported box lies mostly on it; a report that
lies mostly on no defect, nor on a place that the person was unsure of (shallow focus), is a false alarm. Eight photos
tell a surprise, not a rate.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qcheck.bundle import Bundle
from qcheck.engine import Engine
from qcheck.photo import Photo
from qcheck.probe import Limits, Prober
from qcheck.tiles import Box

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

from samples import overlap

ON_IT: Final = 0.5  # of a reported box
PROBES: Final = 3


@dataclass(frozen=True, slots=True)
class Count:
    """Of one photo or all. `hits`, `named`: defects that are hit, and by a report of their kind; `reports`: boxes."""

    defects: int = 0
    hits: int = 0
    named: int = 0
    reports: int = 0
    false_alarms: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


def counted(reported: list[tuple[Box, str]], known: dict[str, Any]) -> Count:
    """`reported`: boxes and kinds; `known`: `defects` (box, kinds) and `unclear` boxes, in pixels of the photo."""
    on = [
        {i for i, (box, _) in enumerate(reported) if inside(box, Box(*defect["box"])) >= ON_IT}
        for defect in known["defects"]
    ]
    excused = {i for i, (box, _) in enumerate(reported) if any(inside(box, Box(*b)) >= ON_IT for b in known["unclear"])}
    return Count(
        len(on),
        sum(bool(hits) for hits in on),
        sum(any(reported[i][1] in d["kinds"] for i in hits) for hits, d in zip(on, known["defects"], strict=True)),
        len(reported),
        len(set(range(len(reported))) - set().union(*on) - excused),
    )


def inside(box: Box, other: Box) -> float:
    """How much of a box lies in another, 0..1."""
    both = overlap(box, other)
    return both.area / box.area if both else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="another bundle than the embedded one")
    parser.add_argument("--boxes", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    prober, total = Prober(Engine.open(Bundle.open(args.model))), Count()
    for name, known in json.loads(args.boxes.read_text()).items():
        verdict = prober.judge(Photo.open(args.photos / name), Limits(PROBES))
        count = counted([(d.box, d.kind) for d in verdict.defects], known)
        total += count
        found = ", ".join(f"{d.kind} {d.box.as_list()}" for d in verdict.defects) or "nothing"
        print(f"{name}: score {verdict.score:.2f}; {count.hits} of {count.defects} hit; reported {found}")
    print(json.dumps({name: getattr(total, name) for name in Count.__slots__}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
