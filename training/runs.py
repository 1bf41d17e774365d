"""What every long run has: a folder with its config, metrics, and a state from which it goes on exactly."""

import errno
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

STATE_EVERY_S: Final = 45.0  # a killed run loses less than a minute
SMOOTHING: Final = 0.97
SAY_EVERY_S: Final = 15.0
STATE: Final = "last.pt"
WARM_STEPS: Final = 50  # of the short lessons
TELL_STEPS: Final = 100


class RunError(Exception):
    """What stopped a run, in one line that names the fix."""


class Run:
    """A run of `steps` steps in a folder. `config`: echoed to config.json; a folder of another config is refused."""

    def __init__(self, out: Path, config: dict[str, Any], steps: int) -> None:
        self.out, self.steps, self.step = out, steps, 0
        echo(out, config)
        self.metrics = (out / "metrics.jsonl").open("a")
        self.board = _board(out)
        self.smooth: dict[str, float] = {}
        self._saved = self._said = self._started = time.monotonic()
        self._first = 0
        self._in_step = False

    def resumed(self) -> dict[str, Any] | None:
        """What was last given to `keep`, with the random generators set back to then; None at the start."""
        if not (self.out / STATE).exists():
            self.metrics.close()  # of a run that was killed before its first state
            self.metrics = (self.out / "metrics.jsonl").open("w")
            return None
        state: dict[str, Any] = torch.load(self.out / STATE, weights_only=False)
        self.step = self._first = state["step"]
        self.smooth = state["smooth"]
        random.setstate(state["python_rng"])
        torch.set_rng_state(state["torch_rng"])
        # What was logged after that state will be logged again.
        kept = [line for line in (self.out / "metrics.jsonl").read_text().splitlines() if _step_of(line) <= self.step]
        self.metrics.close()
        (self.out / "metrics.jsonl").write_text("".join(f"{line}\n" for line in kept))
        self.metrics = (self.out / "metrics.jsonl").open("a")
        inner: dict[str, Any] = state["inner"]
        return inner

    def __iter__(self) -> Iterator[int]:
        """The steps that are left."""
        while self.step < self.steps:
            self._in_step = True
            yield self.step
            self._in_step = False
            self.step += 1
            now = time.monotonic()
            if now - self._said > SAY_EVERY_S or self.step == self.steps:
                spent = now - self._started
                eta = spent / (self.step - self._first) * (self.steps - self.step)
                figures = " ".join(f"{name} {value:.3f}" for name, value in self.smooth.items())
                print(f"step {self.step}/{self.steps} eta {eta / 60:.0f} min {figures}", flush=True)
                self._said = now

    def note(self, **figures: float) -> None:
        """Of one step; raises RunError for what is not finite, before it can be learned from."""
        for name, value in figures.items():
            if not math.isfinite(value):
                raise RunError(
                    f"step {self.step}: {name} is {value}; the last good state is {self.out / STATE}; lower the rate,"
                    " or look at the data of that step"
                )
            old = self.smooth.get(name, value)
            self.smooth[name] = SMOOTHING * old + (1 - SMOOTHING) * value

    def log(self, **figures: float) -> None:
        """A line in metrics.jsonl, with how many steps are done and the smoothed figures of those."""
        row = {"step": self.step + self._in_step, **self.smooth, **figures}
        self.metrics.write(json.dumps(row) + "\n")
        self.metrics.flush()
        for name, value in row.items():
            if self.board is not None:
                self.board.add_scalar(name, value, row["step"])
        print(json.dumps(figures), flush=True)

    @property
    def due(self) -> bool:
        """Whether a state should be kept after this step."""
        return time.monotonic() - self._saved > STATE_EVERY_S or self.step + 1 == self.steps

    def keep(self, inner: dict[str, Any]) -> None:
        """Keeps the state after this step; `inner` is what `resumed` gives back."""
        state = {
            "step": self.step + 1,
            "inner": inner,
            "smooth": self.smooth,
            "python_rng": random.getstate(),
            "torch_rng": torch.get_rng_state(),
        }
        save(self.out / STATE, state)
        self._saved = time.monotonic()


