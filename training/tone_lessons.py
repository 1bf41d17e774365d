"""Stage 0, tone: what lessons of light and colour teach the eyes. Run by train.py, table [tone], before the eyes.

A lesson is a part of a clean or a well rated photo, at screen size, broken all over by none, one or two degradations,
drawn as for `whole` samples (render.py): its statistics (tone.py), and the attributes that the degradations leave. No
convolution sees it, so that thousands are made in minutes. Writes OUT/lessons-WORKER.pt, which are not made again, then
OUT/tone.pt, which [eyes] takes, and how attributes of unseen photos rank to OUT/metrics.json.
"""

import dataclasses
import json
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from defects import PHOTOS, Domain
from encode import normalised
from nano_spec import GLOBAL_VIEW
from photos import Split, pristine_photos, rated_photos
from pixels import Pixels
from render import GOOD_SCORE, at_screen_size, attributes_of, broken_all_over, drawn, load, overall
from runs import RunError, checkpoint_of, descend, echo, save, seeded
from scipy.stats import spearmanr
from summaries import shuffled
from tone import Tone, ToneStatistics
from torch import Tensor

from qcheck.tiles import view_of

SHARE: Final = 0.5  # of what tone says, where it was taught
OF_RATED: Final = 0.5  # of the lessons: contents are few among clean photos
DEV_SHARE: Final = 0.1  # as many lessons of development photos, to measure by
LARGEST_PX: Final = 2600  # long side of clean photos, which are kept in memory
BATCH: Final = 256
DECAY: Final = 0.02
LEAST_SPREAD: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Config:
    """`photos`, `rated` and `extra`: as of render.py; `attributes`: those that tone shall tell, of the domain's."""

    photos: Path
    out: Path
    rated: Path | None = None
    extra: Path | None = None
    attributes: tuple[str, ...] = ("color", "exposure")
    lessons: int = 9000
    epochs: int = 40
    rate: float = 2e-3
    workers: int = 2
    seed: int = 0
    threads: int = 2

    def __post_init__(self) -> None:
        if self.lessons < BATCH or self.epochs < 1 or self.workers < 1:
            raise ValueError(f"lessons must be {BATCH} or more, epochs and workers 1 or more")
        if unknown := set(self.attributes) - set(PHOTOS.attributes):
            raise ValueError(
                f"attributes: {sorted(unknown)[0]!r} is none that degradations spoil; they are "
                f"{', '.join(PHOTOS.attributes)}"
            )


@dataclass(frozen=True, slots=True)
class Lessons:
    """`statistics`: (n, tone.CHANNELS); `truth`: (n, attributes of PHOTOS)."""

    statistics: Tensor
    truth: Tensor


class Photos:
    """The clean photos of a split and the names of its well rated ones. Raises RunError where there are none."""

    def __init__(self, config: Config, split: Split) -> None:
        extra = config.extra if split == "train" else None
        self.clean = [small(load(s.path)) for s in pristine_photos(config.photos, extra) if s.split == split]
        rated = rated_photos(config.rated) if config.rated else []
        self.rated = [photo.path for photo in rated if photo.split == split and photo.score >= GOOD_SCORE]
        if not self.clean:
            raise RunError(f"{config.photos}: holds no clean photo of the {split} split; see training/README.md")

    def one(self, rng: np.random.Generator) -> Pixels:
        if self.rated and rng.random() < OF_RATED:
            return load(self.rated[int(rng.integers(len(self.rated)))])
        return self.clean[int(rng.integers(len(self.clean)))]


