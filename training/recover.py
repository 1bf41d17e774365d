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

import torch
import vocabulary as words
from defects import PHOTOS, Domain
from look import eyes_of
from runs import RunError, save
from sft import fresh, take_over
from shipped import Shipped
from summaries import UNSEEN
from torch import Tensor
from visual import Perception

from qcheck.bundle import BundleError

SUMMARIES = ("quality", "attributes")  # parts that read summaries of views


def eyes_of_bundle(shipped: Shipped, domain: Domain = PHOTOS) -> Perception:
    """Raises BundleError, or RunError where they are not those of today's code."""
    eyes = Perception(len(domain.kinds), len(domain.attributes))
    state = shipped.eyes()
    for part in SUMMARIES:
        widen(state, part, eyes)
    try:
        eyes.load_state_dict(state)
    except RuntimeError as error:
        raise RunError(f"{shipped.bundle.directory}: its eyes do not fit this code: {error}") from error
    return eyes.eval()


def widen(state: dict[str, Tensor], part: str, eyes: Perception) -> None:
    """What bundles until 0.7.1 do not have, a glance, tells their summaries nothing."""
    for name, unseen in (("mean", 0.0), ("std", UNSEEN), ("ridge.weight", 0.0)):
        held, wanted = state[f"{part}.{name}"], eyes.get_buffer(f"{part}.mean").shape[0]
        more = held.new_full((*held.shape[:-1], max(0, wanted - held.shape[-1])), unseen)
        state[f"{part}.{name}"] = torch.cat((held, more), -1)


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
