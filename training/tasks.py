"""What a policy is asked to judge: photos with what is known of them."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from defects import CLEAN_SCORE, Domain
from numpy.typing import NDArray
from photos import rated_photos
from runs import RunError
from vista import rows_of
from vista_score import score as score_after

AUTHENTIC: Final = "authentic"
SYNTHETIC: Final = "synthetic"


@dataclass(frozen=True, slots=True)
class Task:
    """A photo. `domain`: scores are comparable within one only; `attributes`: those that are known; `boxes`: of its
    defects, x1, y1, x2, y2 in its pixels; None where nobody knows."""

    path: Path
    score: float
    domain: str
    attributes: dict[str, float]
    boxes: tuple[tuple[int, int, int, int], ...] | None
    source: str


def rated_tasks(folder: Path, split: str, domain: Domain) -> list[Task]:
    """Rated photos. A `mos.csv` may have a column for any attribute, 0..1 as the mos is."""
    extra: dict[str, dict[str, float]] = {}
    with (folder / "mos.csv").open(newline="") as table:
        for row in csv.DictReader(table):
            extra[row["filename"]] = {name: 1 + 4 * float(row[name]) for name in domain.attributes if row.get(name)}
    photos = [p for p in rated_photos(folder) if p.split == split]
    return [Task(p.path, p.score, p.domain or AUTHENTIC, extra[p.path.name], None, p.path.name) for p in photos]


def vista_tasks(root: Path, split: str, small: bool, domain: Domain) -> list[Task]:
    """Images of a set of vista.py whose defects are known; `small`: their copies of 512 px."""
    tasks = []
    for row in rows_of(root):
        if row["split"] != split or row["regions"] is None or (small and not row["small"]):
            continue
        image = row["small"] if small else row
        scale = image["width"] / row["width"]
        boxes = tuple(_scaled(region["box"], scale) for region in row["regions"])
        tasks.append(
            Task(root / image["image"], row["score"], SYNTHETIC, attributes_of(row, domain), boxes, str(row["source"]))
        )
    return tasks


def tasks_of(rated: Path | None, vista: Path | None, small: bool, split: str, domain: Domain) -> list[Task]:
    """Of both kinds, as far as they are named. Raises RunError for a photo that is missing."""
    found: list[Task] = []
    if rated is not None:
        found += rated_tasks(rated, split, domain)
    if vista is not None:
        found += vista_tasks(vista, split, small, domain)
    missing = next((task.path for task in found if not task.path.is_file()), None)
    if missing is not None:
        raise RunError(f"{missing}: is named in the data and missing; add it or take its row out")
    return found


def _scaled(box: Sequence[int], scale: float) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = (round(c * scale) for c in box)
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


def attributes_of(row: dict[str, Any], domain: Domain) -> dict[str, float]:
    """Each attribute's score: what the photo would have with the defects of that attribute alone."""
    return {
        name: score_after(CLEAN_SCORE, [r["cost"] for r in row["regions"] if domain.attribute_of[r["kind"]] == name])
        for name in domain.attributes
    }


def batch(tasks: Sequence[Task], count: int, rng: np.random.Generator) -> list[Task]:
    """`count` tasks, or fewer where there are not as many, and none that is the only one of its domain: it could not be
    ranked. Each domain is drawn as often, whatever its size: of a small one beside a large one there would hardly ever
    be two."""
    by_domain: dict[str, list[Task]] = {}
    for task in tasks:
        by_domain.setdefault(task.domain, []).append(task)
    usable = [members for members in by_domain.values() if len(members) > 1]
    if not usable or count < 2:
        raise ValueError("a batch needs two photos of one domain: they are ranked against each other")
    counts = dealt(count, np.array([len(members) for members in usable]), rng)
    return [
        members[int(i)]
        for members, n in zip(usable, counts.tolist(), strict=True)
        for i in rng.choice(len(members), n, replace=False)
    ]


def dealt(count: int, sizes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """How many of each domain, (domains,): none or two or more, and no more than there are."""
    drawn = rng.multinomial(count, np.full(len(sizes), 1 / len(sizes)))
    counts = np.minimum(drawn, sizes)
    for _ in range(int((drawn - counts).sum())):
        if (sizes > counts).any():
            counts[int((sizes - counts).argmax())] += 1
    while 1 in counts:
        lone = int(np.flatnonzero(counts == 1)[0])
        counts[lone] = 0
        room = np.where(counts > 0, sizes - counts, 0)
        if room.any():  # it changes places with one of a domain that is there
            counts[int(room.argmax())] += 1
        elif (counts > 2).any():
            counts[int(counts.argmax())] -= 1
            counts[lone] = 2
    return counts
