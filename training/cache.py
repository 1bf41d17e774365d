"""Encodes every training view once: frozen cells on disk, so that training never waits for a convolution.

    python training/cache.py --rated DATA/biq2021 --photos DATA/photos --out CACHE [--extra MORE_PHOTOS] [--local N]

Writes four kinds of sample (a `CellStore` each and worker): `rated` (a rated photo at several scales), `patched` (a
rated photo with local damage), `whole` (a clean photo at screen size, damaged all over) and `local` (a clean photo at
full resolution, damaged in 0 to 2 places, with crops). Test photos are left out: benchmarks/gates.py makes its own.
"""

import argparse
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from cells import IMAGENET_MEAN, IMAGENET_STD, CellStore, export_encoder
from degradations import ATTRIBUTE_OF, BANK, CLEAN_SCORE, KINDS, Damage, damage, damaged_score, score_drop
from nano_spec import CROP, CROP_VIEW, GLOBAL_VIEW
from numpy.typing import NDArray
from photos import Rated, Source, pristine_photos, rated_photos
from PIL import Image

from qcheck.tiles import Box, View, ViewSpec, crop_box, normalise_table, render, view_of, whole

Pixels = NDArray[np.uint8]
Views = Iterator[tuple[dict[str, Any], NDArray[np.float16]]]


