"""A judge that needs no model: what every test of the checker and of the command line runs on."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcheck.checker import Checker, Limits
from qcheck.errors import PhotoError
from qcheck.photo import Photo
from qcheck.tiles import Box
from qcheck.verdict import Budget, Defect, EngineInfo, ModelInfo, Probe, Timing, Verdict

KINDS = ("noise", "motion_blur", "banding")


def _verdict(path: str = "photo.jpg", **changes: Any) -> Verdict:
    plain = Verdict(
        path=path,
        width=8000,
        height=6000,
        decode_scale=1,
        score=3.42,
        score_std=0.21,
        attributes={"sharpness": 4.1, "noise": 2.6},
        defects=(Defect("noise", "obvious", Box(10, 20, 110, 220), 0.83),),
        probes=(Probe(Box(0, 0, 448, 336), "noise", (448, 336), "grain"),),
        reasoning="Grain in the sky.",
        budget=Budget(max_probes=3, used=1, stopped_by="model"),
        model=ModelInfo("nano", "1.0", "0" * 64),
        engine=EngineInfo("cpu", "onnxruntime-cpu", "int8"),
        timing_ms=Timing(decode=10.0, tiles=2.0, vision=100.0, prefill=50.0, generate=150.0, total=312.0),
    )
    return replace(plain, **changes)


class FakeJudge:
    """Answers at once. `verdicts`: changes to the plain verdict by path, or an exception to raise."""

    def __init__(self) -> None:
        self.verdicts: dict[str, dict[str, Any] | BaseException] = {}
        self.calls: list[tuple[str, Limits, float]] = []

    def judge(self, photo: Photo, limits: Limits, *, decode_ms: float = 0.0) -> Verdict:
        self.calls.append((photo.path, limits, decode_ms))
        answer = self.verdicts.get(photo.path, {})
        if isinstance(answer, BaseException):
            raise answer
        return _verdict(photo.path, **answer)

    def open(self, path: str, *, max_pixels: int) -> Photo:
        """A black pixel for any path; one with `missing` in it is not there."""
        if "missing" in path:
            raise PhotoError("not_found", f"{path}: no such file")
        return Photo(path, np.zeros((1, 1, 3), np.uint8))


@pytest.fixture
def make_verdict() -> Callable[..., Verdict]:
    """A plain verdict, with changes."""
    return _verdict


@pytest.fixture
def judge() -> FakeJudge:
    return FakeJudge()


@pytest.fixture
def opened(judge: FakeJudge, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path | None, dict[str, Any]]]:
    """Makes `Checker.open` build on the fake judge; the list fills with the arguments it was given."""
    calls: list[tuple[Path | None, dict[str, Any]]] = []

    def fake(model: Path | None = None, **settings: Any) -> Checker:
        calls.append((model, settings))
        return Checker(judge, settings["limits"], kinds=KINDS, open_photo=judge.open)

    monkeypatch.setattr(Checker, "open", fake)
    return calls


@pytest.fixture
def run(
    opened: list[Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command on the fake judge: (exit code, stdout, stderr)."""
    from qcheck.cli import main

    def call(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qcheck", *args])
        code = main()
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen2.5-VL with its tokenizer, as transformers saves it. Not to be changed."""
    import qwen  # here, because it needs torch

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-vl"
    qwen.save_checkpoint(folder)
    return folder
