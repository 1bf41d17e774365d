"""Stage 0, first part: teaches the convolutions what quality is, from pixels.

Tiles of rendered views (render.py). Two lessons at once: the score of rated photos, from the mean and spread of every
channel over a tile, and what is wrong with each token, and how much. The heads that are taught with it are thrown
away; perceive.py teaches better ones on whole views. Weights are averaged (EMA). Run by train.py.
"""

import copy
import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from cells import IMAGENET_MEAN, IMAGENET_STD, SURVEY_CHANNELS, VIEW_CHANNELS, CellEncoder
from defects import PHOTOS, Domain
from nano_spec import CELLS_PER_SIDE, SCORE_CENTRE, TOKEN_PX
from numpy.typing import NDArray
from runs import Run, RunError, cosine, save, seeded
from samples import UNKNOWN, token_truth
from sklearn.metrics import roc_auc_score
from stores import Item, items_of, of_split
from summaries import agreement
from torch import Tensor, nn
from torch.nn import functional as F
from visual import Damage, mean_of, summary

from qcheck.tiles import Box

RATED_TILE_PX: Final = 448
TILE_PX: Final = 384
RATED_BATCH: Final = 8
BATCH: Final = {"patched": 6, "whole": 2, "local": 8}
BEGIN_PHOTOS: Final = 400
DEV_SCENES: Final = 24
ON_DEFECT: Final = 0.7  # of tiles of views with a defect
ON_GLOBAL: Final = 0.25  # of tiles, besides those that fall on a global view by chance: there damage is faintest
TRIES: Final = 12
SCORE_WEIGHT: Final = 1.0
RANK_WEIGHT: Final = 1.0
KIND_WEIGHT: Final = 0.6
LEVEL_WEIGHT: Final = 0.6
RIDGE_PENALTY: Final = 2000.0
EMA_DECAY: Final = 0.995
FROZEN_BLOCKS: Final = 4  # the first, up to a stride of 4: half of the time, and what they see is plain enough
HEAD_RATE: Final = 10.0  # times the rate of the convolutions; the ridge's map learns at theirs over ten
MEAN: Final = torch.tensor(IMAGENET_MEAN)[None, :, None, None]
STD: Final = torch.tensor(IMAGENET_STD)[None, :, None, None]


class Heads(nn.Module):
    """What the convolutions are taught through."""

    def __init__(self, domain: Domain = PHOTOS) -> None:
        super().__init__()
        self.domain = domain
        self.register_buffer("mean", torch.zeros(2 * VIEW_CHANNELS))
        self.register_buffer("std", torch.ones(2 * VIEW_CHANNELS))
        self.line = nn.Linear(2 * VIEW_CHANNELS, 1)
        self.network = nn.Sequential(
            nn.Dropout(0.3), nn.Linear(2 * VIEW_CHANNELS, 256), nn.GELU(), nn.Dropout(0.5), nn.Linear(256, 1)
        )
        self.damage = Damage(len(domain.kinds))

    def score(self, cells: Tensor) -> Tensor:
        """(n, rows, cols, VIEW_CHANNELS) -> (n,)."""
        x = ((summary(cells) - self.mean) / self.std).clamp(-6, 6)
        score: Tensor = SCORE_CENTRE + (self.line(x) + self.network(x))[:, 0]
        return score

    def tokens(self, cells: Tensor) -> list[Tensor]:
        """(n, rows, cols, VIEW_CHANNELS) -> outputs of Damage's networks, (n, tokens, outputs)."""
        cells = F.pad(cells, (0, SURVEY_CHANNELS))  # a tile has no survey
        return [outputs.flatten(1, 2) for outputs in self.damage.opinions(cells)]


def normalised(pixels: NDArray[np.uint8]) -> Tensor:
    """(n, h, w, 3) -> (n, 3, h, w), channels last in memory, which convolutions on a CPU like."""
    x = (torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
    return x.contiguous(memory_format=torch.channels_last)


# A tile, and the kinds and levels of its tokens.
Tile = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]


