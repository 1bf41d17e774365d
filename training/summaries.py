"""Whole views and their scores: what teaches Quality.

Scores are comparable within one domain only: people who rate good photos and people who rate bad ones draw lines of
their own, and a proxy's scale is not people's. What tells domains apart (sizes, contents, codecs) would otherwise be
learned as quality. So the ridge learns what goes with the score within each domain (the within estimator of panel
regression, Mundlak 1961; MG-IQA pairs within domains for the same reason), and only the networks learn, at a discount,
how domains differ.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from cells import CELL_CHANNELS, VIEW_CHANNELS
from nano_spec import SCORE_CENTRE
from numpy.typing import NDArray
from overviews import whole_of
from runs import descend
from samples import spoilt
from scipy.stats import pearsonr, spearmanr
from stores import Item
from torch import Tensor
from visual import SEEN_CHANNELS, SUMMARY_CHANNELS, Quality, summary

# Kinds of sample whose views teach the score, and what each weighs: proxies less, for people's scores are what is asked
# for. Local damage is Damage's to judge: of `local` ones only those that are bad all over teach, and their twins.
SCORED: Final = {"rated": 1.0, "whole": 0.5, "local": 0.5}
BATCH: Final = 256
DECAY: Final = 0.05
RIDGE_PENALTY: Final = 4.0  # times the weight of all lessons
# How much of what domains differ by is believed, set by leaving each subset of BIQ2021 out; see README.md.
DOMAIN_SHARE: Final = 0.72
LEAST_SPREAD: Final = 1e-3
UNSEEN: Final = 1e6  # the spread of a channel that shall tell nothing


class Lessons(NamedTuple):
    """`summaries`: (n, channels) as visual.Quality takes them; `scores`: (n, outputs); `weights`: (n,); `domains`:
    (n,) numbers, by which domain each is of."""

    summaries: Tensor
    scores: Tensor
    weights: Tensor
    domains: Tensor


class Summaries:
    """Lessons, and the fold of each."""

    def __init__(
        self, seen: list[tuple[Item, int, Sequence[float], float, str]], read: Callable[[Item, int], Tensor]
    ) -> None:
        """`seen`: a sample, how many of its views, their scores, weight and domain; `read`: what to learn from of one
        of them, (channels,)."""
        summaries, scores, weights, domains, self.folds = [], [], [], list[int](), list[str]()
        names = {name: number for number, name in enumerate(sorted({domain for *_, domain in seen}))}
        for item, views, told, weight, domain in seen:
            for index in range(views):
                summaries.append(read(item, index))
                scores.append(list(told))
                weights.append(weight)
                domains.append(names[domain])
                self.folds.append(item.sample["fold"])
        self.all = Lessons(torch.stack(summaries), torch.tensor(scores), torch.tensor(weights), torch.tensor(domains))

    @staticmethod
    def of_scores(items: dict[str, list[Item]]) -> "Summaries":
        """What has a score as a whole."""
        seen: list[tuple[Item, int, Sequence[float], float, str]] = []
        for kind, weight in SCORED.items():
            for item, of_spoilt in zip(items[kind], spoilt([i.sample for i in items[kind]]), strict=True):
                views = int(of_spoilt) if kind == "local" else len(item.sample["views"])
                seen.append((item, views, [item.sample["score"]], weight, domain_of(item, kind)))
        return Summaries(seen, scored)

    @staticmethod
    def of_attributes(items: dict[str, list[Item]], names: Sequence[str]) -> "Summaries | None":
        """What is broken all over, attribute by attribute; None where there is none."""
        known = [item for item in items["whole"] if set(names) <= set(item.sample["attributes"])]
        seen = [(item, 1, [item.sample["attributes"][name] for name in names], 1.0, "whole") for item in known]
        return Summaries(seen, viewed) if seen and names else None

    def without(self, fold: str | None) -> Lessons:
        """Those of all other folds."""
        kept = torch.tensor([one != fold for one in self.folds])
        return Lessons(*(part[kept] for part in self.all))


def scored(item: Item, index: int) -> Tensor:
    """(SUMMARY_CHANNELS,): what tells the score of the photo of a view."""
    return whole_of(item, index)[:SUMMARY_CHANNELS]


def viewed(item: Item, index: int) -> Tensor:
    """(SEEN_CHANNELS,): what tells the attributes of a view."""
    return summary(torch.from_numpy(item.read(index).astype(np.float32))[None])[0]


def domain_of(item: Item, kind: str) -> str:
    """In which a sample's score is comparable: of rated photos what their table says, else the kind."""
    return str(item.sample.get("domain") or kind)


