"""Stage 0, second part: nano's eyes, before it speaks. Run by train.py.

Six lessons, none through the decoder. `Damage` learns from single tokens what is wrong with each; minutes of it
suffice, and more of it learns the few clean sources by heart. `Quality` learns the score of whole views, and another
their attributes. `Context` then learns to compare neighbours (fields.py), `Regions` to judge rectangles as a whole
(candidates.py), and `Toll` what the damages of a view cost (readings.py), each from readings of eyes that never saw the
photo. All are written to RUN/eyes.pt; figures on the dev split go to RUN/metrics.json.

For every fold of source photos there is also RUN/eyes-without-FOLD.pt, which never saw that fold: look.py reads
training photos with those, so that the decoder learns how far to trust eyes on photos new to them.
"""

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import torch
from candidates import learn_regions, rectangles_of
from cells import CELL_CHANNELS, VIEW_CHANNELS, size_of
from defects import PHOTOS, Domain
from degradations import BANK
from fields import Fields, fields_of, learn_context
from look import perception_of
from nano_spec import CELLS_PER_SIDE
from numpy.typing import NDArray
from overviews import whole_of
from readings import learn_toll, readings_of
from recover import eyes_of_bundle
from regions import overlap_of
from runs import RunError, descend, echo, save, seeded
from samples import FOLDS, eyes_file, is_twin, spoilt, token_truth, tokens_of
from scipy.stats import spearmanr
from shipped import Shipped
from sklearn.metrics import roc_auc_score
from stores import Item, folds, items_of, of_split
from summaries import SCORED, UNSEEN, Summaries, agreement, learn_quality, scored, viewed
from tone_lessons import tone_of
from torch import Tensor
from torch.nn import functional as F
from visual import Damage, Perception, Quality, TokenInputs, perceived, surroundings

from qcheck.bundle import BundleError
from qcheck.tiles import Box

LESSONS: Final = ("local", "aimed", "patched", "whole")  # kinds of sample whose damages are known
DAMAGED_TOKENS: Final = 24  # at most, of one view
CLEAN_TOKENS: Final = {"global": 24}  # the same; views that are not global: half of it
COMPARED: Final = ("local", "aimed", "patched")  # those with a damage among what is sound
TOKEN_BATCH: Final = 4096
LEVEL_WEIGHT: Final = 1.5
SEVERITY_WEIGHT: Final = 2.0
DAMAGE_DECAY: Final = 0.1
FOUND_IOU: Final = 0.2
CONTEXT_RATE: Final = 2.0  # times the rate of the others

Read = TypeVar("Read")

Checkpoint = dict[str, Any]


