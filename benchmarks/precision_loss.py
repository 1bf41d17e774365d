"""What does a precision lose: do bundles of the same weights say what the first of them says?

    python benchmarks/precision_loss.py REFERENCE BUNDLE... --rated DATA/biq2021 --vista SET [--limit 60] [--every 1]
        [--max-probes 3]

Rated photos of the split `test`, and images of a Vista-like set, are judged by every bundle; REFERENCE is usually fp32
(export_nano.py --precision). Prints for each bundle its size and rank correlations, how much they differ from the
reference's (the same photos drawn together, those of one source as one), in what share of photos it had the same
conversation (the same crops, words and defects) or at least the same crops, and how far its scores are from the
reference's. The last line is JSON.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from accuracy import drawn
from measures import bootstrap, flat, gain, mean, srcc
from rated_sets import Case, SetError, read_set
from rich.console import Console
from rich.progress import track

from qcheck.bundle import Bundle
from qcheck.engine import Engine
from qcheck.errors import BundleError
from qcheck.photo import Photo
from qcheck.probe import Limits, Prober
from qcheck.verdict import Verdict

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

from photos import rated_photos

MB: Final = 1e6


def cases_of(rated: Path, every: int, vista: Path, limit: int | None) -> dict[str, list[Case]]:
    """What is judged: rated photos that training never saw, and images of a set, drawn evenly."""
    photos = [p for p in rated_photos(rated) if p.split == "test"][::every]
    _, images = read_set(vista)
    images = [case for case in images if case.split in ("test", None)]
    return {
        "rated": [Case(p.path, p.score, p.path.name) for p in photos],
        "vista": drawn(images, limit),
    }


def verdicts_of(prober: Prober, cases: Sequence[Case], probes: int, what: str) -> list[Verdict]:
    shown = track(cases, what, console=Console(stderr=True), disable=not sys.stderr.isatty())
    return [prober.judge(Photo.open(case.path), Limits(probes)) for case in shown]


def crops_of(verdict: Verdict) -> list[Any]:
    return [probe.box for probe in verdict.probes]


def said_by(verdict: Verdict) -> tuple[Any, ...]:
    """What a conversation comes to, but for its numbers after the comma."""
    return crops_of(verdict), [(d.kind, d.level, d.box) for d in verdict.defects], verdict.reasoning


def row_of(verdicts: Sequence[Verdict], reference: Sequence[Verdict], cases: Sequence[Case]) -> dict[str, Any]:
    """One bundle's figures on one set, beside the reference's `Verdict`s of the same images."""
    guess, theirs, truth = ([float(x.score) for x in part] for part in (verdicts, reference, cases))
    groups = [case.group for case in cases]
    pairs = list(zip(verdicts, reference, strict=True))
    return {
        "srcc": bootstrap(srcc, guess, truth, groups=groups),
        "srcc_lost": bootstrap(gain, theirs, guess, truth, groups=groups),
        "same": mean([float(said_by(a) == said_by(b)) for a, b in pairs]),
        "same_crops": mean([float(crops_of(a) == crops_of(b)) for a, b in pairs]),
        "score_off": mean([abs(a.score - b.score) for a, b in pairs]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help="the first is the reference")
    parser.add_argument("--rated", type=Path, required=True)
    parser.add_argument("--vista", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="only so many images of the set")
    parser.add_argument("--every", type=int, default=1, help="only one rated photo of so many")
    parser.add_argument("--max-probes", type=int, default=3)
    args = parser.parse_args()
    try:
        cases = cases_of(args.rated, args.every, args.vista, args.limit)
        bundles = [Bundle.open(path) for path in args.bundles]
    except (BundleError, SetError) as error:
        print(f"precision_loss.py: {error}", file=sys.stderr)
        return 2
    reference: dict[str, list[Verdict]] = {}
    rows: list[dict[str, Any]] = []
    for bundle in bundles:
        prober = Prober(Engine.open(bundle))
        size = sum(file.stat().st_size for file in bundle.directory.iterdir()) / MB
        row: dict[str, Any] = {"bundle": bundle.directory.name, "precision": bundle.contract.precision, "mb": size}
        print(f"{row['bundle']}, {row['precision']}, {size:.1f} MB")
        for name, some in cases.items():
            verdicts = verdicts_of(prober, some, args.max_probes, name)
            found = row_of(verdicts, reference.setdefault(name, verdicts), some)
            row |= {f"{name}_{key}": value for key, value in flat(found).items()}
            print(f"  {name}, {len(some)} images")
            print("".join(f"    {key:<12} {value}\n" for key, value in found.items()), end="", flush=True)
        rows.append(row)
    print(json.dumps({**{f"{name}_images": len(some) for name, some in cases.items()}, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
