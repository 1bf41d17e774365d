"""Whole views as Toll reads them, and the lesson that teaches nano's perception what their damages cost."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from glance import glance_of
from nano_spec import SCORE_CENTRE
from numpy.typing import NDArray
from runs import RunError, descend
from samples import toll_of
from stores import Item
from toll import Toll
from torch import Tensor
from visual import Perception, perceived

from qcheck.tiles import Box

BATCH: Final = 64  # readings of each group
VIEWS: Final = 12  # that are read at once
DECAY: Final = 0.02
LEAST_SPREAD: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Readings:
    """Views of one kind of sample. `inputs`: (n, toll_size) as Toll reads them; `tolls`: (n,) what it shall say;
    `crops`: (n,) whether they show a part of a photo."""

    inputs: Tensor
    tolls: Tensor
    crops: Tensor

    def groups(self) -> list["Readings"]:
        """Whole photos and crops apart, as far as there are any."""
        parts = [Readings(self.inputs[at], self.tolls[at], self.crops[at]) for at in (~self.crops, self.crops)]
        return [part for part in parts if len(part.tolls)]


@torch.inference_mode()
def readings_of(eyes: Perception, items: list[Item]) -> Readings:
    """Every view of samples of one kind whose damages are known, as `eyes` read it. Views that show the edge of a
    damage alone are left out."""
    inputs, tolls, crops = [], [], []
    cells: list[Tensor] = []
    glances: list[Tensor] = []
    for item in items:
        for index, view in enumerate(item.sample["views"]):
            toll = toll_of(item.sample, Box(*view["box"]))
            if toll is not None:
                cells.append(torch.from_numpy(item.read(index).astype(np.float32)))
                glances.append(glance_of(view))
                tolls.append(toll)
                crops.append(index > 0)
        if len(cells) >= VIEWS or (item is items[-1] and cells):
            seen = perceived(eyes, cells, glances)
            inputs += [Toll.inputs(e.kinds[None], e.severity[None], e.score[None], e.places[None])[0] for e in seen]
            cells, glances = [], []
    size = eyes.toll.mean.shape[0]
    rows = torch.stack(inputs) if inputs else torch.zeros(0, size)
    return Readings(rows, torch.tensor(tolls), torch.tensor(crops, dtype=torch.bool))


def learn_toll(toll: Toll, readings: list[Readings], steps: int, rate: float, rng: np.random.Generator) -> None:
    """Regression, each network for itself; `readings`: of several kinds of sample, whose whole photos and crops are all
    drawn equally often, for there are ten times as many of the most as of the fewest. Raises RunError if there is
    none."""
    groups = [group for one in readings for group in one.groups()]
    if not groups:
        raise RunError("no view with known damages to learn their toll from; render more samples")
    everything = torch.cat([group.inputs for group in groups])
    toll.mean.copy_(everything.mean(0))
    toll.std.copy_(everything.std(0) + LEAST_SPREAD)

    def loss_of() -> Tensor:
        loss = torch.zeros(())
        for network in toll.networks:
            drawn = [(group, picked(len(group.tolls), rng)) for group in groups]
            inputs = toll.normalised(torch.cat([group.inputs[at] for group, at in drawn]))
            tolls = torch.cat([group.tolls[at] for group, at in drawn])
            loss = loss + ((SCORE_CENTRE + network(inputs)[:, 0] - tolls) ** 2).mean()
        return loss

    descend(toll, "toll", steps, rate, DECAY, loss_of)


def picked(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.integers(0, count, BATCH)
