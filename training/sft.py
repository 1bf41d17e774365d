"""Supervised training of nano on cached cells.

    python training/sft.py --cache CACHE --out RUN [--steps 2000] [--seed 0] [--resume]

Every step sees rated photos (their score), patched and whole-damaged ones, and probing conversations over big photos.
Score and coordinate tokens get soft labels (a Gaussian around the truth), and the score's expected value a squared
error besides. Weights are averaged (EMA); metrics go to RUN/metrics.jsonl, the last state to RUN/last.pt.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import vocabulary as words
from cells import CELL_CHANNELS, CellEncoder, CellStore
from degradations import KINDS
from nano import Nano, config
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from trajectories import Example, Narrator, Speller

from qcheck.verdict import DEFECT_LEVELS

SCORE_SIGMA: Final = 0.25
COORDINATE_SIGMA: Final = 15.0  # of 1000
EXPECTED_WEIGHT: Final = 1.0
EMA_DECAY: Final = 0.998
SHORT_CHUNKS: Final = 3
DENSE_WEIGHT: Final = 0.5
DAMAGED_WEIGHT: Final = 3.0  # of a damaged token against a clean one, which are far more
LEVEL_WEIGHT: Final = 0.3
PERCEIVE_RATE: Final = 1.5e-3


class Samples:
    """All cached samples of one kind, of every worker."""

    def __init__(self, cache: Path, kind: str) -> None:
        self.items: list[tuple[dict[str, Any], NDArray[np.float16]]] = []
        for index in sorted(cache.glob(f"{kind}-*.jsonl")):
            store = CellStore(cache, index.stem)
            cells = store.cells()
            self.items += [(sample, cells) for sample in store.samples()]

    def of(self, split: str) -> list[tuple[dict[str, Any], NDArray[np.float16]]]:
        return [item for item in self.items if item[0]["split"] == split]


def reader(cells: NDArray[np.float16]) -> Any:
    def read(view: dict[str, Any]) -> NDArray[np.float16]:
        count = view["rows"] * view["cols"]
        return cells[view["offset"] : view["offset"] + count].reshape(view["rows"], view["cols"], CELL_CHANNELS)

    return read


class Targets:
    """Soft labels over the vocabulary for every token id."""

    def __init__(self, tokenizer: Any) -> None:
        size = tokenizer.get_vocab_size()
        self.score_ids = torch.tensor([tokenizer.token_to_id(t) for t in words.SCORE_TOKENS])
        self.score_values = torch.tensor([float(t) for t in words.SCORE_TOKENS])
        coordinates = torch.tensor([tokenizer.token_to_id(t) for t in words.COORDINATE_TOKENS])
        values = torch.tensor([float(t) for t in words.COORDINATE_TOKENS])
        self.table = torch.eye(size)
        for ids, numbers, sigma in (
            (self.score_ids, self.score_values, SCORE_SIGMA),
            (coordinates, values, COORDINATE_SIGMA),
        ):
            soft = torch.softmax(-((numbers[:, None] - numbers[None]) ** 2) / (2 * sigma**2), 1)
            self.table[ids] = 0
            self.table[ids[:, None], ids[None]] = soft


class TokenHeads(nn.Module):
    """What is wrong with each image token, read where it enters the decoder and where it leaves it. Only for training:
    a dense lesson in seeing that a few spoken words a photo could never give."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        outputs = 1 + len(KINDS) + len(DEFECT_LEVELS)
        self.entering, self.leaving = nn.Linear(hidden, outputs), nn.Linear(hidden, outputs)

    def loss(self, outputs: Sequence[Tensor], truth: Tensor) -> Tensor:
        """`outputs`: of either head or both, (tokens, outputs); `truth`: (2, tokens) of trajectories.token_truth."""
        kinds = 1 + len(KINDS)
        weight = torch.full((kinds,), DAMAGED_WEIGHT)
        weight[0] = 1.0
        total = torch.zeros(())
        for logits in (output.float() for output in outputs):
            if bool((truth[0] >= 0).any()):
                total = total + F.cross_entropy(logits[:, :kinds], truth[0], weight)
            if bool((truth[1] >= 0).any()):
                total = total + LEVEL_WEIGHT * F.cross_entropy(logits[:, kinds:], truth[1])
        return total


