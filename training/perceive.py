"""Stage 0, supervised perception: nano's eyes, before it speaks.

    python training/perceive.py --cache CACHE --out RUN

Two lessons, neither through the decoder. `Damage` learns from single tokens what is wrong with each; minutes of it
suffice, and more of it learns the few clean sources by heart. `Quality` learns the score of whole views. Both are
written to RUN/eyes.pt; figures on the dev split go to RUN/metrics.json.

For every fold of source photos there is also RUN/eyes-without-FOLD.pt, whose sense of damage never saw that fold:
look.py reads training photos with those, so that the decoder learns how far to trust eyes on photos new to them.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from cells import CELL_CHANNELS
from nano_spec import CELLS_PER_SIDE
from numpy.typing import NDArray
from samples import Item, Samples, damages, eyes_file, read, token_truth, tokens_of
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F
from visual import KIND_OUTPUTS, Damage, Perception, Quality, by_size, perceived, proposals

from qcheck.tiles import Box

LESSONS: Final = ("local", "aimed", "patched", "whole")  # kinds of sample whose damages are known
DAMAGED_TOKENS: Final = 24  # at most, of one view
CLEAN_TOKENS: Final = {"global": 24}  # the same; views that are not global: half of it
TOKEN_BATCH: Final = 4096
LEVEL_WEIGHT: Final = 0.5
EMA_DECAY: Final = 0.995
SCORED: Final = ("rated", "patched", "whole")
SCORE_WEIGHTS: Final = {"rated": 1.0, "patched": 0.5, "whole": 0.5}
FOUND_IOU: Final = 0.2


class Tokens:
    """Single tokens of many views. `tokens`: (n, CELL_CHANNELS); `views`: (n,) their view's row in `means`, `spreads`;
    `kinds`, `levels`: (n,) as of samples.token_truth."""

    def __init__(self, items: dict[str, list[Item]], rng: np.random.Generator) -> None:
        parts: list[list[NDArray[Any]]] = [[], [], [], [], [], []]
        count = 0
        for kind in LESSONS:
            for item in items[kind]:
                for index, view in enumerate(item[0]["views"]):
                    if view["role"] == "window":
                        continue
                    for part, values in zip(parts, self.of_view(item, index, count, rng), strict=True):
                        part.append(values)
                    count += 1
        joined = [torch.from_numpy(np.concatenate(part)) for part in parts]
        self.tokens, self.means, self.spreads, self.views, self.kinds, self.levels = joined

    def of_view(self, item: Item, index: int, number: int, rng: np.random.Generator) -> Iterator[NDArray[Any]]:
        cells, view = read(item, index).astype(np.float32), item[0]["views"][index]
        rows, cols = tokens_of(cells)
        truth = token_truth(rows, cols, Box(*view["box"]), damages(item[0]))
        clean, damaged = np.flatnonzero(truth.kinds == 0), np.flatnonzero(truth.kinds > 0)
        most = CLEAN_TOKENS.get(view["role"], CLEAN_TOKENS["global"] // 2)
        picked = np.concatenate((rng.permutation(clean)[:most], rng.permutation(damaged)[:DAMAGED_TOKENS]))
        tokens = cells.reshape(rows, CELLS_PER_SIDE, cols, CELLS_PER_SIDE, CELL_CHANNELS).mean((1, 3))
        yield tokens.reshape(rows * cols, CELL_CHANNELS)[picked].astype(np.float16)
        yield cells.mean((0, 1))[None]
        yield cells.std((0, 1))[None]
        yield np.full(len(picked), number)
        yield truth.kinds[picked]
        yield truth.levels[picked]


def learn_damage(damage: Damage, train: Tokens, steps: int, rate: float) -> None:
    """Each branch learns alone, so that neither leans on the other."""
    everything = train.tokens[:: max(1, len(train.tokens) // 100_000)].float()
    damage.mean.copy_(everything.mean(0))
    damage.std.copy_(everything.std(0) + 1e-3)
    optimizer = torch.optim.AdamW(damage.parameters(), lr=rate, weight_decay=0.1)
    damage.train()
    for step in range(steps):
        schedule(optimizer, rate, step, steps)
        picked = torch.randint(0, len(train.tokens), (TOKEN_BATCH,))
        views, kinds, levels = train.views[picked], train.kinds[picked], train.levels[picked]
        inputs = damage.normalised(train.tokens[picked].float(), train.means[views], train.spreads[views])
        with torch.autocast("cpu", torch.bfloat16):
            outputs = damage.read(*inputs)
        loss = torch.zeros(())
        for output in outputs:
            kind, level = output.float().split((KIND_OUTPUTS, output.shape[1] - KIND_OUTPUTS), 1)
            loss = loss + F.cross_entropy(kind, kinds) + LEVEL_WEIGHT * F.cross_entropy(level, levels)
        finite(loss, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"damage {step + 1}/{steps} loss {float(loss.detach()):.3f}", flush=True)
    damage.eval()


def schedule(optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
    """A warm-up of 50 steps, then a cosine to 2% of `rate`."""
    along = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = rate * min(1.0, (step + 1) / 50) * along


def finite(loss: Tensor, step: int) -> None:
    if not math.isfinite(float(loss.detach())):
        raise SystemExit(f"step {step}: the loss is not finite")


class Scores:
    """Whole views and their scores, other ones each time: mirrored, and cut to windows."""

    def __init__(self, items: dict[str, list[Item]], rng: np.random.Generator) -> None:
        self.items, self.rng = items, rng

    def batch(self, counts: dict[str, int]) -> tuple[list[Tensor], Tensor, Tensor]:
        """Views (rows, cols, CELL_CHANNELS), scores and weights (n,)."""
        # One shape of window for the whole batch, so that views of one size can go through together.
        shares = (self.rng.uniform(0.7, 1.0), self.rng.uniform(0.7, 1.0))
        views, scores, weights = [], [], []
        for kind, count in counts.items():
            for at in self.rng.integers(0, len(self.items[kind]), count):
                item = self.items[kind][at]
                known = [i for i, view in enumerate(item[0]["views"]) if view["role"] == "global"]
                index = known[int(self.rng.integers(len(known)))] if self.rng.random() < 0.6 else 0
                cells = read(item, index)
                # Not quite what the convolutions would have seen in a mirrored photo, but near, and free.
                cells = cells[:, ::-1] if self.rng.random() < 0.5 else cells
                if kind == "rated" and self.rng.random() < 0.5:
                    cells = self.window(cells, shares)
                views.append(torch.from_numpy(cells.astype(np.float32)))
                scores.append(item[0]["score"])
                weights.append(SCORE_WEIGHTS[kind])
        return views, torch.tensor(scores), torch.tensor(weights)

    def window(self, cells: NDArray[np.float16], shares: tuple[float, float]) -> NDArray[np.float16]:
        """A window of whole tokens, anywhere."""
        slices = []
        for count, share in zip(cells.shape[:2], shares, strict=True):
            length = 2 * max(1, round(share * count / 2))
            start = 2 * int(self.rng.integers(0, (count - length) // 2 + 1))
            slices.append(slice(start, start + length))
        return cells[slices[0], slices[1]]


def scores_of(quality: Quality, views: list[Tensor]) -> Tensor:
    """(n,) scores of views of any sizes."""
    out = torch.zeros(len(views))
    for members in by_size(views):
        out = out.index_put(
            (torch.tensor(members),), quality(torch.stack([views[i] for i in members]))[:, 0].to(out.dtype)
        )
    return out


def learn_quality(quality: Quality, train: dict[str, list[Item]], dev: list[Item], args: argparse.Namespace) -> None:
    """Regression on scores; the averaged weights of the evaluation that ranks dev photos best are kept."""
    rng = np.random.default_rng(args.seed + 1)
    mean, std = statistics(train["rated"] + train["whole"], rng)
    quality.cell_mean.copy_(mean)
    quality.cell_std.copy_(std)
    average = {k: v.clone() for k, v in quality.state_dict().items()}
    best, best_weights = -1.0, average
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in quality.parameters() if p.ndim > 1], "weight_decay": args.decay},
            {"params": [p for p in quality.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=args.rate,
        betas=(0.9, 0.98),
    )
    scores, started, smooth = Scores(train, rng), time.monotonic(), 1.0
    for step in range(args.quality_steps):
        schedule(optimizer, args.rate, step, args.quality_steps)
        quality.train()
        views, truth, weights = scores.batch(dict(zip(SCORED, args.batch, strict=True)))
        # fp32: with so many sizes of view, bf16 on CPUs spends twice the time preparing its kernels.
        loss = (weights * (scores_of(quality, views) - truth) ** 2).mean()
        finite(loss, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(quality.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for name, value in quality.state_dict().items():
                average[name].lerp_(value, 1 - min(EMA_DECAY, (step + 1) / (step + 20)))
        smooth = 0.98 * smooth + 0.02 * float(loss.detach())
        if (step + 1) % 50 == 0:
            eta = (time.monotonic() - started) / (step + 1) * (args.quality_steps - step - 1) / 60
            print(f"quality {step + 1}/{args.quality_steps} eta {eta:.1f} min, loss {smooth:.3f}", flush=True)
        if (step + 1) % args.every == 0 or step + 1 == args.quality_steps:
            averaged = Quality()
            averaged.load_state_dict(average)
            rank = ranked(averaged, dev)
            print(f"quality {step + 1}: " + " ".join(f"{k} {v:.3f}" for k, v in rank.items()), flush=True)
            if rank["dev_srcc"] > best:
                best, best_weights = rank["dev_srcc"], {k: v.clone() for k, v in average.items()}
    quality.load_state_dict(best_weights)
    quality.eval()


def statistics(items: list[Item], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mean and spread of every cell channel over some hundred views."""
    parts = [
        read(items[i], 0).reshape(-1, CELL_CHANNELS)[::3].astype(np.float32)
        for i in rng.choice(len(items), min(400, len(items)), replace=False)
    ]
    stacked = np.concatenate(parts)
    return torch.from_numpy(stacked.mean(0)), torch.from_numpy(stacked.std(0) + 1e-3)


