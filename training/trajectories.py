"""Probe-CoT: how one should look at a photo, as conversations over whole photos that any model can be taught.

    python training/trajectories.py make SET OUT [--rated DATA/biq2021] [--photos PHOTOS] [--degradation-only]
    python training/trajectories.py flywheel SET OUT [--model BUNDLE]

SET is what vista.py made; only images of `--split` (train) are used. `make` writes OUT/trajectories.jsonl: think, crop,
look, think, answer. What it holds to:

- Low and high resolution 2 : 1 (Q-Probe): small copies and rated photos, answered at once, and full-size ones, probed.
- The context-aware rule: a crop holds all of a defect and some of its normal surroundings, and some crops show nothing
  but clean photo or natural bokeh, so that being cropped does not mean being broken. `--degradation-only` breaks it for
  the ablation: crops are the defects' own boxes, and none is clean.
- Counterfactual pairs, where --photos says what SET was made from: the same photo without its damage, beside it, for a
  loss on what is really seen.

`flywheel` lets a model look at SET's images and keeps the conversations whose score and boxes agree with the truth.

Boxes are x1, y1, x2, y2 in pixels of the image that the line names. `findings` of a rated photo are null: nobody knows.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from crops import clean_crop, context_crop
from negatives import BOKEH
from PIL import Image
from vista import SetError, checked_rated, encoded, remaker, rows_of, told, write_whole

from qcheck.bundle import Bundle
from qcheck.engine import Engine
from qcheck.photo import Photo
from qcheck.probe import Limits, Prober
from qcheck.tiles import Box
from qcheck.verdict import DEFECT_LEVELS

FORMAT: Final = "probe-cot-1"
LOW_TO_HIGH: Final = 2
CLEAN_CROP_SHARE: Final = 0.35  # of probed images with defects, that also look at a clean place
MOST_PROBES: Final = 3
AGREEING_SCORE: Final = 0.5  # points
AGREEING_IOU: Final = 0.5

Row = dict[str, Any]


def finding(region: Row) -> Row:
    return {"kind": region["kind"], "level": DEFECT_LEVELS[region["level"] - 1], "box": list(region["box"])}


def low(image: str, size: tuple[int, int], row: Row) -> Row:
    """A small copy: answered at once. Its defects are those of the large one, in its own pixels."""
    scale = size[0] / row["width"]
    regions = row["regions"]
    findings = None
    if regions is not None:
        findings = [{**finding(r), "box": [round(c * scale) for c in r["box"]]} for r in regions]
    return _line(image, size, "low", row, [], findings)


def high(row: Row, rng: np.random.Generator, degradation_only: bool = False) -> Row | None:
    """A full-size image: its defects probed one by one, the costliest first, and now and then a clean place. None where
    there is nothing to show under `degradation_only`."""
    size, regions = (row["width"], row["height"]), row["regions"]
    ordered = sorted(regions, key=lambda r: -r["cost"])
    probes: list[Row] = []
    for region in ordered[:MOST_PROBES]:
        crop = tuple(region["box"]) if degradation_only else context_crop(tuple(region["box"]), *size, rng)
        seen = [finding(r) for r in ordered if Box(*crop).iou(Box(*r["box"])) > 0]
        probes.append({"box": list(crop), "label": region["kind"], "findings": seen})
    if degradation_only and not probes:
        return None
    wanted = not regions or (len(probes) < MOST_PROBES and rng.random() < CLEAN_CROP_SHARE)
    if wanted and not degradation_only and (crop := clean_crop(regions, *size, rng)):
        # Looked at for what it may be taken for: natural blur for defocus.
        label = "defocus" if row["scene"] in BOKEH else str(rng.choice(["noise", "compression", "defocus"]))
        probes.insert(int(rng.integers(0, len(probes) + 1)), {"box": list(crop), "label": label, "findings": []})
    return _line(row["image"], size, "high", row, probes, [finding(r) for r in ordered])


def _line(
    image: str, size: tuple[int, int], resolution: str, row: Row, probes: list[Row], findings: list[Row] | None
) -> Row:
    return {
        "format": FORMAT,
        "image": image,
        "width": size[0],
        "height": size[1],
        "resolution": resolution,
        "source": row["source"],
        "split": row["split"],
        "scene": row["scene"],
        "probes": probes,
        "answer": {"score": row["score"], "findings": findings},
        "counterfactual": None,
    }


def hybrid(lows: list[Row], highs: list[Row], rng: np.random.Generator) -> list[Row]:
    """Both, low to high as LOW_TO_HIGH to 1, as many as there are for that, in any order."""
    count = min(len(highs), len(lows) // LOW_TO_HIGH)
    if count == 0:
        raise SetError(f"{len(lows)} low and {len(highs)} high images do not make 2 : 1; give --rated, or a larger set")
    chosen = [lows[i] for i in rng.permutation(len(lows))[: LOW_TO_HIGH * count]]
    chosen += [highs[i] for i in rng.permutation(len(highs))[:count]]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def make(
    root: Path, out: Path, seed: int, split: str, rated: Path | None, photos: Path | None, degradation_only: bool
) -> None:
    rng = np.random.default_rng(seed)
    rows = rows_of(root)
    used = [row for row in rows if row["split"] == split]
    lows = [low(r["small"]["image"], (r["small"]["width"], r["small"]["height"]), r) for r in used if r["small"]]
    highs = [line for r in used if r["regions"] is not None and (line := high(r, rng, degradation_only))]
    for line in (*lows, *highs):
        line["image"] = str((root / line["image"]).resolve())
    if rated is not None:
        for photo in checked_rated(rated):
            if photo.split != split:
                continue
            with Image.open(photo.path) as image:
                size = image.size
            row = {"source": photo.path.name, "split": photo.split, "scene": "rated", "regions": None}
            known = {**row, "score": round(photo.score, 4), "width": size[0], "height": size[1]}
            lows.append(low(str(photo.path.resolve()), size, known))
    lines = hybrid(lows, highs, rng)
    out.mkdir(parents=True, exist_ok=True)
    if photos is not None:
        _pair(root, out, rows, lines, photos)
    _finish(out, lines)


def _pair(root: Path, out: Path, rows: list[Row], lines: list[Row], photos: Path) -> None:
    """Writes the undamaged twin of each probed image with defects."""
    remake = remaker(root, photos, rows)
    numbers = {str((root / row["image"]).resolve()): number for number, row in enumerate(rows)}
    (out / "clean").mkdir(exist_ok=True)
    for line in lines:
        if line["resolution"] == "high" and line["answer"]["findings"]:
            number = numbers[line["image"]]
            path = out / "clean" / f"{number:06d}.jpg"
            if not path.exists():
                _, clean = remake(number)
                write_whole(path, encoded(clean))
            line["counterfactual"] = str(path.resolve())


def agrees(line: Row, truth: Row) -> bool:
    """Whether a proposed conversation's score and boxes are those of the truth."""
    if abs(line["answer"]["score"] - truth["score"]) > AGREEING_SCORE:
        return False
    said = [Box(*f["box"]) for f in line["answer"]["findings"]]
    meant = [Box(*r["box"]) for r in truth["regions"]]
    hit = all(any(b.iou(m) >= AGREEING_IOU for b in said) for m in meant)
    return hit and all(any(b.iou(m) >= AGREEING_IOU for m in meant) for b in said)


