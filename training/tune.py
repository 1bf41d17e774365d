"""Stage 0, first part: teaches the convolutions what damage is, from pixels.

Tiles of rendered views (render.py). Two lessons at once: what is wrong with each token, and how much; and, of rated
photos, what untaught networks make of a whole tile, which is not to be forgotten (hints.py). The heads that are taught
with it are thrown away; perceive.py teaches better ones on whole views, and the score. Weights are averaged (EMA). Run
by train.py.
"""

import copy
import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from cells import SURVEY_CHANNELS, CellEncoder
from defects import PHOTOS, Domain
from hints import OWN, Hints, Untaught, normalised
from nano_spec import CELLS_PER_SIDE, TOKEN_PX
from numpy.typing import NDArray
from runs import Run, RunError, cosine, save, seeded
from samples import UNKNOWN, token_truth
from sklearn.metrics import roc_auc_score
from stores import Item, items_of, of_split
from summaries import agreement, ridge
from torch import Tensor, nn
from torch.nn import functional as F
from visual import Damage, mean_of

from qcheck.tiles import Box

RATED_TILE_PX: Final = 448
TILE_PX: Final = 384
RATED_BATCH: Final = 8
BATCH: Final = {"patched": 6, "whole": 4, "local": 10}
BEGIN_PHOTOS: Final = 1000
DEV_SCENES: Final = 24
ON_DEFECT: Final = 0.7  # of tiles of views with a defect
ON_GLOBAL: Final = 0.25  # of tiles, besides those that fall on a global view by chance: there damage is faintest
TRIES: Final = 12
HINT_WEIGHT: Final = 1.0
KIND_WEIGHT: Final = 0.6
LEVEL_WEIGHT: Final = 0.6
EMA_DECAY: Final = 0.995
FROZEN_BLOCKS: Final = 4  # the first, up to a stride of 4: half of the time, and what they see is plain enough
HEAD_RATE: Final = 10.0  # times the rate of the convolutions, at which the hints' map learns: it begins in place


class Heads(nn.Module):
    """What the convolutions are taught through."""

    def __init__(self, domain: Domain = PHOTOS) -> None:
        super().__init__()
        self.domain = domain
        self.damage, self.hints = Damage(len(domain.kinds)), Hints()
        self.register_buffer("line", torch.zeros(OWN))  # how scores go with what untaught MobileNetV2 makes of photos

    def score(self, cells: Tensor) -> Tensor:
        """(n, rows, cols, VIEW_CHANNELS) -> (n,): how the untaught would rank them, by what is told of it."""
        return self.hints.told(cells)[:, :OWN] @ self.line

    def tokens(self, cells: Tensor) -> list[Tensor]:
        """(n, rows, cols, VIEW_CHANNELS) -> outputs of Damage's networks, (n, tokens, outputs)."""
        cells = F.pad(cells, (0, SURVEY_CHANNELS))  # a tile has no survey
        return [outputs.flatten(1, 2) for outputs in self.damage.opinions(cells)]


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

    def rated(self, count: int) -> NDArray[np.uint8]:
        """(count, RATED_TILE_PX, RATED_TILE_PX, 3)."""
        tiles: list[NDArray[np.uint8]] = []
        while len(tiles) < count:
            item = self._any("rated")
            roles = len(item.sample["views"])
            pixels = item.read(int(self.rng.integers(roles)) if self.rng.random() < 0.3 else 0)
            if min(pixels.shape[:2]) < RATED_TILE_PX:
                continue
            y, x = (int(self.rng.integers(0, n - RATED_TILE_PX + 1)) for n in pixels.shape[:2])
            tile = pixels[y : y + RATED_TILE_PX, x : x + RATED_TILE_PX]
            tiles.append(tile[:, ::-1] if self.rng.random() < 0.5 else tile)
        return np.stack(tiles)

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


def lesson(encoder: CellEncoder, heads: Heads, untaught: Untaught, tiles: Tiles) -> tuple[Tensor, dict[str, float]]:
    rated = tiles.rated(RATED_BATCH)
    with torch.autocast("cpu", torch.bfloat16):
        cells = encoder.view(normalised(rated))
    own, other = heads.hints.errors(cells.float(), untaught.summaries(rated))
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
    loss = HINT_WEIGHT * (own + other) + KIND_WEIGHT * kind_loss + LEVEL_WEIGHT * level_loss
    parts = {"own": own, "other": other, "kind": kind_loss, "level": level_loss}
    return loss, {name: float(part.detach()) for name, part in parts.items()}


@torch.no_grad()
def cells_of(encoder: CellEncoder, pixels: list[NDArray[np.uint8]]) -> list[Tensor]:
    out = []
    for one in pixels:
        with torch.autocast("cpu", torch.bfloat16):
            out.append(encoder.view(normalised(one[None])).float())
    return out


@torch.no_grad()
def begin(encoder: CellEncoder, heads: Heads, untaught: Untaught, tiles: Tiles, rated: list[Item]) -> None:
    """Scales the heads' inputs, and starts the hints at what is true of some of the rated photos."""
    rated = rated[:: max(1, len(rated) // BEGIN_PHOTOS)]
    summaries = torch.cat([untaught.summaries(item.read(0)[None]) for item in rated])
    heads.hints.begin(summaries)
    scores = torch.tensor([[item.sample["score"]] for item in rated])
    known = heads.hints.known(summaries)[:, :OWN]
    heads.line.copy_(ridge(known - known.mean(0), scores - scores.mean(), torch.ones(len(rated)))[:, 0])
    damaged, _, _ = tiles.damaged()
    some = torch.cat([F.pad(one, (0, SURVEY_CHANNELS)).flatten(0, 2) for one in cells_of(encoder, list(damaged))])
    heads.damage.std.copy_(some.std(0) + 1e-3)


@torch.no_grad()
def evaluate(encoder: CellEncoder, heads: Heads, dev: dict[str, list[Item]]) -> dict[str, float]:
    """On the dev split: how rated photos are ranked by what is left of the untaught; whether broken tokens of whole
    views are told from sound ones."""
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
    steps: int = 1200
    rate: float = 1e-4
    every: int = 300
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
    untaught = Untaught()
    encoder.features[:FROZEN_BLOCKS].requires_grad_(False)
    learned = [p for p in encoder.parameters() if p.requires_grad]
    average = copy.deepcopy(encoder), copy.deepcopy(heads)
    groups = [(learned, 1.0), (list(heads.hints.parameters()), 1.0), (list(heads.damage.parameters()), HEAD_RATE)]
    rates = [config.rate * times for _, times in groups]
    optimizer = torch.optim.AdamW([{"params": p} for p, _ in groups], lr=config.rate, weight_decay=0.05)
    run = Run(config.out, {**dataclasses.asdict(config), "domain": dataclasses.asdict(domain)}, config.steps)
    state = run.resumed()
    if state:
        for module, kept in zip((encoder, heads, *average), state["modules"], strict=True):
            module.load_state_dict(kept)
        optimizer.load_state_dict(state["optimizer"])
        rng.bit_generator.state = state["rng"]
    else:
        begin(encoder, heads, untaught, tiles, train["rated"])
        average[1].load_state_dict(heads.state_dict())
        run.log(**evaluate(encoder, heads, dev))
    encoder.train()
    heads.train()
    for step in run:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * cosine(step, config.steps, 60)
        loss, parts = lesson(encoder, heads, untaught, tiles)
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
