"""Rewards, advantages and losses against numbers worked by hand, at their edges, and for what always holds."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script

torch = library("torch")
rewards, advantages, losses = script("rewards"), script("advantages"), script("losses")
NAN = math.nan

# Two images, three rollouts each: means 3.5 and 3.1, variances 0.09 and 0.01, so their difference has a deviation of
# sqrt(0.1) = 0.31623. Phi(0.1 / 0.31623) = 0.62409, Phi(0.4 / ...) = 0.89704, Phi(0.7 / ...) = 0.98657.
TWO = torch.tensor([[3.2, 3.5, 3.8], [3.0, 3.1, 3.2]])
BETTER = (0.62409, 0.89704, 0.98657)


def close(found: Any, expected: Any, abs_: float = 2e-4) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=abs_)


def test_preference_by_hand() -> None:
    p = rewards.preference(TWO)
    close(p[0, :, 1], BETTER)
    # The other way round: (3.0 - 3.5) / 0.31623 = -1.58114, -1.26491, -0.94868.
    close(p[1, :, 0], (0.05692, 0.10296, 0.17139))


def test_fidelity_reward_by_hand() -> None:
    """g = 1: sqrt(p + 1e-6) + sqrt(1e-6)."""
    found = rewards.ranking(TWO, torch.tensor([4.0, 2.0]))
    close(found[0], [math.sqrt(p) + 1e-3 for p in BETTER])
    close(found[1], [math.sqrt(1 - p) + 1e-3 for p in (0.05692, 0.10296, 0.17139)])
    # Equal opinions: g = 0.5.
    tied = rewards.ranking(TWO, torch.tensor([3.0, 3.0]))
    close(tied[0], [math.sqrt(p / 2) + math.sqrt((1 - p) / 2) for p in BETTER])
    # The wrong way round.
    wrong = rewards.ranking(TWO, torch.tensor([2.0, 4.0]))
    close(wrong[0], [math.sqrt(1 - p) + 1e-3 for p in BETTER])


def test_one_rollout_has_no_variance() -> None:
    mean, variance = rewards.moments(torch.tensor([[3.0], [4.0]]))
    assert variance.tolist() == [0, 0]
    assert mean.tolist() == [3, 4]
    p = rewards.preference(torch.tensor([[3.0], [4.0]]))
    assert p[0, 0, 1] < 1e-6
    assert p[1, 0, 0] > 1 - 1e-6
    same = rewards.preference(torch.full((2, 1), 3.0))
    assert same[0, 0, 1] == 0.5


def test_answers_that_cannot_be_read_earn_nothing_and_are_not_compared_with() -> None:
    broken = torch.tensor([[3.2, 3.5, 3.8, NAN], [3.0, 3.1, 3.2, NAN], [NAN] * 4])
    found = rewards.ranking(broken, torch.tensor([4.0, 2.0, 3.0]))
    whole = rewards.ranking(TWO, torch.tensor([4.0, 2.0]))
    close(found[:2, :3], whole.tolist())
    assert found[:, 3].tolist() == [0, 0, 0]
    assert found[2].tolist() == [0, 0, 0, 0]
    assert rewards.well_formed(broken).tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [0] * 4]
    assert rewards.accuracy(broken, torch.tensor([4.0, 2.0, 3.0]))[2].tolist() == [0, 0, 0, 0]


def test_only_images_of_one_domain_are_compared() -> None:
    """Scores of the other domain are on another scale, and must not matter."""
    scores = torch.cat((TWO, 10 * TWO))
    truth = torch.tensor([4.0, 2.0, 30.0, 50.0])
    domains = ["authentic", "authentic", "synthetic", "synthetic"]
    found = rewards.ranking(scores, truth, domains)
    close(found[:2], rewards.ranking(TWO, truth[:2]).tolist())
    close(found[2:], rewards.ranking(10 * TWO, truth[2:]).tolist())
    with pytest.raises(ValueError, match="image 2 is the only rated one of domain 'generated'"):
        rewards.ranking(scores[:3], truth[:3], ["authentic", "authentic", "generated"])
    with pytest.raises(ValueError, match="the only rated one of the batch"):
        rewards.ranking(TWO[:1], truth[:1])


def test_attributes_are_weighted_where_they_are_labelled() -> None:
    """Image 2 has no sharpness label: it earns its overall reward alone."""
    overall = torch.cat((TWO, torch.tensor([[1.0, 1.2, 1.4]])))
    sharp = overall + torch.tensor([[0.3], [-0.2], [0.0]])
    truth = {"overall": torch.tensor([4.0, 2.0, 1.0]), "sharpness": torch.tensor([1.0, 3.0, NAN])}
    weights = {"overall": 1.0, "sharpness": 0.5}
    found = rewards.by_attribute({"overall": overall, "sharpness": sharp}, truth, weights)
    one = rewards.ranking(overall, truth["overall"])
    other = rewards.ranking(sharp, truth["sharpness"])
    close(found[:2], ((one[:2] + 0.5 * other[:2]) / 1.5).tolist())
    close(found[2], one[2].tolist())
    with pytest.raises(ValueError, match="no label"):
        rewards.by_attribute({"sharpness": sharp}, {"sharpness": truth["sharpness"]}, {"sharpness": 1.0})
    with pytest.raises(ValueError, match="must not be negative"):
        rewards.by_attribute({"overall": overall}, truth, {"overall": -1.0})


def test_accuracy_by_hand() -> None:
    found = rewards.accuracy(torch.tensor([[3.0, 3.3, 1.0]]), torch.tensor([3.0]), tau=0.3)
    close(found, [[1.0, math.exp(-1), math.exp(-2 / 0.3)]])
    with pytest.raises(ValueError, match="tau"):
        rewards.accuracy(TWO, torch.tensor([1.0, 2.0]), tau=0)


def test_localisation_by_hand() -> None:
    truth = [(0, 0, 10, 10)]
    assert rewards.localisation([(0, 0, 10, 5)], truth) == pytest.approx(0.5)
    assert rewards.localisation([(5, 0, 15, 10)], truth) == pytest.approx(50 / 150)
    assert rewards.localisation([(20, 20, 30, 30)], truth) == 0
    assert rewards.localisation([], truth) == 0
    assert rewards.localisation([(0, 0, 10, 10)], []) == 0, "no defect: nothing to find"
    # A false box halves it, and so does a defect that was missed; two boxes on one defect count once.
    assert rewards.localisation([(0, 0, 10, 10), (50, 50, 60, 60)], truth) == pytest.approx(0.5)
    assert rewards.localisation([(0, 0, 10, 10)], [*truth, (50, 50, 60, 60)]) == pytest.approx(0.5)
    assert rewards.localisation([(0, 0, 10, 10), (0, 0, 10, 9)], truth) == pytest.approx(0.5)
    assert rewards.localisation([(3, 3, 3, 3)], truth) == 0, "an empty box"


def test_decoupled_by_hand() -> None:
    found = rewards.decoupled(torch.tensor([[0.8]]), torch.tensor([[0.5]]), torch.tensor([[1.0]]), 1.0, 0.2, 0.1)
    close(found, [[0.8 + 0.1 + 0.1]])


def test_advantage_by_hand() -> None:
    """Mean 0.5, unbiased deviation 0.1."""
    close(advantages.group_advantage(torch.tensor([[0.4, 0.5, 0.6]])), [[-0.1 / 0.1001, 0.0, 0.1 / 0.1001]])
    assert advantages.group_advantage(torch.full((2, 4), 0.7)).abs().max() < 1e-6
    assert advantages.group_advantage(torch.tensor([[0.3], [0.9]])).tolist() == [[0], [0]]
    with pytest.raises(ValueError, match="at least one rollout"):
        advantages.group_advantage(torch.zeros(3, 0))
    with pytest.raises(ValueError, match="not a finite number"):
        advantages.group_advantage(torch.tensor([[NAN, 1.0]]))


def test_uncertainty_by_hand() -> None:
    """[1, 5]: population variance 4, the greatest there is. [3, 4]: 0.25 of 4."""
    found = advantages.uncertainty(
        torch.tensor([[1.0, 5.0], [3.0, 4.0], [3.0, 3.0], [-9.0, 99.0], [NAN, 2.0], [NAN, NAN]])
    )
    close(found, [1.0, 0.0625, 0.0, 1.0, 0.0, 1.0])
    close(advantages.certain(torch.ones(2, 3), torch.tensor([0.0, 1.0])), [[1.0] * 3, [math.exp(-0.2)] * 3])


def test_policy_loss_by_hand() -> None:
    """One rollout of two chosen tokens and a forced one: ratios 1.5 (clipped to 1.2) and 0.5."""
    old = torch.log(torch.tensor([[0.2, 0.4, 0.9]]))
    new = torch.log(torch.tensor([[0.3, 0.2, 0.1]])).requires_grad_()
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    loss = losses.policy(new, old, None, torch.tensor([2.0]), mask)
    close(loss.detach(), -(2 * 1.2 + 2 * 0.5) / 2)
    loss.backward()
    assert new.grad is not None
    assert new.grad[0, 0] == 0, "a clipped gain teaches nothing"
    assert new.grad[0, 1] < 0
    assert new.grad[0, 2] == 0, "nor does a forced token"
    # What is bad and already rarer is not pushed further than the clip: min(0.5 A, 0.8 A) with A < 0 is 0.8 A.
    down = losses.policy(new.detach(), old, None, torch.tensor([-1.0]), mask)
    close(down, (1.5 + 0.8) / 2)
    # k3: e^d - d - 1, d = log(reference / new) = log 2.
    same = torch.log(torch.tensor([[0.25]]))
    reference = torch.log(torch.tensor([[0.5]]))
    kl = losses.policy(same, same, reference, torch.tensor([0.0]), torch.ones(1, 1), kl_weight=0.04)
    close(kl, 0.04 * (2 - math.log(2) - 1))


def test_perception_loss_by_hand() -> None:
    """d = log(0.25 / 0.5) = -log 2: 0.5 + log 2 - 1; the second token is masked."""
    original = torch.log(torch.tensor([[0.5, 0.9]])).requires_grad_()
    degraded = torch.log(torch.tensor([[0.25, 0.01]])).requires_grad_()
    loss = losses.perception(original, degraded, torch.tensor([[1.0, 0.0]]))
    close(loss.detach(), 0.5 + math.log(2) - 1)
    loss.backward()
    assert degraded.grad is None, "no gradient through the degraded photo"
    assert original.grad is not None
    assert original.grad[0, 0] > 0, "larger when the token leans more on the photo"
    far = losses.perception(torch.zeros(1, 1), torch.full((1, 1), 50.0), torch.ones(1, 1))
    close(far, 10.0)


def test_perception_weight_ends_after_a_third() -> None:
    assert losses.perception_weight(0, 300) == pytest.approx(1e-4)
    assert losses.perception_weight(50, 300) == pytest.approx(0.5e-4)
    assert losses.perception_weight(100, 300) == 0
    assert losses.perception_weight(299, 300) == 0


def test_a_rollout_that_chose_nothing_is_no_division_by_zero() -> None:
    assert float(losses.over_tokens(torch.ones(2, 3), torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))) == 0.5


# What always holds

SCORES = st.lists(st.lists(st.floats(1, 5, width=32), min_size=3, max_size=3), min_size=2, max_size=5)


@settings(max_examples=60, deadline=None)
@given(SCORES)
def test_preference_between_means_is_antisymmetric(scores: list[list[float]]) -> None:
    """Of group means, p(i over j) + p(j over i) = 1."""
    q = torch.tensor(scores)
    mean, variance = rewards.moments(q)
    spread = torch.sqrt(variance[:, None] + variance[None] + rewards.VARIANCE_FLOOR)
    p = torch.special.ndtr((mean[:, None] - mean[None]) / spread)
    torch.testing.assert_close(p + p.T, torch.ones_like(p))
    found = rewards.preference(mean[:, None].expand(-1, 2))
    torch.testing.assert_close(found[:, 0] + found[:, 0].T, torch.ones_like(p))


@settings(max_examples=60, deadline=None)
@given(SCORES, st.randoms(use_true_random=False))
def test_rewards_are_bounded_and_the_truth_earns_most(scores: list[list[float]], random: Any) -> None:
    q = torch.tensor(scores)
    truth = torch.tensor([random.choice([1.0, 2.0, 3.0, 4.0]) for _ in scores])
    found = rewards.ranking(q, truth)
    assert found.min() >= 0
    assert found.max() <= math.sqrt(1 + 2e-6) + 2e-3
    right = rewards.ranking(truth[:, None] + torch.tensor([-0.01, 0.0, 0.01]), truth)
    assert right[:, 1].min() > 0.99
    assert advantages.uncertainty(q).min() >= 0
    assert advantages.uncertainty(q).max() <= 1
    assert advantages.group_advantage(found).mean(1).abs().max() < 1e-3
