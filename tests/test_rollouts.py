"""Rollouts of a model that is being taught, and what reinforcement does with them."""

import copy
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script, tokenizer

from qcheck.engine import Sampler
from qcheck.photo import Photo
from qcheck.probe import Limits, Prober

torch = library("torch")
library("transformers")
nano, grpo, rollouts, sft, tasks, narrator = (
    script(name) for name in ("nano", "grpo", "rollouts", "sft", "tasks", "narrator")
)


@pytest.fixture(scope="module")
def policy() -> Any:
    torch.manual_seed(6)
    model = nano.Nano(nano.config(tokenizer(), hidden=128, layers=2)).eval()
    model.model.visual.encoder.requires_grad_(False)
    model.model.visual.perception.requires_grad_(False)
    # A fresh model says every word as gladly as any other; at 8 times, with some seeds, it only ever says one score.
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(5)
        # An untaught one says the same of every view.
        for parameter in model.model.visual.perception.quality.parameters():
            parameter.normal_(0, 0.05)
    return policy_of(model)


def policy_of(model: Any) -> Any:
    speller = narrator.Speller(tokenizer())
    trainer = sft.Trainer(model, sft.Targets(tokenizer()), speller.image_id)
    return grpo.Policy(trainer, rollouts.RecordingEngine(model, tokenizer(), script("defects").PHOTOS), speller)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder, made = tmp_path_factory.mktemp("photos"), []
    for index in range(4):
        rng = np.random.default_rng(index)
        pixels = np.clip(rng.normal(120, 10 + 20 * index, (256, 320, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        boxes = ((20, 20, 120, 150),) if index else ()
        attributes = {"noise": 4.6 - index} if index < 3 else {}
        domain = "authentic" if index < 2 else "synthetic"
        made.append(tasks.Task(folder / f"{index}.png", 4.6 - index, domain, attributes, boxes, str(index)))
    return made


def probabilities(policy: Any, found: list[Any], trainer: Any = None) -> tuple[Any, Any]:
    policy.model.eval()
    with torch.no_grad():
        return policy.worth(trainer or policy.trainer, found)  # type: ignore[no-any-return]


@pytest.mark.parametrize("probes", [0, 2])
def test_a_rollout_weighed_again_is_what_the_runtime_drew(policy: Any, photos: list[Any], probes: int) -> None:
    """Each choice's probability, from the whole conversation at once, is that which it had when it was drawn."""
    heard: list[float] = []
    conversation = rollouts.RecordedConversation

    class Heard(conversation):  # type: ignore[misc, valid-type]
        def _choose(self, allowed: Any, sampler: Any) -> Any:
            token = super()._choose(allowed, sampler)
            heard.append(token.probability)
            return token

    engine = policy.engine
    engine.conversation = lambda: (
        setattr(engine, "finished", []),
        setattr(engine, "last", Heard(engine)),
        engine.last,
    )[-1]
    try:
        photo = Photo.open(str(photos[2].path))
        draws = [Sampler(0.9, seed) for seed in range(4)]
        found = rollouts.sampled(engine, policy.speller, photo, Limits(probes), draws)
    finally:
        del engine.conversation
    now, mask = probabilities(policy, found)
    assert int(mask.sum()) == len(heard)
    again = torch.cat([now[i, : len(r.choices)] for i, r in enumerate(found)]).exp()
    np.testing.assert_allclose(again.numpy(), heard, rtol=0.05, atol=2e-3)
    assert {len(r.example.views) for r in found} <= set(range(1, probes + 2))
    assert max(len(r.example.views) for r in found) == probes + 1
    assert len({r.score for r in found}) > 1
    for rollout in found:
        said = [tokenizer().id_to_token(token) for token in rollout.example.tokens]
        at = max(i for i, text in enumerate(said) if text.startswith("<answer>"))
        assert float(said[at + 1]) == rollout.score
        assert set(rollout.attributes) == set(script("defects").PHOTOS.attributes)


def test_the_same_draws_give_the_same_rollouts(policy: Any, photos: list[Any]) -> None:
    settings = grpo.Settings(max_probes=1, images=2, rollouts=3)
    one, other = (policy.groups(photos[:2], settings, np.random.default_rng(5)) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        assert [r.example.tokens for r in a] == [r.example.tokens for r in b]


def test_rewards_follow_scores_and_boxes(policy: Any, photos: list[Any]) -> None:
    settings = grpo.Settings(reward="decoupled", images=2, rollouts=2, a=1.0, b=0.2, c=0.1, tau=0.5)
    groups = policy.groups(photos[:2], grpo.Settings(images=2, rollouts=2), np.random.default_rng(1))
    for group, task in zip(groups, photos[:2], strict=True):
        for rollout, off in zip(group, (0.0, 0.5), strict=True):
            rollout.score = task.score - off
            rollout.verdict = copy.copy(rollout.verdict)
    found = grpo.rewards_of(photos[:2], groups, settings)
    for index, task in enumerate(photos[:2]):
        for k, rollout in enumerate(groups[index]):
            boxes = [d.box.as_list() for d in rollout.verdict.defects]
            located = grpo.rewards.localisation(boxes, task.boxes)
            expected = np.exp(-(0.0, 0.5)[k] / 0.5) + 0.2 * located + 0.1
            assert float(found[index, k]) == pytest.approx(expected, abs=1e-5)
    ranked = grpo.rewards_of(photos[:2], groups, grpo.Settings(images=2, rollouts=2))
    assert ranked.min() > 0.9, "the order is right"


def test_attributes_that_one_photo_alone_has_are_left_out(policy: Any, photos: list[Any]) -> None:
    """Photo 2 is the only synthetic one with a noise label; photos 0 and 1 are both authentic with one."""
    groups = policy.groups(photos, grpo.Settings(images=2, rollouts=2), np.random.default_rng(1))
    settings = grpo.Settings(images=2, rollouts=2, attributes={"noise": 1.0})
    found = grpo.rewards_of(photos, groups, settings)
    assert torch.isfinite(found).all()
    plain = grpo.rewards_of(photos, groups, grpo.Settings(images=2, rollouts=2))
    assert torch.allclose(found[2:], plain[2:])
    assert not torch.allclose(found[:2], plain[:2])


def test_a_photo_degraded_is_seen_otherwise(policy: Any, photos: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The twins hold the same words; where nothing is degraded, they are worth the same."""
    settings = grpo.Settings(max_probes=1, images=2, rollouts=2)
    groups = policy.groups(photos[1:3], settings, np.random.default_rng(2))
    flat = [r for group in groups for r in group]
    now, mask = probabilities(policy, flat)
    twins = grpo._twins(policy, photos[1:3], groups, np.random.default_rng(3))
    assert [t.example.tokens for t in twins] == [r.example.tokens for r in flat]
    other, _ = probabilities(policy, twins)
    assert float(((now - other).abs() * mask).max()) > 1e-3
    monkeypatch.setattr(grpo.Worse, "of", lambda _, pixels: pixels)
    twins = grpo._twins(policy, photos[1:3], groups, np.random.default_rng(3))
    other, _ = probabilities(policy, twins)
    assert float(((now - other).abs() * mask).max()) < 1e-3


def test_of_a_photo_degraded_nothing_is_kept(
    policy: Any, photos: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is drawn anew in every step, and would only fill the disk; of the photo itself what was seen is kept."""
    monkeypatch.setattr(policy.engine.eyes, "sights", script("sights").Sights(tmp_path))
    groups = policy.groups(photos[1:2], grpo.Settings(max_probes=1, images=2, rollouts=2), np.random.default_rng(2))
    before = set(tmp_path.iterdir())
    assert before
    grpo._twins(policy, photos[1:2], groups, np.random.default_rng(3))
    assert set(tmp_path.iterdir()) == before
    assert policy.engine.eyes.sights is not None


@pytest.mark.parametrize("switches", [{}, {"uncertainty_weight": True, "perception_loss": True}])
def test_what_was_better_becomes_likelier(policy: Any, photos: list[Any], switches: dict[str, bool]) -> None:
    """A few steps on two photos of one score, and that score is what is drawn."""
    taught = policy_of(copy.deepcopy(policy.model))
    some = [dataclasses.replace(task, score=3.6) for task in photos[:2]]
    settings = grpo.Settings(reward="decoupled", images=2, rollouts=8, kl_weight=0.0, b=0.0, c=0.0, **switches)
    weights = [p for p in taught.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=6e-4)
    rng, told = np.random.default_rng(0), []
    for _ in range(12):
        told.append(grpo.learn(taught, some, settings, 1e-4, rng)["reward"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert np.mean(told[-3:]) > np.mean(told[:3]) + 0.15, told


@pytest.mark.parametrize("sizes", [(2,), (2, 2), (2, 3, 9), (2, 2, 2, 2), (50, 2, 3)])
def test_domains_are_dealt_as_far_as_they_go(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    for count in range(2, 12):
        for _ in range(40):
            counts = tasks.dealt(count, np.array(sizes), rng)
            assert 1 not in counts
            assert (counts <= sizes).all()
            # One is left over only where none of the domains that are there has room, or two to spare.
            assert min(count, sum(sizes)) - 1 <= counts.sum() <= count


def test_a_batch_has_no_lone_photo_of_a_domain(photos: list[Any]) -> None:
    rng = np.random.default_rng(0)
    many = [tasks.Task(Path(f"{i}"), 3.0, "abc"[i % 3], {}, None, "") for i in range(30)]
    for _ in range(50):
        chosen = tasks.batch(many, 5, rng)
        assert len(chosen) == 5
        domains = [task.domain for task in chosen]
        assert all(domains.count(name) > 1 for name in set(domains))
    small = [tasks.Task(Path(f"s{i}"), 3.0, "small", {}, None, "") for i in range(4)]
    drawn = [tasks.batch(many * 20 + small, 6, rng) for _ in range(100)]
    there = [sum(task.domain == "small" for task in chosen) for chosen in drawn]
    assert np.mean([n > 0 for n in there]) > 0.3, "a small domain is drowned by large ones"
    assert max(there) <= 4
    with pytest.raises(ValueError, match="two photos of one domain"):
        tasks.batch([photos[0], photos[2]], 2, rng)
    with pytest.raises(ValueError, match="reward is 'x'"):
        grpo.Settings(reward="x")


def test_evaluation_ranks_by_domain_and_finds_boxes(policy: Any, photos: list[Any]) -> None:
    many = [tasks.Task(photos[i % 4].path, float(i), "authentic", {}, photos[i % 4].boxes, "") for i in range(4)]
    figures = grpo.evaluate(policy, many, grpo.Settings())
    assert set(figures) == {"dev_srcc_authentic", "dev_localisation"}
    alone = [Prober(policy.engine).judge(Photo.open(str(t.path)), Limits(0)).score for t in many]
    assert figures["dev_srcc_authentic"] == pytest.approx(np.corrcoef(np.argsort(np.argsort(alone)), range(4))[0, 1])
