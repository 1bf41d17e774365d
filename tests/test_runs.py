"""Long runs: killed, broken or without room they lose nothing but the last steps, and go on exactly."""

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script

torch = library("torch")
runs = script("runs")
TRAINING = str(Path(runs.__file__).parent)

# A lesson that draws from every generator, logs every 4 steps and keeps its state every 7.
LOOP = """
import os, random, signal
import runs, torch

def learn(out, die_at=None, note=None, steps=40):
    rng = runs.seeded(3)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    run = runs.Run(out, {"steps": steps, "rate": 0.05}, steps)
    if (state := run.resumed()) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        rng.bit_generator.state = state["rng"]
    for step in run:
        x = torch.randn(8, 4) * (1 + random.random()) + float(rng.normal())
        loss = ((model(x)[:, 0] - x.sum(1)) ** 2).mean()
        run.note(loss=float(loss.detach()) if note is None else note(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 4 == 0:
            run.log(weight=float(model.weight.detach().sum()))
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if (step + 1) % 7 == 0 or run.due:
            kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            run.keep({**kept, "rng": rng.bit_generator.state})
    return model
"""


@pytest.fixture(scope="module")
def learn() -> Callable[..., Any]:
    space: dict[str, Any] = {}
    exec(LOOP, space)
    found: Callable[..., Any] = space["learn"]
    return found


def killed(out: Path, die_at: int) -> None:
    """Learns in another process until that step, and is killed in the middle of it."""
    body = f"import sys, pathlib\nsys.path.insert(0, {TRAINING!r})\n{LOOP}\nlearn(pathlib.Path({str(out)!r}), {die_at})"
    assert subprocess.run([sys.executable, "-c", body], stdout=subprocess.DEVNULL).returncode == -signal.SIGKILL


def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path: Path, learn: Callable[..., Any]) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    expected = learn(whole)
    killed(cut, 25)
    assert torch.load(cut / "last.pt", weights_only=False)["step"] == 21
    logged = (cut / "metrics.jsonl").read_text().splitlines()
    assert json.loads(logged[-1])["step"] == 24, "logged after the state it goes on from"
    with (cut / "metrics.jsonl").open("a") as metrics:
        metrics.write(logged[-1][:11])  # as if it had been killed while it wrote a line
    found = learn(cut)
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(found.bias, expected.bias)
    assert (cut / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert (cut / "config.json").read_text() == (whole / "config.json").read_text()
    one, other = (torch.load(out / "last.pt", weights_only=False) for out in (whole, cut))
    assert one["step"] == other["step"] == 40
    assert one["smooth"] == other["smooth"]
    assert torch.equal(one["torch_rng"], other["torch_rng"])
    assert one["python_rng"] == other["python_rng"]
    assert one["inner"]["rng"] == other["inner"]["rng"]


def test_a_run_that_is_done_has_no_steps_left(tmp_path: Path, learn: Callable[..., Any]) -> None:
    expected, before = learn(tmp_path / "out"), (tmp_path / "out" / "metrics.jsonl").read_text()
    assert torch.equal(learn(tmp_path / "out").weight, expected.weight)
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == before


def test_a_run_killed_before_its_first_state_begins_again(tmp_path: Path, learn: Callable[..., Any]) -> None:
    expected = learn(tmp_path / "whole")
    killed(tmp_path / "cut", 5)
    assert not (tmp_path / "cut" / "last.pt").exists()
    assert torch.equal(learn(tmp_path / "cut").weight, expected.weight)
    whole, cut = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut"))
    assert cut == whole


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stops_a_run(tmp_path: Path, learn: Callable[..., Any], value: float) -> None:
    with pytest.raises(runs.RunError, match=f"step 17: loss is {value}; the last good state is .*last.pt") as error:
        learn(tmp_path / "out", note=lambda step: value if step == 17 else 1.0)
    assert "\n" not in str(error.value)
    assert torch.load(tmp_path / "out" / "last.pt", weights_only=False)["step"] == 14
    # And it goes on from there, once the fault is mended.
    learn(tmp_path / "out", note=lambda step: 1.0)
    expected = learn(tmp_path / "whole", note=lambda step: 1.0)
    found = torch.load(tmp_path / "out" / "last.pt", weights_only=False)["inner"]["model"]
    assert torch.equal(found["weight"], expected.weight)


def test_a_folder_of_another_run_is_refused(tmp_path: Path, learn: Callable[..., Any]) -> None:
    learn(tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(runs.RunError, match=r"another config .*choose another folder") as error:
        learn(tmp_path / "out", steps=41)
    assert "\n" not in str(error.value)
    assert contents(tmp_path / "out") == before


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_leaves_the_last_good_state(tmp_path: Path, learn: Callable[..., Any]) -> None:
    expected = learn(tmp_path / "whole")
    out = tmp_path / "out"

    def full_from(step: int) -> float:
        if step == 12:
            (out / "last.part").symlink_to("/dev/full")
        return 1.0

    with pytest.raises(runs.RunError, match=r"last\.pt: the disk is full; make room") as error:
        learn(out, note=full_from)
    assert "\n" not in str(error.value)
    assert torch.load(out / "last.pt", weights_only=False)["step"] == 7
    assert not (out / "last.part").is_symlink(), "what was half written stays and takes room"
    assert Path("/dev/full").exists()
    assert torch.equal(learn(out).weight, expected.weight)


def test_a_failed_save_leaves_what_stood_there(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    runs.save(path, {"a": torch.ones(2)})
    before = path.read_bytes()
    (tmp_path / "best.part").symlink_to(tmp_path / "no-folder" / "best.part")
    with pytest.raises(runs.RunError, match="the last good state stays"):
        runs.save(path, {"a": torch.zeros(2)})
    assert path.read_bytes() == before


def test_figures_are_smoothed(tmp_path: Path) -> None:
    run = runs.Run(tmp_path, {}, 2)
    for value in (1.0, 2.0):
        run.note(loss=value)
    assert run.smooth["loss"] == pytest.approx(runs.SMOOTHING * 1 + (1 - runs.SMOOTHING) * 2)
    run.log(score=3.0)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 0, "loss": run.smooth["loss"], "score": 3.0}


def test_a_seed_fixes_every_generator() -> None:
    import random

    draws = []
    for seed in (5, 5, 6):
        rng = runs.seeded(seed)
        draws.append((float(rng.random()), random.random(), float(torch.rand(1))))
    assert draws[0] == draws[1]
    assert not set(draws[0]) & set(draws[2])


def test_the_rate_rises_and_falls() -> None:
    rates = np.array([runs.cosine(step, 200, 20, 0.02) for step in range(200)])
    assert rates[0] == pytest.approx(1 / 20, rel=0.01)
    assert (np.diff(rates[:19]) > 0).all()
    assert (np.diff(rates[20:]) < 0).all()
    assert rates.max() <= 1
    assert rates[-1] == pytest.approx(0.02, abs=1e-3)
