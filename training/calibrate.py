"""How wide `score_std` has to be to be believed: one factor, written into the contract of a bundle.

    python training/calibrate.py BUNDLE --rated DATA/biq2021

Judges the development photos, which taught the model nothing, as the command does, and makes the spread of the score
tokens so wide that it covers as many of their errors as one standard deviation of a normal distribution does. One
factor for all photos, after Laves and others 2020 (Well-calibrated Regression Uncertainty in Medical Imaging with Deep
Learning); the share that is covered is met, rather than a likelihood raised, because that is what users ask of it.
Scores stay as they are. Done again, it comes to the same factor.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from photos import rated_photos
from vista import write_whole

from qcheck.bundle import Bundle
from qcheck.contract import CONTRACT_FILE
from qcheck.engine import Engine
from qcheck.errors import QcheckError
from qcheck.photo import Photo
from qcheck.probe import Limits, Prober

COVERED: Final = 0.6827  # of a normal distribution, within one standard deviation
PROBES: Final = 3
LEAST: Final = 30  # photos


class TooFewPhotos(Exception):
    """Too few errors to tell how wide they are."""


def scale_of(errors: Sequence[float], spreads: Sequence[float]) -> float:
    """What `spreads` are to be multiplied by to cover COVERED of the absolute `errors`, both (photos,).

    Raises TooFewPhotos.
    """
    if len(errors) < LEAST:
        raise TooFewPhotos(f"{len(errors)} development photos are too few to calibrate by; it takes {LEAST} or more")
    return float(np.quantile(np.divide(errors, spreads), COVERED))


def calibrate(directory: Path, photos: Sequence[tuple[Path, float]]) -> float:
    """Of a bundle, by photos and their true scores; writes its contract again. Raises BundleError, TooFewPhotos."""
    bundle = Bundle.open(directory)
    prober = Prober(Engine.open(bundle))
    verdicts = [prober.judge(Photo.open(path), Limits(PROBES)) for path, _ in photos]
    errors = [abs(v.score - score) for v, (_, score) in zip(verdicts, photos, strict=True)]
    spreads = [v.score_std / bundle.contract.score_std_scale for v in verdicts]
    scale = round(scale_of(errors, spreads), 3)
    contract = dataclasses.replace(bundle.contract, score_std_scale=scale)
    write_whole(directory / CONTRACT_FILE, contract.to_json().encode())
    return scale


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rated", type=Path, required=True)
    args = parser.parse_args()
    try:
        photos = [(p.path, p.score) for p in rated_photos(args.rated) if p.split == "dev"]
        print(f"score_std_scale {calibrate(args.bundle, photos)}, by {len(photos)} photos")
    except (QcheckError, TooFewPhotos) as error:
        print(f"calibrate.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"calibrate.py: {error.filename}: {(error.strerror or str(error)).lower()}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
