"""Encodes every training view once: frozen cells on disk, so that training never waits for a convolution.

    python training/cache.py --rated DATA/biq2021 --photos DATA/photos --out CACHE [--extra MORE_PHOTOS] [--local N]

Writes four kinds of sample (a `CellStore` each and worker): `rated` (a rated photo as it is, mirrored, reduced and
cut), `patched` (a good rated photo with local damage or none), `whole` (a clean photo at screen size, damaged all over)
and `local` (a clean photo or a mosaic of good rated ones at full resolution, damaged in 0 to 2 places, with crops).
Test photos are left out: benchmarks/gates.py makes its own. Once there are eyes (perceive.py),

    python training/cache.py ... --kinds aimed --eyes RUN/eyes.pt

writes more big photos, cropped where those eyes suspect something: what probing will really see.
"""

import argparse
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from cells import IMAGENET_MEAN, IMAGENET_STD, CellStore, export_encoder
from damage import ATTRIBUTE_OF, BANK, CLEAN_SCORE, KINDS, Damage, damage, damaged_score, score_drop
from nano_spec import CROP, CROP_VIEW, GLOBAL_VIEW
from numpy.typing import NDArray
from photos import Rated, Source, Split, pristine_photos, rated_photos
from PIL import Image, ImageEnhance, ImageFilter

from qcheck.tiles import Box, View, ViewSpec, crop_box, normalise_table, planar, view_of, whole

CACHED: Final = ("local", "whole", "rated", "patched", "aimed")
# Rated photos at least this good (1..5) may stand for undamaged ones; below, their own defects have no box.
GOOD_SCORE: Final = 3.3
PATCHED_CLEAN_SHARE: Final = 0.3
REGION: Final = (0.07, 0.34)  # least and greatest side of a damaged region, of the photo's sides
LARGE_REGION: Final = (0.34, 0.95)
LARGE_SHARE: Final = 0.15
MOSAIC_SHARE: Final = 0.4  # of `local` samples: few clean photos are big, and contents must not be learned by heart
MOSAIC_TILES: Final = 6  # at most, a side

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
        cells: NDArray[np.float32] = self.session.run(None, {"pixels": planar(pixels, [view], self.table)})[0]
        return cells.astype(np.float16)

    def at(self, pixels: Pixels, box: Box, spec: ViewSpec, role: str) -> tuple[dict[str, Any], NDArray[np.float16]]:
        view = view_of(box, spec)
        return {"role": role, "box": box.as_list(), "size": list(view.size)}, self.cells(pixels, view)


def load(path: Path) -> Pixels:
    return np.array(Image.open(path).convert("RGB"))