class Look:
    """Turns a part of a photo into cells, through the same tiles as the runtime."""

    def __init__(self, encoder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        # ONNX Runtime, because it is twice as fast here as eager PyTorch and is what the shipped model runs on.
        self.session = onnxruntime.InferenceSession(str(encoder), options, providers=["CPUExecutionProvider"])
        self.table = normalise_table(IMAGENET_MEAN, IMAGENET_STD)

    def cells(self, pixels: Pixels, view: View) -> NDArray[np.float16]:
        seen = render(pixels, view)
        planar = np.stack([self.table[c][seen[:, :, c]] for c in range(3)])
        cells: NDArray[np.float32] = self.session.run(None, {"pixels": planar[None]})[0]
        return cells.astype(np.float16)

    def at(self, pixels: Pixels, box: Box, spec: ViewSpec, role: str) -> tuple[dict[str, Any], NDArray[np.float16]]:
        view = view_of(box, spec)
        return {"role": role, "box": box.as_list(), "size": list(view.size)}, self.cells(pixels, view)


def load(path: Path) -> Pixels:
    return np.array(Image.open(path).convert("RGB"))


def rescaled(pixels: Pixels, width: int, height: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def overall(pixels: Pixels) -> Box:
    return whole(pixels.shape[1], pixels.shape[0])


def rated_sample(look: Look, photo: Rated, rng: np.random.Generator) -> tuple[dict[str, Any], Views]:
    pixels = load(photo.path)
    height, width = pixels.shape[:2]

    def views() -> Views:
        yield look.at(pixels, overall(pixels), GLOBAL_VIEW, "global")
        if photo.split != "train":
            return
        for scale in (rng.uniform(0.55, 0.85), rng.uniform(1.2, 1.8)):
            other = rescaled(pixels, int(width * scale), int(height * scale))
            yield look.at(other, overall(other), GLOBAL_VIEW, "global")
        side = int(width * rng.uniform(0.75, 0.95))
        x, y = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
        part = np.ascontiguousarray(pixels[y : y + side, x : x + side])
        yield look.at(part, overall(part), GLOBAL_VIEW, "global")

    return {"split": photo.split, "name": photo.path.name, "score": photo.score}, views()


def damages_record(damages: list[Damage]) -> list[dict[str, Any]]:
    return [{"kind": d.kind, "level": d.level, "box": list(d.box)} for d in damages]


def patched_sample(look: Look, photo: Rated, rng: np.random.Generator) -> tuple[dict[str, Any], Views]:
    """A rated photo, damaged locally at its own resolution: many contents for the same skill that crops need."""
    pixels = load(photo.path)
    height, width = pixels.shape[:2]
    if rng.random() < 0.5:
        side = int(width * rng.uniform(0.7, 1.0))
        x, y = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
        pixels = np.ascontiguousarray(pixels[y : y + side, x : x + side])
        height, width = pixels.shape[:2]
    found = damage(pixels, str(rng.choice(KINDS)), int(rng.integers(1, 6)), rng, size=(0.18, 0.75), avoid=[])
    damages = [] if found is None else [found]
    sample = {
        "split": photo.split,
        "name": photo.path.name,
        "width": width,
        "height": height,
        "defects": damages_record(damages),
    }
    return {**sample, "score": damaged_score(photo.score, damages, width, height)}, iter(
        [look.at(pixels, overall(pixels), GLOBAL_VIEW, "global")]
    )


def whole_sample(look: Look, source: Source, clean: Pixels, rng: np.random.Generator) -> tuple[dict[str, Any], Views]:
    """A clean photo reduced to screen size, then damaged all over by none, one or two kinds."""
    height, width = clean.shape[:2]
    share = rng.uniform(0.5, 1.0)
    w, h = int(width * share), int(height * share)
    x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    area = math.exp(rng.uniform(math.log(300 * 300), math.log(1024 * 768)))
    scale = min(1.0, math.sqrt(area / (w * h)))
    pixels = rescaled(clean[y : y + h, x : x + w], max(64, int(w * scale)), max(64, int(h * scale)))
    attributes, score, defects = dict.fromkeys(sorted(set(ATTRIBUTE_OF.values())), CLEAN_SCORE), CLEAN_SCORE, []
    for kind in rng.choice(KINDS, size=rng.choice((0, 1, 2), p=(0.15, 0.6, 0.25)), replace=False):
        level = int(rng.integers(1, 6))
        pixels = BANK[kind](np.ascontiguousarray(pixels), level, rng)
        attribute = ATTRIBUTE_OF[kind]
        attributes[attribute] = min(attributes[attribute], CLEAN_SCORE - 0.72 * level)
        defects.append(Damage(str(kind), level, (0, 0, pixels.shape[1], pixels.shape[0])))
    score = damaged_score(CLEAN_SCORE, defects, pixels.shape[1], pixels.shape[0])
    sample = {"split": source.split, "name": source.path.name, "width": pixels.shape[1], "height": pixels.shape[0]}
    sample |= {"defects": damages_record(defects), "attributes": attributes, "score": score}
    return sample, iter([look.at(pixels, overall(pixels), GLOBAL_VIEW, "global")])


def jittered(box: Box, spread: float, width: int, height: int, rng: np.random.Generator) -> Box:
    dx, dy = box.width * spread, box.height * spread
    x1, x2 = sorted(float(np.clip(v + rng.normal(0, dx), 0, width)) for v in (box.x1, box.x2))
    y1, y2 = sorted(float(np.clip(v + rng.normal(0, dy), 0, height)) for v in (box.y1, box.y2))
    x1, y1 = min(int(x1), width - 2), min(int(y1), height - 2)
    return Box(x1, y1, max(int(x2), x1 + 1), max(int(y2), y1 + 1))


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    w, h = (max(32, int(side * math.exp(rng.uniform(math.log(0.06), math.log(0.3))))) for side in (width, height))
    x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
    return Box(x, y, x + w, y + h)


def crop_targets(damages: list[Damage], width: int, height: int, rng: np.random.Generator) -> Iterator[tuple[str, Box]]:
    """What the cached crops look at: each damage (well and badly aimed) and places of no interest."""
    for index, found in enumerate(damages[:2]):
        yield f"truth{index}", jittered(Box(*found.box), 0.1, width, height, rng)
    if damages:
        truth = Box(*damages[0].box)
        shifted = Box(*truth.as_list())
        dx, dy = (int(rng.choice((-1, 1)) * rng.uniform(0.3, 0.8) * side) for side in (truth.width, truth.height))
        x, y = (
            int(np.clip(truth.x1 + dx, 0, width - truth.width)),
            int(np.clip(truth.y1 + dy, 0, height - truth.height)),
        )
        shifted = Box(x, y, x + truth.width, y + truth.height)
        yield "near", jittered(shifted, 0.15, width, height, rng)
    for _ in range(1 if damages else 3):
        yield "random", random_box(width, height, rng)


def local_sample(look: Look, source: Source, clean: Pixels, rng: np.random.Generator) -> tuple[dict[str, Any], Views]:
    height, width = clean.shape[:2]
    share = rng.uniform(0.6, 1.0) if rng.random() < 0.6 else 1.0
    w, h = int(width * share), int(height * share)
    x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    pixels = clean[y : y + h, x : x + w]
    pixels = np.ascontiguousarray(pixels[:, ::-1] if rng.random() < 0.5 else pixels)
    damages: list[Damage] = []
    for _ in range(rng.choice((0, 1, 2), p=(0.25, 0.6, 0.15))):
        found = damage(pixels, str(rng.choice(KINDS)), int(rng.integers(1, 6)), rng, size=(0.07, 0.34), avoid=damages)
        damages += [] if found is None else [found]
    damages.sort(key=lambda d: -score_drop(d.level, (d.box[2] - d.box[0]) * (d.box[3] - d.box[1]) / (w * h)))
    sample = {
        "split": source.split,
        "name": source.path.name,
        "width": w,
        "height": h,
        "defects": damages_record(damages),
    }

    def views() -> Views:
        yield look.at(pixels, overall(pixels), GLOBAL_VIEW, "global")
        for role, target in crop_targets(damages, w, h, rng):
            yield look.at(pixels, crop_box(target, CROP, w, h), CROP_VIEW, role)

    return {**sample, "score": damaged_score(CLEAN_SCORE, damages, w, h)}, views()


def work(worker: int, args: argparse.Namespace) -> None:
    look, rng, started = Look(args.out / "encoder.onnx"), np.random.default_rng([args.seed, worker]), time.monotonic()
    mine: Callable[[list[Any]], list[Any]] = lambda items: items[worker :: args.workers]  # noqa: E731
    sources = [s for s in pristine_photos(args.photos, args.extra) if s.split != "test"]
    rated = [p for p in rated_photos(args.rated) if p.split != "test"]

    def write(name: str, make: Iterator[tuple[dict[str, Any], Views]], total: int) -> None:
        writer = CellStore(args.out, f"{name}-{worker}").writer()
        for done, (sample, views) in enumerate(make, 1):
            writer.add(sample, views)
            if done % 50 == 0 or done == total:
                print(f"worker {worker}: {name} {done}/{total}, {time.monotonic() - started:.0f} s", flush=True)

    write("rated", (rated_sample(look, p, rng) for p in mine(rated)), len(mine(rated)))
    write("patched", (patched_sample(look, p, rng) for p in mine(rated)), len(mine(rated)))
    clean = {s.path: load(s.path) for s in mine(sources)}
    order = [mine(sources)[i] for i in rng.integers(0, len(mine(sources)), max(args.whole, args.local) // args.workers)]
    write(
        "whole",
        (whole_sample(look, s, clean[s.path], rng) for s in order[: args.whole // args.workers]),
        args.whole // args.workers,
    )
    write(
        "local",
        (local_sample(look, s, clean[s.path], rng) for s in order[: args.local // args.workers]),
        args.local // args.workers,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rated", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--extra", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--local", type=int, default=4000)
    parser.add_argument("--whole", type=int, default=1600)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    export_encoder(args.out / "encoder.onnx")
    workers = [multiprocessing.get_context("spawn").Process(target=work, args=(i, args)) for i in range(args.workers)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    if any(process.exitcode for process in workers):
        raise SystemExit("a worker failed: the cache is not complete")


if __name__ == "__main__":
    main()