def proposed(prober: Prober, root: Path, rows: Iterable[Row]) -> Iterator[tuple[Row, Row]]:
    """What a model says of each image with known regions, as a line, and the truth."""
    for row in rows:
        if row["regions"] is None:
            continue
        verdict = prober.judge(Photo.open(root / row["image"]), Limits(MOST_PROBES))
        found = [{"kind": d.kind, "level": d.level, "box": d.box.as_list()} for d in verdict.defects]
        probes = [
            {
                "box": p.box.as_list(),
                "label": p.label,
                "findings": [f for f in found if p.box.iou(Box(*f["box"])) > 0] if p.finding != "clean" else [],
            }
            for p in verdict.probes
        ]
        line = _line(str((root / row["image"]).resolve()), (row["width"], row["height"]), "high", row, probes, found)
        line["answer"]["score"] = round(verdict.score, 4)
        yield line, row


def flywheel(root: Path, out: Path, model: Path | None, split: str) -> None:
    prober = Prober(Engine.open(Bundle.open(model)))
    rows = [row for row in rows_of(root) if row["split"] == split]
    kept, tried = list[Row](), 0
    for line, truth in proposed(prober, root, rows):
        tried += 1
        if agrees(line, truth):
            kept.append(line)
        if sys.stderr.isatty():
            print(f"\r{len(kept)} of {tried} kept", end="", file=sys.stderr)
    out.mkdir(parents=True, exist_ok=True)
    _finish(out, kept)
    print(f"{tried} proposed")


def _finish(out: Path, lines: list[Row]) -> None:
    write_whole(out / "trajectories.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    high_ = [line for line in lines if line["resolution"] == "high"]
    clean = sum(any(not p["findings"] for p in line["probes"]) for line in high_)
    print(f"{out}: {len(lines)} conversations, {len(high_)} of them probed, {clean} with a clean crop")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making, turning = commands.add_parser("make"), commands.add_parser("flywheel")
    for each in (making, turning):
        each.add_argument("set", type=Path)
        each.add_argument("out", type=Path)
        each.add_argument("--split", choices=("train", "dev", "test"), default="train")
    making.add_argument("--seed", type=int, default=0)
    making.add_argument("--rated", type=Path)
    making.add_argument("--photos", type=Path)
    making.add_argument("--degradation-only", action="store_true")
    turning.add_argument("--model", type=Path)
    args = parser.parse_args(arguments)

    def run() -> None:
        if args.command == "make":
            make(args.set, args.out, args.seed, args.split, args.rated, args.photos, args.degradation_only)
        else:
            flywheel(args.set, args.out, args.model, args.split)

    return told("trajectories.py", run)


if __name__ == "__main__":
    sys.exit(main())