def varied(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """The same photo as another camera might have given it: size, tone, colour, softness, grain. What is clean stays
    clean, but cannot be learned by heart."""
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    if rng.random() < 0.5:
        scale = rng.uniform(0.65, 1.0)
        image = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    if rng.random() < 0.3:
        image = ImageEnhance.Color(image).enhance(rng.uniform(0.3, 1.3))
    if rng.random() < 0.15:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 0.9)))
    if rng.random() < 0.2:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    pixels = np.array(image)
    if rng.random() < 0.7:
        gamma, gains = math.exp(rng.normal(0, 0.15)), rng.uniform(0.88, 1.1) * rng.uniform(0.95, 1.05, 3)
        steps = 255 * (np.arange(256)[:, None] / 255) ** gamma * gains
        table = np.clip(np.rint(steps), 0, 255).astype(np.uint8)
        pixels = np.stack([table[:, c][pixels[:, :, c]] for c in range(3)], 2)
    if rng.random() < 0.2:
        # One tile of grain, repeated: a normal number a pixel would take longer than all the rest.
        grain = np.rint(rng.normal(0, rng.uniform(1, 4), (256, 256, 3))).astype(np.int16)
        tiled = np.tile(grain, (-(-pixels.shape[0] // 256), -(-pixels.shape[1] // 256), 1))
        pixels = np.clip(pixels + tiled[: pixels.shape[0], : pixels.shape[1]], 0, 255).astype(np.uint8)
    return pixels


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
        yield look.at(np.ascontiguousarray(pixels[:, ::-1]), overall(pixels), GLOBAL_VIEW, "global")
        scale = rng.uniform(0.6, 0.9)
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
    """A good rated photo, damaged locally at its own resolution: many contents for the same skill that crops need."""
    pixels = load(photo.path)
    height, width = pixels.shape[:2]
    if rng.random() < 0.5:
        side = int(width * rng.uniform(0.7, 1.0))
        x, y = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
        pixels = np.ascontiguousarray(pixels[y : y + side, x : x + side])
        height, width = pixels.shape[:2]
    damages: list[Damage] = []
    if rng.random() >= PATCHED_CLEAN_SHARE:
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


def crop_targets(
    damages: list[Damage], width: int, height: int, rng: np.random.Generator, near: bool
) -> Iterator[tuple[str, Box]]:
    """What the cached crops look at: each damage (well aimed and, if `near`, badly) and places of no interest."""
    for index, found in enumerate(damages[:2]):
        yield f"truth{index}", jittered(Box(*found.box), 0.1, width, height, rng)
    if damages and near:
        truth = Box(*damages[0].box)
        dx, dy = (int(rng.choice((-1, 1)) * rng.uniform(0.3, 0.8) * side) for side in (truth.width, truth.height))
        x, y = (
            int(np.clip(truth.x1 + dx, 0, width - truth.width)),
            int(np.clip(truth.y1 + dy, 0, height - truth.height)),
        )
        shifted = Box(x, y, x + truth.width, y + truth.height)
        yield "near", jittered(shifted, 0.15, width, height, rng)
    for _ in range(1 if damages else 2):
        yield "random", random_box(width, height, rng)


def mosaic(photos: list[Rated], rng: np.random.Generator) -> Pixels:
    """Rated photos side by side, at their own resolution: a big picture of contents that no clean photo has."""
    rows, cols = (int(n) for n in rng.integers(MOSAIC_TILES - 2, MOSAIC_TILES + 1, 2))
    tiles = [load(photos[i].path) for i in rng.choice(len(photos), rows * cols, replace=False)]
    side = min(min(tile.shape[:2]) for tile in tiles)
    return np.vstack([np.hstack([t[:side, :side] for t in tiles[r * cols : (r + 1) * cols]]) for r in range(rows)])


class Eyes:
    """Where perception would look: the crops that a model on top of it will ask for."""

    def __init__(self, path: Path) -> None:
        import torch  # only here: the other kinds of sample need no torch in the workers
        from visual import Perception, perceived, proposals

        torch.set_num_threads(1)
        perception = Perception()
        perception.load_state_dict(torch.load(path, weights_only=True)["eyes"])
        perception.eval()

        @torch.inference_mode()
        def suspects(cells: NDArray[np.float16]) -> list[list[float]]:
            boxes: list[list[float]] = proposals(
                perceived(perception, [torch.from_numpy(cells.astype(np.float32))])[0]
            ).boxes.tolist()
            return boxes

        self.suspects = suspects

    def targets(self, cells: NDArray[np.float16], width: int, height: int) -> Iterator[Box]:
        """What to zoom into, in photo pixels; `cells`: of the global view."""
        for x1, y1, x2, y2 in self.suspects(cells):
            yield Box(int(x1 * width), int(y1 * height), math.ceil(x2 * width), math.ceil(y2 * height))


def local_sample(
    look: Look, split: Split, name: str, clean: Pixels, rng: np.random.Generator, eyes: Eyes | None = None
) -> tuple[dict[str, Any], Views]:
    height, width = clean.shape[:2]
    share = rng.uniform(0.6, 1.0) if rng.random() < 0.6 else 1.0
    w, h = int(width * share), int(height * share)
    x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    pixels = clean[y : y + h, x : x + w]
    pixels = varied(np.ascontiguousarray(pixels[:, ::-1] if rng.random() < 0.5 else pixels), rng)
    h, w = pixels.shape[:2]
    damages: list[Damage] = []
    size = LARGE_REGION if eyes and rng.random() < LARGE_SHARE else REGION
    for _ in range(rng.choice((0, 1, 2), p=(0.3, 0.58, 0.12))):
        found = damage(pixels, str(rng.choice(KINDS)), int(rng.integers(1, 6)), rng, size=size, avoid=damages)
        damages += [] if found is None else [found]
    damages.sort(key=lambda d: -score_drop(d.level, (d.box[2] - d.box[0]) * (d.box[3] - d.box[1]) / (w * h)))
    sample = {
        "split": split,
        "name": name,
        "width": w,
        "height": h,
        "defects": damages_record(damages),
    }

    def views() -> Views:
        overview, cells = look.at(pixels, overall(pixels), GLOBAL_VIEW, "global")
        yield overview, cells
        if eyes is not None:
            for index, target in enumerate(eyes.targets(cells, w, h)):
                yield look.at(pixels, crop_box(target, CROP, w, h), CROP_VIEW, f"aim{index}")
        for role, target in crop_targets(damages, w, h, rng, near=eyes is None):
            yield look.at(pixels, crop_box(target, CROP, w, h), CROP_VIEW, role)

    return {**sample, "score": damaged_score(CLEAN_SCORE, damages, w, h)}, views()


def local_samples(
    look: Look,
    count: int,
    clean: list[tuple[Source, Pixels]],
    rated: list[Rated],
    rng: np.random.Generator,
    eyes: Eyes | None = None,
) -> Iterator[tuple[dict[str, Any], Views]]:
    for _ in range(count):
        if rng.random() < MOSAIC_SHARE:
            yield local_sample(look, "train", "mosaic", mosaic(rated, rng), rng, eyes)
        else:
            source, pixels = clean[int(rng.integers(len(clean)))]
            yield local_sample(look, source.split, source.path.name, pixels, rng, eyes)


def work(worker: int, args: argparse.Namespace) -> None:
    look, started = Look(args.out / "encoder.onnx"), time.monotonic()
    sources = [s for s in pristine_photos(args.photos, args.extra) if s.split != "test"][worker :: args.workers]
    rated = [p for p in rated_photos(args.rated) if p.split != "test"][worker :: args.workers]
    good = [p for p in rated if p.score >= GOOD_SCORE]
    clean = [(s, load(s.path)) for s in sources]

    def write(name: str, make: Callable[[np.random.Generator], Iterator[tuple[dict[str, Any], Views]]]) -> None:
        # Each kind has a seed of its own, so that one can be made again without the others.
        rng = np.random.default_rng([args.seed, worker, *name.encode()])
        writer = CellStore(args.out, f"{name}-{worker}").writer()
        for done, (sample, views) in enumerate(make(rng), 1):
            writer.add(sample, views)
            if done % 50 == 0:
                print(f"worker {worker}: {name} {done}, {time.monotonic() - started:.0f} s", flush=True)

    def wholes(rng: np.random.Generator) -> Iterator[tuple[dict[str, Any], Views]]:
        for i in rng.integers(0, len(clean), args.whole // args.workers):
            yield whole_sample(look, *clean[i], rng)

    train = [p for p in good if p.split == "train"]
    eyes = Eyes(args.eyes) if args.eyes else None
    makers: dict[str, Callable[[np.random.Generator], Iterator[tuple[dict[str, Any], Views]]]] = {
        "local": lambda rng: local_samples(look, args.local // args.workers, clean, train, rng),
        "aimed": lambda rng: local_samples(look, args.aimed // args.workers, clean, train, rng, eyes),
        "whole": wholes,
        "rated": lambda rng: (rated_sample(look, p, rng) for p in rated),
        "patched": lambda rng: (patched_sample(look, p, rng) for p in good * args.patched),
    }
    for kind in args.kinds:
        write(kind, makers[kind])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rated", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--extra", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", choices=CACHED, default=CACHED[:4])
    parser.add_argument("--eyes", type=Path, help="a checkpoint of perceive.py, for `aimed`")
    parser.add_argument("--local", type=int, default=800)
    parser.add_argument("--aimed", type=int, default=2400)
    parser.add_argument("--whole", type=int, default=1200)
    parser.add_argument("--patched", type=int, default=6, help="samples of each good rated photo")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if ("aimed" in args.kinds) != (args.eyes is not None):
        parser.error("--kinds aimed and --eyes go together")
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
