"""Do a model's attributes fall with the degradations that spoil them?

    python benchmarks/attributes.py --photos DATA/photos [--model BUNDLE] [--count 66]

Parts of clean photos that no training saw, at screen size, each broken all over by one degradation of one attribute at
level 0 (not at all) to 5, `--count` for each attribute. Prints, for each attribute, the rank correlation of what the
model says of it with the level, best 1, with a 95% bootstrap interval over source photos.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from measures import Estimate, bootstrap, srcc

from qcheck.bundle import Bundle
from qcheck.engine import Engine
from qcheck.photo import Photo
from qcheck.probe import Limits, Prober

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

from defects import PHOTOS
from degradations import BANK
from photos import pristine_photos
from PIL import Image

SIDES_PX: Final = (480, 1024)  # least and greatest long side
LEAST_PART: Final = 0.5  # of a photo's sides
LEVELS: Final = 6
COUNT: Final = 66  # each level once of each of the eleven test sources
PROBES: Final = 3
SEED: Final = 2026


@dataclass(frozen=True, slots=True)
class Broken:
    """A photo broken all over, or (level 0) left alone. `attribute`: what its degradation spoils; `source`: its file's
    name."""

    photo: Photo
    attribute: str
    level: int
    source: str


def broken_photos(clean: Sequence[Path], count: int, seed: int = SEED) -> Iterator[Broken]:
    """`count` of each attribute, their levels and sources in turn."""
    for attribute in PHOTOS.attributes:
        names = [name for name, each in BANK.items() if PHOTOS.attribute_of[each.kind] == attribute]
        for index in range(count):
            rng = np.random.default_rng([seed, index, *attribute.encode()])
            path, level = clean[index % len(clean)], index // len(clean) % LEVELS
            pixels = _part(path, rng)
            if level:
                pixels = BANK[names[int(rng.integers(len(names)))]](pixels, level, int(rng.integers(2**31)))
            yield Broken(Photo(path.name, np.ascontiguousarray(pixels)), attribute, level, path.name)


def _part(path: Path, rng: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with Image.open(path) as image:
        width, height = image.size
        share = rng.uniform(LEAST_PART, 1)
        w, h = int(width * share), int(height * share)
        x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        scale = min(1.0, float(rng.uniform(*SIDES_PX)) / max(w, h))
        part = image.convert("RGB").crop((x, y, x + w, y + h))
        return np.array(part.resize((max(1, round(w * scale)), max(1, round(h * scale))), Image.Resampling.BICUBIC))


def attribute_rows(engine: Engine, clean: Sequence[Path], count: int) -> dict[str, Estimate | float]:
    """`attribute_NAME` of every attribute that both the model and the bank know, and `attribute_photos`, of each."""
    prober, said = Prober(engine), dict[str, list[tuple[float, float, str]]]()
    for each in broken_photos(clean, count):
        verdict = prober.judge(each.photo, Limits(PROBES))
        if each.attribute in verdict.attributes:
            said.setdefault(each.attribute, []).append((verdict.attributes[each.attribute], -each.level, each.source))
    rows: dict[str, Estimate | float] = {"attribute_photos": float(count)}
    for name, values in said.items():
        scores, levels, sources = zip(*values, strict=True)
        rows[f"attribute_{name}"] = bootstrap(srcc, scores, levels, groups=sources)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="another bundle than the embedded one")
    parser.add_argument("--count", type=int, default=COUNT)
    args = parser.parse_args()
    clean = [source.path for source in pristine_photos(args.photos) if source.split == "test"]
    for name, value in attribute_rows(Engine.open(Bundle.open(args.model)), clean, args.count).items():
        print(f"{name:28} {value if isinstance(value, Estimate) else f'{value:g}'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
