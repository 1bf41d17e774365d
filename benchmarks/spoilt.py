"""Does a model see that a large photo is bad all over?

    python benchmarks/spoilt.py --photos DATA/photos [--model BUNDLE]

Clean photos that no training saw, at their own size, each as it is and spoilt in ways that anybody sees at a glance,
made here and not by the degradation bank that training draws from. Prints, for each, how much lower the model scores
the spoilt photo than the clean one, and in how many the drop is at least a point; 95% bootstrap intervals over photos.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from measures import Estimate, bootstrap, mean
from PIL import Image, ImageFilter

from qcheck.bundle import Bundle
from qcheck.engine import Engine
from qcheck.photo import Photo
from qcheck.probe import Limits, Prober

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

from photos import pristine_photos

PROBES: Final = 3
TOLD: Final = 1.0  # points
BLUR: Final = 0.004  # sigma, of the long side: 16 px of 4000
NOISE: Final = 40.0  # sigma of 255, grey
DARK: Final = 6
SEED: Final = 7


def blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(BLUR * max(image.size)))


def noisy(image: Image.Image) -> Image.Image:
    grain = np.random.default_rng(SEED).normal(0, NOISE, (image.height, image.width, 1)).astype(np.float32)
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


def dark(image: Image.Image) -> Image.Image:
    return image.point(lambda value: value // DARK)


def pixelated(image: Image.Image) -> Image.Image:
    small = image.resize((max(1, image.width // 40), max(1, image.height // 40)), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


WAYS: Final[dict[str, Callable[[Image.Image], Image.Image]]] = {
    "blurred": blurred,
    "noisy": noisy,
    "dark": dark,
    "pixelated": pixelated,
}


def spoilt_rows(engine: Engine, clean: Sequence[Path]) -> dict[str, Estimate | float]:
    """`spoilt_photos`, how many; `spoilt_told`, in how many of all spoilt ones the score drops by TOLD or more;
    `spoilt_drop_WAY`, by how much it drops."""
    prober, drops = Prober(engine), dict[str, list[float]]()
    for path in clean:
        with Image.open(path) as opened:
            image = opened.convert("RGB")

        def judged(shown: Image.Image, name: str = path.name) -> float:
            return float(prober.judge(Photo(name, np.ascontiguousarray(np.asarray(shown))), Limits(PROBES)).score)

        before = judged(image)
        for way, spoil in WAYS.items():
            drops.setdefault(way, []).append(before - judged(spoil(image)))
    told = [float(drop >= TOLD) for values in drops.values() for drop in values]
    groups: list[Any] = [path.name for _ in drops for path in clean]
    rows: dict[str, Estimate | float] = {"spoilt_photos": float(len(clean))}
    rows["spoilt_told"] = bootstrap(mean, told, groups=groups)
    return rows | {f"spoilt_drop_{way}": bootstrap(mean, values) for way, values in drops.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="another bundle than the embedded one")
    args = parser.parse_args()
    clean = [source.path for source in pristine_photos(args.photos) if source.split == "test"]
    for name, value in spoilt_rows(Engine.open(Bundle.open(args.model)), clean).items():
        print(f"{name:28} {value if isinstance(value, Estimate) else f'{value:g}'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
