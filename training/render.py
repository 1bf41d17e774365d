"""Renders every training view once: pixels on disk, from which any encoder can learn and make its cells.

    python training/render.py --rated DATA/biq2021 --photos DATA/photos --out VIEWS [--extra MORE_PHOTOS]

Writes four kinds of sample, a `ViewStore` and a `SurveyStore` each and worker:

- `rated`: a rated photo as it is, and a part of it, mirrored or reduced; some also in a mosaic of photos rated alike
- `patched`: a good rated photo, broken in one place or nowhere, at its own resolution
- `whole`: a clean or a good rated photo at screen size, broken all over by none, one or two degradations
- `local`: a scene of vista.py (clean, bokeh, panned, low key) of a clean photo or of a mosaic of good photos rated
  alike, broken in 0 to 3 places or all over, as its global view and crops

A patched or local training sample that is broken is followed by its twin: the same views before the damage, so that
what tells the two apart is the damage and never the content.

Test photos are left out. Once there are eyes (perceive.py) and cells they can read,

    python training/render.py ... --kinds aimed --eyes RUN --encoder CELLS/encoder.onnx

renders more scenes, cropped where those eyes suspect something: what probing will really see. With as many workers as
made the cells, each aims with the eyes that never saw its photos; `--eyes RUN/eyes.pt`: all with those that saw all.
"""

import argparse
import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from cameras import KEPT_SHARE, Saving, varied
from defects import CLEAN_SCORE, PHOTOS
from degradations import BANK, chances
from importance import image_signature
from inject import Region, inject
from nano_spec import CROP, CROP_VIEW, GLOBAL_VIEW
from negatives import NEGATIVES
from numpy.typing import NDArray
from photos import Rated, Source, Split, pristine_photos, rated_photos
from PIL import Image
from pixels import Pixels
from samples import eyes_file
from stores import SurveyStore, ViewStore
from vista import DAMAGED_SCENES, DAMAGED_SHARE, IN_PLACES, REGIONS, SCENES, choose
from vista_score import LOSSLESS, cost, likeness, score
from wavelets import texture_energy

from qcheck import survey
from qcheck.tiles import Box, View, ViewSpec, crop_box, normalise_table, planar, view_of, whole

