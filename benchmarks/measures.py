"""Rank correlations and means with bootstrap intervals, resampled by group (source photo) where groups are given."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.stats import ConstantInputWarning, kendalltau, pearsonr, spearmanr

RESAMPLES: Final = 1000
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95% bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def as_list(self) -> list[float]:
        return [round(v, 4) for v in (self.value, self.low, self.high)]


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Figures by their names, as JSON takes them."""
    return {name: value.as_list() if isinstance(value, Estimate) else value for name, value in row.items()}


def srcc(guess: Values, truth: Values) -> float:
    return float(spearmanr(guess, truth)[0])


def gain(mine: Values, theirs: Values, truth: Values) -> float:
    """How much better `mine` ranks than `theirs`."""
    return srcc(mine, truth) - srcc(theirs, truth)


def srcc_within(guess: Values, truth: Values, domains: Values) -> float:
    """The mean of the rank correlations in each domain, for scores that rank one domain above another say nothing of
    what ranks photos in either. `domains`: numbers; those with fewer than three rows are left out."""
    parts = [domains == one for one in np.unique(domains)]
    return float(np.mean([srcc(guess[part], truth[part]) for part in parts if part.sum() > 2]))


def fitted(guess: Values, truth: Values) -> Values:
    """`guess` on the truth's scale by VQEG's four-parameter logistic; by a line where that does not converge."""

    def logistic(x: Values, top: float, bottom: float, middle: float, width: float) -> Values:
        return bottom + (top - bottom) / (1 + np.exp(np.clip(-(x - middle) / (abs(width) + 1e-6), -500, 500)))

    if len(guess) < 5:  # fewer than the fit has parameters and one
        return np.polyval(np.polyfit(guess, truth, 1), guess)
    start = (truth.max(), truth.min(), float(np.median(guess)), float(guess.std()) + 1e-6)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)  # of the covariance, which nobody asks for
            best, _ = curve_fit(logistic, guess, truth, start, maxfev=10_000)
        return logistic(guess, *best)
    except RuntimeError:
        return np.polyval(np.polyfit(guess, truth, 1), guess)


def pearson(guess: Values, truth: Values) -> float:
    return float(pearsonr(guess, truth)[0])


def plcc(guess: Values, truth: Values) -> float:
    """Pearson's correlation after that fit."""
    return pearson(fitted(guess, truth), truth)


def krcc(guess: Values, truth: Values) -> float:
    return float(kendalltau(guess, truth)[0])


def rmse(guess: Values, truth: Values) -> float:
    return float(np.sqrt(np.mean((guess - truth) ** 2)))


def bootstrap(
    figure: Callable[..., float], *columns: Sequence[float], groups: Sequence[str] | None = None, seed: int = 0
) -> Estimate:
    """`figure` of the columns, and its spread when rows (or whole groups of rows) are drawn again with replacement."""
    data = [np.asarray(column, np.float64) for column in columns]
    rng = np.random.default_rng(seed)
    labels = np.asarray(groups if groups is not None else range(len(data[0])))
    members = [np.flatnonzero(labels == label) for label in dict.fromkeys(labels.tolist())]
    drawn = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)  # of few rows, one may be drawn every time
        for _ in range(RESAMPLES):
            rows = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
            drawn.append(figure(*(column[rows] for column in data)))
        low, high = np.nanpercentile(drawn, (2.5, 97.5))
        return Estimate(figure(*data), float(low), float(high))


def mean(values: Values) -> float:
    return float(np.mean(values))