def token_truths(examples: list[Example]) -> Tensor:
    """(2, sum of tokens): what is wrong with every image token of a batch, in the order of Trainer.tokens."""
    return torch.from_numpy(np.concatenate([t for e in examples for t in e.truths], 1))


class Trainer:
    def __init__(self, model: Nano, targets: Targets, image_id: int) -> None:
        self.model, self.targets, self.image_id = model, targets, image_id
        self.heads = TokenHeads(model.config.text_config.hidden_size)

    def tokens(self, examples: list[Example]) -> Tensor:
        """(sum of tokens, hidden) image tokens of all views, in order, as they enter the decoder."""
        return self.model.model.visual.tokens(
            [torch.from_numpy(v.astype(np.float32)) for e in examples for v in e.views]
        )

    def hidden(self, examples: list[Example]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(batch, length, hidden) after the last layer; ids and weights (batch, length), right-padded; image tokens
        (sum of tokens, hidden) as they entered."""
        length = max(len(e.tokens) for e in examples)
        ids = torch.zeros(len(examples), length, dtype=torch.long)
        weights = torch.zeros(len(examples), length)
        places = torch.zeros(3, len(examples), length, dtype=torch.long)
        for row, e in enumerate(examples):
            n = len(e.tokens)
            ids[row, :n], weights[row, :n] = torch.tensor(e.tokens), torch.tensor(e.weights)
            places[:, row, :n] = torch.from_numpy(np.concatenate(e.positions, 1))
        seen = self.tokens(examples)
        embeds = self.model.get_input_embeddings()(ids)
        embeds = embeds.masked_scatter((ids == self.image_id)[:, :, None].expand_as(embeds), seen.to(embeds.dtype))
        # No mask: padding is on the right, so that causal attention never reads it, and the fast kernel takes no mask.
        hidden = self.model.model.language_model(inputs_embeds=embeds, position_ids=places, use_cache=False)
        return hidden.last_hidden_state, ids, weights, seen

    def scores(self, hidden: Tensor, examples: list[Example]) -> tuple[Tensor, Tensor]:
        """Expected scores and the true ones, (n,), wherever an exact score is known."""
        at = [(row, col - 1, value) for row, e in enumerate(examples) for col, value in e.exact_scores.items()]
        logits = self.model.lm_head(hidden[[a[0] for a in at], [a[1] for a in at]]).float()
        expected = logits[:, self.targets.score_ids].softmax(-1) @ self.targets.score_values
        return expected, torch.tensor([a[2] for a in at])

    def loss(self, examples: list[Example]) -> tuple[Tensor, dict[str, float]]:
        with torch.autocast("cpu", torch.bfloat16):
            hidden, ids, weights, seen = self.hidden(examples)
            leaving = hidden[ids == self.image_id]
            dense = self.heads.loss([self.heads.entering(seen), self.heads.leaving(leaving)], token_truths(examples))
            rows, cols = torch.nonzero(weights, as_tuple=True)
            logits = self.model.lm_head(hidden[rows, cols - 1]).float()
            expected, truth = self.scores(hidden, examples)
        picked = (self.targets.table[ids[rows, cols]] * F.log_softmax(logits, -1)).sum(1)
        loss = -(weights[rows, cols] * picked).sum() / weights.sum()
        error = ((expected - truth) ** 2).mean()
        parts = {"loss": float(loss.detach()), "mse": float(error.detach()), "dense": float(dense.detach())}
        return loss + EXPECTED_WEIGHT * error + DENSE_WEIGHT * dense, parts

    def perceive(self, examples: list[Example]) -> Tensor:
        """The dense lesson alone, without the decoder: what is wrong with each token as it enters."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.heads.loss([self.heads.entering(self.tokens(examples))], token_truths(examples))


def perceive(trainer: Trainer, batch: Callable[[], list[Example]], steps: int) -> None:
    """Teaches the eyes first: a hundred times cheaper than through the decoder, and the decoder then learns faster."""
    weights = [p for p in (*trainer.model.model.visual.parameters(), *trainer.heads.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=PERCEIVE_RATE, weight_decay=0.05)
    started, smooth = time.monotonic(), 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = PERCEIVE_RATE * min(1.0, (step + 1) / 50) * (0.1 + 0.9 * (1 - step / steps))
        loss = trainer.perceive(batch())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        smooth = loss.item() if step == 0 else 0.95 * smooth + 0.05 * loss.item()
        if (step + 1) % 50 == 0:
            print(f"perceive {step + 1}/{steps}, {time.monotonic() - started:.0f} s, loss {smooth:.3f}", flush=True)


def ema_update(average: dict[str, Tensor], model: Nano, decay: float) -> None:
    for name, value in model.state_dict().items():
        if name in average and value.is_floating_point():
            average[name].lerp_(value, 1 - decay)


def statistics(
    samples: list[tuple[dict[str, Any], NDArray[np.float16]]], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Mean and spread of every cell channel over some hundred views."""
    parts = []
    for i in rng.choice(len(samples), min(400, len(samples)), replace=False):
        sample, cells = samples[i]
        parts.append(reader(cells)(sample["views"][0]).reshape(-1, CELL_CHANNELS)[::3].astype(np.float32))
    stacked = np.concatenate(parts)
    return torch.from_numpy(stacked.mean(0)), torch.from_numpy(stacked.std(0) + 1e-3)


@torch.inference_mode()
def evaluate(trainer: Trainer, narrate: dict[str, Any], pools: dict[str, Any]) -> dict[str, float]:
    """On the dev split: rank correlation of rated photos' scores at one look; loss of local conversations."""
    trainer.model.eval()
    truth, guess = [], []
    rated = pools["rated"]
    for start in range(0, len(rated), 32):
        examples = [narrate["rated"](item, False) for item in rated[start : start + 32]]
        with torch.autocast("cpu", torch.bfloat16):
            hidden, _, _, _ = trainer.hidden(examples)
            expected, values = trainer.scores(hidden, examples)
        guess += expected.tolist()
        truth += values.tolist()
    losses = []
    for start in range(0, len(pools["local"]), 12):
        _, parts = trainer.loss([narrate["local"](item) for item in pools["local"][start : start + 12]])
        losses.append((parts["loss"], parts["mse"], parts["dense"]))
    local = np.mean(losses, 0) if losses else (math.nan, math.nan, math.nan)
    trainer.model.train()
    return {
        "dev_srcc": float(spearmanr(truth, guess)[0]),
        "dev_plcc": float(pearsonr(truth, guess)[0]),
        "dev_local_loss": float(local[0]),
        "dev_local_mse": float(local[1]),
        "dev_local_dense": float(local[2]),
    }


def save(path: Path, state: dict[str, Any]) -> None:
    """Atomic: a kill in the middle leaves the previous checkpoint."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=200, help="steps between evaluations and checkpoints")
    parser.add_argument(
        "--batch", type=int, nargs=4, default=(16, 10, 6, 8), metavar=("RATED", "PATCHED", "WHOLE", "LOCAL")
    )
    parser.add_argument("--perceive", type=int, default=600, help="steps of the dense lesson before")
    parser.add_argument("--start", type=Path, help="a checkpoint whose weights to begin with")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    tokenizer = words.build()
    model = Nano(config(tokenizer))
    kinds = ("rated", "patched", "whole", "local")
    samples = {kind: Samples(args.cache, kind) for kind in kinds}
    train = {kind: samples[kind].of("train") for kind in kinds}
    dev = {kind: samples[kind].of("dev") for kind in kinds}
    visual = model.model.visual
    visual.encoder.load_state_dict(CellEncoder.pretrained().state_dict())
    visual.encoder.requires_grad_(False)
    mean, std = statistics(train["rated"] + train["local"], rng)
    visual.cell_mean.copy_(mean)
    visual.cell_std.copy_(std)
    speller = Speller(tokenizer)

    def narrate(kind: str, seeded: np.random.Generator) -> Any:
        return lambda item, *rest: getattr(Narrator(speller, reader(item[1]), seeded), kind)(item[0], *rest)

    trainer = Trainer(model, Targets(tokenizer), speller.image_id)
    weights = [p for p in (*model.parameters(), *trainer.heads.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in weights if p.ndim > 1], "weight_decay": args.decay},
            {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=args.rate,
        betas=(0.9, 0.98),
    )
    average = {k: v.clone() for k, v in model.state_dict().items() if v.is_floating_point() and ".encoder." not in k}
    first = 0
    if args.start is not None:
        model.load_state_dict(torch.load(args.start, weights_only=True)["model"])
        average = {k: v.clone() for k, v in model.state_dict().items() if k in average}
    if args.resume and (args.out / "last.pt").exists():
        state = torch.load(args.out / "last.pt", weights_only=False)
        model.load_state_dict(state["model"])
        trainer.heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        average, first = state["average"], state["step"]
        rng.bit_generator.state = state["rng"]
    print(
        f"{sum(p.numel() for p in weights) / 1e6:.2f} M trained weights; { ({k: len(v) for k, v in train.items()}) }",
        flush=True,
    )
    if first == 0 and args.perceive:

        def eyes() -> list[Example]:
            picked = [("local", i) for i in rng.integers(0, len(train["local"]), 8)]
            picked += [("patched", i) for i in rng.integers(0, len(train["patched"]), 12)]
            picked += [("whole", i) for i in rng.integers(0, len(train["whole"]), 3)]
            return [narrate(kind, rng)(train[kind][i]) for kind, i in picked]

        perceive(trainer, eyes, args.perceive)
        average.update({k: v.clone() for k, v in model.state_dict().items() if k in average})
    metrics = (args.out / "metrics.jsonl").open("a")
    started = time.monotonic()
    model.train()
    for step in range(first, args.steps):
        warm, along = min(1.0, (step + 1) / 100), step / args.steps
        for group in optimizer.param_groups:
            group["lr"] = args.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * along)))
        seen: dict[str, float] = {}
        # Micro-batches of like length, so that short conversations are not padded to the length of long ones.
        for part, chunks in ((kinds[:3], SHORT_CHUNKS), (kinds[3:], 1)):
            examples = [
                narrate(kind, rng)(train[kind][i])
                for kind in part
                for i in rng.integers(0, len(train[kind]), args.batch[kinds.index(kind)])
            ]
            examples.sort(key=lambda e: len(e.tokens))
            for chunk in range(chunks):
                some = examples[len(examples) * chunk // chunks : len(examples) * (chunk + 1) // chunks]
                loss, parts = trainer.loss(some)
                if not math.isfinite(parts["loss"]):
                    raise SystemExit(
                        f"step {step}: the loss is not finite; the last good state is {args.out / 'last.pt'}"
                    )
                (loss * len(some) / len(examples)).backward()
                for name, value in parts.items():
                    seen[f"{part[0]}_{name}"] = seen.get(f"{part[0]}_{name}", 0.0) + value * len(some) / len(examples)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema_update(average, model, min(EMA_DECAY, (step + 1) / (step + 20)))
        if (step + 1) % 20 == 0:
            spent = time.monotonic() - started
            eta = spent / (step + 1 - first) * (args.steps - step - 1)
            print(
                f"step {step + 1}/{args.steps} eta {eta / 60:.0f} min "
                + " ".join(f"{k} {v:.3f}" for k, v in seen.items()),
                flush=True,
            )
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            live = {k: v.clone() for k, v in model.state_dict().items()}
            model.load_state_dict(average, strict=False)
            fixed = np.random.default_rng(7)
            result = evaluate(trainer, {kind: narrate(kind, fixed) for kind in kinds}, dev)
            save(args.out / f"step{step + 1}.pt", {"model": model.state_dict(), "step": step + 1, "result": result})
            model.load_state_dict(live)
            save(
                args.out / "last.pt",
                {
                    "model": live,
                    "heads": trainer.heads.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": average,
                    "step": step + 1,
                    "rng": rng.bit_generator.state,
                },
            )
            metrics.write(json.dumps({"step": step + 1, **result, **seen}) + "\n")
            metrics.flush()
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
