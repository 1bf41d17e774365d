"""What is minimised. Pure functions of tensors: log probabilities of tokens, (rollouts, tokens), and a mask of those
that the model chose itself (1) rather than was given or forced to say (0).

Sources: GRPO (DeepSeekMath, arXiv 2402.03300); Q-Hawkeye (arXiv 2601.22920) for the implicit perception loss.
"""

import math
from typing import Final

import torch
from torch import Tensor

CLIP: Final = 0.2  # epsilon, VisualQuality-R1
KL_WEIGHT: Final = 0.04  # beta, VisualQuality-R1
LOG_RATIO_CLIP: Final = 20.0  # Q-Hawkeye
PERCEPTION_CLIP: Final = 10.0  # Q-Hawkeye
PERCEPTION_WEIGHT: Final = 1e-4  # gamma, Q-Hawkeye
PERCEPTION_SHARE: Final = 1 / 3  # of training, after which gamma is 0; Q-Hawkeye


def over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over each rollout's own tokens, then over rollouts; a rollout without any counts as 0."""
    return ((values * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


def policy(
    new: Tensor,
    old: Tensor,
    reference: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    clip: float = CLIP,
    kl_weight: float = KL_WEIGHT,
) -> Tensor:
    """GRPO's clipped surrogate, negated, with the KL to a reference model by Schulman's k3 estimator. `new`: with
    gradient; `old`: when the rollouts were sampled; `reference`: of the model at the start, or None for no KL;
    `advantages`: (rollouts,)."""
    ratio = torch.exp(new - old.detach())
    gain = torch.minimum(ratio * advantages[:, None], ratio.clamp(1 - clip, 1 + clip) * advantages[:, None])
    loss = -gain
    if reference is not None and kl_weight:
        off = reference.detach() - new
        loss = loss + kl_weight * (torch.exp(off) - off - 1)
    return over_tokens(loss, mask)


def perception(original: Tensor, degraded: Tensor, mask: Tensor) -> Tensor:
    """Q-Hawkeye's KL between what the same tokens are worth under the photo and under a degraded one: d = clamp(lp_deg
    - lp_orig), KL = clamp(e^d - d - 1), the mean over tokens. No gradient flows through the degraded one. To be made
    larger: an answer must rest on what is seen."""
    off = (degraded.detach() - original).clamp(-LOG_RATIO_CLIP, LOG_RATIO_CLIP)
    apart = (torch.exp(off) - off - 1).clamp(-PERCEPTION_CLIP, PERCEPTION_CLIP)
    return over_tokens(apart, mask)


def perception_weight(step: int, steps: int, first: float = PERCEPTION_WEIGHT) -> float:
    """gamma at a step: a cosine from `first` to 0 over the first third of training, then 0."""
    end = PERCEPTION_SHARE * steps
    return 0.0 if step >= end else first * 0.5 * (1 + math.cos(math.pi * step / end))
