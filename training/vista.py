"""Makes a Vista-like set: high-resolution photos with known local defects, and hard negatives, from clean photos.

    python training/vista.py build PHOTOS OUT --count 1000 --seed 0 [--rated DATA/biq2021] [--split test]
    python training/vista.py agree PHOTOS OUT [--count 60]

PHOTOS is a folder of clean photos; with a `photos.csv` (file, role) only its `pristine` ones are used. Writes images,
`vista.jsonl` (a line an image) and CARD.md. The same seed and libraries give the same bytes, whatever the number of
workers. What was stopped goes on when the same command is given again; `vista.jsonl` is written last, so a set that has
one is whole. `agree` says how the score ranks images against full-reference metrics of the whole image.

With --rated, rated photos are placed in mosaics or enlarged to 8 MP, so that size does not tell the task; nobody boxed
their defects, so `regions` is null. A third of all images also comes at 512 px.
"""

import argparse
import csv
import errno
import hashlib
import importlib
import io
import json
import math
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from defects import CLEAN_SCORE
from degradations import BANK, chances
from importance import Importance
from inject import Region, inject
from negatives import NEGATIVES, SMOOTH, texture_of
from numpy.typing import NDArray
from photos import Rated, Source, clean_split, rated_photos
from PIL import Image
from pixels import Pixels
from rich.progress import track
from scipy.stats import spearmanr
from vista_score import VERSION, likeness, score

from qcheck.errors import QcheckError
from qcheck.photo import Photo

FORMAT: Final = 2
IN_PLACES: Final = chances(of_places=True)  # degradations
GOAL_PX: Final = 8_000_000  # pixels of an image, where its source has as many
LEAST_PX: Final = 1_000_000  # of a source
SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp")
JPEG: Final = {"quality": 95, "subsampling": 0}
SMALL_PX: Final = 512
SMALL_SHARE: Final = 1 / 3
RATED_SHARES: Final = {"mosaic": 0.1, "enlarged": 0.06}
# Of the rest. A negative scene may be damaged too, so that its look does not mean that all is well.
DAMAGED_SHARE: Final = 0.62
SCENES: Final = {"clean": 0.36, "bokeh": 0.22, "panned": 0.14, "low_key": 0.14, "smooth": 0.14}
DAMAGED_SCENES: Final = {"clean": 0.76, "bokeh": 0.08, "panned": 0.04, "low_key": 0.06, "smooth": 0.06}
REGIONS: Final = {1: 0.6, 2: 0.27, 3: 0.13}
MOSAIC_SIDE: Final = 6  # tiles
DRAWN_FOR_SMOOTH: Final = 4  # sources, of which the smoothest is taken

Row = dict[str, Any]


class SetError(Exception):
    """What is wrong with the input or the place to write to, in one line that names the fix."""


@dataclass(frozen=True, slots=True)
class Job:
    """All that decides what an image looks like but its number."""

    out: Path
    seed: int
    sources: tuple[Source, ...]
    rated: tuple[Rated, ...]
    importance: str


def clean_photos(folder: Path) -> list[Source]:
    """The clean photos of a folder in the order of their names, split as photos.csv says or by content."""
    if not folder.is_dir():
        raise SetError(f"{folder} is no folder; name the folder that holds the photos")
    if (folder / "photos.csv").exists():
        with (folder / "photos.csv").open(newline="") as table:
            rows = [row for row in csv.DictReader(table) if row["role"] == "pristine"]
        named = {folder / row["file"]: row.get("split") for row in rows}
    else:
        named = {path: None for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}
    sources = []
    for path in sorted(named):
        try:
            with Image.open(path) as image:
                pixels = image.width * image.height
        except FileNotFoundError as error:
            raise SetError(f"{path}: is named in photos.csv and missing; add it or take its row out") from error
        except (OSError, ValueError) as error:
            raise SetError(f"{path}: cannot be read as a photo; take it out of the folder") from error
        if pixels < LEAST_PX:
            raise SetError(
                f"{path}: has {pixels / 1e6:.2f} MP, and at least {LEAST_PX / 1e6:g} are needed; take it out"
            )
        try:
            sources.append(Source(path, clean_split(path, named[path])))
        except ValueError as error:
            raise SetError(str(error)) from error
    if not sources:
        raise SetError(f"{folder}: holds no photos; qcheck reads {', '.join(SUFFIXES)}")
    return sources


def choose(shares: dict[Any, float], rng: np.random.Generator) -> Any:
    names = list(shares)
    weights = np.array([shares[name] for name in names])
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]


@lru_cache(maxsize=4)
def importance_of(name: str) -> Importance:
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]
    except (ImportError, AttributeError, ValueError) as error:
        raise SetError(f"--importance {name}: {error}; give MODULE:FUNCTION") from error


