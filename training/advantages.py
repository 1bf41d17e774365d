"""From rewards to what each rollout teaches. Pure functions of tensors.

Sources: GRPO (DeepSeekMath, arXiv 2402.03300); the constants of VisualQuality-R1's public practice; Q-Hawkeye (arXiv
2601.22920) for uncertainty.
"""

from typing import Final

import torch
from torch import Tensor

from qcheck.verdict import SCORE_MAX, SCORE_MIN

STD_FLOOR: Final = 1e-4  # VisualQuality-R1
# Q-Hawkeye: a quarter of the square of the scale's length, the greatest variance that scores on it can have.
GREATEST_VARIANCE: Final = 0.25 * (SCORE_MAX - SCORE_MIN) ** 2
UNCERTAINTY_RATE: Final = 0.2  # Q-Hawkeye


def group_advantage(rewards: Tensor) -> Tensor:
    """(images, rollouts) rewards -> how much better each rollout is than its group, in the group's standard deviations:
    A = (r - mean) / (std + STD_FLOOR), unbiased. All zero for a group of one, or of equals. Raises ValueError for an
    empty group and for rewards that are no numbers."""
    if rewards.ndim != 2 or not rewards.shape[1]:
        raise ValueError(f"rewards are (images, rollouts) with at least one rollout, not {tuple(rewards.shape)}")
    if not bool(torch.isfinite(rewards).all()):
        raise ValueError("a reward is not a finite number")
    off = rewards - rewards.mean(1, keepdim=True)
    if rewards.shape[1] == 1:
        return torch.zeros_like(rewards)
    return off / (rewards.std(1, keepdim=True) + STD_FLOOR)


def uncertainty(scores: Tensor) -> Tensor:
    """How much the rollouts of an image disagree, (images,), 0..1: u = min(1, population variance /
    GREATEST_VARIANCE) of the scores clamped to the scale. NaN scores are left out; an image without any is certain of
    nothing: 1."""
    there = torch.isfinite(scores)
    count = there.sum(1)
    clamped = scores.clamp(SCORE_MIN, SCORE_MAX)
    mean = torch.where(there, clamped, 0).sum(1) / count.clamp(min=1)
    off = torch.where(there, clamped - mean[:, None], 0)
    variance = (off * off).sum(1) / count.clamp(min=1)
    return torch.where(count > 0, (variance / GREATEST_VARIANCE).clamp(max=1), 1.0)


def certain(advantages: Tensor, uncertainties: Tensor, rate: float = UNCERTAINTY_RATE) -> Tensor:
    """Q-Hawkeye's re-weighting: images whose rollouts disagree teach less, A * exp(-rate * u). (images, rollouts) and
    (images,)."""
    return advantages * torch.exp(-rate * uncertainties)[:, None]
