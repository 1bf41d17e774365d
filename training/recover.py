"""A checkpoint out of a bundle, when the one it was made of is gone, or was written by earlier code.

    python training/recover.py qcheck/models/nano --out CHECKPOINT.pt [--eyes RUN/eyes.pt]

The decoder is the bundle's, rounded to its 8 bits; so are the eyes, unless others are given (of perceive.py). It can be
exported, reinforced, and measured against its bundle (`gates.py --checkpoint`).
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import vocabulary as words
from defects import PHOTOS, Domain
from look import eyes_of
from runs import RunError, save
from sft import fresh, take_over
from shipped import Shipped
from visual import Perception

from qcheck.bundle import BundleError


def eyes_of_bundle(shipped: Shipped, domain: Domain = PHOTOS) -> Perception:
    """Raises BundleError, or RunError where they are not those of today's code."""
    eyes = Perception(len(domain.kinds), len(domain.attributes))
    try:
        eyes.load_state_dict(shipped.eyes())
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{shipped.bundle.directory}: its eyes do not fit this code ({reason})") from error
    return eyes.eval()


def recovered(bundle: Path, eyes_at: Path | None) -> dict[str, Any]:
    """What sft.py would write. Raises BundleError or RunError."""
    shipped = Shipped(bundle)
    eyes, domain = eyes_of(eyes_at) if eyes_at else (eyes_of_bundle(shipped), PHOTOS)
    tokenizer = words.build(domain)
    model = fresh(tokenizer, bundle, eyes, domain)
    take_over(model, shipped, tokenizer)
    return {"model": model.state_dict(), "domain": dataclasses.asdict(domain), "step": 0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--eyes", type=Path)
    args = parser.parse_args()
    try:
        save(args.out, recovered(args.bundle, args.eyes))
    except (BundleError, RunError) as error:
        print(f"recover.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
