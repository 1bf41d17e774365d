"""Trains nano, or a large model, stage by stage.

    python training/train.py STAGE --config FILE [--restart]

| stage | what it does | config |
|---|---|---|
| perceive | stage 0: the convolutions, then the eyes that read them (supervised) | configs/perceive-*.toml |
| sft | stage 2: conversations that look, find and judge (supervised) | configs/sft.toml |
| rank | stage 1: GRPO, photos ranked at one look | configs/rank.toml |
| refine | stage 3: GRPO with real crops, decoupled rewards | configs/refine.toml |

Configs are TOML; an unknown key is an error. A stopped run goes on when the same command is given again, from a state
that is less than a minute old, and ends as it would have. A config with the key `checkpoint` is one of a
Qwen2.5-VL-class model (sft, rank, refine; large/stages.py), whose states are TRL's.
"""

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpo
import look
import numpy as np
import perceive
import sft
import tone_lessons
import torch
import tune
from config import ConfigError, flat, read, table_of
from defects import PHOTOS, Domain
from narrator import Speller
from rollouts import RecordingEngine
from runs import Run, RunError, save, seeded
from sights import Sights
from tasks import tasks_of
from vista import SetError

from qcheck.errors import QcheckError

DECODER: Final = ("language_model", "projector")  # all that comes after the eyes


@dataclass(frozen=True, slots=True)
class PerceiveConfig:
    """Stage 0, in four parts: encode.py has to make cells before the eyes. `domain`: what to look for; the checkpoints
    carry it on to all later stages."""

    encoder: tune.Config | None = None
    tone: tone_lessons.Config | None = None
    eyes: perceive.Config | None = None
    looked: look.Config | None = None
    domain: Domain = PHOTOS

    def __post_init__(self) -> None:
        if self.encoder is None and self.tone is None and self.eyes is None and self.looked is None:
            raise ValueError("give [encoder], [tone], [eyes], [looked] or several of them")


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """Stages 1 and 3. `start`: a checkpoint of the stage before; `eyes`: the folder of perceive.py, so that training
    photos are read by eyes that never saw them, as in stage 2; `rated`: a folder with mos.csv and images/; `vista`: a
    set of vista.py, of which `small` takes the copies of 512 px; `dev_photos`: at most, of each, to choose by;
    `sights`: a folder that keeps what the eyes see, for other runs on the same photos."""

    out: Path
    start: Path
    policy: grpo.Settings
    rated: Path | None = None
    vista: Path | None = None
    eyes: Path | None = None
    sights: Path | None = None
    small: bool = True
    steps: int = 200
    every: int = 50
    patience: int = 0
    dev_photos: int = 80
    seed: int = 0
    threads: int = 2
    learned: tuple[str, ...] = DECODER

    def __post_init__(self) -> None:
        if self.rated is None and self.vista is None:
            raise ValueError("give rated, vista or both")
        if self.steps < 1 or self.every < 1:
            raise ValueError("steps and every must be 1 or more")
        if self.sights is not None and not set(self.learned) <= set(DECODER):
            raise ValueError(f"sights: kept only where nothing but {' and '.join(DECODER)} is learned")


def reinforce(config: PolicyConfig) -> None:
    """GRPO from a checkpoint; writes OUT/best.pt, which the next stage and export_nano.py take."""
    torch.set_num_threads(config.threads)
    rng = seeded(config.seed)
    model, tokenizer, domain = sft.start_of(config.start)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in config.learned))
    speller = Speller(tokenizer, domain=domain)
    trainer = sft.Trainer(model, sft.Targets(tokenizer), speller.image_id)
    eyes = look.FoldEyes(config.eyes) if config.eyes is not None else None
    engine = RecordingEngine(model, tokenizer, domain)
    engine.eyes.sights = Sights(config.sights) if config.sights is not None else None
    policy = grpo.Policy(trainer, engine, speller, eyes)
    train_tasks, dev_tasks = (
        tasks_of(config.rated, config.vista, config.small, split, domain) for split in ("train", "dev")
    )
    kept = [dev_tasks[i] for i in sorted({round(i) for i in np.linspace(0, len(dev_tasks) - 1, config.dev_photos)})]
    run = Run(config.out, flat(config), config.steps)

    def save_best(figures: dict[str, float]) -> None:
        known = {"domain": dataclasses.asdict(domain), "step": run.step + 1, "result": figures}
        save(config.out / "best.pt", {"model": model.state_dict(), **known})

    grpo.train(policy, run, config.policy, train_tasks, kept, rng, config.every, config.patience, save_best)


def perceive_all(config: PerceiveConfig) -> None:
    if config.encoder is not None:
        tune.tune(config.encoder, config.domain)
    if config.tone is not None:
        tone_lessons.teach(config.tone, config.domain)
    if config.eyes is not None:
        perceive.teach(config.eyes, config.domain)
    if config.looked is not None:
        look.look_at_all(config.looked)


STAGES: Final[dict[str, tuple[type[Any], Callable[[Any], None]]]] = {
    "perceive": (PerceiveConfig, perceive_all),
    "sft": (sft.Config, sft.teach),
    "rank": (PolicyConfig, reinforce),
    "refine": (PolicyConfig, reinforce),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument(
        "--restart", action="store_true", help="from the beginning; what is in the run's folder is lost"
    )
    args = parser.parse_args(arguments)
    try:
        kind, stage = large(args.stage) if names_a_checkpoint(args.config) else STAGES[args.stage]
        config = read(args.config, kind)
        if args.restart:
            for out in outs_of(config):
                shutil.rmtree(out, ignore_errors=True)
        stage(config)
    except (ConfigError, RunError, SetError, QcheckError, ValueError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"train.py: {error.filename or 'a file'}: {(error.strerror or str(error)).lower()}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def names_a_checkpoint(path: Path) -> bool:
    """Whether a config is one of a large model."""
    return "checkpoint" in table_of(path)


def large(stage: str) -> tuple[type[Any], Callable[[Any], None]]:
    """A stage on a large model. Raises ConfigError where it is not served here."""
    if stage == "perceive":
        raise ConfigError("checkpoint: a large model sees already; perceive is for nano")
    try:
        from large import stages
    except ImportError as error:
        raise ConfigError(f"checkpoint: a large model needs {error.name}; pip install -e '.[large]'") from error
    return stages.Config, partial(stages.train, stage)


def outs_of(config: Any) -> list[Path]:
    staged = isinstance(config, PerceiveConfig)
    parts = [config.encoder, config.tone, config.eyes, config.looked] if staged else [config]
    return [part.out for part in parts if part is not None]


if __name__ == "__main__":
    sys.exit(main())
