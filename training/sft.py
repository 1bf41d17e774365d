"""Stage 2, supervised training of nano's decoder on what its eyes made of every view. Run by train.py.

The eyes (perceive.py) stay as they are, so a step costs only the projector and the decoder. The first steps are a
drill: to say what the eyes propose. Every later one sees rated photos (their score), patched and whole-damaged ones,
probing conversations over big photos, and a little of the drill. Score and coordinate tokens get soft labels (a
Gaussian around the truth), and the expected score a squared error besides. Weights are averaged (EMA).
"""

import copy
import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import vocabulary as words
from cells import CellEncoder
from defects import Domain
from glance import Glance
from look import LOOKED, eyes_of, seen_channels, unpacked
from nano import Nano, config, write_numbers
from narrator import Example, Narrator, Speller
from numpy.typing import NDArray
from runs import Run, RunError, checkpoint_of, save, schedule, seeded
from samples import spoilt
from scipy.stats import pearsonr, spearmanr
from shipped import Shipped
from stores import Item, items_of, of_split
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from visual import NUMBER_BINS, Perception, described, reading_size, slots_of

SCORE_SIGMA: Final = 0.25
COORDINATE_SIGMA: Final = 15.0  # of 1000
EXPECTED_WEIGHT: Final = 2.0
EMA_DECAY: Final = 0.995
SHORT: Final = LOOKED[:3]  # kinds with one view a photo, mostly
LENGTH_STEP: Final = 64
REVIEW_PART: Final = 4  # of the conversations of a batch of lessons, as many as one in this are drilled besides
WARM_STEPS: Final = 60
SPOILT_TIMES: Final = 3
CHUNKS: Final = 2  # micro-batches of examples of like length


class Targets:
    """Soft labels over the vocabulary for every token id."""

    def __init__(self, tokenizer: Any) -> None:
        size = tokenizer.get_vocab_size()
        self.score_ids = torch.tensor([tokenizer.token_to_id(t) for t in words.SCORE_TOKENS])
        self.score_values = torch.tensor([float(t) for t in words.SCORE_TOKENS])
        self.coordinate_ids = torch.tensor([tokenizer.token_to_id(t) for t in words.COORDINATE_TOKENS])
        values = torch.tensor([float(t) for t in words.COORDINATE_TOKENS])
        self.table = torch.eye(size)
        for ids, numbers, sigma in (
            (self.score_ids, self.score_values, SCORE_SIGMA),
            (self.coordinate_ids, values, COORDINATE_SIGMA),
        ):
            soft = torch.softmax(-((numbers[:, None] - numbers[None]) ** 2) / (2 * sigma**2), 1)
            self.table[ids] = 0
            self.table[ids[:, None], ids[None]] = soft