@torch.inference_mode()
def ranked(quality: Quality, items: list[Item]) -> dict[str, float]:
    quality.eval()
    guess = [float(quality(torch.from_numpy(read(item, 0).astype(np.float32))[None])) for item in items]
    truth = [item[0]["score"] for item in items]
    return {"dev_srcc": float(spearmanr(guess, truth)[0]), "dev_plcc": float(pearsonr(guess, truth)[0])}


@torch.inference_mode()
def evaluate(eyes: Perception, items: list[Item]) -> dict[str, float]:
    """Of big dev photos: are damaged tokens and views told from clean ones, and do proposals lie on damages?"""
    tokens: dict[str, list[tuple[NDArray[np.bool_], NDArray[np.float32]]]] = {"global": [], "crop": []}
    views: dict[str, list[tuple[bool, float]]] = {"global": [], "crop": []}
    overlaps: dict[str, list[list[float]]] = {"global": [], "crop": []}
    for item in items:
        for index, view in enumerate(item[0]["views"]):
            cells = read(item, index).astype(np.float32)
            truth = token_truth(*tokens_of(cells), Box(*view["box"]), damages(item[0]))
            damaged = bool((truth.kinds > 0).any())
            if not damaged and (truth.kinds != 0).any():
                continue
            evidence = perceived(eyes, [torch.from_numpy(cells)])[0]
            found, place = proposals(evidence), "crop" if index else "global"
            known = truth.kinds >= 0
            tokens[place].append((truth.kinds[known] > 0, evidence.log_odds().flatten().numpy()[known]))
            views[place].append((damaged, float(found.strengths[0])))
            if damaged and (index == 0 or view["role"].startswith("truth")):
                boxes = torch.from_numpy(np.unique(truth.boxes[truth.kinds > 0], axis=0))
                overlaps[place].append([max(float(iou(box, one)) for one in boxes) for box in found.boxes])
    out: dict[str, float] = {}
    for place in ("global", "crop"):
        if not overlaps[place]:
            continue
        labels, odds = (np.concatenate(part) for part in zip(*tokens[place], strict=True))
        out[f"{place}_token_auc"] = float(roc_auc_score(labels, odds))
        out[f"{place}_auc"] = float(roc_auc_score([v[0] for v in views[place]], [v[1] for v in views[place]]))
        seen = np.array(overlaps[place])
        out[f"{place}_iou"], out[f"{place}_iou_of_3"] = float(seen[:, 0].mean()), float(seen.max(1).mean())
        out[f"{place}_found_of_3"] = float((seen.max(1) > FOUND_IOU).mean())
    return out


