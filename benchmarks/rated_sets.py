"""Sets of rated images in the layouts they are published in.

| layout | is recognised by | score |
|---|---|---|
| vista | vista.jsonl | proxy, 1..5 |
| biq2021 | mos.csv and images/ | 0..1 |
| koniq10k | koniq10k_scores_and_distributions.csv, 1024x768/ or 512x384/ | MOS |
| spaq | Annotations/MOS and Image attribute scores.xlsx (or .csv), TestImage/ | MOS |
| kadid10k | dmos.csv, images/ | "dmos", 1..5, more is better |
| tid2013 | mos_with_names.txt, distorted_images/ | MOS |
| pipal | Train_Label/, Train_Dist/ | Elo |
| agiqa3k | data.csv, images beside it or in a folder | mos_quality |
| clive | Data/AllMOS_release.mat, Data/AllImages_release.mat, Images/ | MOS |

More is better in each. Images of one source (its reference) share a `group`, by which intervals are drawn again.
"""

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

Row = dict[str, str]


class SetError(Exception):
    """What is wrong with a set, in one line that names the row."""


@dataclass(frozen=True, slots=True)
class Case:
    """An image and its truth. `regions`: of a Vista-like set, empty where it is clean; None where nobody knows.
    `by_people`: whether people gave the score, or it is a Vista-like set's proxy."""

    path: Path
    score: float
    group: str
    split: str | None = None
    scene: str | None = None
    regions: tuple[dict[str, Any], ...] | None = None

    @property
    def by_people(self) -> bool:
        return self.regions is None