class Trainer:
    def __init__(self, model: Nano, targets: Targets, image_id: int, before: "Trainer | None" = None) -> None:
        """`before`: of a model that teaches this one all but the scores of photos, so that it learns those without
        forgetting the rest (Li and Hoiem 2016)."""
        self.model, self.targets, self.image_id, self.before = model, targets, image_id, before

    def tokens(self, examples: list[Example]) -> Tensor:
        """(sum of tokens, hidden) image tokens of all views, in order, as they enter the decoder."""
        readings, views = [], []
        with torch.no_grad():
            for shown, kept in ((s, k) for e in examples for s, k in zip(e.views, e.kept, strict=True)):
                numbers = (shown.score, shown.toll, shown.attributes, shown.places)
                reading, view = described(unpacked(torch.from_numpy(shown.seen.astype(np.float32)), *numbers))
                reading = reading[torch.from_numpy(kept)]
                readings.append(reading)
                views.append(view.expand(reading.shape[0], -1))
        tokens: Tensor = self.model.model.visual.projector(torch.cat(readings), torch.cat(views))
        return tokens

    def hidden(self, examples: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, length, hidden) after the last layer; ids and weights (batch, length), right-padded."""
        # Rounded up, because every new shape costs a CPU time to prepare its kernels.
        length = -(-max(len(e.tokens) for e in examples) // LENGTH_STEP) * LENGTH_STEP
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
        return hidden.last_hidden_state, ids, weights

    def scores(self, hidden: Tensor, examples: list[Example]) -> tuple[Tensor, Tensor]:
        """Expected scores and the true ones, (n,), wherever an exact score is known."""
        at = [(row, col - 1, value) for row, e in enumerate(examples) for col, value in e.exact_scores.items()]
        logits = self.model.lm_head(hidden[[a[0] for a in at], [a[1] for a in at]]).float()
        expected = logits[:, self.targets.score_ids].softmax(-1) @ self.targets.score_values
        return expected, torch.tensor([a[2] for a in at])

    def wanted(self, examples: list[Example], ids: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """(n, vocabulary) how likely each token is to be taught at (`rows`, `cols`) of `ids`."""
        wanted = self.targets.table[ids[rows, cols]]
        at = {place: i for i, place in enumerate(zip(rows.tolist(), cols.tolist(), strict=True))}
        for row, example in enumerate(examples):
            for col, (other, chance) in example.doubts.items():
                i = at[row, col]
                wanted[i] = (1 - chance) * wanted[i] + chance * self.targets.table[other]
        return wanted

    @torch.no_grad()
    def unless_scored(self, examples: list[Example], rows: Tensor, cols: Tensor, wanted: Tensor) -> Tensor:
        """(n, vocabulary): `wanted` of the tokens (`rows`, `cols`) that are scores of photos; of the others, how likely
        this model thinks each."""
        with torch.autocast("cpu", torch.bfloat16):
            hidden, _, _ = self.hidden([example.before or example for example in examples])
            said = self.model.lm_head(hidden[rows, cols - 1]).float().softmax(-1)
        scored = torch.zeros(hidden.shape[:2], dtype=torch.bool)
        for row, example in enumerate(examples):
            scored[row, list(example.exact_scores)] = True
        return torch.where(scored[rows, cols][:, None], wanted, said)

    def misread(self, drills: list[Example]) -> NDArray[np.float32]:
        """(calls, 2) mean error, in hundredths of the view, of the coordinates of each call and each finding, which
        follow each other in a drill: how well the decoder says what perception proposes."""
        with torch.autocast("cpu", torch.bfloat16):
            hidden, ids, _ = self.hidden(drills)
        coordinates = self.targets.coordinate_ids
        said = torch.isin(ids, coordinates)
        rows, cols = torch.nonzero(said, as_tuple=True)
        guess = self.model.lm_head(hidden[rows, cols - 1])[:, coordinates].argmax(-1)
        truth = (ids[rows, cols][:, None] == coordinates).int().argmax(-1)
        error: NDArray[np.float32] = (guess - truth).abs().float().reshape(-1, 2, 4).mean(-1).numpy()
        return error

    def doubt_errors(self, examples: list[Example]) -> list[float]:
        """How far off, 0..1, the decoder is about what else might have been said, wherever that is known."""
        doubts = [(row, col - 1, *e.doubts[col], e.tokens[col]) for row, e in enumerate(examples) for col in e.doubts]
        if not doubts:
            return []
        rows, cols, others, chances, said = zip(*doubts, strict=True)
        with torch.autocast("cpu", torch.bfloat16):
            hidden, _, _ = self.hidden(examples)
            logits = self.model.lm_head(hidden[list(rows), list(cols)]).float()
        each = torch.arange(len(doubts))
        likely = torch.sigmoid(logits[each, list(others)] - logits[each, list(said)])
        errors: list[float] = (likely - torch.tensor(chances)).abs().tolist()
        return errors

    def loss(self, examples: list[Example]) -> tuple[Tensor, dict[str, float]]:
        with torch.autocast("cpu", torch.bfloat16):
            hidden, ids, weights = self.hidden(examples)
            rows, cols = torch.nonzero(weights, as_tuple=True)
            logits = self.model.lm_head(hidden[rows, cols - 1]).float()
            expected, truth = self.scores(hidden, examples)
        wanted = self.wanted(examples, ids, rows, cols)
        if self.before is not None:
            wanted = self.before.unless_scored(examples, rows, cols, wanted)
        picked = (wanted * F.log_softmax(logits, -1)).sum(1)
        loss = -(weights[rows, cols] * picked).sum() / weights.sum()
        error = ((expected - truth) ** 2).sum() / max(1, len(truth))  # a drill has no scores
        return loss + EXPECTED_WEIGHT * error, {"loss": float(loss.detach()), "mse": float(error.detach())}


def optimizers_of(model: Nano, rate: float, decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the decoder's layers, AdamW for everything else that is learned; at one rate."""
    inner = {id(p) for p in model.model.language_model.layers.parameters() if p.ndim == 2}
    weights = [p for p in model.parameters() if p.requires_grad]
    outer = [p for p in weights if id(p) not in inner]
    groups = [
        {"params": [p for p in outer if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in outer if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(
            [p for p in weights if id(p) in inner], lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98)),
    ]


Samples = dict[str, list[Item]]  # by their kind


def lessons(
    part: str,
    narrator: Narrator,
    train: Samples,
    rng: np.random.Generator,
    counts: dict[str, int],
    before: Samples | None = None,
) -> list[Example]:
    """A batch of conversations, short ones first; `counts`: of each kind; of a review, a share of them; `before`: the
    same samples as a teacher's eyes read them; `narrator` draws from `rng`."""
    kinds = [kind for kind in LOOKED if (kind in SHORT) == (part == "short") and train[kind]]
    tell = {"drill": lambda _, item: narrator.drill(item, least=True), "review": lambda _, item: narrator.drill(item)}
    examples = []
    for kind in kinds:
        for i in rng.integers(0, len(train[kind]), -(-counts[kind] // (REVIEW_PART if part == "review" else 1))):
            drawn = rng.bit_generator.state
            examples.append(tell.get(part, narrator.tell)(kind, train[kind][i]))
            if before is not None:
                rng.bit_generator.state = drawn  # the same conversation again
                examples[-1].before = tell.get(part, narrator.tell)(kind, before[kind][i])
    return sorted(examples, key=lambda e: len(e.tokens))


def stressed(items: list[Item]) -> list[Item]:
    """Samples of one kind, with those that are bad all over, and their twins, SPOILT_TIMES over: as rare as they are
    rendered, the decoder learns that a large view is good."""
    every = zip(items, spoilt([item.sample for item in items]), strict=True)
    return [item for item, all_over in every for _ in range(SPOILT_TIMES if all_over else 1)]


def samples_of(looked: Path, channels: int, split: str) -> Samples:
    return {kind: of_split(items_of(looked, kind, channels, np.float16), split) for kind in LOOKED}


def lessons_in(looked: Path, channels: int) -> Samples:
    """What there is to learn from. Raises RunError where no sample is a rated one."""
    train = samples_of(looked, channels, "train")
    if not train["rated"]:
        raise RunError(f"{looked}: holds no rated sample to learn from; make them (look.py)")
    return train | {kind: stressed(train[kind]) for kind in ("local", "aimed")}


def names_of(items: list[Item]) -> list[tuple[str, int]]:
    """What tells whether samples are the same: their photos, and how many views there are of each."""
    return [(item.sample["name"], len(item.sample["views"])) for item in items]


def ema_update(average: dict[str, Tensor], model: Nano, decay: float) -> None:
    for name, value in model.state_dict().items():
        if name in average and value.is_floating_point():
            average[name].lerp_(value, 1 - decay)


@torch.inference_mode()
def evaluate(trainer: Trainer, narrator: Narrator, dev: dict[str, list[Item]]) -> dict[str, float]:
    """On the dev split: rank correlation of rated photos' scores at one look; of conversations over large photos the
    loss, how far off its doubts are, and how well it reads coordinates."""
    trainer.model.eval()
    truth, guess = [], []
    for start in range(0, len(dev["rated"]), 32):
        some = dev["rated"][start : start + 32]
        examples = [narrator.rated(item, False) for item in some]
        with torch.autocast("cpu", torch.bfloat16):
            hidden, _, _ = trainer.hidden(examples)
            expected, _ = trainer.scores(hidden, examples)
        guess += expected.tolist()
        truth += [item.sample["score"] for item in some]
    losses, errors, doubts = [], [], []
    large = dev["aimed"] or dev["local"]
    for start in range(0, len(large), 12):
        some = large[start : start + 12]
        told = [narrator.local(item) for item in some]
        _, parts = trainer.loss(told)
        losses.append((parts["loss"], parts["mse"]))
        doubts += trainer.doubt_errors(told)
        errors.append(trainer.misread([narrator.drill(item) for item in some]))
    local = np.mean(losses, 0) if losses else (math.nan, math.nan)
    misread = np.concatenate(errors).mean(0) if errors else (math.nan, math.nan)
    trainer.model.train()
    return {
        "dev_srcc": float(spearmanr(truth, guess)[0]),
        "dev_plcc": float(pearsonr(truth, guess)[0]),
        "dev_local_loss": float(local[0]),
        "dev_local_mse": float(local[1]),
        "dev_doubt_error": float(np.mean(doubts)) if doubts else math.nan,
        "dev_call_misread": float(misread[0]),
        "dev_finding_misread": float(misread[1]),
    }


@dataclass(frozen=True, slots=True)
class Config:
    """`looked`: of look.py; `eyes`, `encoder`: the checkpoints it was made with (`encoder` may be a bundle); `start`: a
    checkpoint of stage 1 to go on from, or a bundle, of which only what comes after the eyes is taken; `batch`:
    conversations of a step, by kind of sample; `context`: see narrator.Narrator, and `waver`: whether views do;
    `scores_alone`: for the rest, `start` is the teacher; `before`: the looks at the same samples that it reads, if it
    had other eyes."""

    looked: Path
    eyes: Path
    out: Path
    encoder: Path | None = None
    start: Path | None = None
    steps: int = 650
    drill_steps: int = 300
    rate: float = 1.5e-3
    decay: float = 0.1
    every: int = 50
    patience: int = 0
    batch: dict[str, int] = field(
        default_factory=lambda: {"rated": 24, "patched": 4, "whole": 4, "local": 4, "aimed": 12}
    )
    context: bool = True
    waver: bool = False
    scores_alone: bool = False
    before: Path | None = None
    seed: int = 0
    threads: int = 2

    def __post_init__(self) -> None:
        if unknown := set(self.batch) - set(LOOKED):
            raise ValueError(f"batch: there is no kind of sample {sorted(unknown)[0]!r}; they are {', '.join(LOOKED)}")
        if not 0 <= self.drill_steps <= self.steps:
            raise ValueError("drill_steps must be 0 to steps")
        if self.scores_alone and self.start is None:
            raise ValueError("scores_alone: needs a start, which knows the rest")
        if self.before is not None and not self.scores_alone:
            raise ValueError("before: is what the teacher of scores_alone reads")


def fresh(tokenizer: Any, encoder: Path | None, eyes: Perception, domain: Domain) -> Nano:
    """A nano whose vision side is taught and whose decoder is not."""
    model = Nano(config(tokenizer, domain=domain))
    visual = model.model.visual
    visual.encoder.load_state_dict(CellEncoder.tuned(encoder).state_dict())
    visual.glance.load_state_dict(Glance.pretrained().state_dict())
    visual.perception.load_state_dict(eyes.state_dict())
    for part in (visual.encoder, visual.glance, visual.perception):
        part.requires_grad_(False)
    write_numbers(model, tokenizer)
    return model


def take_over(model: Nano, shipped: Shipped, tokenizer: Any) -> None:
    """Gives a fresh model the decoder of a bundle and its projector, all but the slots (visual.described) that came
    after it. Raises RunError where they do not fit."""
    old = Tokenizer.from_file(str(shipped.bundle.path("tokenizer"))).get_vocab()
    if old != tokenizer.get_vocab():
        raise RunError(f"{shipped.bundle.directory}: its words are not this domain's; start from a checkpoint, or none")
    held, decoder = shipped.bundle.contract.decoder, model.config.text_config
    if (held.hidden, held.layers) != (decoder.hidden_size, decoder.num_hidden_layers):
        raise RunError(f"{shipped.bundle.directory}: its decoder is of another size; start from a checkpoint, or none")
    projector, state = model.model.visual.projector, shipped.projector()
    reading, view = (state[f"{name}.weight"] for name in ("from_reading", "from_view"))
    attributes = model.config.attributes
    own = reading_size(model.config.defect_kinds, attributes) - NUMBER_BINS - slots_of(attributes)
    slots = reading.shape[1] - own - NUMBER_BINS  # the first ones of today's
    with torch.no_grad():
        more, wider = projector.from_reading.weight.clone(), projector.from_view.weight.clone()
        more[:, : own + slots], more[:, -NUMBER_BINS:] = reading[:, : own + slots], reading[:, -NUMBER_BINS:]
        told = slots * NUMBER_BINS
        wider[:, :told], wider[:, told - view.shape[1] :] = view[:, :told], view[:, told:]
    projector.load_state_dict({**state, "from_reading.weight": more, "from_view.weight": wider})
    model.model.language_model.load_state_dict(shipped.text())


def start_of(path: Path) -> tuple[Nano, Any, Domain]:
    """The model of a checkpoint, its tokenizer and its domain. Raises RunError."""
    checkpoint = checkpoint_of(path, "model")
    domain = Domain.of(checkpoint)
    tokenizer = words.build(domain)
    model = Nano(config(tokenizer, domain=domain))
    model.load_state_dict(checkpoint["model"])
    return model, tokenizer, domain


def teach(settings: Config) -> None:
    """Writes OUT/stepN.pt at every evaluation, and OUT/best.pt where rated photos rank best."""
    torch.set_num_threads(settings.threads)
    rng = seeded(settings.seed)
    eyes, domain = eyes_of(settings.eyes)
    tokenizer = words.build(domain)
    channels = seen_channels(len(domain.kinds))
    train, dev = lessons_in(settings.looked, channels), samples_of(settings.looked, channels, "dev")
    known = lessons_in(settings.before, channels) if settings.before else None
    if known and {k: names_of(v) for k, v in known.items()} != {k: names_of(v) for k, v in train.items()}:
        raise RunError(f"{settings.before}: are not looks at the samples of {settings.looked}")
    model = fresh(tokenizer, settings.encoder, eyes, domain)
    if settings.start is not None and settings.start.is_dir():
        take_over(model, Shipped(settings.start), tokenizer)
    elif settings.start is not None:
        model.load_state_dict(checkpoint_of(settings.start, "model")["model"])
    speller = Speller(tokenizer, domain=domain)
    slope = float(eyes.toll.slope) if settings.waver else None
    narrator = Narrator(Speller(tokenizer, rng, domain), rng, settings.context, slope)
    targets = Targets(tokenizer)
    before = None
    if settings.scores_alone:
        before = Trainer(copy.deepcopy(model).requires_grad_(False), targets, speller.image_id)
    trainer = Trainer(model, targets, speller.image_id, before)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizers = optimizers_of(model, settings.rate, settings.decay)
    learned = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    average = {k: v.clone() for k, v in model.state_dict().items() if k in learned}
    best, stale = -math.inf, 0
    run = Run(settings.out, dataclasses.asdict(settings), settings.steps)
    if state := run.resumed():
        model.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        average, best, stale = state["average"], state["best"], state["stale"]
        rng.bit_generator.state = state["rng"]
    print(f"{sum(p.numel() for p in weights) / 1e6:.2f} M weights are taught", flush=True)
    model.train()
    for step in run:
        for optimizer in optimizers:
            schedule(optimizer, settings.rate, step, settings.steps, WARM_STEPS)
        # Micro-batches of like length, so that short conversations are not padded to the length of long ones.
        for part in ("drill",) if step < settings.drill_steps else ("short", "long", "review"):
            examples = lessons(part, narrator, train, rng, settings.batch, known)
            for chunk in range(CHUNKS):
                some = examples[len(examples) * chunk // CHUNKS : len(examples) * (chunk + 1) // CHUNKS]
                if not some:
                    continue
                loss, parts = trainer.loss(some)
                run.note(**{f"{part}_{name}": value for name, value in parts.items()})
                (loss * len(some) / len(examples)).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        ema_update(average, model, min(EMA_DECAY, (step + 1) / (step + 20)))
        if (step + 1) % settings.every == 0 or step + 1 == settings.steps:
            live = {k: v.clone() for k, v in model.state_dict().items()}
            model.load_state_dict(average, strict=False)
            result = evaluate(trainer, Narrator(speller, np.random.default_rng(7)), dev)
            run.log(**result)
            kept = {
                "model": model.state_dict(),
                "domain": dataclasses.asdict(domain),
                "step": step + 1,
                "result": result,
            }
            save(settings.out / f"step{step + 1}.pt", kept)
            if step >= settings.drill_steps:
                stale = 0 if result["dev_srcc"] > best else stale + 1
                if result["dev_srcc"] > best:
                    best = result["dev_srcc"]
                    save(settings.out / "best.pt", kept)
            model.load_state_dict(live)
        if run.due:
            run.keep(
                {
                    "model": model.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "average": average,
                    "best": best,
                    "stale": stale,
                    "rng": rng.bit_generator.state,
                }
            )
        if settings.patience and stale >= settings.patience:
            print(f"step {step + 1}: no better for {settings.patience} evaluations; stopped", flush=True)
            break
