"""The gates of nano: does it rank photos as people do, does probing help, are its boxes right and its doubts honest, is
the export exact?

    python benchmarks/gates.py --rated DATA/biq2021 --vista SET [--model BUNDLE] [--single-pass BUNDLE]
        [--photos DATA/photos] [--checkpoint RUN/stepN.pt] [--peers-python peers/bin/python] [--limit N] [--keep FILE]

On photos that no training saw: the test splits of training/photos.py, and that of a set of training/vista.py. What
bounds it: half a second of CPU a big photo and pass. Prints a table and, last, one JSON line; each figure is [value,
low, high] with a 95% bootstrap interval, over source photos for the Vista-like set. What was not asked for is null or
left out, never guessed (--single-pass: a model of one look and no survey, taught with the same data; --photos: the
attributes, and whether it is told that a large photo is bad all over).

It takes most of an hour: with --keep, each part's rows are kept as it ends, and the same command goes on from there.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from accuracy import drawn, measured
from attributes import COUNT, attribute_rows
from kept_rows import KeptRows, Rows
from measures import Estimate, bootstrap, flat, mean, plcc, srcc, srcc_within
from rated_sets import Case, SetError, read_set
from scorers import PEERS, Peer, UnknownScorer, scorer
from spoilt import spoilt_rows

from qcheck.bundle import Bundle
from qcheck.engine import Engine
from qcheck.photo import Photo
from qcheck.probe import Limits, Prober

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

from photos import Rated, pristine_photos, rated_photos

ROLLOUTS: Final = 5
ROLLED_OUT: Final = 2  # one photo of so many, because five more runs take their time
PROBES: Final = 3


def rated_rows(engine: Engine, photos: list[Rated]) -> Rows:
    """Rated photos, as the command judges them and at a single look; and what sampled runs say of its doubts."""
    prober, truth = Prober(engine), np.array([p.score for p in photos])
    rows: Rows = {"rated_photos": float(len(photos))}
    verdicts = []
    for index, photo in enumerate(photos):
        rollouts = 0 if index % ROLLED_OUT else ROLLOUTS
        verdicts.append(prober.judge(Photo.open(photo.path), Limits(PROBES, rollouts=rollouts)))
        _progress(f"rated photos {index + 1}")
    guess = np.array([v.score for v in verdicts])
    rows["rated_srcc"] = bootstrap(srcc, guess.tolist(), truth.tolist())
    rows["rated_plcc"] = bootstrap(plcc, guess.tolist(), truth.tolist())
    names = sorted({p.domain for p in photos})
    domains = [float(names.index(p.domain)) for p in photos]
    rows["rated_srcc_within"] = bootstrap(srcc_within, guess.tolist(), truth.tolist(), domains)
    single = [prober.judge(Photo.open(p.path), Limits(0)).score for p in photos]
    rows["rated_srcc_0"] = bootstrap(srcc, single, truth.tolist())
    error = np.abs(guess - truth)
    rolled = [i for i, v in enumerate(verdicts) if v.rollouts]
    spread = [float(np.std(v.rollouts.scores)) for v in verdicts if v.rollouts]
    rows["rollout_photos"] = float(len(rolled))
    rows["rollout_std"] = bootstrap(mean, spread)
    rows["rollout_std_with_error"] = bootstrap(srcc, spread, error[rolled].tolist())
    rows["score_std_with_error"] = bootstrap(srcc, [v.score_std for v in verdicts], error.tolist())
    rows["coverage"] = bootstrap(mean, (error <= [v.score_std for v in verdicts]).astype(float).tolist())
    return rows


def vista_cases(root: Path, limit: int | None) -> list[Case]:
    """The test split of a Vista-like set: the images whose defects are known. Raises SetError."""
    _, cases = read_set(root)
    return drawn([c for c in cases if c.split == "test" and c.regions is not None], limit)


def vista_rows(way: str, asked: str | None, cases: list[Case], root: Path) -> Rows:
    """How a scorer of scorers.py ranks them; null where none is asked. `way`: what the rows are called by."""
    if asked is None:
        return {f"vista_srcc_{way}": None}
    found = measured(scorer(asked, None), cases, root, None)
    rows: Rows = {f"vista_srcc_{way}": found["srcc"], f"vista_ms_{way}": found["ms"]}
    if way == str(PROBES):
        rows[f"vista_plcc_{way}"] = found["plcc"]
        rows |= {f"vista_{name}": found.get(name) for name in ("iou", "f1", "kind_right")}
        rows |= {name: found.get(name) for name in ("false_alarms_clean", "false_alarms_bokeh")}
        rows |= {"probes_used": found["probes"], "vista_images": float(len(cases))}
        rows["vista_sources"] = float(len({c.group for c in cases}))
    return rows


def shift_rows(bundle: str, cases: list[Case], root: Path) -> Rows:
    """What a forced look at a clean place does."""
    return {"crop_shift": measured(scorer(f"{bundle}@1:clean", None), cases, root, None)["crop_shift"]}


def peer_rows(python: Path | None, photos: list[Rated]) -> Rows:
    """How classical measures rank the same photos; one that a measure fails on gets its worst score."""
    rows: Rows = {}
    for name in PEERS:
        found: Estimate | None = None
        if python is not None:
            peer = Peer(name, python)
            scores = np.array([peer.judge(Case(p.path, p.score, p.path.name)).score for p in photos])
            scores[np.isnan(scores)] = np.nanmin(scores)
            found = bootstrap(srcc, scores.tolist(), [p.score for p in photos])
            _progress(f"{name} done")
        rows[f"{name.replace('-', '_')}_srcc"] = found
    return rows


def parity_rows(checkpoint: Path | None, photos: list[Rated], big: Path | None, count: int) -> Rows:
    """The fp32 bundle against PyTorch on whole conversations: same trajectories, logits close; int8's loss in rank."""
    if checkpoint is None or big is None:
        return {"parity_same": None, "parity_max_logit": None}
    from export_nano import export, load
    from torch_backend import TorchBackend

    card = Path(__file__).parent.parent / "training" / "MODEL_CARD.md"
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(checkpoint, card, Path(folder) / "fp32", "fp32")
        onnx = Engine.open(bundle)
    model, tokenizer, _ = load(checkpoint)
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rated", type=Path, required=True)
    parser.add_argument("--vista", type=Path, required=True, help="a set of training/vista.py")
    parser.add_argument("--model", type=Path, help="another bundle than the embedded one")
    parser.add_argument("--single-pass", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="the model's, for parity with PyTorch; needs --photos")
    parser.add_argument("--photos", type=Path, help="clean photos, for the attributes, spoilt ones, parity")
    parser.add_argument("--peers-python", type=Path, help="an environment as peer_scores.py says")
    parser.add_argument("--parity-photos", type=int, default=24)
    parser.add_argument("--limit", type=int, help="only so many images of the set, drawn evenly")
    parser.add_argument("--keep", type=Path, help="a file for the rows of each part, to go on from")
    args = parser.parse_args()
    started = time.monotonic()
    bundle = Bundle.open(args.model)
    engine = Engine.open(bundle)
    rated = [p for p in rated_photos(args.rated) if p.split == "test"]
    data = {name: folder and folder.name for name, folder in vars(args).items() if name in ("rated", "vista", "photos")}
    kept = KeptRows(args.keep, {"model": bundle.sha256, **data, "limit": args.limit})
    name = str(args.model or "nano")
    single_pass = f"{args.single_pass}@0" if args.single_pass else None
    try:
        cases = vista_cases(args.vista, args.limit)
        rows = peer_rows(args.peers_python, rated)  # first, so that what is missing is said at once
        rows |= kept.part("rated", lambda: rated_rows(engine, rated))
        rows |= kept.part("vista 3", lambda: vista_rows("3", f"{name}@{PROBES}", cases, args.vista))
        rows |= kept.part("vista 0", lambda: vista_rows("0", f"{name}@0", cases, args.vista))
        rows |= kept.part(
            "vista random", lambda: vista_rows("random_crops", f"{name}@{PROBES}:random", cases, args.vista)
        )
        rows |= vista_rows("single_pass", single_pass, cases, args.vista)
        rows |= kept.part("shift", lambda: shift_rows(name, cases, args.vista))
        if args.photos is not None:
            clean = [s.path for s in pristine_photos(args.photos) if s.split == "test"]
            rows |= kept.part("attributes", lambda: attribute_rows(engine, clean, COUNT))
            rows |= kept.part("spoilt", lambda: spoilt_rows(engine, clean))
        rows |= parity_rows(args.checkpoint, rated, args.photos, args.parity_photos)
    except (SetError, UnknownScorer) as error:
        print(f"gates.py: {error}", file=sys.stderr)
        return 2
    for name, value in rows.items():
        print(
            f"{name:28} {'not measured' if value is None else value if isinstance(value, Estimate) else f'{value:.4g}'}"
        )
    contract = bundle.contract
    print(f"{contract.name} {contract.version} {contract.precision}, {time.monotonic() - started:.0f} s")
    print(json.dumps({"model": contract.name, "sha256": bundle.sha256, **flat(rows)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
