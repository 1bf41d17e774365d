"""Rectangles of a view that may be broken, each judged as a whole: the part of nano's perception that says where.

A scan (scan.py) names candidates; what was read in their tokens, around them and along their four sides, and how their
features differ from what lies around, is averaged over many tokens; and a small network says of each whether it meets
a damage, where its sides ought to be, and what it is. That is the second stage of a two-stage detector (Girshick,
"Fast R-CNN", 2015) with the scan for its first. It finds what no token shows by itself.
"""

from typing import Final, NamedTuple

import torch
from cells import CELL_CHANNELS, SOURCES, SURVEY_CHANNELS
from layers import SourceDropout, zeroed
from scan import scanned
from torch import Tensor, nn

from qcheck.verdict import DEFECT_LEVELS

PROPOSALS: Final = 3
LEVELS: Final = len(DEFECT_LEVELS)
# What a map must exceed to enlarge a candidate, in its own standard deviations: maps are scanned as they stand out from
# their view, since in crops on a faint damage no token is likelier broken than not.
EVIDENCE_BARS: Final = (0.5, 1.5, 0.0, 2.5)
SURVEY_BARS: Final = (0.5, 1.5)
PER_EVIDENCE_BAR: Final = 3
PER_SURVEY_BAR: Final = 2
CANDIDATES: Final = len(EVIDENCE_BARS) * PER_EVIDENCE_BAR + len(SURVEY_BARS) * PER_SURVEY_BAR
STANDARD: Final = 1.5  # of a map that stands out
LEAST_SPREAD: Final = 0.1  # log odds
AROUND: Final = 2.0  # tokens, how far the surroundings of a rectangle reach
# Strips of one token along each side, from without to within.
STRIPS: Final = ((-2.0, -1.0), (-1.0, 0.0), (0.0, 1.0), (1.0, 2.0))
LEAST_STRIP: Final = 0.05  # tokens; of less there is none
OUTSIDE: Final = -6.0  # what is read in a strip that is none
READ_CLIP: Final = 12.0  # logits
CLIP: Final = 5.0  # standard deviations
LEAST_SIDE: Final = 0.5  # tokens
MOST_SHIFT: Final = 1.5  # of a rectangle's side
SAME_IOU: Final = 0.3  # of proposals that are the same place
FAR_LESS: Final = 1e3  # log odds: strengths do not differ by so much
WIDTH: Final = 256
FEATURES: Final = 96
DROPOUT: Final = 0.3
READING_DROPOUT: Final = 0.05
FEATURE_DROPOUT: Final = 0.1
SOURCE_DROPOUT: Final = 0.3
VIEW_READINGS: Final = 7
SHAPE_READINGS: Final = 12


class Maps(NamedTuple):
    """A view as it was read. `odds`: (rows, cols) log odds of damage; `opinions`: (rows, cols, opinions) the same, of
    each network; `kinds`: (rows, cols, 1 + kinds) logits; `severity`: (rows, cols, 1) logits; `features`: (rows, cols,
    CELL_CHANNELS) against the view; `size`: (1,) of the view, as of cells.size_of."""

    odds: Tensor
    opinions: Tensor
    kinds: Tensor
    severity: Tensor
    features: Tensor
    size: Tensor

    def survey(self) -> Tensor:
        """(rows, cols) how the survey stands out from the rest of the view."""
        return self.features[..., -SURVEY_CHANNELS:].abs().mean(-1)


class Proposals(NamedTuple):
    """The most suspicious places of a view. `boxes`: (PROPOSALS, 4) x1, y1, x2, y2, 0..1 of the view; `strengths`:
    (PROPOSALS,) as of Judged; `kinds`, `levels`: (PROPOSALS, .) probabilities; `severities`:
    (PROPOSALS, 1)."""

    boxes: Tensor
    strengths: Tensor
    kinds: Tensor
    levels: Tensor
    severities: Tensor

    @classmethod
    def of(cls, places: Tensor) -> "Proposals":
        """Of (..., PROPOSALS, place_size), as `Regions` gives them."""
        boxes, strengths, kinds, levels, severities = places.split((4, 1, places.shape[-1] - 6 - LEVELS, LEVELS, 1), -1)
        return cls(boxes, strengths[..., 0], kinds, levels, severities)

    def packed(self) -> Tensor:
        """What `of` takes, (..., PROPOSALS, place_size)."""
        return torch.cat((self.boxes, self.strengths[..., None], self.kinds, self.levels, self.severities), -1)

    @property
    def level(self) -> Tensor:
        """(PROPOSALS,) expected level, 0 (slight) to 1 (severe)."""
        steps = torch.arange(LEVELS, device=self.levels.device, dtype=torch.float32) / (LEVELS - 1)
        return self.levels @ steps