class Tokens:
    """Single tokens of many views. `tokens`: (n, CELL_CHANNELS), `around`: what lies around each, the same; `views`:
    (n,) their view's row in `means`, `spreads`, `counts`; `kinds`, `levels`, `severities`: (n,) as of
    samples.token_truth.
    """

    def __init__(
        self, items: dict[str, list[Item]], rng: np.random.Generator, names: tuple[str, ...] = PHOTOS.kinds
    ) -> None:
        self.names = names
        parts: list[list[NDArray[Any]]] = [[] for _ in range(9)]
        count = 0
        for kind in LESSONS:
            for before, item in itertools.pairwise((None, *items[kind])):
                assert item is not None
                for index in range(len(item.sample["views"])):
                    of = before if is_twin(item.sample) else None
                    for part, values in zip(parts, self.of_view(item, index, count, rng, of), strict=True):
                        part.append(values)
                    count += 1
        joined = [torch.from_numpy(np.concatenate(part)) for part in parts]
        self.tokens, self.around, self.means, self.spreads, self.counts = joined[:5]
        self.views, self.kinds, self.levels, self.severities = joined[5:]

    def inputs(self, picked: Tensor, damage: Damage) -> TokenInputs:
        views, tokens, around = self.views[picked], self.tokens[picked].float(), self.around[picked].float()
        return damage.normalised(tokens, around, self.means[views], self.spreads[views], size_of(self.counts[views]))

    def of_view(
        self, item: Item, index: int, number: int, rng: np.random.Generator, of: Item | None = None
    ) -> Iterator[NDArray[Any]]:
        """`of`: the broken sample whose twin this is: the same tokens are taken."""
        cells, view = item.read(index).astype(np.float32), item.sample["views"][index]
        rows, cols = tokens_of(cells)
        truth = token_truth(rows, cols, Box(*view["box"]), item.sample, self.names)
        clean, damaged = np.flatnonzero(truth.kinds == 0), np.flatnonzero(truth.kinds > 0)
        most = CLEAN_TOKENS.get(view["role"], CLEAN_TOKENS["global"] // 2)
        if of is not None:
            broken = token_truth(rows, cols, Box(*view["box"]), of.sample, self.names).kinds > 0
            clean, most = np.flatnonzero(broken), DAMAGED_TOKENS
        picked = np.concatenate((rng.permutation(clean)[:most], rng.permutation(damaged)[:DAMAGED_TOKENS]))
        tokens = cells.reshape(rows, CELLS_PER_SIDE, cols, CELLS_PER_SIDE, CELL_CHANNELS).mean((1, 3))
        around = surroundings(torch.from_numpy(tokens)[None])[0].numpy()
        for each in (tokens, around):
            yield each.reshape(rows * cols, CELL_CHANNELS)[picked].astype(np.float16)
        yield cells.mean((0, 1))[None]
        yield cells.std((0, 1))[None]
        yield np.full((1, 1), rows * cols, np.float32)
        yield np.full(len(picked), number)
        yield truth.kinds[picked]
        yield truth.levels[picked]
        yield truth.severities[picked]


def learn_damage(damage: Damage, train: Tokens, steps: int, rate: float, survey: bool = True) -> None:
    """Each network learns alone, so that none leans on another. Without `survey` they are blind to it."""
    everything = train.tokens[:: max(1, len(train.tokens) // 100_000)].float()
    damage.std.copy_(everything.std(0) + 1e-3)
    if not survey:
        damage.std[VIEW_CHANNELS:] = UNSEEN

    def loss_of() -> Tensor:
        picked = torch.randint(0, len(train.tokens), (TOKEN_BATCH,))
        kinds, levels, severities = train.kinds[picked], train.levels[picked], train.severities[picked]
        broken, inputs = kinds > 0, train.inputs(picked, damage)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = damage.read(inputs)
        loss = torch.zeros(())
        for output in outputs:
            kind, level, severity = damage.apart(output.float())
            level = level[torch.arange(len(kinds)), (kinds - 1).clamp(min=0)]  # of the true kind; clean ones have none
            loss = loss + F.cross_entropy(kind, kinds) + LEVEL_WEIGHT * F.cross_entropy(level, levels)
            cost = F.binary_cross_entropy_with_logits(severity[broken, 0], severities[broken])
            loss = loss + SEVERITY_WEIGHT * cost
        return loss

    descend(damage, "damage", steps, rate, DAMAGE_DECAY, loss_of)


def placed_of(items: list[Item]) -> list[Item]:
    """The samples that are not bad all over."""
    return [item for item, all_over in zip(items, spoilt([i.sample for i in items]), strict=True) if not all_over]


@torch.inference_mode()
def said_of(quality: Quality, items: list[Item], read: Callable[[Item, int], Tensor]) -> list[list[float]]:
    """What is said of each sample, output by output, by what `read` gives of its first view."""
    quality.eval()
    return [quality(read(item, 0)[None])[0].tolist() for item in items]


def told_apart(attributes: Quality, items: list[Item], names: Sequence[str]) -> dict[str, float]:
    """How each attribute of photos broken all over ranks with the true one."""
    guess = said_of(attributes, items, viewed)
    truth = [[item.sample["attributes"][name] for name in names] for item in items]
    columns = zip(names, zip(*guess, strict=True), zip(*truth, strict=True), strict=True) if items else ()
    return {f"dev_{name}_srcc": float(spearmanr(said, true)[0]) for name, said, true in columns}


@torch.inference_mode()
def evaluate(eyes: Perception, items: list[Item], names: tuple[str, ...] = PHOTOS.kinds) -> dict[str, float]:
    """Of big dev photos: are damaged tokens and views told from clean ones, and do proposals lie on damages?"""
    tokens: dict[str, list[tuple[NDArray[np.bool_], NDArray[np.float32]]]] = {"global": [], "crop": []}
    views: dict[str, list[tuple[bool, float]]] = {"global": [], "crop": []}
    overlaps: dict[str, list[list[float]]] = {"global": [], "crop": []}
    for item in items:
        for index, view in enumerate(item.sample["views"]):
            cells = item.read(index).astype(np.float32)
            truth = token_truth(*tokens_of(cells), Box(*view["box"]), item.sample, names)
            if truth.edge_alone:
                continue
            damaged = bool((truth.kinds > 0).any())
            evidence = perceived(eyes, [torch.from_numpy(cells)], [whole_of(item, index)])[0]
            found, place = evidence.proposals, "crop" if index else "global"
            known = truth.kinds >= 0
            tokens[place].append((truth.kinds[known] > 0, evidence.log_odds().flatten().numpy()[known]))
            views[place].append((damaged, float(found.strengths[0])))
            if damaged and (index == 0 or view["role"].startswith("truth")):
                boxes = torch.from_numpy(np.unique(truth.boxes[truth.kinds > 0], axis=0))
                overlaps[place].append([max(float(overlap_of(box, one)) for one in boxes) for box in found.boxes])
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


def shows(item: Item, names: Sequence[str]) -> bool:
    """Whether a sample is broken by one of these degradations."""
    return any(defect.get("name") in names for defect in item.sample.get("defects", ()))


def without_any(items: list[Item], names: Sequence[str]) -> list[Item]:
    """The samples that are broken by none of these degradations; where one is left out, so is its twin."""
    pairs = itertools.pairwise((None, *items))
    return [
        item for before, item in pairs if item and not shows(before if before and is_twin(item.sample) else item, names)
    ]


@dataclass(frozen=True, slots=True)
class Config:
    """`cells`: of encode.py. Without `folds`, only the eyes that saw all, and no context, no regions and no toll, which
    learn from eyes that did not: enough to aim with. Without `survey`, eyes that see the view alone, to measure what
    the survey is worth; `without`: degradations (degradations.BANK) that they never see, to measure how they do on
    kinds of damage that nobody thought of. `start`: a bundle whose eyes are begun at, without folds, since they saw
    all photos; what is taught for 0 steps or epochs stays as it is there. `tone`: tone.pt of tone_lessons.py, the same
    for all folds."""

    cells: Path
    out: Path
    damage_steps: int = 600
    quality_epochs: int = 15
    attribute_epochs: int = 60
    context_steps: int = 600
    regions_steps: int = 1500
    rate: float = 1e-3
    folds: bool = True
    survey: bool = True
    without: tuple[str, ...] = ()
    start: Path | None = None
    tone: Path | None = None
    seed: int = 0
    threads: int = 2

    def __post_init__(self) -> None:
        if self.start is not None and self.folds:
            raise ValueError("start: the eyes of a bundle saw every fold; say folds = false")


def teach(config: Config, domain: Domain = PHOTOS) -> None:
    """Eyes that are there already are not taught again: a stopped run goes on at the fold it was in, each of which
    takes less than a few minutes."""
    torch.set_num_threads(config.threads)
    samples = {kind: items_of(config.cells, kind, CELL_CHANNELS, np.float16) for kind in {*LESSONS, *SCORED}}
    train, dev = ({kind: of_split(s, split) for kind, s in samples.items()} for split in ("train", "dev"))
    if unknown := set(config.without) - set(BANK):
        raise RunError(f"without: there is no degradation {sorted(unknown)[0]!r}; see training/degradations.py")
    train = {kind: without_any(items, config.without) for kind, items in train.items()}
    if not train["rated"] or not train["local"]:
        raise RunError(f"{config.cells}: holds no rated or no local samples to learn from; make them (encode.py)")
    if config.folds and len(folds(samples["local"])) < 2:
        raise RunError(
            f"{config.cells}: one worker made it, so no fold can be left out; make it with two, or folds = false"
        )
    started = time.monotonic()
    left_out = (*(folds(samples["local"]) if config.folds else ()), None)
    todo = [fold for fold in left_out if not eyes_file(config.out, fold).exists()]
    known = {**dataclasses.asdict(config), "domain": dataclasses.asdict(domain)}
    echo(config.out, known)
    if config.folds:
        fold_of = {item.sample["name"]: item.sample["fold"] for items in train.values() for item in items}
        (config.out / FOLDS).write_text(json.dumps(fold_of, indent=0, sort_keys=True) + "\n")
    summaries = Summaries.of_scores(train) if config.quality_epochs and todo else None
    broken = Summaries.of_attributes(train, domain.attributes) if config.attribute_epochs and todo else None
    # What is bad all over has no place: of a large view that is noise, a clean one is no lesson in finding it.
    placed = train | {kind: placed_of(train[kind]) for kind in ("local", "aimed")}
    for fold in todo:
        seeded(config.seed)
        eyes = first_eyes(config, domain)
        if config.damage_steps:
            seen = {kind: [item for item in placed[kind] if item.sample["fold"] != fold] for kind in LESSONS}
            tokens = Tokens(seen, np.random.default_rng(config.seed), domain.kinds)
            spent = f"{time.monotonic() - started:.0f} s"
            print(f"without fold {fold}: {len(tokens.tokens)} tokens of {len(tokens.means)} views, {spent}", flush=True)
            learn_damage(eyes.damage, tokens, config.damage_steps, config.rate, config.survey)
            del tokens
        if summaries:
            learn_quality(eyes.quality, summaries.without(fold), config.rate, config.quality_epochs, config.survey)
        if broken:
            learn_quality(eyes.attributes, broken.without(fold), config.rate, config.attribute_epochs, config.survey)
        kept = {"domain": dataclasses.asdict(domain), "without": list(config.without)}
        save(eyes_file(config.out, fold), {"eyes": eyes.state_dict(), **kept})
    compared = {kind: placed[kind] for kind in COMPARED}
    add(
        "context",
        config.context_steps,
        config,
        compared,
        domain,
        lambda eyes, items: fields_of(eyes, items, domain.kinds),
        lambda eyes, fields, rng: learn_context(
            eyes.context, Fields(fields), config.context_steps, CONTEXT_RATE * config.rate, rng
        ),
    )
    add(
        "regions",
        config.regions_steps,
        config,
        compared,
        domain,
        lambda eyes, items: rectangles_of(eyes, items, domain.kinds),
        lambda eyes, found, rng: learn_regions(eyes.regions, found, config.regions_steps, config.rate, rng),
    )
    add(
        "toll",
        config.regions_steps,  # without which no place is stronger than another
        config,
        compared,
        domain,
        lambda eyes, items: [readings_of(eyes, items)],
        lambda eyes, readings, _: learn_toll(eyes.toll, readings),
    )
    eyes = perception_of(torch.load(eyes_file(config.out, None), weights_only=True), domain)
    result = evaluate(eyes.eval(), dev["aimed"] or dev["local"], domain.kinds) | agreement(
        [said for (said,) in said_of(eyes.quality, dev["rated"], scored)], dev["rated"]
    )
    result |= told_apart(eyes.attributes, dev["whole"], domain.attributes)
    (config.out / "metrics.json").write_text(json.dumps(result) + "\n")
    print(json.dumps(result))


def first_eyes(config: Config, domain: Domain) -> Perception:
    """Raises RunError."""
    try:
        eyes = (
            Perception(len(domain.kinds), len(domain.attributes))
            if config.start is None
            else eyes_of_bundle(Shipped(config.start), domain)
        )
    except BundleError as error:
        raise RunError(str(error)) from error
    if config.tone is not None:
        eyes.tone.load_state_dict(tone_of(config.tone, domain))
    return eyes


def add(
    name: str,
    steps: int,
    config: Config,
    train: dict[str, list[Item]],
    domain: Domain,
    read: Callable[[Perception, list[Item]], list[Read]],
    learn: Callable[[Perception, list[Read], np.random.Generator], None],
) -> None:
    """Teaches one more part of all eyes from what those before it make of photos they never saw, and writes them again,
    those that saw all last: who has it is done. `name`: of the part; without `steps` it is not taught."""
    if not config.folds or not steps:
        return
    kept = kept_of(config, train)
    if all(name in checkpoint for checkpoint in kept.values()):
        return
    found: dict[str, list[Read]] = {}
    for fold, parts in by_fold(train).items():
        eyes = perception_of(kept[fold], domain).eval()
        found[fold] = [one for part in parts for one in read(eyes, part)]
        print(f"fold {fold}: read for its {name}", flush=True)
    for fold, checkpoint in kept.items():
        rng = seeded(config.seed)
        eyes = perception_of(checkpoint, domain)
        learn(eyes, [one for other, part in found.items() if other != fold for one in part], rng)
        save(eyes_file(config.out, fold), {**checkpoint, "eyes": eyes.state_dict(), name: steps})


def kept_of(config: Config, train: dict[str, list[Item]]) -> dict[str | None, Checkpoint]:
    """The checkpoints of all eyes, those that saw all last."""
    return {fold: torch.load(eyes_file(config.out, fold), weights_only=True) for fold in (*folds(train["local"]), None)}


def by_fold(train: dict[str, list[Item]]) -> dict[str, list[list[Item]]]:
    """The samples of each fold, kind by kind."""
    return {
        fold: [[item for item in items if item.sample["fold"] == fold] for items in train.values()]
        for fold in folds(train["local"])
    }
