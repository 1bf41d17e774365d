"""Does a model rank the same photos the same when they are larger?

    python benchmarks/sizes.py --rated DATA/biq2021 [--model BUNDLE] [--scales 0.5 1 2 3] [--every 4] [--split test]

Rated photos, of which training saw those of the split `train` alone, enlarged or reduced (Lanczos) and judged with up
to three probes. What people think of a photo hardly hangs on how many pixels it has; enlarged ones are blurred at full
resolution, so the score may drop, but the order should stay. Prints, for each scale, the rank correlation with people's
scores, with a 95% bootstrap interval, the mean and spread of the scores, and probes. The last line is JSON.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
from measures import bootstrap, flat, srcc
from PIL import Image
from rich.console import Console
from rich.progress import track

from qcheck.bundle import Bundle
from qcheck.engine import Engine
from qcheck.photo import Photo
from qcheck.probe import Limits, Prober

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

from photos import Rated, rated_photos

SCALES: Final = (0.5, 1.0, 2.0, 3.0)


def enlarged(path: Path, scale: float) -> Photo:
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return Photo(path.name, np.ascontiguousarray(np.asarray(image.resize(size, Image.Resampling.LANCZOS))))


def row_of(prober: Prober, photos: list[Rated], scale: float) -> dict[str, Any]:
    shown = track(photos, f"x {scale:g}", console=Console(stderr=True), disable=not sys.stderr.isatty())
    verdicts = [prober.judge(enlarged(photo.path, scale), Limits()) for photo in shown]
    said = [v.score for v in verdicts]
    return {
        "scale": scale,
        "srcc": bootstrap(srcc, said, [p.score for p in photos]),
        "mean": float(np.mean(said)),
        "spread": float(np.std(said)),
        "probes": float(np.mean([len(v.probes) for v in verdicts])),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rated", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="another bundle than the embedded one")
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--every", type=int, default=1, help="only one photo of so many")
    args = parser.parse_args()
    photos = [p for p in rated_photos(args.rated) if p.split == args.split][:: args.every]
    bundle = Bundle.open(args.model)
    prober, rows = Prober(Engine.open(bundle)), []
    print(f"{len(photos)} photos, mean score {np.mean([p.score for p in photos]):.2f}")
    for scale in args.scales:
        rows.append(row := row_of(prober, photos, scale))
        figures = f"mean {row['mean']:.2f}  spread {row['spread']:.2f}  probes {row['probes']:.2f}"
        print(f"x {scale:<5g} {row['srcc']}  {figures}")
    told = {"model": bundle.contract.name, "sha256": bundle.sha256, "photos": len(photos)}
    print(json.dumps({**told, "rows": [flat(row) for row in rows]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