class Judged(NamedTuple):
    """What the network says of rectangles, (..., .) each. `meets`: (...,) log odds that it meets a damage; `overlap`:
    (...,) logit of its IoU with it; `shifts`: (..., 4) of its sides, in its own width and height; `kinds`: (..., 1 +
    kinds) logits; `levels`: (..., kinds, LEVELS) logits; `severity`: (..., 1) logit."""

    meets: Tensor
    overlap: Tensor
    shifts: Tensor
    kinds: Tensor
    levels: Tensor
    severity: Tensor

    @property
    def strength(self) -> Tensor:
        """(...,) by which rectangles are ranked: what surely meets a damage may still be a poor box, and a fair box of
        what is no damage is none."""
        return (self.meets + self.overlap) / 2


class Regions(nn.Module):
    """Maps of a view -> its places, (PROPOSALS, place_size): boxes, strengths, kinds, levels and severity of its
    Proposals. Until it is taught, those are the scan's, and of all of them it says the same."""

    def __init__(self, kinds: int, opinions: int) -> None:
        super().__init__()
        self.kinds, self.opinions = kinds, opinions
        readings = region_size(kinds, opinions)
        self.register_buffer("mean", torch.zeros(readings))
        self.register_buffer("std", torch.ones(readings))
        self.register_buffer("feature_std", torch.ones(2 * CELL_CHANNELS))
        self.features = nn.Sequential(
            SourceDropout(SOURCES * 2, SOURCE_DROPOUT),
            nn.Dropout(FEATURE_DROPOUT),
            nn.Linear(2 * CELL_CHANNELS, FEATURES),
            nn.GELU(),
        )
        self.judge = nn.Sequential(
            nn.Dropout(READING_DROPOUT),
            nn.Linear(readings + FEATURES, WIDTH),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(WIDTH, WIDTH),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            zeroed(nn.Linear(WIDTH, 2 + 4 + 1 + kinds + kinds * LEVELS + 1)),
        )

    def normalised(self, readings: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Both as of `pooled`, in standard deviations of all rectangles."""
        readings = (readings.clamp(-READ_CLIP, READ_CLIP) - self.mean) / self.std
        return readings.clamp(-CLIP, CLIP), features / self.feature_std

    def judged(self, readings: Tensor, features: Tensor) -> Judged:
        """Of rectangles (n, .), as of `pooled`."""
        readings, features = self.normalised(readings, features)
        # With an axis more than it needs: linear maps of plain matrices are exported as Gemm, which is not quantised.
        out = self.judge(torch.cat((readings, self.features(features)), -1)[:, None])[:, 0]
        met, shifts, kinds, levels, severity = out.split((2, 4, 1 + self.kinds, self.kinds * LEVELS, 1), -1)
        return Judged(met[..., 0], met[..., 1], shifts, kinds, levels.unflatten(-1, (self.kinds, LEVELS)), severity)

    def forward(self, maps: Maps) -> Tensor:
        right, bottom = ends_of(maps.odds)
        candidates = candidates_of(maps)
        judged = self.judged(*pooled(maps, candidates))
        boxes = shifted(candidates, judged.shifts, right, bottom)
        shares = judged.kinds[:, 1:].softmax(-1)[..., None]
        levels = (shares * judged.levels.softmax(-1)).sum(-2)
        said = (judged.strength[:, None], judged.kinds.softmax(-1), levels, judged.severity.sigmoid())
        picked = distinct(boxes, judged.strength, PROPOSALS)
        return torch.cat((boxes / torch.stack((right, bottom, right, bottom)), *said), -1)[picked]


def place_size(kinds: int) -> int:
    """Of what Regions says of a place."""
    return 4 + 1 + 1 + kinds + LEVELS + 1


def region_size(kinds: int, opinions: int) -> int:
    """Of the readings of a rectangle."""
    near, tokens = _near_size(opinions), _near_size(opinions) + 3 + 1 + kinds + 1
    return 2 * tokens + 4 * len(STRIPS) * near + VIEW_READINGS + SHAPE_READINGS


def _near_size(opinions: int) -> int:
    return 1 + opinions + 2


def ends_of(map_: Tensor) -> tuple[Tensor, Tensor]:
    """Columns and rows of a map, as tensors: the exporter takes no symbolic numbers where they are used."""
    return torch.ones_like(map_[0]).sum(), torch.ones_like(map_[:, 0]).sum()


def standing_out(map_: Tensor) -> Tensor:
    """A map (rows, cols) in standard deviations of its view."""
    return STANDARD * (map_ - map_.mean()) / (map_.std(correction=0) + LEAST_SPREAD)


def candidates_of(maps: Maps) -> Tensor:
    """(CANDIDATES, 4) x1, y1, x2, y2 in tokens; the same one may be there several times."""
    found = []
    for map_, bars, count in (
        (maps.odds, EVIDENCE_BARS, PER_EVIDENCE_BAR),
        (maps.survey(), SURVEY_BARS, PER_SURVEY_BAR),
    ):
        found.append(scanned(standing_out(map_) - torch.tensor(bars, device=map_.device)[:, None, None], count))
    return torch.cat([boxes.flatten(0, 1) for boxes in found]).to(maps.odds.dtype)


def pooled(maps: Maps, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Of rectangles (n, 4) in tokens, whose sides may lie inside of tokens: what was read in them (n, region_size), and
    their features, of themselves and against their surroundings (n, 2 * CELL_CHANNELS)."""
    odds, survey = maps.odds[..., None], maps.survey()
    out, noted = standing_out(maps.odds), standing_out(survey)
    near = torch.cat((odds, maps.opinions, out[..., None], noted[..., None]), -1)
    more = (odds.sigmoid(), (odds - 2).sigmoid(), (out[..., None] / 2) ** 2)
    read = torch.cat((near, *more, maps.kinds.clamp(-READ_CLIP, READ_CLIP), maps.severity), -1)
    near, read, features = (part.flatten(0, 1) for part in (near, read, maps.features))
    x1, y1, x2, y2 = boxes.unbind(1)
    line, column = maps.odds[0], maps.odds[:, 0]
    across, down = covered(x1, x2, line), covered(y1, y2, column)
    inside = area(down, across)
    reach = area(covered(y1 - AROUND, y2 + AROUND, column), covered(x1 - AROUND, x2 + AROUND, line))
    around = reach - inside
    strips = []
    for start, stop in STRIPS:
        for part in (
            area(down, covered(x1 + start, x1 + stop, line)),
            area(down, covered(x2 - stop, x2 - start, line)),
            area(covered(y1 + start, y1 + stop, column), across),
            area(covered(y2 - stop, y2 - start, column), across),
        ):
            strips.append(torch.where(part.sum(1, keepdim=True) > LEAST_STRIP, mean_in(part, near), OUTSIDE))
    of_view = torch.stack(
        (
            maps.odds.mean(),
            maps.odds.std(correction=0),
            maps.odds.max(),
            maps.odds.sigmoid().mean(),
            maps.size[0],
            survey.mean(),
            survey.std(correction=0),
        )
    )
    right, bottom = ends_of(maps.odds)
    wide, high, tokens = x2 - x1, y2 - y1, right * bottom
    ends = (x1 < LEAST_SIDE, y1 < LEAST_SIDE, x2 > right - LEAST_SIDE, y2 > bottom - LEAST_SIDE)
    shape = (
        *(side.log() for side in (wide, high)),
        (wide * high / tokens).log(),
        wide / high,
        *(end.to(wide.dtype) for end in ends),
        tokens.log().expand_as(wide),
        *(side.clamp(max=8) for side in (wide, high)),
        around.sum(1).clamp(min=0).log1p(),
    )
    own, others = mean_in(inside, features), mean_in(around, features)
    readings = (mean_in(inside, read), mean_in(around, read), *strips, of_view.expand(len(boxes), -1))
    return torch.cat((*readings, torch.stack(shape, 1)), 1), torch.cat((own, own - others), 1)


def covered(start: Tensor, stop: Tensor, like: Tensor) -> Tensor:
    """(n, tokens): how much of each token of a line `like` this one lies between `start` and `stop`, (n,) each."""
    at = torch.arange(like.shape[0], device=like.device, dtype=like.dtype)
    return (torch.minimum(stop[:, None], at + 1) - torch.maximum(start[:, None], at)).clamp(0, 1)


def area(down: Tensor, across: Tensor) -> Tensor:
    """(n, rows) and (n, cols) -> (n, rows * cols)."""
    return (down[:, :, None] * across[:, None]).flatten(1)


def mean_in(weights: Tensor, values: Tensor) -> Tensor:
    """(n, tokens) and (tokens, .) -> (n, .)."""
    return (weights @ values) / weights.sum(1, keepdim=True).clamp(min=1e-3)


def shifted(boxes: Tensor, shifts: Tensor, right: Tensor, bottom: Tensor) -> Tensor:
    """Boxes (n, 4) in tokens with their sides moved, inside of the view, which ends there, and never less than
    LEAST_SIDE wide."""
    x1, y1, x2, y2 = boxes.unbind(1)
    moved = boxes + shifts.clamp(-MOST_SHIFT, MOST_SHIFT) * torch.stack((x2 - x1, y2 - y1) * 2, 1)
    ends = torch.stack((right, bottom))
    start = torch.minimum(moved[:, :2].clamp(min=0), ends - LEAST_SIDE)
    stop = torch.maximum(torch.minimum(moved[:, 2:], ends), start + LEAST_SIDE)
    return torch.cat((start, stop), 1)


def distinct(boxes: Tensor, strengths: Tensor, count: int) -> Tensor:
    """(count,) indices of the strongest of boxes (n, 4), one that lies on a stronger one only where no other is left;
    of the equally strong, the first."""
    overlaps, order = overlap_of(boxes[:, None], boxes[None]), torch.arange(boxes.shape[0], device=boxes.device)
    left = strengths - 1e-4 * order
    picked = []
    for _ in range(count):
        best = left.argmax()
        picked.append(best)
        left = torch.where(overlaps[best] > SAME_IOU, left - FAR_LESS, left)
        left = torch.where(order == best, -torch.inf, left)
    return torch.stack(picked)


def overlap_of(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (..., 4)."""
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    both = size[..., 0] * size[..., 1]
    areas = [(box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1]) for box in (a, b)]
    return both / (areas[0] + areas[1] - both + 1e-9)