def small(pixels: Pixels) -> Pixels:
    """A photo with a long side of LARGEST_PX at most, by whole steps: its light is what counts."""
    step = -(-max(pixels.shape[:2]) // LARGEST_PX)
    return np.ascontiguousarray(pixels[::step, ::step])


@torch.inference_mode()
def made(photos: Photos, count: int, rng: np.random.Generator) -> Lessons:
    measure, statistics, truth = ToneStatistics().eval(), list[Tensor](), list[list[float]]()
    for _ in range(count):
        pixels, broken = at_screen_size(photos.one(rng), rng), list[tuple[str, int]]()
        for name, level, after in broken_all_over(pixels, rng):
            pixels = after
            broken.append((name, level))
        shown = drawn(np.ascontiguousarray(pixels), view_of(overall(pixels), GLOBAL_VIEW))
        statistics.append(measure(torch.from_numpy(normalised(shown)))[0])
        truth.append(list(attributes_of(broken).values()))
    return Lessons(torch.stack(statistics), torch.tensor(truth))


def work(config: Config, worker: int) -> None:
    """A worker's lessons, or those of development photos (the last worker)."""
    path, split = file_of(config, worker), "dev" if worker == config.workers else "train"
    if path.exists():
        return
    torch.set_num_threads(1)
    count = round(config.lessons * DEV_SHARE) if split == "dev" else -(-config.lessons // config.workers)
    lessons = made(Photos(config, split), count, np.random.default_rng((config.seed, worker)))
    save(path, dataclasses.asdict(lessons))


def file_of(config: Config, worker: int) -> Path:
    return config.out / f"lessons-{'dev' if worker == config.workers else worker}.pt"


def read(paths: Sequence[Path]) -> Lessons:
    found = [torch.load(path, weights_only=True) for path in paths]
    return Lessons(*(torch.cat([each[name] for each in found]) for name in ("statistics", "truth")))


def learn(tone: Tone, lessons: Lessons, known: Sequence[int], taught: Sequence[int], config: Config) -> None:
    """`known`, `taught`: columns of the lessons' truth, and the attributes of `tone` that they are."""
    statistics, truth = lessons.statistics, lessons.truth[:, known]
    tone.mean.copy_(statistics.mean(0))
    tone.std.copy_(statistics.std(0) + LEAST_SPREAD)
    tone.middle[taught] = truth.mean(0)
    tone.share[taught] = SHARE
    batches = shuffled(len(truth), BATCH)

    def loss_of() -> Tensor:
        some, loss = next(batches), torch.zeros(())
        for vote in tone.votes(statistics[some]):
            loss = loss + ((vote[:, taught] - truth[some]) ** 2).mean()
        return loss

    descend(tone.networks, "tone", config.epochs * (len(truth) // BATCH), config.rate, DECAY, loss_of)
    tone.eval()


@torch.inference_mode()
def ranked(tone: Tone, lessons: Lessons, known: Sequence[int], taught: Sequence[int]) -> dict[str, float]:
    """How what it says by itself of each attribute it was taught ranks with the truth."""
    said = torch.stack(tone.votes(lessons.statistics)).mean(0)
    return {
        f"dev_{PHOTOS.attributes[column]}_srcc": float(spearmanr(said[:, at], lessons.truth[:, column])[0])
        for column, at in zip(known, taught, strict=True)
    }


def teach(config: Config, domain: Domain = PHOTOS) -> None:
    """Writes OUT/tone.pt. Raises RunError."""
    if missing := set(config.attributes) - set(domain.attributes):
        raise RunError(f"attributes: the domain has no {sorted(missing)[0]!r}; it has {', '.join(domain.attributes)}")
    torch.set_num_threads(config.threads)
    echo(config.out, {**dataclasses.asdict(config), "domain": dataclasses.asdict(domain)})
    started, workers = time.monotonic(), range(config.workers + 1)
    with multiprocessing.get_context("spawn").Pool(config.workers) as pool:
        pool.starmap(work, [(config, worker) for worker in workers], chunksize=1)
    train, dev = read([file_of(config, worker) for worker in workers[:-1]]), read([file_of(config, workers[-1])])
    print(f"{len(train.truth)} lessons, {time.monotonic() - started:.0f} s", flush=True)
    seeded(config.seed)
    known = [PHOTOS.attributes.index(name) for name in config.attributes]
    taught = [domain.attributes.index(name) for name in config.attributes]
    tone = Tone(len(domain.attributes))
    learn(tone, train, known, taught, config)
    save(config.out / "tone.pt", {"tone": tone.state_dict(), "domain": dataclasses.asdict(domain)})
    result = ranked(tone, dev, known, taught)
    (config.out / "metrics.json").write_text(json.dumps(result) + "\n")
    print(json.dumps(result))


def tone_of(path: Path, domain: Domain) -> dict[str, Tensor]:
    """The weights of a taught Tone. Raises RunError where it was taught for another domain."""
    checkpoint = checkpoint_of(path, "tone")
    if Domain.of(checkpoint).attributes != domain.attributes:
        raise RunError(f"{path}: was taught other attributes than the domain's; teach it with this domain")
    state: dict[str, Tensor] = checkpoint["tone"]
    return state
