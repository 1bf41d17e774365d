"""What the eyes saw is kept by everything that it depends on."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script, tokenizer

from qcheck.photo import Photo
from qcheck.probe import Limits, Prober

torch = library("torch")
library("transformers")
sights, visual, rollouts, nano, train = (script(n) for n in ("sights", "visual", "rollouts", "nano", "train"))


def evidence(value: float) -> Any:
    shapes = ((2, 3, 14), (2, 3, 5), (2, 3, 1), (1,), (1,), (5,), (3, 25))
    return visual.Evidence(*(torch.full(shape, value) for shape in shapes))


def test_a_view_is_looked_at_once_by_each_pair_of_eyes(tmp_path: Path) -> None:
    one, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    pixels, survey = np.zeros((1, 3, 64, 64), np.float32), np.zeros((1, 2, 2, 8), np.float32)
    brighter = pixels + 1e-3
    looked: list[float] = []

    def look(value: float) -> Any:
        def at() -> Any:
            looked.append(value)
            return evidence(value)

        return at

    for kept in (sights.Sights(tmp_path / "kept"), sights.Sights(tmp_path / "kept")):  # the second is another run's
        for value, (eyes, seen, under) in enumerate(
            [
                ((one,), pixels, survey),
                ((other,), pixels, survey),
                ((one,), brighter, survey),
                ((one,), pixels, survey + 1),
            ]
        ):
            found = kept.of(eyes, (seen, under), look(float(value)))
            for part, expected in zip(found, evidence(float(value)), strict=True):
                torch.testing.assert_close(part, expected, rtol=0, atol=0)
    assert looked == [0.0, 1.0, 2.0, 3.0]
    with torch.no_grad():
        one.weight += 1
    taught = sights.Sights(tmp_path / "kept").of((one,), (pixels, survey), look(4.0))
    assert looked[-1] == 4.0
    assert float(taught.score) == 4.0


def test_two_runs_may_keep_the_same_view_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = os.getpid(), os.getpid() + 1
    kept, eyes, pixels = tmp_path / "kept", (torch.nn.Linear(3, 2),), np.zeros((1, 3, 8, 8), np.float32)
    replace = Path.replace

    def other_first(part: Path, target: Path) -> Path:
        """While this run has written all of a file but not named it, another run keeps the same one."""
        if os.getpid() == mine:
            monkeypatch.setattr(os, "getpid", lambda: theirs)
            sights.Sights(kept).of(eyes, (pixels,), lambda: evidence(1.0))
            monkeypatch.setattr(os, "getpid", lambda: mine)
        return replace(part, target)

    monkeypatch.setattr(Path, "replace", other_first)
    assert float(sights.Sights(kept).of(eyes, (pixels,), lambda: evidence(2.0)).score) == 2.0
    assert float(sights.Sights(kept).of(eyes, (pixels,), lambda: evidence(3.0)).score) == 2.0
    assert [path.suffix for path in kept.iterdir()] == [".npz"]


def test_a_model_that_remembers_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    model = nano.Nano(nano.config(tokenizer(), hidden=128, layers=2)).eval()
    photo = Photo.from_pixels(np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8))
    engine = rollouts.RecordingEngine(model, tokenizer(), script("defects").PHOTOS)
    fresh = Prober(engine).judge(photo, Limits(2))
    engine.eyes.sights = sights.Sights(tmp_path)
    first = Prober(engine).judge(photo, Limits(2))
    assert len(list(tmp_path.glob("*.npz"))) == 1 + len(engine.last.seen)  # and the overview
    monkeypatch.setattr(engine.eyes, "seen", None)  # nothing is looked at any more
    again = Prober(engine).judge(photo, Limits(2))
    for other in (first, again):
        assert (other.score, other.score_std, other.defects, other.probes) == (
            fresh.score,
            fresh.score_std,
            fresh.defects,
            fresh.probes,
        )


def test_sights_are_for_eyes_that_no_longer_learn(tmp_path: Path) -> None:
    settings = script("grpo").Settings()
    given: dict[str, Any] = {"out": tmp_path, "start": tmp_path, "policy": settings, "rated": tmp_path}
    train.PolicyConfig(**given, sights=tmp_path)
    with pytest.raises(ValueError, match="sights: kept only where nothing but language_model and projector is learned"):
        train.PolicyConfig(**given, sights=tmp_path, learned=("language_model", "perception"))