def table(path: Path, image: str, score: str, folder: Path, group: Callable[[Row], str] | None = None) -> list[Case]:
    """Of a CSV file with a column of image names and one of scores. Raises SetError for missing columns, files that are
    not there, scores that are no numbers, and images that are named twice."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = {image, score} - set(reader.fieldnames or ())
        if missing:
            raise SetError(f"{path}: has no column {sorted(missing)[0]!r}; its columns are {reader.fieldnames}")
        rows = ((number, row[image], row[score], group(row) if group else row[image]) for number, row in _lines(reader))
        return checked(path, rows, folder)


def _lines(reader: Iterable[Row]) -> Iterator[tuple[int, Row]]:
    yield from enumerate(reader, 2)


def checked(path: Path, rows: Iterable[tuple[int, str, str, str]], folder: Path) -> list[Case]:
    """Of rows (line number, image name, score, group)."""
    cases, lines = list[Case](), dict[str, int]()
    for number, name, text, group in rows:
        where = f"{path}, line {number}"
        try:
            score = float(text)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise SetError(f"{where}: the score of {name} is {text!r}, which is no number; mend or drop the row")
        if name in lines:
            raise SetError(f"{where}: {name} is already in line {lines[name]}; keep one of them")
        lines[name] = number
        if not (folder / name).is_file():
            raise SetError(f"{where}: {folder / name} is missing; add it or drop the row")
        cases.append(Case(folder / name, score, group))
    if not cases:
        raise SetError(f"{path}: has no rows")
    return cases


def _vista(root: Path) -> list[Case]:
    cases = []
    for number, line in enumerate((root / "vista.jsonl").read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line)
        if not (root / row["image"]).is_file():
            raise SetError(f"{root / 'vista.jsonl'}, line {number}: {row['image']} is missing; build the set again")
        regions = None if row["regions"] is None else tuple(row["regions"])
        group = row["source"] if isinstance(row["source"], str) else row["source"][0]
        cases.append(Case(root / row["image"], row["score"], group, row["split"], row["scene"], regions))
    return cases


def _koniq10k(root: Path) -> list[Case]:
    folder = next((root / name for name in ("1024x768", "512x384") if (root / name).is_dir()), root / "1024x768")
    return table(root / "koniq10k_scores_and_distributions.csv", "image_name", "MOS", folder)


def _spaq(root: Path) -> list[Case]:
    name = "MOS and Image attribute scores"
    path = root / "Annotations" / f"{name}.csv"
    if path.exists():
        return table(path, "Image name", "MOS", root / "TestImage")
    path = path.with_suffix(".xlsx")
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise SetError(f"{path}: needs openpyxl to be read; pip install openpyxl, or save it as .csv") from error
    sheet = load_workbook(path, read_only=True, data_only=True).active
    head, *rows = sheet.iter_rows(values_only=True)
    image, score = head.index("Image name"), head.index("MOS")
    lines = ((number, str(row[image]), str(row[score]), str(row[image])) for number, row in enumerate(rows, 2))
    return checked(path, lines, root / "TestImage")


def _tid2013(root: Path) -> list[Case]:
    """Names differ in case between the list and the files of the published archive."""
    path, folder = root / "mos_with_names.txt", root / "distorted_images"
    there = {file.name.lower(): file.name for file in folder.iterdir()}
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip():
            score, name = line.split()
            rows.append((number, there.get(name.lower(), name), score, name[:3].lower()))
    return checked(path, rows, folder)


def _pipal(root: Path) -> list[Case]:
    cases = []
    for path in sorted((root / "Train_Label").glob("*.txt")):
        lines = (line.split(",") for line in path.read_text().splitlines() if line.strip())
        rows = ((number, name, score, path.stem) for number, (name, score) in enumerate(lines, 1))
        cases += checked(path, rows, root / "Train_Dist")
    if not cases:
        raise SetError(f"{root / 'Train_Label'}: has no rows")
    return cases


def _agiqa3k(root: Path) -> list[Case]:
    folders = [root, *sorted(p for p in root.iterdir() if p.is_dir())]
    folder = next((f for f in folders if any(f.glob("*.jpg")) or any(f.glob("*.png"))), root)
    return table(root / "data.csv", "name", "mos_quality", folder)


def _clive(root: Path) -> list[Case]:
    from scipy.io import loadmat

    names = loadmat(root / "Data" / "AllImages_release.mat")["AllImages_release"].ravel()
    scores = loadmat(root / "Data" / "AllMOS_release.mat")["AllMOS_release"].ravel()
    if len(names) != len(scores):
        raise SetError(f"{root / 'Data'}: {len(names)} images and {len(scores)} scores; get the set again")
    rows = (
        (number, str(name[0]), str(score), str(name[0]))
        for number, (name, score) in enumerate(zip(names, scores, strict=True), 1)
    )
    path, folder = root / "Data" / "AllMOS_release.mat", root / "Images"
    # The first seven images were for training the raters, and lie in a folder of their own.
    return checked(path, [row for row in rows if (folder / row[1]).exists() or row[0] > 7], folder)


LAYOUTS: Final[dict[str, tuple[str, Callable[[Path], list[Case]]]]] = {
    "vista": ("vista.jsonl", _vista),
    "biq2021": ("mos.csv", lambda root: table(root / "mos.csv", "filename", "mos", root / "images")),
    "koniq10k": ("koniq10k_scores_and_distributions.csv", _koniq10k),
    "spaq": ("Annotations", _spaq),
    "kadid10k": (
        "dmos.csv",
        lambda root: table(root / "dmos.csv", "dist_img", "dmos", root / "images", lambda row: row["ref_img"]),
    ),
    "tid2013": ("mos_with_names.txt", _tid2013),
    "pipal": ("Train_Label", _pipal),
    "agiqa3k": ("data.csv", _agiqa3k),
    "clive": ("Data/AllMOS_release.mat", _clive),
}


def read_set(root: Path, layout: str | None = None) -> tuple[str, list[Case]]:
    """The layout's name and the images of a set. Raises SetError."""
    if not root.is_dir():
        raise SetError(f"{root}: is no folder; name the folder that holds the set")
    found = layout or next((name for name, (sign, _) in LAYOUTS.items() if (root / sign).exists()), None)
    if found is None:
        signs = ", ".join(f"{name} ({sign})" for name, (sign, _) in LAYOUTS.items())
        raise SetError(f"{root}: is none of {signs}")
    try:
        return found, LAYOUTS[found][1](root)
    except FileNotFoundError as error:
        raise SetError(f"{error.filename}: is missing; get the set again") from error
