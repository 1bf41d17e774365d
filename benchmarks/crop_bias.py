"""Does a model tell a broken crop from a clean one, or only that it has been shown a crop?

    python benchmarks/crop_bias.py --looked RUN/looked --checkpoints with.pt without.pt --out crop_bias.png

Each checkpoint looks at development photos and then at a crop of each: one that holds a damage, or one that touches
none. What the decoder then is, just before it says what it found (the last layer's output at the last token), is drawn
in the plane of its two principal components and by t-SNE, a row a checkpoint. Printed for each: how well a linear model
tells broken crops from clean ones on photos it was not fitted to (area under the ROC curve, folds by source), which is
high where the context-aware rule did its work, and a silhouette.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.metrics import roc_auc_score, silhouette_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

from look import seen_channels
from narrator import FOUND_SHARE, Example, Shown, Speller, overlap, share, shown_views
from samples import defects_of
from sft import Targets, Trainer, start_of
from stores import Item, items_of, of_split
from vocabulary import language

from qcheck import prompt
from qcheck.tiles import Box

mpl.use("Agg")
KINDS: Final = ("local", "aimed")
BATCH: Final = 16
FOLDS: Final = 5


@dataclass(frozen=True, slots=True)
class Looks:
    """States after a look at a crop. `states`: (n, hidden); `broken`: (n,) whether the crop holds a damage; `sources`:
    (n,) names of the photos."""

    states: NDArray[np.float32]
    broken: NDArray[np.bool_]
    sources: NDArray[np.str_]


def crops_of(item: Item) -> list[tuple[Shown, bool]]:
    """A sample's crops that hold a damage, and those that touch none; edges of one are left out."""
    _, *crops = shown_views(item)
    found, out = defects_of(item.sample), []
    for crop in crops:
        if any(share(d, crop) >= FOUND_SHARE for d in found):
            out.append((crop, True))
        elif all(overlap(Box(*d.box), crop.box) is None for d in found):
            out.append((crop, False))
    return out


@torch.inference_mode()
def looks(checkpoint: Path, folder: Path) -> Looks:
    """Of all development samples of look.py's store."""
    model, tokenizer, domain = start_of(checkpoint)
    model.eval()
    speller, spoken = Speller(tokenizer, domain=domain), language(domain)
    trainer = Trainer(model, Targets(tokenizer), speller.image_id)
    examples, broken, sources = list[Example](), list[bool](), list[str]()
    for kind in KINDS:
        for item in of_split(items_of(folder, kind, seen_channels(len(domain.kinds)), np.float16), "dev"):
            whole = shown_views(item)[0]
            width, height = whole.box.width, whole.box.height
            middle = Box(width // 4, height // 4, width * 3 // 4, height * 3 // 4)
            for crop, holds in crops_of(item):
                example = Example()
                speller.request(example, spoken.first, whole)
                # The same words for every crop: what was asked for must not tell what is there.
                speller.say(example, prompt.spell_call(whole.spell(middle), domain.kinds[0]), 0)
                speller.request(example, spoken.crop_final, crop)
                examples.append(example)
                broken.append(holds)
                sources.append(item.sample["name"])
    states = []
    for start in range(0, len(examples), BATCH):
        some = examples[start : start + BATCH]
        hidden, _, _ = trainer.hidden(some)
        states += [hidden[row, len(e.tokens) - 1].float().numpy() for row, e in enumerate(some)]
    return Looks(np.stack(states), np.array(broken), np.array(sources))


def told_apart(seen: Looks) -> dict[str, float]:
    folds = GroupKFold(min(FOLDS, len(set(seen.sources.tolist()))))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    guess = cross_val_predict(
        model, seen.states, seen.broken, groups=seen.sources, cv=folds, method="decision_function"
    )
    scaled = StandardScaler().fit_transform(seen.states)
    return {
        "crops": float(len(seen.broken)),
        "broken": float(seen.broken.sum()),
        "auc": round(float(roc_auc_score(seen.broken, guess)), 4),
        "silhouette": round(float(silhouette_score(scaled, seen.broken)), 4),
    }


def draw(rows: dict[str, Looks], out: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(rows), 2, figsize=(10, 5 * len(rows)), squeeze=False)
    for row, (name, seen) in zip(axes, rows.items(), strict=True):
        scaled = StandardScaler().fit_transform(seen.states)
        maps: dict[str, Any] = {
            "PCA": PCA(2, random_state=0),
            "t-SNE": TSNE(perplexity=min(30, len(scaled) / 4), random_state=0),
        }
        for axis, (how, map_) in zip(row, maps.items(), strict=True):
            points = map_.fit_transform(scaled)
            for broken, colour, label in ((False, "tab:blue", "clean crop"), (True, "tab:red", "broken crop")):
                axis.scatter(*points[seen.broken == broken].T, s=9, c=colour, label=label)
            axis.set(title=f"{name}, {how}", xticks=[], yticks=[])
            axis.legend()
    figure.tight_layout()
    figure.savefig(out, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--looked", type=Path, required=True, help="what look.py wrote")
    parser.add_argument("--checkpoints", type=Path, nargs="+", required=True, help="of stages 1 to 3")
    parser.add_argument("--out", type=Path, required=True, help="the picture, PNG")
    args = parser.parse_args()
    rows = {f"{path.parent.name}/{path.stem}": looks(path, args.looked) for path in args.checkpoints}
    for name, seen in rows.items():
        print(json.dumps({"checkpoint": name, **told_apart(seen)}))
    draw(rows, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