def _importance_map(name: str, pixels: Pixels) -> NDArray[np.float32]:
    """By a named function, which may be anybody's."""
    try:
        map_ = importance_of(name)(pixels)
    except SetError:
        raise
    except Exception as error:
        raise SetError(f"--importance {name}: failed on a photo ({type(error).__name__}: {error}); mend it") from error
    if map_.ndim != 2 or not map_.size or not (np.isfinite(map_).all() and map_.min() >= 0 and map_.max() <= 1):
        raise SetError(f"--importance {name}: gave no map (rows, columns) of 0..1; mend it")
    return map_


def _decoded(path: Path) -> Pixels:
    try:
        return np.array(Photo.open(path).pixels)
    except QcheckError as error:
        raise SetError(f"{error}; or take it out of the folder") from error


def varied(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A mirror image, or a part of at least GOAL_PX, where the photo has as many."""
    height, width = pixels.shape[:2]
    least = min(1.0, max(0.7, math.sqrt(GOAL_PX / (height * width))))
    h, w = (max(1, math.ceil(side * rng.uniform(least, 1))) for side in (height, width))
    while h * w < min(GOAL_PX, height * width):
        h, w = min(height, h + height // 50 + 1), min(width, w + width // 50 + 1)
    y, x = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    part = pixels[y : y + h, x : x + w]
    return np.ascontiguousarray(part[:, ::-1] if rng.random() < 0.5 else part)


def scene(job: Job, number: int) -> tuple[Pixels, Pixels, Row]:
    """Image `number` of a set, the same without its damage, and what is known of it."""
    rng = np.random.default_rng([job.seed, number])
    known: Row = {"seed": [job.seed, number], "score_version": VERSION}
    shares = RATED_SHARES if job.rated else {}
    rated = choose({**shares, "": 1 - sum(shares.values())}, rng)
    if rated:
        pixels, names, base, split = _rated_scene(job.rated, rated, rng)
        known |= {"source": names, "split": split, "scene": rated, "regions": None, "score": round(base, 4)}
        return pixels, pixels, known

    def importance(photo: Pixels) -> NDArray[np.float32]:
        return _importance_map(job.importance, photo)

    damaged = rng.random() < DAMAGED_SHARE
    name = choose(DAMAGED_SCENES if damaged else SCENES, rng)
    drawn = [job.sources[int(i)] for i in rng.integers(0, len(job.sources), DRAWN_FOR_SMOOTH if name == SMOOTH else 1)]
    source = min(drawn, key=lambda s: texture_of(_decoded(s.path))) if len(drawn) > 1 else drawn[0]
    clean = NEGATIVES[name](varied(_decoded(source.path), rng), importance, rng)
    pixels, regions = clean.copy(), list[Region]()
    if damaged:
        map_ = importance(clean)
        for _ in range(choose(REGIONS, rng)):
            kind = choose(IN_PLACES, rng)
            region = inject(pixels, kind, int(rng.integers(1, 6)), map_, regions, rng)
            regions += [region] if region else []
    known |= {
        "source": source.path.name,
        "split": source.split,
        "scene": name,
        "regions": [_row(r) for r in regions],
        "score": round(score(CLEAN_SCORE, [r.cost for r in regions]), 4),
    }
    return pixels, clean, known


def _row(region: Region) -> Row:
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(region).items()}
    return {**rounded, "box": list(region.box)}


def _rated_scene(
    rated: tuple[Rated, ...], name: str, rng: np.random.Generator
) -> tuple[Pixels, str | list[str], float, str]:
    first = rated[int(rng.integers(len(rated)))]
    if name == "enlarged":
        pixels = _decoded(first.path)
        scale = max(1.0, math.sqrt(GOAL_PX / (pixels.shape[0] * pixels.shape[1])))
        size = (math.ceil(pixels.shape[1] * scale), math.ceil(pixels.shape[0] * scale))
        large = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
        return large, first.path.name, first.score, first.split
    same = [r for r in rated if r.split == first.split]
    chosen = [first, *(same[int(i)] for i in rng.integers(0, len(same), MOSAIC_SIDE**2 - 1))]
    tiles = [np.asarray(Image.fromarray(_decoded(r.path)).resize((512, 512), Image.Resampling.BICUBIC)) for r in chosen]
    rows = [np.concatenate(tiles[i : i + MOSAIC_SIDE], 1) for i in range(0, len(tiles), MOSAIC_SIDE)]
    mean = float(np.mean([r.score for r in chosen]))
    return np.concatenate(rows), [r.path.name for r in chosen], mean, first.split


def write_whole(path: Path, data: bytes, writer: str = "") -> None:
    """Whole or not at all. `writer`: of several that may write the same file at once, a name of its own; without one,
    what a killed writer left is written over."""
    part = path.with_name(f"{path.name}{writer}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def encoded(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **JPEG)
    return buffer.getvalue()


_job: Job | None = None


def _begin(job: Job) -> None:
    global _job
    _job = job


def _make(number: int) -> str | None:
    """Writes one image and its row; what went wrong, if something did."""
    assert _job is not None
    try:
        pixels, _, known = scene(_job, number)
        height, width = pixels.shape[:2]
        row: Row = {"image": f"images/{number:06d}.jpg", "width": width, "height": height, **known, "small": None}
        write_whole(_job.out / row["image"], encoded(pixels))
        if np.random.default_rng([_job.seed, number, 1]).random() < SMALL_SHARE:
            scale = SMALL_PX / max(width, height)
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
            row["small"] = {"image": f"small/{number:06d}.jpg", "width": size[0], "height": size[1]}
            write_whole(_job.out / row["small"]["image"], encoded(small))
        write_whole(_job.out / "rows" / f"{number:06d}.json", json.dumps(row).encode())
    except SetError as error:
        return str(error)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return f"{_job.out}: the disk is full; make room and give the same command again"
        return f"{_job.out}: {(error.strerror or str(error)).lower()}; mend that and give the same command again"
    return None


def build(
    photos: Path,
    out: Path,
    count: int,
    seed: int,
    rated: Path | None,
    workers: int,
    importance: str,
    split: str | None = None,
) -> None:
    """Raises SetError for wrong input and for a place that holds another set."""
    importance_of(importance)
    sources = [s for s in clean_photos(photos) if split in (None, s.split)]
    rated_list = [p for p in (checked_rated(rated) if rated else []) if split in (None, p.split)]
    if not sources:
        raise SetError(f"{photos}: has no photo of the split {split!r}; leave --split out, or add photos")
    plan = {
        "format": FORMAT,
        "score": VERSION,
        "count": count,
        "seed": seed,
        "importance": importance,
        "sources": {s.path.name: hashlib.sha256(s.path.read_bytes()).hexdigest()[:16] for s in sources},
        "rated": {"count": len(rated_list), "sha256": _identity(rated_list)},
        "bank": {name: BANK[name].levels for name in IN_PLACES},
    }
    text = json.dumps(plan, indent=1).encode()
    for folder in ("images", "small", "rows"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    held = out / "build.json"
    if held.exists() and held.read_bytes() != text:
        raise SetError(f"{out}: holds a set made another way (see its build.json); choose another folder")
    if not held.exists():
        write_whole(held, text)
    todo = [n for n in range(count) if not (out / "rows" / f"{n:06d}.json").exists()]
    if not (out / "vista.jsonl").exists():
        job = Job(out, seed, tuple(sources), tuple(rated_list), importance)
        # Fresh processes: the parent's threads do not survive a fork.
        with multiprocessing.get_context("spawn").Pool(workers, _begin, (job,)) as pool:
            for failure in track(
                pool.imap_unordered(_make, todo), "making", len(todo), disable=not sys.stderr.isatty()
            ):
                if failure:
                    pool.terminate()
                    raise SetError(failure)
        rows = [json.loads((out / "rows" / f"{n:06d}.json").read_text()) for n in range(count)]
        write_whole(out / "CARD.md", card(rows, plan).encode())
        write_whole(out / "vista.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    print(f"{out}: {count} images, {_bytes(out) / 1e9:.1f} GB")


def _identity(rated: Iterable[Rated]) -> str:
    """Of rated photos and their scores, in their order, which the images of a set depend on."""
    digest = hashlib.sha256()
    for photo in rated:
        digest.update(f"{photo.path.name} {photo.score} ".encode() + hashlib.sha256(photo.path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _bytes(out: Path) -> int:
    return sum(path.stat().st_size for path in (out / "images").iterdir())


def checked_rated(folder: Path) -> list[Rated]:
    if not (folder / "mos.csv").exists():
        raise SetError(f"{folder}: has no mos.csv; name the folder that holds it and images/")
    try:
        photos = rated_photos(folder)
    except FileNotFoundError as error:
        raise SetError(f"{error.filename}: is named in mos.csv and missing; add it or take its row out") from error
    except (KeyError, ValueError) as error:
        raise SetError(f"{folder / 'mos.csv'}: {error}; it needs columns filename and mos, 0..1") from error
    names = Counter(p.path.name for p in photos)
    for photo in photos:
        if names[photo.path.name] > 1:
            raise SetError(f"{folder / 'mos.csv'}: names {photo.path.name} twice; keep one row")
        if not 1 <= photo.score <= 5:
            raise SetError(f"{folder / 'mos.csv'}: the mos of {photo.path.name} is not in 0..1; mend that row")
    return photos


def card(rows: list[Row], plan: Row) -> str:
    scenes = Counter(f"{row['scene']}{', damaged' if row['regions'] else ''}" for row in rows)
    kinds = Counter(region["name"] for row in rows for region in row["regions"] or ())
    splits = Counter(row["split"] for row in rows)
    table = "\n".join(f"| {name} | {number} |" for name, number in sorted(scenes.items()))
    bank = ", ".join(f"{name} {number}" for name, number in sorted(kinds.items()))
    return f"""# A Vista-like set

{len(rows)} images of {len(plan["sources"])} clean photos (seed {plan["seed"]}), made by qcheck's `training/vista.py`.
The licences of those photos hold for these images; the set is not for publication where they do not allow it.

The score ("{plan["score"]}", `training/vista_score.py`) is a proxy: it grows worse with how unlike the original a
region is (SSIMULACRA2), how much the place matters ({plan["importance"]}) and how large it is. No person rated these
images.
`regions` is empty where nothing is wrong, and null where nobody knows (rated photos, whose score is people's).

Splits are by source photo: {", ".join(f"{name} {number}" for name, number in sorted(splits.items()))}.

| scene | images |
|---|---|
{table}

Regions: {bank or "none"}.
"""


def rows_of(out: Path) -> list[Row]:
    try:
        return [json.loads(line) for line in (out / "vista.jsonl").read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError as error:
        raise SetError(f"{out}: has no vista.jsonl; make the set first (vista.py build)") from error


def remaker(out: Path, photos: Path, rows: list[Row]) -> Callable[[int], tuple[Pixels, Pixels]]:
    """Of a damaged image's number: its pixels, and the same without the damage, from the photos of a set. Raises
    SetError if these are others."""
    plan = json.loads((out / "build.json").read_text())
    rated = (None,) * plan["rated"]["count"]  # only whether there are any decides about the others
    sources = tuple(s for s in clean_photos(photos) if s.path.name in plan["sources"])
    job = Job(out, plan["seed"], sources, rated, plan["importance"])  # type: ignore[arg-type]

    def remake(number: int) -> tuple[Pixels, Pixels]:
        pixels, clean, known = scene(job, number)
        if known["regions"] != rows[number]["regions"]:
            raise SetError(f"{out}: was made of other photos, or by another version; build it again")
        return pixels, clean

    return remake


def told(program: str, run: Callable[[], None]) -> int:
    """Runs a command; its exit code, and in one line on stderr what stopped it."""
    try:
        run()
    except SetError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{program}: {error.filename or 'a file'}: {(error.strerror or str(error)).lower()}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def agree(photos: Path, out: Path, count: int) -> None:
    """SRCC of the score with whole-image PSNR and SSIMULACRA2 (at 1 MP), over damaged images."""
    rows = rows_of(out)
    damaged = [i for i, row in enumerate(rows) if row["regions"]][:count]
    if len(damaged) < 3:
        raise SetError(f"{out}: has fewer than three damaged images; build more")
    remake = remaker(out, photos, rows)
    found: dict[str, list[float]] = {"psnr": [], "ssimulacra2_1mp": []}
    for number in track(damaged, "comparing", disable=not sys.stderr.isatty()):
        pixels, clean = remake(number)
        found["psnr"].append(-10 * math.log10(float(np.mean((pixels.astype(np.float32) - clean) ** 2)) / 255**2))
        found["ssimulacra2_1mp"].append(likeness(_of_1mp(clean), _of_1mp(pixels)))
    scores = [rows[i]["score"] for i in damaged]
    agreement = {name: round(float(spearmanr(values, scores)[0]), 3) for name, values in found.items()}
    print(json.dumps({"images": len(damaged), "score": VERSION, **agreement}))


def _of_1mp(pixels: Pixels) -> Pixels:
    scale = min(1.0, math.sqrt(1e6 / (pixels.shape[0] * pixels.shape[1])))
    size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making, comparing = commands.add_parser("build"), commands.add_parser("agree")
    for each in (making, comparing):
        each.add_argument("photos", type=Path)
        each.add_argument("out", type=Path)
    making.add_argument("--count", type=int, default=1000)
    making.add_argument("--seed", type=int, default=0)
    making.add_argument("--rated", type=Path, help="a folder with mos.csv and images/")
    making.add_argument("--split", choices=("train", "dev", "test"), help="only of photos of this split")
    making.add_argument("--workers", type=int, default=2)
    making.add_argument("--importance", default="importance:image_signature", metavar="MODULE:FUNCTION")
    comparing.add_argument("--count", type=int, default=60)
    args = parser.parse_args(list(arguments) if arguments is not None else None)

    def run() -> None:
        if args.count < 1 or getattr(args, "workers", 1) < 1:
            raise SetError("--count and --workers must be at least 1")
        if args.command == "build":
            build(args.photos, args.out, args.count, args.seed, args.rated, args.workers, args.importance, args.split)
        else:
            agree(args.photos, args.out, args.count)

    return told("vista.py", run)


if __name__ == "__main__":
    sys.exit(main())
