"""Reinforcement learning of a policy that looks and judges: stage 1 (ranking) and stage 3 (decoupled rewards).

One code path. The reward is Q-Probe's ranking reward (`reward = "ranking"`), its decoupled one (`"decoupled"`: a *
R_acc + b * R_loc + c * R_format), or both; MG-IQA (`attributes`, `domains`) and Q-Hawkeye (`uncertainty_weight`,
`perception_loss`) are switches on it. Rollouts are the runtime's own loop with up to `max_probes` real crops; each is
learned from once, so that the ratio to the policy that sampled it is one.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import advantages
import losses
import numpy as np
import rewards
import torch
from look import FoldEyes
from nano import Nano
from narrator import Shown, Speller
from rollouts import RecordingEngine, Rollout, log_probabilities, sampled, shown_of
from runs import Run, schedule
from scipy.stats import spearmanr
from sft import Trainer
from tasks import Task, batch
from torch import Tensor
from worse import Worse

from qcheck.engine import Sampler
from qcheck.photo import Photo
from qcheck.probe import Limits, Prober
from qcheck.tiles import view_of, whole
from qcheck.vision import Sight

REWARDS: Final = ("ranking", "decoupled", "both")
CHUNK_TOKENS: Final = 12_000  # of one forward pass: what bounds its memory


@dataclass(frozen=True, slots=True)
class Settings:
    """`images`, `rollouts`: of a step; `temperature` and the rest of VisualQuality-R1's public practice: K = 6, beta
    0.04, epsilon 0.2, T 0.9. Its rate of 1e-6 is for seven billion weights; nano's is ours."""

    reward: str = "ranking"
    max_probes: int = 0
    images: int = 6
    rollouts: int = 6
    temperature: float = 0.9
    rate: float = 2e-5
    clip: float = losses.CLIP
    kl_weight: float = losses.KL_WEIGHT
    a: float = 1.0
    b: float = 0.2
    c: float = 0.1
    tau: float = rewards.TAU
    uncertainty_weight: bool = False
    perception_loss: bool = False
    domains: bool = True
    attributes: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.reward not in REWARDS:
            raise ValueError(f"reward is {self.reward!r}; it must be one of {', '.join(REWARDS)}")
        if self.images < 2 or self.rollouts < 2:
            raise ValueError("images and rollouts must be 2 or more: both are compared with each other")
        if not 0 <= self.max_probes <= 8:
            raise ValueError("max_probes must be 0 to 8")


def scores_of(groups: Sequence[Sequence[Rollout]]) -> Tensor:
    """(images, rollouts)."""
    return torch.tensor([[rollout.score for rollout in group] for group in groups])


def rewards_of(tasks: Sequence[Task], groups: Sequence[Sequence[Rollout]], settings: Settings) -> Tensor:
    """(images, rollouts)."""
    attributes = {
        name: torch.tensor([[rollout.attributes[name] for rollout in group] for group in groups])
        for name in settings.attributes
    }
    located = [
        [rewards.localisation([d.box.as_list() for d in r.verdict.defects], task.boxes or ()) for r in group]
        for task, group in zip(tasks, groups, strict=True)
    ]
    return combined(tasks, scores_of(groups), attributes, torch.tensor(located), settings)


def combined(
    tasks: Sequence[Task], scores: Tensor, attributes: Mapping[str, Tensor], located: Tensor, settings: Settings
) -> Tensor:
    """Everything that a rollout earns, (images, rollouts), of what was said: `scores`, `attributes` by name, and how
    well its boxes meet the true ones (`located`, rewards.localisation), of that shape each."""
    truth = torch.tensor([task.score for task in tasks])
    total = torch.zeros_like(scores)
    if settings.reward in ("ranking", "both"):
        domains = [task.domain if settings.domains else "" for task in tasks]
        said, known = {rewards.OVERALL: scores}, {rewards.OVERALL: truth}
        for name in settings.attributes:
            said[name] = attributes[name]
            labels = torch.tensor([task.attributes.get(name, math.nan) for task in tasks])
            known[name] = with_peers(labels, domains)
        total = total + rewards.by_attribute(said, known, {rewards.OVERALL: 1.0, **settings.attributes}, domains)
    if settings.reward == "ranking":
        return total + settings.c * rewards.well_formed(scores)
    accuracy = rewards.accuracy(scores, truth, settings.tau)
    format_ = rewards.well_formed(scores)
    return total + rewards.decoupled(accuracy, located, format_, settings.a, settings.b, settings.c)


