"""Are degradations found that were never trained on?

    python benchmarks/cross_degradation.py --cells CELLS --eyes RUN/eyes/eyes.pt --others RUN/eyes-without/eyes.pt

`--others` are eyes taught with perceive's `without` (five degradations of the bank, say). On development samples that
one of those breaks: how well damaged tokens are told from the clean ones of the same samples, area under the ROC curve
with a 95% bootstrap interval over source photos, by eyes that know the degradation and by eyes that never saw it. The
convolutions below both have seen all; so this bounds what the eyes alone generalise.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from measures import Estimate, bootstrap
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

from cells import CELL_CHANNELS
from look import eyes_of
from overviews import whole_of
from perceive import shows
from runs import checkpoint_of
from samples import token_truth, tokens_of
from stores import Item, items_of, of_split
from visual import Perception, perceived

from qcheck.tiles import Box

KINDS: Final = ("patched", "local", "aimed")


def auc(odds: NDArray[Any], broken: NDArray[Any]) -> float:
    """nan where all tokens are of one sort, as some bootstrap draws are."""
    return float(roc_auc_score(broken, odds)) if 0 < broken.sum() < len(broken) else float("nan")


@torch.inference_mode()
def found(eyes: Perception, items: list[Item], names: tuple[str, ...]) -> Estimate:
    """`names`: of the kinds. Of every token whose truth is known: log odds of damage against the truth."""
    odds, broken, sources = [], [], []
    for item in items:
        for index, view in enumerate(item.sample["views"]):
            cells = item.read(index).astype(np.float32)
            truth = token_truth(*tokens_of(cells), Box(*view["box"]), item.sample, names)
            known = truth.kinds >= 0
            evidence = perceived(eyes, [torch.from_numpy(cells)], [whole_of(item, index)])[0]
            odds += evidence.log_odds().flatten().numpy()[known].tolist()
            broken += (truth.kinds[known] > 0).tolist()
            sources += [item.sample["name"]] * int(known.sum())
    return bootstrap(auc, odds, broken, groups=sources)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cells", "eyes", "others"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    (eyes, domain), (others, _) = eyes_of(args.eyes), eyes_of(args.others)
    held_out = checkpoint_of(args.others, "eyes").get("without", ())
    if not held_out:
        print(f"cross_degradation.py: {args.others} saw every degradation; teach eyes with `without`", file=sys.stderr)
        return 2
    dev = [i for kind in KINDS for i in of_split(items_of(args.cells, kind, CELL_CHANNELS, np.float16), "dev")]
    print("| degradation | samples | known | never seen |\n|---|---|---|---|")
    for names in [(name,) for name in held_out] + [tuple(held_out)]:
        items = [item for item in dev if shows(item, names)]
        if items:
            figures = (str(found(one, items, domain.kinds)) for one in (eyes, others))
            print(f"| {names[0] if len(names) == 1 else 'all of them'} | {len(items)} | {' | '.join(figures)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
