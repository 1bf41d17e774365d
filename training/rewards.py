"""What a rollout is worth. Pure functions of tensors; no model, no trainer.

Shapes: `images` photos of a batch, `rollouts` sampled answers to each. A rollout whose answer could not be read has a
score of NaN: it earns nothing and is left out of what others are compared with, and is never given a made-up score.

Sources: Q-Probe (arXiv 2601.15356) for the decoupled reward; VisualQuality-R1 (arXiv 2505.14460), whose public practice
Q-Probe's first stage follows, for Thurstone's model (1927) and the fidelity reward (Tsai et al. 2007); MG-IQA (2026)
for attributes and domains. What a paper leaves open is marked OURS.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

VARIANCE_FLOOR: Final = 1e-6  # VisualQuality-R1
FIDELITY_FLOOR: Final = 1e-6  # VisualQuality-R1
OVERALL: Final = "overall"
TAU: Final = 0.5  # points; OURS: one level of five is 0.8 points apart, and a miss of that should still earn a fifth

BoxRow = Sequence[float]  # x1, y1, x2, y2


def moments(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Of scores (images, rollouts): their mean and unbiased variance (images,), NaN rollouts left out. The variance of
    one rollout is 0; an image without any has a NaN mean."""
    there = torch.isfinite(scores)
    count = there.sum(1)
    mean = torch.where(there, scores, 0).sum(1) / count
    off = torch.where(there, scores - mean[:, None], 0)
    return mean, (off * off).sum(1) / (count - 1).clamp(min=1)


def preference(scores: Tensor) -> Tensor:
    """Thurstone's probability that a rollout's image is better than another image: of scores (images, rollouts),
    (images, rollouts, images), [i, k, j] = Phi((q_k(i) - mean q(j)) / sqrt(var_i + var_j + VARIANCE_FLOOR))."""
    mean, variance = moments(scores)
    spread = torch.sqrt(variance[:, None] + variance[None] + VARIANCE_FLOOR)
    z = (scores[:, :, None] - mean[None, None]) / spread[:, None]
    return torch.special.ndtr(z)


def order(truth: Tensor) -> Tensor:
    """(images,) opinion scores -> (images, images): 1 where the first is better, 0 where worse, 0.5 where equal."""
    return 0.5 + 0.5 * torch.sign(truth[:, None] - truth[None])


def fidelity(guess: Tensor, truth: Tensor) -> Tensor:
    """How well a probability agrees with the true one, elementwise: 1 where they are equal, 0 where opposite."""
    both = torch.sqrt(guess * truth + FIDELITY_FLOOR)
    return both + torch.sqrt((1 - guess) * (1 - truth) + FIDELITY_FLOOR)


def ranking(scores: Tensor, truth: Tensor, domains: Sequence[str] | None = None) -> Tensor:
    """The fidelity reward of each rollout, (images, rollouts), averaged over the other images. `truth`: (images,)
    opinion scores, NaN where there is none: such an image earns NaN, and nobody is compared with it. `domains`: of each
    image; only images of one domain are compared, so that scales of different sets need not be matched (MG-IQA).

    Raises ValueError where an image has nothing to be compared with.
    """
    known = torch.isfinite(truth)
    pairs = known[:, None] & known[None] & ~torch.eye(len(truth), dtype=torch.bool)
    if domains is not None:
        names = sorted(set(domains))
        number = torch.tensor([names.index(name) for name in domains])
        pairs &= number[:, None] == number[None]
    alone = known & ~pairs.any(1)
    if bool(alone.any()):
        index = int(torch.nonzero(alone)[0])
        where = f"domain {domains[index]!r}" if domains is not None else "the batch"
        raise ValueError(f"image {index} is the only rated one of {where}: a batch needs two, to be compared")
    mean, _ = moments(scores)
    pairs = pairs & torch.isfinite(mean)[None]  # an image none of whose answers could be read
    agreement = fidelity(preference(scores), order(truth)[:, None])
    total = torch.where(pairs[:, None], agreement, 0).sum(-1)
    reward = total / pairs.sum(1)[:, None].clamp(min=1)
    reward = torch.where(torch.isfinite(scores), reward, 0.0)
    return torch.where(known[:, None], reward, torch.nan)


def by_attribute(
    scores: Mapping[str, Tensor],
    truth: Mapping[str, Tensor],
    weights: Mapping[str, float],
    domains: Sequence[str] | None = None,
) -> Tensor:
    """The ranking rewards of OVERALL and of each attribute, weighted and summed, (images, rollouts); weights are those
    of what an image is labelled with, scaled to sum to 1, so that an image without attribute labels earns as much as
    one with them (OURS: the paper does not say). `scores`, `truth`: by name, as `ranking` takes them."""
    total, weight = torch.zeros(()), torch.zeros(())
    for name, share in weights.items():
        if share < 0:
            raise ValueError(f"the weight of {name} is {share}; it must not be negative")
        if not bool(torch.isfinite(truth[name]).any()):
            continue
        reward = ranking(scores[name], truth[name], domains)
        there = torch.isfinite(reward)
        total = total + share * torch.where(there, reward, 0)
        weight = weight + share * there
    if weight.ndim == 0 or bool((weight == 0).any()):
        raise ValueError("an image has no label that weighs anything")
    return total / weight


def well_formed(scores: Tensor) -> Tensor:
    """The format reward: 1 for an answer that could be read, 0 for one that could not."""
    return torch.isfinite(scores).to(scores.dtype)


def accuracy(scores: Tensor, truth: Tensor, tau: float = TAU) -> Tensor:
    """Q-Probe's R_acc, exp(-|s - s_MOS| / tau), (images, rollouts); 0 for an answer that could not be read. `truth`:
    (images,). Q-Hawkeye has tau = 0.30."""
    if tau <= 0:
        raise ValueError(f"tau is {tau}; it must be more than 0")
    reward = torch.exp(-(scores - truth[:, None]).abs() / tau)
    return torch.where(torch.isfinite(scores), reward, 0.0)


def iou(a: BoxRow, b: BoxRow) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, wide) * max(0.0, high)
    areas = [max(0.0, c[2] - c[0]) * max(0.0, c[3] - c[1]) for c in (a, b)]
    return both / (sum(areas) - both) if both > 0 else 0.0


def localisation(said: Sequence[BoxRow], true: Sequence[BoxRow]) -> float:
    """Q-Probe's R_loc = 1[has defect] * IoU, for any number of boxes (OURS): each true box is met by at most one said,
    the best pairs first; the mean over the larger number, so that neither a missed defect nor a false box is free.
    Without a defect it is 0 whatever was said."""
    if not true or not said:
        return 0.0
    pairs = sorted(((iou(a, b), i, j) for i, a in enumerate(said) for j, b in enumerate(true)), reverse=True)
    met_said, met_true, total = set[int](), set[int](), 0.0
    for overlap, i, j in pairs:
        if i not in met_said and j not in met_true:
            met_said.add(i)
            met_true.add(j)
            total += overlap
    return total / max(len(said), len(true))


def decoupled(accuracy_: Tensor, localisation_: Tensor, format_: Tensor, a: float, b: float, c: float) -> Tensor:
    """Q-Probe's stage 3: R = a * R_acc + b * R_loc + c * R_format. The paper sweeps a in [0.5, 2] and b in [0.05, 0.3];
    c is open."""
    return a * accuracy_ + b * localisation_ + c * format_