def agreement(guess: Sequence[float] | NDArray[np.float32], items: list[Item]) -> dict[str, float]:
    """How `guess` goes with the scores of rated photos: over all, and `dev_srcc_within`, the mean rank correlation over
    the domains of three photos or more. NaN where there are none."""
    said, truth = np.asarray(guess), np.array([item.sample["score"] for item in items])
    domains = np.array([domain_of(item, "rated") for item in items])
    parts = [domains == one for one in np.unique(domains)]
    within = [spearmanr(said[part], truth[part])[0] for part in parts if part.sum() > 2]
    found = {"dev_srcc": spearmanr(said, truth)[0], "dev_plcc": pearsonr(said, truth)[0]}
    return {name: float(value) for name, value in (found | {"dev_srcc_within": np.mean(within or [np.nan])}).items()}


def learn_quality(quality: Quality, lessons: Lessons, rate: float, epochs: int, survey: bool = True) -> None:
    """The ridge learns at once, the networks by steps, each for itself. Without `survey` they are blind to it."""
    summaries, scores, weights, _ = lessons
    quality.mean.copy_(summaries.mean(0))
    quality.std.copy_(summaries.std(0) + LEAST_SPREAD)
    if not survey:
        quality.std[:SEEN_CHANNELS].view(2, CELL_CHANNELS)[:, VIEW_CHANNELS:] = UNSEEN  # of means, of spreads
    inputs = quality.normalised(summaries)
    share = weights / weights.sum()
    middle, middles = share @ scores, means_of(scores, lessons)
    within = scores - middles
    weight = ridge(inputs - means_of(inputs, lessons), within, weights)
    with torch.no_grad():
        quality.ridge.weight.copy_(weight.T)
        # Of the whole, the ridge has the part that is the same for all photos.
        quality.ridge.bias.copy_((middle - SCORE_CENTRE) / quality.ridge_share - (share @ inputs) @ weight)
    targets = within + DOMAIN_SHARE / (1 - quality.ridge_share) * (middles - middle)
    batch = min(BATCH, len(scores))
    batches = shuffled(len(scores), batch)

    def loss_of() -> Tensor:
        some, loss = next(batches), torch.zeros(())
        for vote in quality.votes(inputs[some]):
            loss = loss + (weights[some, None] * (vote - targets[some]) ** 2).mean()
        return loss

    descend(quality.networks, "quality", epochs * (len(scores) // batch), rate, DECAY, loss_of)
    quality.eval()


def shuffled(count: int, batch: int) -> Iterator[Tensor]:
    """Batches of numbers below `count`, each once an epoch, in another order each, for ever; what is left of an epoch
    and fills no batch is left out."""
    while True:
        yield from torch.randperm(count)[: count // batch * batch].view(-1, batch)


def means_of(values: Tensor, lessons: Lessons) -> Tensor:
    """(n, .) -> (n, .): for each, the weighted mean of its domain."""
    domains = torch.nn.functional.one_hot(lessons.domains).T * lessons.weights
    shares = domains / domains.sum(1, keepdim=True).clamp(min=torch.finfo(domains.dtype).tiny)
    return (shares @ values)[lessons.domains]


def ridge(inputs: Tensor, targets: Tensor, weights: Tensor, penalty: float = RIDGE_PENALTY) -> Tensor:
    """The linear map (features, outputs) that leaves the least weighted squares and, `penalty` times the sum of the
    weights, its own. `inputs`: (n, features) and `targets`: (n, outputs), centred; `weights`: (n,)."""
    x = inputs * weights.sqrt()[:, None]
    normal = x.T @ x + penalty * weights.sum() * torch.eye(inputs.shape[1])
    return torch.linalg.solve(normal, x.T @ (targets * weights.sqrt()[:, None]))