def echo(out: Path, config: dict[str, Any]) -> None:
    """Writes a config beside the weights that it makes. Raises RunError where those of another lie."""
    text = json.dumps(config, indent=1, sort_keys=True, default=str)
    out.mkdir(parents=True, exist_ok=True)
    held = out / "config.json"
    if held.exists() and held.read_text() != text:
        raise RunError(f"{out}: holds a run of another config (see its config.json); choose another folder")
    if not held.exists():
        held.write_text(text)


def _board(out: Path) -> Any:
    """TensorBoard's writer, where it is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):  # the line that was being written when it was killed
        return math.inf


def save(path: Path, state: dict[str, Any]) -> None:
    """Whole or not at all: what stood there stays until all is written. Raises RunError for a full disk."""
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch's own writer says RuntimeError
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space" in str(error) or _is_full(path.parent)
        part.unlink(missing_ok=True)
        if full:
            raise RunError(f"{path}: the disk is full; make room and go on with the last good state") from error
        raise RunError(f"{path}: {error}; the last good state stays") from error


def checkpoint_of(path: Path, part: str) -> dict[str, Any]:
    """A checkpoint that holds `part`. Raises RunError."""
    try:
        checkpoint = torch.load(path, weights_only=True)
    except FileNotFoundError as error:
        raise RunError(f"{path}: is missing; name a checkpoint of the stage before") from error
    except Exception as error:  # torch raises many kinds for what it did not write
        raise RunError(f"{path}: is no checkpoint ({type(error).__name__}); name one of the stage before") from error
    if not isinstance(checkpoint, dict) or part not in checkpoint or "domain" not in checkpoint:
        raise RunError(f"{path}: holds no {part}; name a checkpoint of the stage before")
    return checkpoint


def _is_full(folder: Path) -> bool:
    try:
        found = os.statvfs(folder)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < 1 << 20


def seeded(seed: int) -> np.random.Generator:
    """Seeds torch and Python, and gives NumPy's generator."""
    random.seed(seed)
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


def finite(loss: torch.Tensor, step: int) -> None:
    """Raises RunError where a loss is not."""
    if not math.isfinite(float(loss.detach())):
        raise RunError(f"step {step}: the loss is not finite; lower the rate, or look at the data")


def descend(
    part: torch.nn.Module,
    name: str,
    steps: int,
    rate: float,
    decay: float,
    loss_of: Callable[[], torch.Tensor],
    longest: float | None = None,
) -> None:
    """Teaches a part of the model in minutes, by AdamW, and leaves it in eval mode. `loss_of`: draws a batch and gives
    its loss, once a step; `longest`: to what length gradients are cut, if at all. Raises RunError as `finite` does."""
    optimizer = torch.optim.AdamW(part.parameters(), lr=rate, weight_decay=decay)
    part.train()
    for step in range(steps):
        schedule(optimizer, rate, step, steps, WARM_STEPS)
        loss = loss_of()
        finite(loss, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if longest is not None:
            torch.nn.utils.clip_grad_norm_(part.parameters(), longest)
        optimizer.step()
        if (step + 1) % TELL_STEPS == 0:
            print(f"{name} {step + 1}/{steps} loss {float(loss.detach()):.3f}", flush=True)
    part.eval()


def schedule(optimizer: "torch.optim.Optimizer", rate: float, step: int, steps: int, warm: int) -> None:
    """Sets the rate of all that an optimizer teaches, as `cosine` says."""
    for group in optimizer.param_groups:
        group["lr"] = rate * cosine(step, steps, warm)


def cosine(step: int, steps: int, warm: int, least: float = 0.02) -> float:
    """Share of the rate at a step: a linear start, then a cosine to `least`."""
    return min(1.0, (step + 1) / warm) * (least + (1 - least) * 0.5 * (1 + math.cos(math.pi * step / steps)))
