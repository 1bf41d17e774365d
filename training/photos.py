"""Where the training photos are and who may see which: splits by content hash (rated) and by source (pristine)."""

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Split = Literal["train", "dev", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "dev", "test")
RATED_DEV_SHARE: Final = 0.08
RATED_TEST_SHARE: Final = 0.16
PRISTINE_DEV_SHARE: Final = 0.08
PRISTINE_TEST_SHARE: Final = 0.34


@dataclass(frozen=True, slots=True)
class Rated:
    """A photo with a mean opinion score, mapped to 1..5. `domain`: whose scores are comparable with it, if that is
    known."""

    path: Path
    score: float
    split: Split
    domain: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """A clean high-resolution photo to be damaged."""

    path: Path
    split: Split


def content_share(path: Path, salt: str = "qcheck-1") -> float:
    """A number in [0, 1) that depends on the file's bytes alone."""
    digest = hashlib.sha256(salt.encode() + path.read_bytes()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(share: float, test: float, dev: float) -> Split:
    return "test" if share < test else "dev" if share < test + dev else "train"


def clean_split(path: Path, named: str | None = None) -> Split:
    """Of a clean photo: what photos.csv names, else by its content."""
    for split in SPLITS:
        if split == named:
            return split
    if named:
        raise ValueError(f"{path}: photos.csv says split {named!r}; it is one of {', '.join(SPLITS)}")
    return split_of(content_share(path), PRISTINE_TEST_SHARE, PRISTINE_DEV_SHARE)


def rated_photos(folder: Path) -> list[Rated]:
    """The photos of a folder with `mos.csv` (filename, mos in 0..1 and, where it holds several, subset) and `images/`,
    in file order."""
    with (folder / "mos.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    photos = []
    for row in rows:
        path = folder / "images" / row["filename"]
        split = split_of(content_share(path), RATED_TEST_SHARE, RATED_DEV_SHARE)
        photos.append(Rated(path, 1 + 4 * float(row["mos"]), split, row.get("subset") or ""))
    return photos


def pristine_photos(folder: Path, extra: Path | None = None) -> list[Source]:
    """The clean photos of a folder with `photos.csv` (file, role and perhaps split); `large` and `extra` ones only ever
    train. Those straight from a `camera` are left out: some have real defects, for benchmarks/real_defects.py."""
    sources = []
    with (folder / "photos.csv").open(newline="") as table:
        for row in csv.DictReader(table):
            path = folder / row["file"]
            if row["role"] == "pristine":
                sources.append(Source(path, clean_split(path, row.get("split"))))
            elif row["role"] == "large":
                sources.append(Source(path, "train"))
    if extra is not None:
        sources += [
            Source(path, "train") for path in sorted(extra.iterdir()) if path.suffix.lower() in {".jpg", ".png"}
        ]
    return sources