def with_peers(known: Tensor, domains: Sequence[str]) -> Tensor:
    """Labels (images,), without those that no other image of their domain has in this batch: nothing to compare."""
    there = [(bool(torch.isfinite(value)), domain) for value, domain in zip(known, domains, strict=True)]
    return torch.where(torch.tensor([there.count((True, domain)) > 1 for domain in domains]), known, torch.nan)


def reseen(engine: RecordingEngine, shown: Shown, photo: Photo, sight: Sight) -> Shown:
    """What a view of another photo's same place is to the eyes. `sight`: of that photo, whose first view is all of it,
    and which nobody sees again: nothing of it is kept."""
    role = engine.contract.global_view if shown.box == whole(photo.width, photo.height) else engine.contract.crop_view
    with engine.eyes.unkept():
        sight.tokens(photo.pixels, view_of(shown.box, role))
    return shown_of(shown.box, engine.eyes.evidence, shown.role, [])


class Policy:
    """A model and what it is compared with. `eyes`: those that never saw a training photo; None: it is read by the
    model's own, which did."""

    def __init__(
        self, trainer: Trainer, engine: RecordingEngine, speller: Speller, eyes: FoldEyes | None = None
    ) -> None:
        self.trainer, self.engine, self.speller, self.eyes = trainer, engine, speller, eyes
        self.model: Nano = trainer.model
        reference = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.reference = Trainer(reference, trainer.targets, trainer.image_id)

    def look_as_at(self, task: Task | None) -> None:
        """From now on views are read as those of a training photo are; None: by the model's own eyes."""
        self.engine.eyes.eyes = self.eyes.that_never_saw(task.source) if self.eyes and task else None

    def groups(self, tasks: Sequence[Task], settings: Settings, rng: np.random.Generator) -> list[list[Rollout]]:
        self.model.eval()
        # The engine holds a copy of the embeddings, which have moved since.
        self.engine.embeddings = self.model.get_input_embeddings().weight.detach().float().numpy()
        limits = Limits(settings.max_probes)
        out = []
        for task in tasks:
            self.look_as_at(task)
            draws = [Sampler(settings.temperature, int(seed)) for seed in rng.integers(2**31, size=settings.rollouts)]
            out.append(sampled(self.engine, self.speller, Photo.open(str(task.path)), limits, draws))
        return out

    def worth(self, trainer: Trainer, rollouts: Sequence[Rollout]) -> tuple[Tensor, Tensor]:
        hidden, ids, _ = trainer.hidden([r.example for r in rollouts])
        return log_probabilities(hidden.float(), trainer.model.lm_head, ids, rollouts)


def chunks(rollouts: Sequence[Rollout]) -> Iterator[list[int]]:
    """Indices of rollouts of like length, as many together as memory allows."""
    order = sorted(range(len(rollouts)), key=lambda i: len(rollouts[i].example.tokens))
    some: list[int] = []
    for index in order:
        if some and (len(some) + 1) * len(rollouts[index].example.tokens) > CHUNK_TOKENS:
            yield some
            some = []
        some.append(index)
    if some:
        yield some


def learn(
    policy: Policy, tasks: Sequence[Task], settings: Settings, gamma: float, rng: np.random.Generator
) -> dict[str, float]:
    """One step's gradients, and what there is to tell of it."""
    groups = policy.groups(tasks, settings, rng)
    reward = rewards_of(tasks, groups, settings)
    advantage = advantages.group_advantage(reward)
    scores = scores_of(groups)
    doubt = advantages.uncertainty(scores)
    if settings.uncertainty_weight:
        advantage = advantages.certain(advantage, doubt)
    flat = [rollout for group in groups for rollout in group]
    twins = _twins(policy, tasks, groups, rng) if settings.perception_loss and gamma else None
    total = {"loss": 0.0, "perception": 0.0}
    policy.model.train()
    for some in chunks(flat):
        now, mask = policy.worth(policy.trainer, [flat[i] for i in some])
        with torch.no_grad():
            before, _ = policy.worth(policy.reference, [flat[i] for i in some])
        share = len(some) / len(flat)
        part = advantage.flatten()[some]
        loss = losses.policy(now, now.detach(), before, part, mask, settings.clip, settings.kl_weight)
        if twins is not None:
            with torch.no_grad():
                other, _ = policy.worth(policy.trainer, [twins[i] for i in some])
            seen = losses.perception(now, other, mask)
            loss = loss - gamma * seen
            total["perception"] += share * float(seen.detach())
        (share * loss).backward()
        total["loss"] += share * float(loss.detach())
    probes = np.mean([len(r.verdict.probes) for r in flat])
    told = {"reward": float(reward.mean()), "doubt": float(doubt.mean()), "probes": float(probes)}
    return {**total, **told, "spread": float(reward.std(1).mean())}