class Tiles:
    """Draws tiles of training views."""

    def __init__(self, items: dict[str, list[Item]], rng: np.random.Generator, domain: Domain = PHOTOS) -> None:
        """Raises RunError for a kind of sample none of whose views is as large as a tile."""
        self.rng, self.names = rng, domain.kinds
        least = {"rated": RATED_TILE_PX}
        self.items = {
            kind: [
                item for item in all_ if not item.sample.get("twin") and _holds_a_tile(item, least.get(kind, TILE_PX))
            ]
            for kind, all_ in items.items()
        }
        self.twins = twins_of(items)
        empty = next((kind for kind, all_ in self.items.items() if not all_), None)
        if empty:
            raise RunError(
                f"no {empty} sample has a view of {least.get(empty, TILE_PX)} px a side; render larger photos"
            )

    def rated(self, count: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """(count, RATED_TILE_PX, RATED_TILE_PX, 3) and scores (count,)."""
        tiles, scores = [], []
        while len(tiles) < count:
            item = self._any("rated")
            roles = len(item.sample["views"])
            pixels = item.read(int(self.rng.integers(roles)) if self.rng.random() < 0.3 else 0)
            if min(pixels.shape[:2]) < RATED_TILE_PX:
                continue
            y, x = (int(self.rng.integers(0, n - RATED_TILE_PX + 1)) for n in pixels.shape[:2])
            tile = pixels[y : y + RATED_TILE_PX, x : x + RATED_TILE_PX]
            tiles.append(tile[:, ::-1] if self.rng.random() < 0.5 else tile)
            scores.append(item.sample["score"])
        return np.stack(tiles), np.array(scores, np.float32)

    def damaged(self) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """(n, TILE_PX, TILE_PX, 3), and the kinds and levels of their tokens (n, tokens), as of samples.token_truth.
        A tile with a defect is followed by the same place of its twin, where it has one and the batch has room."""
        drawn: list[Tile] = []
        for kind, count in BATCH.items():
            made: list[Tile] = []
            while len(made) < count:
                made += self._tiles(self._any(kind))
            drawn += made[:count]
        tiles, kinds, levels = (np.stack(part) for part in zip(*drawn, strict=True))
        return tiles, kinds, levels

    def _any(self, kind: str) -> Item:
        items = self.items[kind]
        return items[int(self.rng.integers(len(items)))]

    def _tiles(self, item: Item) -> list[Tile]:
        index = 0 if self.rng.random() < ON_GLOBAL else int(self.rng.integers(len(item.sample["views"])))
        entry = item.sample["views"][index]
        rows, cols, side = entry["rows"] // TOKEN_PX, entry["cols"] // TOKEN_PX, TILE_PX // TOKEN_PX
        if min(rows, cols) < side:
            return []
        truth = self._truth(item, index)
        wanted = bool((truth[0] > 0).any()) and self.rng.random() < ON_DEFECT
        for _ in range(TRIES):
            y, x = (int(self.rng.integers(0, n - side + 1)) for n in (rows, cols))
            broken = bool((truth[0][y : y + side, x : x + side] > 0).any())
            if not wanted or broken:
                break
        mirrored = self.rng.random() < 0.5
        twin = self.twins.get(id(item.sample)) if broken else None
        return [
            tile_at(one.read(index), *known, y, x, mirrored)
            for one, known in ((item, truth), (twin, twin and self._truth(twin, index)))
            if one is not None and known is not None
        ]

    def _truth(self, item: Item, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Kinds and levels of the tokens of a view, (rows, cols)."""
        entry = item.sample["views"][index]
        rows, cols = entry["rows"] // TOKEN_PX, entry["cols"] // TOKEN_PX
        truth = token_truth(rows, cols, Box(*entry["box"]), item.sample, self.names)
        return truth.kinds.reshape(rows, cols), truth.levels.reshape(rows, cols)


def tile_at(
    pixels: NDArray[np.uint8], kinds: NDArray[np.int64], levels: NDArray[np.int64], y: int, x: int, mirrored: bool
) -> Tile:
    """The tile whose first token is that of row `y` and column `x`."""
    side = TILE_PX // TOKEN_PX
    y_px, x_px = y * TOKEN_PX, x * TOKEN_PX
    parts = (
        pixels[y_px : y_px + TILE_PX, x_px : x_px + TILE_PX],
        kinds[y : y + side, x : x + side],
        levels[y : y + side, x : x + side],
    )
    tile, kinds, levels = (part[:, ::-1] if mirrored else part for part in parts)
    return tile, kinds.reshape(-1), levels.reshape(-1)


def twins_of(items: dict[str, list[Item]]) -> dict[int, Item]:
    """Of each broken sample (by the id of its record) that has one, the same views unbroken: the sample after it."""
    return {
        id(item.sample): after
        for all_ in items.values()
        for item, after in itertools.pairwise(all_)
        if after.sample.get("twin")
    }


def _holds_a_tile(item: Item, side_px: int) -> bool:
    """Whether the first view of a sample is that large."""
    first = item.sample["views"][0]
    return bool(min(first["rows"], first["cols"]) >= side_px)


def lesson(encoder: CellEncoder, heads: Heads, tiles: Tiles) -> tuple[Tensor, dict[str, float]]:
    rated, scores = tiles.rated(RATED_BATCH)
    with torch.autocast("cpu", torch.bfloat16):
        cells = encoder.view(normalised(rated))
    guess, truth = heads.score(cells.float()), torch.from_numpy(scores)
    error = ((guess - truth) ** 2).mean()
    a, b = guess - guess.mean(), truth - truth.mean()
    rank = 1 - (a * b).sum() / (a.norm() * b.norm() + 1e-6)
    damaged, kinds_, levels_ = tiles.damaged()
    with torch.autocast("cpu", torch.bfloat16):
        cells = encoder.view(normalised(damaged))
    kinds, levels = torch.from_numpy(kinds_).flatten(), torch.from_numpy(levels_).flatten()
    kind_loss, level_loss = torch.zeros(()), torch.zeros(())
    for outputs in heads.tokens(cells.float()):
        kind, level, _ = heads.damage.apart(outputs.flatten(0, 1))
        level = level[torch.arange(len(kinds)), (kinds - 1).clamp(min=0)]
        kind_loss = kind_loss + F.cross_entropy(kind, kinds, ignore_index=UNKNOWN)
        if bool((levels >= 0).any()):
            level_loss = level_loss + F.cross_entropy(level, levels, ignore_index=UNKNOWN)
    loss = SCORE_WEIGHT * error + RANK_WEIGHT * rank + KIND_WEIGHT * kind_loss + LEVEL_WEIGHT * level_loss
    parts = {"mse": error, "rank": rank, "kind": kind_loss, "level": level_loss}
    return loss, {name: float(part.detach()) for name, part in parts.items()}


@torch.no_grad()
def cells_of(encoder: CellEncoder, pixels: list[NDArray[np.uint8]]) -> list[Tensor]:
    out = []
    for one in pixels:
        with torch.autocast("cpu", torch.bfloat16):
            out.append(encoder.view(normalised(one[None])).float())
    return out


@torch.no_grad()
def begin(encoder: CellEncoder, heads: Heads, tiles: Tiles, rated: list[Item]) -> None:
    """Scales the heads' inputs, and starts the score at a ridge regression on some of the rated photos."""
    rated = rated[:: max(1, len(rated) // BEGIN_PHOTOS)]
    cells = cells_of(encoder, [item.read(0) for item in rated])
    x = torch.cat([summary(one) for one in cells])
    heads.mean.copy_(x.mean(0))
    heads.std.copy_(x.std(0) + 1e-3)
    x = ((x - heads.mean) / heads.std).clamp(-6, 6)
    y = torch.tensor([item.sample["score"] for item in rated])
    weight = torch.linalg.solve(x.T @ x + RIDGE_PENALTY * torch.eye(x.shape[1]), x.T @ (y - y.mean()))
    heads.line.weight.copy_(weight[None])
    heads.line.bias.fill_(float(y.mean()) - SCORE_CENTRE)
    last = heads.network[-1]
    assert isinstance(last, nn.Linear)
    last.weight.mul_(0.1)
    last.bias.zero_()
    damaged, _, _ = tiles.damaged()
    some = torch.cat([F.pad(one, (0, SURVEY_CHANNELS)).flatten(0, 2) for one in cells_of(encoder, list(damaged))])
    heads.damage.std.copy_(some.std(0) + 1e-3)


@torch.no_grad()
def evaluate(encoder: CellEncoder, heads: Heads, dev: dict[str, list[Item]]) -> dict[str, float]:
    """On the dev split: how rated photos are ranked; whether broken tokens of whole views are told from sound ones."""
    heads.eval()
    rated = dev["rated"]
    guess = [float(heads.score(one)) for one in cells_of(encoder, [item.read(0) for item in rated])]
    labels, odds = [], []
    for item in dev["local"][:DEV_SCENES]:
        for index, view in enumerate(item.sample["views"][:2]):
            (cells,) = cells_of(encoder, [item.read(index)])
            rows, cols = cells.shape[1] // CELLS_PER_SIDE, cells.shape[2] // CELLS_PER_SIDE
            known = token_truth(rows, cols, Box(*view["box"]), item.sample, heads.domain.kinds).kinds
            kind, _, _ = heads.damage.apart(mean_of(heads.tokens(cells))[0])
            odd = (kind[:, 1:].logsumexp(-1) - kind[:, 0]).numpy()
            labels.append(known[known >= 0] > 0)
            odds.append(odd[known >= 0])
    heads.train()
    auc = roc_auc_score(np.concatenate(labels), np.concatenate(odds)) if labels else float("nan")
    return {**agreement(guess, rated), "dev_token_auc": float(auc)}


@dataclass(frozen=True, slots=True)
class Config:
    """`views`: of render.py; writes OUT/encoder.pt."""

    views: Path
    out: Path
    steps: int = 1100
    rate: float = 1e-4
    every: int = 275
    seed: int = 0
    threads: int = 2


def tune(config: Config, domain: Domain = PHOTOS) -> None:
    torch.set_num_threads(config.threads)
    rng = seeded(config.seed)
    items = {kind: items_of(config.views, kind, 3, np.uint8) for kind in ("rated", *BATCH)}
    train, dev = ({kind: of_split(all_, split) for kind, all_ in items.items()} for split in ("train", "dev"))
    empty = next((kind for kind in train if not train[kind]), None)
    if empty:
        raise RunError(f"{config.views}: holds no {empty} sample to learn from; make them (render.py)")
    tiles = Tiles(train, rng, domain)
    encoder, heads = CellEncoder.pretrained().to(memory_format=torch.channels_last), Heads(domain)
    encoder.features[:FROZEN_BLOCKS].requires_grad_(False)
    learned = [p for p in encoder.parameters() if p.requires_grad]
    average = copy.deepcopy(encoder), copy.deepcopy(heads)
    head_weights = [p for n, p in heads.named_parameters() if not n.startswith("line")]
    groups = [(learned, 1.0), (heads.line.parameters(), 0.1), (head_weights, HEAD_RATE)]
    rates = [config.rate * times for _, times in groups]
    optimizer = torch.optim.AdamW([{"params": list(p)} for p, _ in groups], lr=config.rate, weight_decay=0.05)
    run = Run(config.out, {**dataclasses.asdict(config), "domain": dataclasses.asdict(domain)}, config.steps)
    state = run.resumed()
    if state:
        for module, kept in zip((encoder, heads, *average), state["modules"], strict=True):
            module.load_state_dict(kept)
        optimizer.load_state_dict(state["optimizer"])
        rng.bit_generator.state = state["rng"]
    else:
        begin(encoder, heads, tiles, train["rated"])
        average[1].load_state_dict(heads.state_dict())
        run.log(**evaluate(encoder, heads, dev))
    encoder.train()
    heads.train()
    for step in run:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * cosine(step, config.steps, 60)
        loss, parts = lesson(encoder, heads, tiles)
        run.note(**parts)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 5.0)
        optimizer.step()
        decay = min(EMA_DECAY, (step + 1) / (step + 20))
        with torch.no_grad():
            for slow, fast in zip(average, (encoder, heads), strict=True):
                for a, b in zip(slow.state_dict().values(), fast.state_dict().values(), strict=True):
                    a.lerp_(b, 1 - decay)
        if (step + 1) % config.every == 0 or step + 1 == config.steps:
            run.log(**evaluate(*average, dev))
            encoder_state, heads_state = (module.state_dict() for module in average)
            save(config.out / "encoder.pt", {"encoder": encoder_state, "heads": heads_state})
        if run.due:
            modules = [m.state_dict() for m in (encoder, heads, *average)]
            run.keep({"modules": modules, "optimizer": optimizer.state_dict(), "rng": rng.bit_generator.state})
