"""What nano's eyes make of every cached view, once: the decoder's lessons then cost no perception.

    python training/look.py --cells CELLS --eyes RUN --out LOOKED

`RUN` is the output of perceive.py. Training photos are read by eyes that never saw their source, dev photos by the
final ones. Writes `CellStore`s of SEEN_CHANNELS a token. Rated and patched photos get one more view, a window of their
own cells, which stands for a crop.
"""

import argparse
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from cells import CELL_CHANNELS
from defects import KINDS
from numpy.typing import NDArray
from samples import eyes_file
from stores import Item, Store, folds, items_of, of_split
from torch import Tensor
from visual import KIND_OUTPUTS, LEVELS, Evidence, Perception, perceived, proposals

from qcheck.tiles import Box

LOOKED: Final = ("rated", "patched", "whole", "local", "aimed")
PARTS: Final = (KIND_OUTPUTS, LEVELS, 1)
SEEN_CHANNELS: Final = sum(PARTS)
WINDOW: Final = 0.5  # least side of a window, of the view's
BATCH: Final = 12  # samples


class SeenStore(Store):
    """What eyes made of views, fp16."""

    def __init__(self, directory: Path, name: str) -> None:
        super().__init__(directory, name, SEEN_CHANNELS, np.float16)


def packed(evidence: Evidence) -> NDArray[np.float16]:
    """(rows, cols, SEEN_CHANNELS) fp16; the view's score stands in the index."""
    return torch.cat((evidence.kinds, evidence.levels, evidence.severity), -1).numpy().astype(np.float16)


def unpacked(seen: Tensor, score: float) -> Evidence:
    """What `packed` packed, in fp32."""
    return Evidence(*seen.float().split(PARTS, -1), torch.tensor([score]))


def suspicions(evidence: Evidence) -> dict[str, Any]:
    """The proposals for the index: boxes 0..1 of the view, kinds and levels 1..5."""
    found = proposals(evidence)
    kinds = [KINDS[i] for i in found.kinds[:, 1:].argmax(1).tolist()]
    levels = [1 + round((LEVELS - 1) * level) for level in found.level.tolist()]
    return {"suspicions": [[*s[0], *s[1:]] for s in zip(found.boxes.tolist(), kinds, levels, strict=True)]}


def window(item: Item, rng: np.random.Generator) -> tuple[dict[str, Any], NDArray[np.float16]]:
    """A part of a sample's first view, of whole tokens."""
    entry, cells = item.sample["views"][0], item.read(0)
    slices = []
    for count in cells.shape[:2]:
        length = 2 * int(rng.integers(max(1, round(WINDOW * count / 2)), count // 2 + 1))
        start = 2 * int(rng.integers(0, (count - length) // 2 + 1))
        slices.append(slice(start, start + length))
    rows, cols = slices
    box = Box(*entry["box"])
    x, y = box.width / cells.shape[1], box.height / cells.shape[0]
    part = Box(round(cols.start * x), round(rows.start * y), round(cols.stop * x), round(rows.stop * y))
    return {"role": "window", "box": part.as_list()}, cells[rows, cols]


def entry(about: dict[str, Any], evidence: Evidence) -> tuple[dict[str, Any], NDArray[np.float16]]:
    kept = {k: v for k, v in about.items() if k not in {"offset", "rows", "cols"}}
    return {**kept, "score": float(evidence.score), **suspicions(evidence)}, packed(evidence)


@torch.inference_mode()
def look(eyes: Perception, items: list[Item], store: SeenStore, rng: np.random.Generator, windows: bool) -> None:
    writer = store.writer()
    for start in range(0, len(items), BATCH):
        views: list[list[tuple[dict[str, Any], NDArray[np.float16]]]] = []
        for item in items[start : start + BATCH]:
            views.append([(about, item.read(index)) for index, about in enumerate(item.sample["views"])])
            if windows:
                views[-1].append(window(item, rng))
        flat = [torch.from_numpy(cells.astype(np.float32)) for sample in views for _, cells in sample]
        seen = iter(perceived(eyes, flat))
        for item, abouts in zip(items[start : start + BATCH], views, strict=True):
            entries = [entry(about, next(seen)) for about, _ in abouts]
            writer.add({k: v for k, v in item.sample.items() if k != "views"}, iter(entries))
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=Path, required=True)
    parser.add_argument("--eyes", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    started = time.monotonic()
    for kind in LOOKED:
        samples = items_of(args.cells, kind, CELL_CHANNELS, np.float16)
        for fold in (*folds(samples), None):
            items = [i for i in of_split(samples, "train" if fold else "dev") if fold in (None, i.sample["fold"])]
            store = SeenStore(args.out, f"{kind}-{fold or 'dev'}")
            look(eyes_of(args.eyes, fold), items, store, np.random.default_rng(args.seed), kind in {"rated", "patched"})
            print(f"{kind} {fold or 'dev'}: {len(items)} samples, {time.monotonic() - started:.0f} s", flush=True)


def eyes_of(run: Path, fold: str | None) -> Perception:
    """The eyes that never saw a fold, or (None) the final ones."""
    eyes = Perception()
    eyes.load_state_dict(torch.load(eyes_file(run, fold), weights_only=True)["eyes"])
    return eyes.eval()


if __name__ == "__main__":
    main()