def _twins(
    policy: Policy, tasks: Sequence[Task], groups: Sequence[Sequence[Rollout]], rng: np.random.Generator
) -> list[Rollout]:
    """The same words about the same photos, degraded."""
    out = []
    for task, group in zip(tasks, groups, strict=True):
        policy.look_as_at(task)
        worse = Photo.from_pixels(Worse.drawn(rng).of(np.ascontiguousarray(Photo.open(str(task.path)).pixels)))
        sight = policy.engine.sight()
        known: dict[Any, Shown] = {}
        for rollout in group:
            views = []
            for shown in rollout.example.views:
                if shown.box not in known:
                    known[shown.box] = reseen(policy.engine, shown, worse, sight)
                views.append(known[shown.box])
            twin = copy.copy(rollout)
            twin.example = copy.copy(rollout.example)
            twin.example.views = views
            out.append(twin)
    return out


def evaluate(policy: Policy, tasks: Sequence[Task], settings: Settings) -> dict[str, float]:
    """How the greedy policy ranks photos, and finds boxes where they are known."""
    policy.model.eval()
    policy.look_as_at(None)
    policy.engine.embeddings = policy.model.get_input_embeddings().weight.detach().float().numpy()
    prober, guess, found = Prober(policy.engine), list[float](), list[float]()
    for task in tasks:
        verdict = prober.judge(Photo.open(str(task.path)), Limits(settings.max_probes))
        guess.append(verdict.score)
        if task.boxes:
            found.append(rewards.localisation([d.box.as_list() for d in verdict.defects], task.boxes))
    out = {}
    for domain in sorted({task.domain for task in tasks}):
        here = [i for i, task in enumerate(tasks) if task.domain == domain]
        if len(here) > 2:
            out[f"dev_srcc_{domain}"] = float(spearmanr([guess[i] for i in here], [tasks[i].score for i in here])[0])
    if found:
        out["dev_localisation"] = float(np.mean(found))
    return out


def train(
    policy: Policy,
    run: Run,
    settings: Settings,
    train_tasks: Sequence[Task],
    dev_tasks: Sequence[Task],
    rng: np.random.Generator,
    every: int,
    patience: int,
    save_best: Callable[[dict[str, float]], None],
) -> None:
    """Learns until the run is over, or the mean of what `evaluate` says has not grown for `patience` evaluations (0: no
    early stop). `save_best` is called whenever it has."""
    weights = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.rate, weight_decay=0.0)
    best, stale = -math.inf, 0
    state = run.resumed()
    if state:
        policy.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        rng.bit_generator.state = state["rng"]
        best, stale = state["best"], state["stale"]
    else:
        run.log(**evaluate(policy, dev_tasks, settings))
    for step in run:
        schedule(optimizer, settings.rate, step, run.steps, 5)
        gamma = losses.perception_weight(step, run.steps)
        tasks = batch(train_tasks, settings.images, rng)
        run.note(**learn(policy, tasks, settings, gamma, rng))
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % every == 0 or step + 1 == run.steps:
            figures = evaluate(policy, dev_tasks, settings)
            run.log(**figures)
            mean = float(np.mean(list(figures.values()))) if figures else 0.0
            stale = 0 if mean > best else stale + 1
            if mean > best:
                best = mean
                save_best(figures)
        if run.due:
            kept: dict[str, Any] = {"model": policy.model.state_dict(), "optimizer": optimizer.state_dict()}
            run.keep({**kept, "rng": rng.bit_generator.state, "best": best, "stale": stale})
        if patience and stale >= patience:
            print(f"step {step + 1}: no better for {patience} evaluations; stopped", flush=True)
            break
