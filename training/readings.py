"""Views as Toll reads them, and the lesson that teaches nano's perception what their damages cost."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from overviews import whole_of
from regions import Proposals
from runs import RunError
from samples import toll_of
from stores import Item
from toll import Toll
from torch import Tensor
from visual import Perception, perceived

from qcheck.tiles import Box

VIEWS: Final = 12  # that are read at once
LEAST_SPREAD: Final = 1e-6  # of strengths, squared


@dataclass(frozen=True, slots=True)
class Readings:
    """Views of one kind of sample. `strengths`: (n,) of the first place of each; `tolls`: (n,) what it shall say;
    `crops`: (n,) whether they show a part of a photo."""

    strengths: Tensor
    tolls: Tensor
    crops: Tensor

    def groups(self) -> list["Readings"]:
        """Whole photos and crops apart, as far as there are any."""
        parts = [Readings(self.strengths[at], self.tolls[at], self.crops[at]) for at in (~self.crops, self.crops)]
        return [part for part in parts if len(part.tolls)]


@torch.inference_mode()
def readings_of(eyes: Perception, items: list[Item]) -> Readings:
    """Every view of samples of one kind whose damages are known, as `eyes` read it. Views that show the edge of a
    damage alone are left out."""
    strengths, tolls, crops = list[Tensor](), [], []
    cells: list[Tensor] = []
    summaries: list[Tensor] = []
    for item in items:
        for index, view in enumerate(item.sample["views"]):
            toll = toll_of(item.sample, Box(*view["box"]))
            if toll is not None:
                cells.append(torch.from_numpy(item.read(index).astype(np.float32)))
                summaries.append(whole_of(item, index))
                tolls.append(toll)
                crops.append(index > 0)
        if len(cells) >= VIEWS or (item is items[-1] and cells):
            strengths += [Proposals.of(e.places).strengths[0] for e in perceived(eyes, cells, summaries)]
            cells, summaries = [], []
    rows = torch.stack(strengths) if strengths else torch.zeros(0)
    return Readings(rows, torch.tensor(tolls), torch.tensor(crops, dtype=torch.bool))


def learn_toll(toll: Toll, readings: list[Readings]) -> None:
    """Least squares. `readings`: of several kinds of sample, whose whole photos and crops all weigh the same, for there
    are ten times as many of the most as of the fewest. Raises RunError if there is none."""
    groups = [group for one in readings for group in one.groups()]
    if not groups:
        raise RunError("no view with known damages to learn their toll from; render more samples")
    strengths, tolls = (torch.cat([getattr(group, part) for group in groups]) for part in ("strengths", "tolls"))
    weights = torch.cat([torch.full((len(group.tolls),), 1 / len(group.tolls)) for group in groups]) / len(groups)
    middle, height = weights @ strengths, weights @ tolls
    spread = weights @ (strengths - middle) ** 2
    slope = weights @ ((strengths - middle) * (tolls - height)) / spread.clamp(min=LEAST_SPREAD)
    with torch.no_grad():
        toll.slope.fill_(float(slope))
        toll.level.fill_(float(height - slope * middle))
