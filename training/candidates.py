"""Rectangles of views with what was read in them, and the lesson that teaches nano's perception which meet a damage."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from defects import PHOTOS
from numpy.typing import NDArray
from regions import MOST_SHIFT, READ_CLIP, Judged, Regions, candidates_of, overlap_of, pooled
from runs import RunError, descend
from samples import UNKNOWN, TokenTruth, token_truth, tokens_of
from stores import Item
from torch import Tensor
from torch.nn import functional as F
from visual import Perception

from qcheck.tiles import Box

BATCH: Final = 2048  # rectangles
GOOD_SHARE: Final = 1 / 3  # of a batch
# IoU with a damage: from MEETS on a rectangle is of its kind, from GOOD on it knows the sides; below, it is clean.
MEETS: Final = 0.1
GOOD: Final = 0.3
SHIFT_WEIGHT: Final = 2.0
SHIFT_UNIT: Final = 0.1
WORD_WEIGHT: Final = 0.3  # of kinds, levels and severities each
DECAY: Final = 0.1
LEAST_SPREAD: Final = 1e-3
SCALE_ROWS: Final = 30_000  # rectangles whose features tell their scale


@dataclass(frozen=True, slots=True)
class Rectangles:
    """Of many views. `readings`, `features`: (n, .) fp16 as of regions.pooled; `boxes`, `truths`: (n, 4) in tokens, of
    the rectangle and of the damage it is nearest to; `overlaps`: (n,) their IoU, 0 where there is no damage; `kinds`,
    `levels`, `severities`: (n,) as of samples.token_truth."""

    readings: Tensor
    features: Tensor
    boxes: Tensor
    truths: Tensor
    overlaps: Tensor
    kinds: Tensor
    levels: Tensor
    severities: Tensor

    @classmethod
    def joined(cls, parts: list["Rectangles"]) -> "Rectangles":
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__slots__))


@torch.inference_mode()
def rectangles_of(eyes: Perception, items: list[Item], names: tuple[str, ...] = PHOTOS.kinds) -> list[Rectangles]:
    """The candidates of every view of samples of one kind, as `eyes` read it. Views that show the edge of a damage
    alone are left out."""
    out = []
    for item in items:
        for index, view in enumerate(item.sample["views"]):
            cells = torch.from_numpy(item.read(index).astype(np.float32))
            rows, cols = tokens_of(cells)
            truth = token_truth(rows, cols, Box(*view["box"]), item.sample, names)
            if truth.edge_alone:
                continue
            # Of each damage that is seen, one of its tokens.
            filled = truth.kinds > 0
            boxes, first = np.unique(truth.boxes[filled], axis=0, return_index=True)
            tokens = np.flatnonzero(filled)[first]
            boxes = boxes * np.array((cols, rows, cols, rows), np.float32)
            maps = eyes.maps(cells)
            found = candidates_of(maps).unique(dim=0)
            pools = (part.half() for part in pooled(maps, found))
            out.append(Rectangles(*pools, found, *nearest(found, boxes, truth, tokens)))
    return out


def nearest(
    found: Tensor, boxes: NDArray[np.float32], truth: TokenTruth, tokens: NDArray[np.intp]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of rectangles (n, 4) the nearest of damages (m, 4): boxes (n, 4), IoUs (n,), kinds, levels and severities (n,),
    which are those of the damages' `tokens` (m,). Without damages nothing is known but that nothing is met."""
    if not len(boxes):
        unknown = torch.full((len(found),), UNKNOWN)
        return (
            torch.zeros(len(found), 4),
            torch.zeros(len(found)),
            unknown,
            unknown,
            torch.full((len(found),), torch.nan),
        )
    overlaps, which = overlap_of(found[:, None], torch.from_numpy(boxes)[None]).max(1)
    at = tokens[which.numpy()]
    known = (torch.from_numpy(part[at]) for part in (truth.kinds, truth.levels, truth.severities))
    return (torch.from_numpy(boxes)[which], overlaps, *known)


def learn_regions(regions: Regions, views: list[Rectangles], steps: int, rate: float, rng: np.random.Generator) -> None:
    """What a rectangle meets, where its sides should be, and what it is. Raises RunError if none meets a damage."""
    if not views:
        raise RunError("no view to learn the places of damages from; render more samples")
    train = Rectangles.joined(views)
    good, others = ((train.overlaps > GOOD) == wanted for wanted in (True, False))
    good, others = (part.nonzero()[:, 0].numpy() for part in (good, others))
    if not len(good) or not len(others):
        raise RunError("no view with a damage to learn its place from; render more samples")
    everything = train.readings.float().clamp(-READ_CLIP, READ_CLIP)
    regions.mean.copy_(everything.mean(0))
    regions.std.copy_(everything.std(0) + LEAST_SPREAD)
    some = train.features[:: max(1, len(train.features) // SCALE_ROWS)].float()
    regions.feature_std.copy_(some.square().mean(0).sqrt() + LEAST_SPREAD)

    def loss_of() -> Tensor:
        count = round(GOOD_SHARE * BATCH)
        picked = torch.from_numpy(np.concatenate((rng.choice(good, count), rng.choice(others, BATCH - count))))
        with torch.autocast("cpu", torch.bfloat16):
            judged = regions.judged(train.readings[picked].float(), train.features[picked].float())
        return lesson(Judged(*(part.float() for part in judged)), train, picked)

    descend(regions, "regions", steps, rate, DECAY, loss_of)


def lesson(judged: Judged, train: Rectangles, picked: Tensor) -> Tensor:
    """The loss of what is said of the picked rectangles."""
    overlaps, kinds, levels = train.overlaps[picked], train.kinds[picked], train.levels[picked]
    boxes, severities = train.boxes[picked], train.severities[picked]
    loss = F.binary_cross_entropy_with_logits(judged.meets, (overlaps > MEETS).float())
    loss = loss + F.binary_cross_entropy_with_logits(judged.overlap, overlaps)
    good = overlaps > GOOD
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    shifts = ((train.truths[picked] - boxes) / sides).clamp(-MOST_SHIFT, MOST_SHIFT)
    loss = loss + SHIFT_WEIGHT * F.smooth_l1_loss(judged.shifts[good], shifts[good], beta=SHIFT_UNIT)
    named = torch.where(overlaps > GOOD, kinds, torch.where(overlaps > MEETS, UNKNOWN, 0))
    loss = loss + WORD_WEIGHT * F.cross_entropy(judged.kinds, named, ignore_index=UNKNOWN)
    # Of the true kind alone.
    of_kind = judged.levels[good, kinds[good] - 1]
    loss = loss + WORD_WEIGHT * F.cross_entropy(of_kind, levels[good], ignore_index=UNKNOWN)
    return loss + WORD_WEIGHT * F.binary_cross_entropy_with_logits(judged.severity[good, 0], severities[good])