ANYWHERE: Final = chances(of_places=False)  # degradations
RENDERED: Final = ("local", "whole", "rated", "patched", "aimed")
# Rated photos at least this good (1..5) may stand for undamaged ones; below, their own defects have no box.
GOOD_SCORE: Final = 3.3
PATCHED_CLEAN_SHARE: Final = 0.3
PATCH: Final = (0.16, 0.75)  # least and greatest side of a broken place of a small photo, of the photo's sides
LARGE_REGION: Final = (0.3, 0.9)
LARGE_SHARE: Final = 0.12
MOSAIC_SHARE: Final = 0.45  # of scenes: few clean photos are big, and contents must not be learned by heart
MOSAIC_TILES: Final = 6  # at most, a side
MOSAIC_DEV_SHARE: Final = 0.1  # of mosaics, of dev photos
ALIKE: Final = 4  # times as many photos as a mosaic takes: those of the nearest scores that it takes them from
# Of rated training photos, those that are also seen in a mosaic: whatever is wrong with a large photo has a score too.
RATED_MOSAIC_SHARE: Final = 0.4
RATED_MOSAIC_SPREAD: Final = 0.25  # most, of the scores in one, standard deviation
WHOLE_OF_RATED: Final = 0.3
# How often a degradation of tone or colour is drawn for such a photo, against one of detail: clean photos have all
# sorts of light, so that it takes more lessons to tell.
TONE_WEIGHT: Final = 5.0
WHOLE_CHANCES: Final = {name: 1.0 if each.detail else TONE_WEIGHT for name, each in BANK.items()}
LEVEL_DROP: Final = 0.72  # points that an attribute loses with each level of what spoils all of a photo
WHOLE_IMPORTANCE: Final = 0.5
# Of broken scenes, those that are bad all over, and how coarsely at most: broken at a part of their size and enlarged
# again. Without them a large view comes to mean a good photo.
SPOILT_SHARE: Final = 0.15
COARSEST: Final = 4.0
JUDGED_PX: Final = 1_000_000
RAW: Final = normalise_table((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

Survey = NDArray[np.float32]
# What each view is, its pixels (h, w, 3) uint8 and, with the first view of a photo, the photo's survey.
Views = Iterator[tuple[dict[str, Any], Pixels, Survey | None]]
Sample = tuple[dict[str, Any], Views]


def seen(pixels: Pixels, box: Box, spec: ViewSpec, role: str) -> tuple[dict[str, Any], Pixels, Survey | None]:
    """A part of a photo as the runtime would show it, through the same tiles."""
    shown = drawn(pixels, view_of(box, spec))
    return {"role": role, "box": box.as_list()}, shown, survey_of(pixels) if role == "global" else None


def drawn(pixels: Pixels, view: View) -> Pixels:
    """A view of a photo, (height, width, 3)."""
    shown: Pixels = np.rint(planar(pixels, [view], RAW)[0] * 255).astype(np.uint8).transpose(1, 2, 0)
    return shown


def survey_of(pixels: Pixels) -> Survey:
    """The survey of a whole photo, (rows, cols, 8)."""
    map_ = survey.empty_map(pixels.shape[1], pixels.shape[0])
    planar(pixels, [view_of(overall(pixels), GLOBAL_VIEW)], RAW, 1, map_)
    return map_


def load(path: Path) -> Pixels:
    return np.array(Image.open(path).convert("RGB"))


def overall(pixels: Pixels) -> Box:
    return whole(pixels.shape[1], pixels.shape[0])


def rescaled(pixels: Pixels, width: int, height: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def part_of(pixels: Pixels, least: float, rng: np.random.Generator) -> Pixels:
    """A part with at least that share of each side."""
    height, width = pixels.shape[:2]
    h, w = (int(side * rng.uniform(least, 1)) for side in (height, width))
    y, x = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    return pixels[y : y + h, x : x + w]


def record(regions: list[Region]) -> list[dict[str, Any]]:
    """For the index, the costliest first."""
    ordered = sorted(regions, key=lambda r: -r.cost)
    return [
        {"kind": r.kind, "level": r.level, "box": list(r.box), "cost": round(r.cost, 4), "name": r.name}
        for r in ordered
    ]


def rated_sample(photo: Rated, others: Sequence[Rated], rng: np.random.Generator) -> Sample:
    """`others`: training photos, for mosaics."""
    pixels = load(photo.path)

    def views() -> Views:
        yield seen(pixels, overall(pixels), GLOBAL_VIEW, "global")
        if photo.split != "train":
            return
        for least in (0.75, 0.9):
            part = part_of(pixels, least, rng)
            if least == 0.9:
                scale = rng.uniform(0.6, 0.95)
                part = rescaled(part, int(part.shape[1] * scale), int(part.shape[0] * scale))
            part = np.ascontiguousarray(part[:, ::-1] if rng.random() < 0.5 else part)
            yield seen(part, overall(part), GLOBAL_VIEW, "global")
        alike = nearest(others, photo.score, MOSAIC_TILES**2)
        if rng.random() < RATED_MOSAIC_SHARE and np.std([p.score for p in alike]) <= RATED_MOSAIC_SPREAD:
            # Its score is this photo's, so that every view of a sample has one score.
            tiles, _ = mosaic(alike, rng, 2)
            yield seen(tiles, overall(tiles), GLOBAL_VIEW, "global")

    known = {"split": photo.split, "name": photo.path.name, "score": photo.score, "domain": photo.domain}
    return known, views()


def nearest(photos: Sequence[Rated], score: float, count: int) -> list[Rated]:
    """The `count` photos of the scores nearest to one."""
    return sorted(photos, key=lambda p: abs(p.score - score))[:count]


def patched_pair(photo: Rated, rng: np.random.Generator) -> Iterator[Sample]:
    """One, and its twin."""
    pixels = load(photo.path)
    if rng.random() < 0.5:
        pixels = part_of(pixels, 0.7, rng)
    pixels = np.ascontiguousarray(pixels[:, ::-1] if rng.random() < 0.5 else pixels)
    before = pixels.copy()
    regions: list[Region] = []
    if rng.random() >= PATCHED_CLEAN_SHARE:
        map_ = image_signature(pixels)
        found = inject(pixels, choose(IN_PLACES, rng), int(rng.integers(1, 6)), map_, [], rng, sides=PATCH)
        regions = [found] if found else []
    known = _known(photo.split, photo.path.name, pixels, regions, photo.score)
    yield known, iter([seen(pixels, overall(pixels), GLOBAL_VIEW, "global")])
    if regions and photo.split == "train":
        known = _known(photo.split, photo.path.name, before, [], photo.score)
        yield {**known, "twin": True}, iter([seen(before, overall(before), GLOBAL_VIEW, "global")])


def _known(split: Split, name: str, pixels: Pixels, regions: list[Region], base: float) -> dict[str, Any]:
    return {
        "split": split,
        "name": name,
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "defects": record(regions),
        "score": score(base, [r.cost for r in regions]),
    }


def at_screen_size(clean: Pixels, rng: np.random.Generator) -> Pixels:
    """A part of a photo, no larger than a screen."""
    part = part_of(clean, 0.5, rng)
    h, w = part.shape[:2]
    area = math.exp(rng.uniform(math.log(300 * 300), math.log(1024 * 768)))
    scale = min(1.0, math.sqrt(area / (w * h)))
    return np.ascontiguousarray(rescaled(part, max(64, int(w * scale)), max(64, int(h * scale))))


def broken_all_over(pixels: Pixels, rng: np.random.Generator) -> Iterator[tuple[str, int, Pixels]]:
    """None, one or two degradations, one on top of the other: the name of each, its level, and the photo after it."""
    weights = np.array(list(WHOLE_CHANCES.values()))
    count = rng.choice((0, 1, 2), p=(0.15, 0.6, 0.25))
    for name in rng.choice(list(WHOLE_CHANCES), size=count, replace=False, p=weights / weights.sum()):
        level = int(rng.integers(1, 6))
        pixels = BANK[name](pixels, level, int(rng.integers(2**31)))
        yield str(name), level, pixels


def attributes_of(broken: Iterable[tuple[str, int]]) -> dict[str, float]:
    """Of a clean photo that is broken all over by these degradations, each with its level."""
    attributes = dict.fromkeys(PHOTOS.attributes, CLEAN_SCORE)
    for name, level in broken:
        attribute = PHOTOS.attribute_of[BANK[name].kind]
        attributes[attribute] = min(attributes[attribute], CLEAN_SCORE - LEVEL_DROP * level)
    return attributes


def whole_sample(split: Split, name: str, clean: Pixels, base: float, rng: np.random.Generator) -> Sample:
    """At screen size, then broken all over: attributes fall with the levels."""
    pixels = original = at_screen_size(clean, rng)
    defects = list[dict[str, Any]]()
    for degradation, level, after in broken_all_over(original, rng):
        box = [0, 0, pixels.shape[1], pixels.shape[0]]
        loss = cost(likeness(pixels, after), WHOLE_IMPORTANCE, 1.0)
        kind = BANK[degradation].kind
        defects.append({"kind": kind, "level": level, "box": box, "cost": round(loss, 4), "name": degradation})
        pixels = after
    loss = cost(likeness(original, pixels), WHOLE_IMPORTANCE, 1.0) if defects else 0.0
    sample = {
        "split": split,
        "name": name,
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "defects": sorted(defects, key=lambda d: -d["cost"]),
        "attributes": attributes_of((defect["name"], defect["level"]) for defect in defects),
        "score": score(base, [loss]),
    }
    return sample, iter([seen(pixels, overall(pixels), GLOBAL_VIEW, "global")])


def jittered(box: Box, spread: float, width: int, height: int, rng: np.random.Generator) -> Box:
    dx, dy = box.width * spread, box.height * spread
    x1, x2 = sorted(float(np.clip(v + rng.normal(0, dx), 0, width)) for v in (box.x1, box.x2))
    y1, y2 = sorted(float(np.clip(v + rng.normal(0, dy), 0, height)) for v in (box.y1, box.y2))
    x1, y1 = min(int(x1), width - 2), min(int(y1), height - 2)
    return Box(x1, y1, max(int(x2), x1 + 1), max(int(y2), y1 + 1))


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    w, h = (
        min(side, max(32, int(side * math.exp(rng.uniform(math.log(0.06), math.log(0.3)))))) for side in (width, height)
    )
    x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    return Box(x, y, x + w, y + h)


def crop_targets(
    regions: list[Region], width: int, height: int, rng: np.random.Generator, near: bool
) -> Iterator[tuple[str, Box]]:
    """What the rendered crops look at: each broken place (well aimed and, if `near`, badly) and places of no
    interest."""
    for index, found in enumerate(regions[:3]):
        yield f"truth{index}", jittered(Box(*found.box), 0.1, width, height, rng)
    if regions and near:
        truth = Box(*regions[0].box)
        dx, dy = (int(rng.choice((-1, 1)) * rng.uniform(0.3, 0.8) * side) for side in (truth.width, truth.height))
        x, y = (
            int(np.clip(truth.x1 + dx, 0, width - truth.width)),
            int(np.clip(truth.y1 + dy, 0, height - truth.height)),
        )
        shifted = Box(x, y, x + truth.width, y + truth.height)
        yield "near", jittered(shifted, 0.15, width, height, rng)
    for _ in range(1 if regions else 2):
        yield "random", random_box(width, height, rng)


def mosaic(photos: Sequence[Rated], rng: np.random.Generator, least: int) -> tuple[Pixels, float]:
    """Rated photos of like scores side by side, at their own resolution: a big picture of contents that no clean photo
    has. At least `least` and at most MOSAIC_TILES a side; also returns their mean score."""
    rows, cols = (int(n) for n in rng.integers(least, MOSAIC_TILES + 1, 2))
    middle = photos[int(rng.integers(len(photos)))].score
    alike = nearest(photos, middle, ALIKE * rows * cols)
    chosen = [alike[i] for i in rng.choice(len(alike), rows * cols, replace=len(alike) < rows * cols)]
    tiles = [load(photo.path) for photo in chosen]
    side = min(min(tile.shape[:2]) for tile in tiles)
    made = np.vstack([np.hstack([t[:side, :side] for t in tiles[r * cols : (r + 1) * cols]]) for r in range(rows)])
    return made, float(np.mean([photo.score for photo in chosen]))


def spoilt(pixels: Pixels, rng: np.random.Generator) -> tuple[Pixels, list[Region]]:
    """A photo broken all over, and its one region; none where nobody would see it. Judged at 1 MP, as on a screen."""
    h, w = pixels.shape[:2]
    name, level, seed = choose(ANYWHERE, rng), int(rng.integers(1, 6)), int(rng.integers(2**31))
    coarse = math.exp(rng.uniform(0, math.log(COARSEST)))
    small = rescaled(pixels, max(64, int(w / coarse)), max(64, int(h / coarse)))
    broken = np.array(rescaled(BANK[name](small, level, seed), w, h))
    scale = min(1.0, math.sqrt(JUDGED_PX / (w * h)))
    before, after = (rescaled(one, max(64, int(w * scale)), max(64, int(h * scale))) for one in (pixels, broken))
    alike = likeness(before, after)
    if alike >= LOSSLESS:
        return pixels, []
    loss = cost(alike, WHOLE_IMPORTANCE, 1.0)
    return broken, [Region((0, 0, w, h), name, BANK[name].kind, level, WHOLE_IMPORTANCE, 0.0, alike, loss, seed)]


class Eyes:
    """Where perception would look: the crops that a model on top of it will ask for."""

    def __init__(self, path: Path, encoder: Path) -> None:
        import torch  # only here: the other kinds of sample need no torch in the workers
        from encode import Look
        from look import eyes_of
        from visual import WHOLE_CHANNELS, perceived

        torch.set_num_threads(1)
        perception, _ = eyes_of(path)
        look = Look(encoder)

        @torch.inference_mode()
        def suspects(shown: Pixels, map_: Survey) -> list[list[float]]:
            cells = torch.from_numpy(look.at(shown, map_[None]).astype(np.float32))
            # Where they look does not hang on what the photo is as a whole.
            (evidence,) = perceived(perception, [cells], [torch.zeros(WHOLE_CHANNELS)])
            boxes: list[list[float]] = evidence.proposals.boxes.tolist()
            return boxes

        self.suspects = suspects

    def targets(self, shown: Pixels, map_: Survey, width: int, height: int) -> Iterator[Box]:
        """What to zoom into, in photo pixels; `shown`: the global view, `map_`: the survey."""
        for x1, y1, x2, y2 in self.suspects(shown, map_):
            yield Box(int(x1 * width), int(y1 * height), math.ceil(x2 * width), math.ceil(y2 * height))


def local_pair(
    split: Split, name: str, clean: Pixels, base: float, rng: np.random.Generator, eyes: Eyes | None = None
) -> Iterator[Sample]:
    """One and, without `eyes`, its twin. `base`: the score of the photo as it is."""
    part = part_of(clean, 0.6, rng) if rng.random() < 0.6 else clean
    kept = rng.random() < KEPT_SHARE
    pixels = np.ascontiguousarray(part[:, ::-1] if rng.random() < 0.5 else part)
    pixels = pixels if kept else varied(pixels, rng)
    damaged = rng.random() < DAMAGED_SHARE
    scene = choose(DAMAGED_SCENES if damaged else SCENES, rng)
    pixels = NEGATIVES[scene](pixels, image_signature, rng)
    if not pixels.flags.writeable:
        pixels = pixels.copy()
    before = pixels.copy() if damaged and split == "train" and eyes is None else None
    h, w = pixels.shape[:2]
    regions: list[Region] = []
    all_over = damaged and rng.random() < SPOILT_SHARE
    if all_over:
        pixels, regions = spoilt(pixels, rng)
    elif damaged:
        map_, energy = image_signature(pixels), texture_energy(pixels)
        for _ in range(choose(REGIONS, rng)):
            sides = {"sides": LARGE_REGION} if rng.random() < LARGE_SHARE else {}
            found = inject(
                pixels, choose(IN_PLACES, rng), int(rng.integers(1, 6)), map_, regions, rng, energy=energy, **sides
            )
            regions += [found] if found else []
        regions.sort(key=lambda r: -r.cost)
    saving = Saving(None, 0) if kept else Saving.drawn(rng)
    pixels, before = saving.of(pixels), None if before is None else saving.of(before)
    aims = [
        (role, crop_box(target, CROP, w, h)) for role, target in crop_targets(regions, w, h, rng, near=eyes is None)
    ]

    def views(of: Pixels) -> Views:
        overview, shown, map_ = seen(of, overall(of), GLOBAL_VIEW, "global")
        yield overview, shown, map_
        if eyes is not None and map_ is not None:
            for index, target in enumerate(eyes.targets(shown, map_, w, h)):
                yield seen(of, crop_box(target, CROP, w, h), CROP_VIEW, f"aim{index}")
        for role, box in aims:
            yield seen(of, box, CROP_VIEW, role)

    yield {**_known(split, name, pixels, regions, base), "scene": scene}, views(pixels)
    if before is not None and regions:
        yield {**_known(split, name, before, [], base), "scene": scene, "twin": True}, views(before)


def local_samples(
    count: int,
    clean: list[tuple[Source, Pixels]],
    rated: list[Rated],
    rng: np.random.Generator,
    eyes: Eyes | None = None,
) -> Iterator[Sample]:
    """`rated`: good photos, for mosaics, each of photos of one split."""
    of_split: dict[Split, list[Rated]] = {s: [p for p in rated if p.split == s] for s in ("train", "dev")}
    for _ in range(count):
        if rng.random() < MOSAIC_SHARE:
            split: Split = "dev" if rng.random() < MOSAIC_DEV_SHARE and of_split["dev"] else "train"
            yield from local_pair(split, "mosaic", *mosaic(of_split[split], rng, max(1, MOSAIC_TILES - 2)), rng, eyes)
        else:
            source, pixels = clean[int(rng.integers(len(clean)))]
            yield from local_pair(source.split, source.path.name, pixels, CLEAN_SCORE, rng, eyes)


def whole_samples(
    count: int, clean: list[tuple[Source, Pixels]], rated: list[Rated], rng: np.random.Generator
) -> Iterator[Sample]:
    for _ in range(count):
        if rng.random() < WHOLE_OF_RATED:
            photo = rated[int(rng.integers(len(rated)))]
            yield whole_sample(photo.split, photo.path.name, load(photo.path), photo.score, rng)
        else:
            source, pixels = clean[int(rng.integers(len(clean)))]
            yield whole_sample(source.split, source.path.name, pixels, CLEAN_SCORE, rng)


def work(worker: int, args: argparse.Namespace) -> None:
    started = time.monotonic()
    sources = [s for s in pristine_photos(args.photos, args.extra) if s.split != "test"][worker :: args.workers]
    rated = [p for p in rated_photos(args.rated) if p.split != "test"][worker :: args.workers]
    good = [p for p in rated if p.score >= GOOD_SCORE]
    train = [p for p in rated if p.split == "train"]
    clean = [(s, load(s.path)) for s in sources]
    eyes = (
        Eyes(eyes_file(args.eyes, str(worker)) if args.eyes.is_dir() else args.eyes, args.encoder)
        if args.eyes
        else None
    )
    makers: dict[str, Callable[[np.random.Generator], Iterator[Sample]]] = {
        "local": lambda rng: local_samples(args.local // args.workers, clean, good, rng),
        "aimed": lambda rng: local_samples(args.aimed // args.workers, clean, good, rng, eyes),
        "whole": lambda rng: whole_samples(args.whole // args.workers, clean, good, rng),
        "rated": lambda rng: (rated_sample(p, train, rng) for p in rated),
        "patched": lambda rng: (s for p in good * args.patched for s in patched_pair(p, rng)),
    }
    for kind in args.kinds:
        # Each kind has a seed of its own, so that one can be made again without the others.
        rng = np.random.default_rng([args.seed, worker, *kind.encode()])
        pixels = ViewStore(args.out, f"{kind}-{worker}").writer()
        surveys = SurveyStore(args.out, f"survey-{kind}-{worker}").writer()
        for done, (sample, views) in enumerate(makers[kind](rng), 1):
            everything = list(views)
            pixels.add(sample, ((about, shown) for about, shown, _ in everything))
            surveys.add({}, ((about, map_) for about, _, map_ in everything if map_ is not None))
            if done % 50 == 0:
                print(f"worker {worker}: {kind} {done}, {time.monotonic() - started:.0f} s", flush=True)
        pixels.close()
        surveys.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rated", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--extra", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", choices=RENDERED, default=RENDERED[:4])
    parser.add_argument("--eyes", type=Path, help="what perceive.py wrote, or one checkpoint of it, for `aimed`")
    parser.add_argument("--encoder", type=Path, help="what those eyes read through, for `aimed`")
    parser.add_argument("--local", type=int, default=1200)
    parser.add_argument("--aimed", type=int, default=1200)
    parser.add_argument("--whole", type=int, default=1600)
    parser.add_argument("--patched", type=int, default=3, help="samples of each good rated photo")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if not (("aimed" in args.kinds) == (args.eyes is not None) == (args.encoder is not None)):
        parser.error("--kinds aimed, --eyes and --encoder go together")
    try:  # before any worker does: theirs would be one traceback each
        rated_photos(args.rated)
        pristine_photos(args.photos, args.extra)
    except KeyError as error:
        parser.error(f"no column {error}: mos.csv has filename and mos, photos.csv has file and role")
    except FileNotFoundError as error:
        parser.error(f"{error.filename}: is missing; add it, or take its row out of the table")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    workers = [multiprocessing.get_context("spawn").Process(target=work, args=(i, args)) for i in range(args.workers)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    if any(process.exitcode for process in workers):
        raise SystemExit("a worker failed: the views are not complete")


if __name__ == "__main__":
    main()