def iou(a: Tensor, b: Tensor) -> Tensor:
    both = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0).prod()
    return both / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both + 1e-9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--damage-steps", type=int, default=300)
    parser.add_argument("--quality-steps", type=int, default=900)
    parser.add_argument("--quality", type=Path, help="eyes whose sense of quality is kept instead of learned again")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=150)
    parser.add_argument("--batch", type=int, nargs=3, default=(24, 8, 6), metavar=tuple(k.upper() for k in SCORED))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    samples = {kind: Samples(args.cache, kind) for kind in {*LESSONS, *SCORED}}
    train, dev = ({kind: s.of(split) for kind, s in samples.items()} for split in ("train", "dev"))
    eyes, started = Perception().eval(), time.monotonic()
    for fold in (*samples["local"].folds(), None):
        torch.manual_seed(args.seed)
        seen = {kind: [item for item in train[kind] if item[0]["fold"] != fold] for kind in LESSONS}
        tokens = Tokens(seen, np.random.default_rng(args.seed))
        spent = f"{time.monotonic() - started:.0f} s"
        print(f"without fold {fold}: {len(tokens.tokens)} tokens of {len(tokens.means)} views, {spent}", flush=True)
        eyes.damage = Damage()
        learn_damage(eyes.damage, tokens, args.damage_steps, args.rate)
        save(args.out, eyes, fold)
    del tokens
    result = evaluate(eyes, dev["aimed"] or dev["local"])
    print(" ".join(f"{k} {v:.3f}" for k, v in result.items()), flush=True)
    if args.quality:
        kept = torch.load(args.quality, weights_only=True)["eyes"]
        eyes.quality.load_state_dict({k[8:]: v for k, v in kept.items() if k.startswith("quality.")})
    elif args.quality_steps:
        learn_quality(eyes.quality, train, dev["rated"], args)
    result |= ranked(eyes.quality, dev["rated"])
    save(args.out, eyes, None)
    (args.out / "metrics.json").write_text(json.dumps(result) + "\n")
    print(json.dumps(result))


def save(out: Path, eyes: Perception, fold: str | None) -> None:
    torch.save({"eyes": eyes.state_dict()}, eyes_file(out, fold))


if __name__ == "__main__":
    main()
