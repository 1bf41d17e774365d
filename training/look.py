"""What nano's eyes make of every cached view, once: the decoder's lessons then cost no perception.

Training photos are read by eyes that never saw their source, dev photos by the final ones. Small photos get
one more view, a window of their own cells, which stands for a crop. Run by train.py.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from cells import CELL_CHANNELS
from defects import PHOTOS, Domain
from numpy.typing import NDArray
from overviews import GLANCE, SUMMARY, whole_of
from runs import RunError, checkpoint_of
from samples import FOLDS, WINDOW_ROLE, eyes_file
from stores import Item, Store, folds, items_of, of_split
from torch import Tensor
from visual import LEVELS, Evidence, Perception, perceived

from qcheck.tiles import Box

LOOKED: Final = ("rated", "patched", "whole", "local", "aimed")
SMALL: Final = frozenset({"rated", "patched", "whole"})  # those without crops
WINDOW: Final = 0.5  # least side of a window, of the view's
BATCH: Final = 12  # samples


class SeenStore(Store):
    """What eyes that know some kinds made of views, fp16."""

    def __init__(self, directory: Path, name: str, kinds: int = len(PHOTOS.kinds)) -> None:
        super().__init__(directory, name, seen_channels(kinds), np.float16)


def seen_channels(kinds: int = len(PHOTOS.kinds)) -> int:
    """Of what `packed` gives for each token."""
    return 1 + kinds + LEVELS + 1


def packed(evidence: Evidence) -> NDArray[np.float16]:
    """(rows, cols, seen_channels) fp16; the view's score, toll, attributes and places stand in the index."""
    return torch.cat((evidence.kinds, evidence.levels, evidence.severity), -1).numpy().astype(np.float16)


def unpacked(
    seen: Tensor, score: float, toll: float, attributes: Sequence[float], places: Sequence[Sequence[float]]
) -> Evidence:
    """What `packed` packed, in fp32."""
    kinds = seen.shape[-1] - LEVELS - 1
    numbers = (torch.tensor(values, dtype=torch.float32) for values in ([score], [toll], attributes, places))
    return Evidence(*seen.float().split((kinds, LEVELS, 1), -1), *numbers)


def suspicions(evidence: Evidence, names: tuple[str, ...] = PHOTOS.kinds) -> dict[str, Any]:
    """The proposals for the index: boxes 0..1 of the view, kinds (by their `names`) and levels 1..5."""
    found = evidence.proposals
    kinds = [names[i] for i in found.kinds[:, 1:].argmax(1).tolist()]
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
    return {"role": WINDOW_ROLE, "box": part.as_list()}, cells[rows, cols]


def entry(
    about: dict[str, Any], evidence: Evidence, names: tuple[str, ...]
) -> tuple[dict[str, Any], NDArray[np.float16]]:
    kept = {k: v for k, v in about.items() if k not in {"offset", "rows", "cols", GLANCE, SUMMARY}}
    told = {"score": float(evidence.score), "toll": float(evidence.toll), "attributes": evidence.attributes.tolist()}
    told["places"] = evidence.places.tolist()
    return {**kept, **told, **suspicions(evidence, names)}, packed(evidence)


@torch.inference_mode()
def look(
    eyes: Perception,
    items: list[Item],
    store: SeenStore,
    rng: np.random.Generator,
    windows: bool,
    names: tuple[str, ...] = PHOTOS.kinds,
) -> None:
    writer = store.writer()
    for start in range(0, len(items), BATCH):
        views: list[list[tuple[dict[str, Any], NDArray[np.float16]]]] = []
        summaries: list[Tensor] = []
        for item in items[start : start + BATCH]:
            views.append([(about, item.read(index)) for index, about in enumerate(item.sample["views"])])
            summaries += [whole_of(item, index) for index in range(len(views[-1]))]
            if windows:
                views[-1].append(window(item, rng))
                summaries.append(whole_of(item, 0))
        flat = [torch.from_numpy(cells.astype(np.float32)) for sample in views for _, cells in sample]
        seen = iter(perceived(eyes, flat, summaries))
        for item, abouts in zip(items[start : start + BATCH], views, strict=True):
            entries = [entry(about, next(seen), names) for about, _ in abouts]
            writer.add({k: v for k, v in item.sample.items() if k != "views"}, iter(entries))
    writer.close()


@dataclass(frozen=True, slots=True)
class Config:
    """`cells`: of encode.py; `eyes`: the folder that perceive.py wrote."""

    cells: Path
    eyes: Path
    out: Path
    seed: int = 0
    threads: int = 2


def look_at_all(config: Config) -> None:
    config.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    started = time.monotonic()
    for kind in LOOKED:
        samples = items_of(config.cells, kind, CELL_CHANNELS, np.float16)
        for fold in (*folds(samples), None):
            items = [i for i in of_split(samples, "train" if fold else "dev") if fold in (None, i.sample["fold"])]
            eyes, domain = eyes_of(eyes_file(config.eyes, fold))
            store = SeenStore(config.out, f"{kind}-{fold or 'dev'}", len(domain.kinds))
            rng = np.random.default_rng(config.seed)
            look(eyes, items, store, rng, kind in SMALL, domain.kinds)
            print(f"{kind} {fold or 'dev'}: {len(items)} samples, {time.monotonic() - started:.0f} s", flush=True)


class FoldEyes:
    """For every training photo, eyes that never saw it. `folder`: of perceive.py. Raises RunError."""

    def __init__(self, folder: Path) -> None:
        try:
            self.fold_of: dict[str, str] = json.loads((folder / FOLDS).read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"{folder}: holds no {FOLDS}; name a folder of perceive with folds") from error
        self.eyes = {fold: eyes_of(eyes_file(folder, fold))[0] for fold in sorted(set(self.fold_of.values()))}

    def that_never_saw(self, source: str) -> Perception:
        """`source`: file name of a photo. Raises RunError for one that is in no fold: all eyes may know it, or none."""
        if source not in self.fold_of:
            raise RunError(f"{source}: is in no fold of the eyes; make views of it (render.py), or leave `eyes` out")
        return self.eyes[self.fold_of[source]]


def eyes_of(path: Path) -> tuple[Perception, Domain]:
    """The eyes of a checkpoint, in eval mode, and what they know. Raises RunError."""
    checkpoint = checkpoint_of(path, "eyes")
    domain = Domain.of(checkpoint)
    return perception_of(checkpoint, domain).eval(), domain


def perception_of(checkpoint: dict[str, Any], domain: Domain) -> Perception:
    """Those of a checkpoint that is read already."""
    eyes = Perception(len(domain.kinds), len(domain.attributes))
    eyes.load_state_dict(checkpoint["eyes"])
    return eyes
