"""The gates of nano: does it rank rated photos, does probing help, is the box right, is the export exact?

    python benchmarks/gates.py --rated DATA/biq2021 --photos DATA/photos
        [--checkpoint RUN/stepN.pt] [--brisque-python peers/bin/python]

On photos that no training saw (the splits of training/photos.py). What bounds it: about a second of CPU a big photo and
pass. Prints a table and, last, one JSON line; each figure is [value, low, high] with a 95% bootstrap interval, over
source photos for the damaged set. Without --checkpoint or --brisque-python those rows are null, never guessed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from damaged_set import cases
from measures import Estimate, bootstrap, mean, plcc, srcc
from photos import Rated, pristine_photos, rated_photos  # on the path through damaged_set
from scorers import SEED, RandomAim

from qcheck.bundle import Bundle
from qcheck.engine import Engine
from qcheck.photo import Photo
from qcheck.probe import Limits, Prober
from qcheck.tiles import Box

Row = Estimate | float | None


def rated_rows(engine: Engine, photos: list[Rated]) -> dict[str, Row]:
    prober, truth = Prober(engine), [p.score for p in photos]
    rows: dict[str, Row] = {}
    for probes, suffix in ((0, ""), (3, "_3")):
        guess = [prober.judge(Photo.open(p.path), Limits(probes)).score for p in photos]
        rows[f"rated_srcc{suffix}"] = bootstrap(srcc, guess, truth)
        rows[f"rated_plcc{suffix}"] = bootstrap(plcc, guess, truth)
    return rows


def brisque_row(python: Path | None, photos: list[Rated]) -> dict[str, Row]:
    if python is None:
        return {"brisque_srcc": None}
    script = Path(__file__).with_name("peer_scores.py")
    names = "".join(f"{p.path}\n" for p in photos)
    done = subprocess.run(
        [str(python), str(script), "brisque"], input=names, capture_output=True, text=True, check=True
    )
    scores = np.array([float(line) for line in done.stdout.split()])
    scores[np.isnan(scores)] = np.nanmin(scores)  # a photo that it fails on gets its worst score
    return {"brisque_srcc": bootstrap(srcc, scores, [p.score for p in photos])}


def local_rows(engine: Engine, photos: Path, per_source: int, split: str) -> dict[str, Row]:
    sources = [s for s in pristine_photos(photos) if s.split == split]
    passes = {"0": (Prober(engine), 0), "3": (Prober(engine), 3), "random": (Prober(engine, aim=RandomAim(SEED)), 3)}
    found: dict[str, list[Any]] = {name: [] for name in passes}
    truth = []
    for photo, known in cases(sources, per_source, SEED):
        truth.append(known)
        for name, (prober, probes) in passes.items():
            found[name].append(prober.judge(photo, Limits(probes)))
        _progress(f"local photos {len(truth)}")
    damaged = [i for i, case in enumerate(truth) if case.box]
    clean = [i for i, case in enumerate(truth) if not case.box]
    groups = [truth[i].source for i in damaged]
    scores = [truth[i].score for i in damaged]
    rows: dict[str, Row] = {"local_photos": float(len(damaged)), "local_sources": float(len(set(groups)))}
    for name in passes:
        guess = [found[name][i].score for i in damaged]
        rows[f"local_srcc_{name}"] = bootstrap(srcc, guess, scores, groups=groups)
        everything = [v.score for v in found[name]]
        rows[f"local_and_clean_srcc_{name}"] = bootstrap(
            srcc, everything, [c.score for c in truth], groups=[c.source for c in truth]
        )
    pair = [[found[name][i].score for i in damaged] for name in ("3", "0")]
    rows["local_srcc_gain"] = bootstrap(lambda a, b, t: srcc(a, t) - srcc(b, t), *pair, scores, groups=groups)
    for name in ("0", "3"):
        overlap = [_iou(found[name][i], truth[i].box) for i in damaged]
        rows[f"local_iou{'' if name == '3' else '_0'}"] = bootstrap(mean, overlap, groups=groups)
        none = [float(not found[name][i].defects) for i in clean]
        rows[f"clean_ok{'' if name == '3' else '_0'}"] = bootstrap(mean, none, groups=[truth[i].source for i in clean])
    rows["local_reported"] = bootstrap(mean, [float(bool(found["3"][i].defects)) for i in damaged], groups=groups)
    rows["local_kind_right"] = mean(
        np.array([bool(d := found["3"][i].defects) and d[0].kind == truth[i].kind for i in damaged])
    )
    rows["probes_used"] = mean(np.array([len(v.probes) for v in found["3"]]))
    for name in ("0", "3"):
        rows[f"local_ms_{name}"] = float(np.median([v.timing_ms.total for v in found[name]]))
    return rows


def _iou(verdict: Any, box: Box) -> float:
    """Of the most confident box; 0 if none is reported."""
    return verdict.defects[0].box.iou(box) if verdict.defects else 0.0


def parity_rows(checkpoint: Path | None, photos: list[Rated], big: Path, count: int) -> dict[str, Row]:
    """The fp32 bundle against PyTorch on whole conversations: same trajectories, logits close; int8's loss in rank."""
    if checkpoint is None:
        return {"parity_same": None, "parity_max_logit": None}
    from export_nano import export, load
    from torch_backend import TorchBackend

    card = Path(__file__).parent.parent / "training" / "MODEL_CARD.md"
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(checkpoint, card, Path(folder) / "fp32", "fp32")
        onnx = Engine.open(bundle)
    model, tokenizer = load(checkpoint)
    ours = TracingBackend(onnx.backend)
    onnx.backend = ours
    reference = TorchBackend(model, onnx.contract.decoder.max_tokens)
    torch_engine = Engine(onnx.contract, onnx.model, reference, tokenizer, onnx.embeddings)
    sources = [s.path for s in pristine_photos(big) if s.split == "test"][: count // 2]
    same, worst = 0, 0.0
    paths = sources + [p.path for p in photos[: count - len(sources)]]
    for path in paths:
        photo = Photo.open(path)
        ours.trace.clear()
        reference.trace.clear()
        a, b = Prober(onnx).judge(photo, Limits(3)), Prober(torch_engine).judge(photo, Limits(3))
        equal = (
            a.probes == b.probes
            and [d.box for d in a.defects] == [d.box for d in b.defects]
            and a.reasoning == b.reasoning
        )
        same += equal
        steps = list(zip(ours.trace, reference.trace, strict=False))
        if equal:
            worst = max(worst, *(float(np.abs(x - y).max()) for x, y in steps))
        else:
            first = next((i for i, (x, y) in enumerate(steps) if np.abs(x - y).max() > 1e-2), len(steps))
            gap = np.diff(np.sort(reference.trace[max(0, first - 1)])[-2:])[0]
            print(f"parity: {path.name} parts ways at step {first}; the top two differed by {gap:.2e}")
    rated = [Photo.open(p.path) for p in photos]
    fp32 = [Prober(onnx).judge(p, Limits(0)).score for p in rated]
    return {
        "parity_photos": float(len(paths)),
        "parity_same": float(same),
        "parity_max_logit": worst,
        "rated_srcc_fp32": bootstrap(srcc, fp32, [p.score for p in photos]),
    }


class TracingBackend:
    """Keeps the logits of every step of the backend it wraps."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.info, self.trace = inner, inner.info, list[Any]()
        self.new_cache, self.encode = inner.new_cache, inner.encode

    def step(self, embeds: Any, positions: Any, cache: Any) -> Any:
        logits = self.inner.step(embeds, positions, cache)
        self.trace.append(logits)
        return logits


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text}", end="", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rated", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="another bundle than the embedded one")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--brisque-python", type=Path)
    parser.add_argument("--per-source", type=int, default=10, help="damaged photos made of each source")
    parser.add_argument("--parity-photos", type=int, default=24)
    parser.add_argument("--split", choices=("test", "dev"), default="test", help="dev: for choosing between models")
    args = parser.parse_args()
    started = time.monotonic()
    bundle = Bundle.open(args.model)
    engine = Engine.open(bundle)
    rated = [p for p in rated_photos(args.rated) if p.split == args.split]
    rows: dict[str, Row] = {"rated_photos": float(len(rated))}
    rows |= rated_rows(engine, rated)
    rows |= brisque_row(args.brisque_python, rated)
    rows |= local_rows(engine, args.photos, args.per_source, args.split)
    rows |= parity_rows(args.checkpoint, rated, args.photos, args.parity_photos)
    for name, value in rows.items():
        print(
            f"{name:28} {'not measured' if value is None else value if isinstance(value, Estimate) else f'{value:.4g}'}"
        )
    contract = bundle.contract
    print(f"{contract.name} {contract.version} {contract.precision}, {time.monotonic() - started:.0f} s")
    flat = {name: value.as_list() if isinstance(value, Estimate) else value for name, value in rows.items()}
    print(json.dumps({"model": contract.name, "split": args.split, "sha256": bundle.sha256, **flat}))


if __name__ == "__main__":
    main()
