"""Native TensorRT engines: what is built, when it is built again, and that a bundle judges with them as on the CPU.
What TensorRT itself makes of the graphs needs a GPU; here it is played (fake_tensorrt.py)."""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script
from fake_tensorrt import FakeCuda, FakeTensorRt

from qcheck.backends import engines
from qcheck.bundle import Bundle
from qcheck.engine import Engine
from qcheck.errors import DeviceError
from qcheck.photo import Photo
from qcheck.probe import Limits, Prober

library("torch")
library("onnx")
command = script("export", "export")
compiler = script("tensorrt", "export")

EXAMPLE = sorted((Path(__file__).parent.parent / "examples").glob("*.jpg"))[0]
SMALL = ("--no-verify", "--global-pixels", "100352", "--crop-pixels", "50176", "--think-tokens", "8")


@pytest.fixture(scope="module")
def bundles(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One for each form of the decoder."""
    root = tmp_path_factory.mktemp("bundles")
    for form in ("std24", "gqa"):
        assert command.main([str(checkpoint), str(root / form), "--precision", "fp32", "--form", form, *SMALL]) == 0
    return {form: root / form for form in ("std24", "gqa")}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Makes qcheck find a GPU and TensorRT."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def found(**about: Any) -> FakeTensorRt:
        cuda = FakeCuda(about.pop("gpu", "Pretended GPU"))
        trt, bindings = FakeTensorRt(cuda, **about), ModuleType("cuda.bindings")
        bindings.runtime = cuda  # type: ignore[attr-defined]
        for name, module in {"tensorrt": trt, "cuda": ModuleType("cuda"), "cuda.bindings": bindings}.items():
            module.__spec__ = object()  # type: ignore[assignment]
            monkeypatch.setitem(sys.modules, name, module)
        return trt

    return found


def photo() -> Photo:
    return Photo.from_pixels(np.random.default_rng(3).integers(0, 256, (300, 420, 3), dtype=np.uint8))


def judged(bundle: Path, device: str, probes: int = 2) -> Any:
    return Prober(Engine.open(Bundle.open(bundle), device=device, threads=1)).judge(photo(), Limits(probes))


def said(verdict: Any) -> dict[str, Any]:
    record = verdict.record()
    return {name: record[name] for name in ("score", "defects", "probes", "attributes", "reasoning")}


def test_engines_judge_as_the_cpu_does(bundles: dict[str, Path], machine: Any) -> None:
    """Views of other sizes, crops, one step after another: all through buffers of the device."""
    want = judged(bundles["std24"], "cpu")
    trt = machine()
    got = judged(bundles["std24"], "tensorrt")
    assert (got.engine.device, got.engine.provider) == ("tensorrt", "tensorrt")
    assert said(got) == said(want)
    assert [Path(path).name for path in trt.built] == ["vision.onnx", "decoder.onnx"]


def test_a_long_prefill_goes_in_pieces(bundles: dict[str, Path], machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    want = judged(bundles["std24"], "cpu")
    machine()
    monkeypatch.setattr(engines, "TEXT_TOKENS", -100)
    contract = Bundle.open(bundles["std24"]).contract
    assert engines.most_prefilled(contract) == 28
    assert said(judged(bundles["std24"], "tensorrt")) == said(want)


def test_engines_are_kept_until_what_they_are_for_changes(bundles: dict[str, Path], machine: Any) -> None:
    for about in ({}, {"gpu": "Another GPU"}, {"version": "11.4"}):
        trt = machine(**about)
        for _ in range(2):
            judged(bundles["std24"], "tensorrt", 0)
        assert len(trt.built) == 2


def test_a_damaged_engine_is_built_again(bundles: dict[str, Path], machine: Any, tmp_path: Path) -> None:
    machine()
    judged(bundles["std24"], "tensorrt", 0)
    kept = sorted(tmp_path.rglob("*.engine"))
    assert len(kept) == 2
    kept[0].write_bytes(b"half of it")
    trt = machine()
    judged(bundles["std24"], "tensorrt", 0)
    assert len(trt.built) == 1
    assert sorted(tmp_path.rglob("*")) == sorted(
        {*tmp_path.rglob("*.engine"), *tmp_path.rglob("engines"), tmp_path / "qcheck"}
    )


def test_no_half_written_engine_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, key = engines.EngineCache(tmp_path), engines.EngineKey("gpu", "10", "graph", "[]")
    with monkeypatch.context() as full:
        full.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError("no space left on device")))
        with pytest.raises(OSError, match="no space"):
            cache.engine(key, lambda: b"engine")
    assert not list(tmp_path.iterdir())
    assert cache.engine(key, lambda: b"engine") == b"engine"
    assert cache.engine(key, lambda: pytest.fail("built again")) == b"engine"


def test_memory_is_given_back(bundles: dict[str, Path], machine: Any) -> None:
    trt = machine()
    engine = Engine.open(Bundle.open(bundles["std24"]), device="tensorrt")
    talk = engine.conversation()
    before = len(trt.cuda.blocks)
    other = talk.cache.fork()
    assert len(trt.cuda.blocks) == 2 * before
    del other, talk
    assert len(trt.cuda.blocks) == 0


def test_graphs_that_tensorrt_does_not_take(bundles: dict[str, Path], machine: Any) -> None:
    machine()
    wanted = r"does not take decoder\.onnx \(no importer for GroupQueryAttention\); export .* --form std24"
    with pytest.raises(DeviceError, match=wanted):
        judged(bundles["gqa"], "tensorrt")
    with pytest.raises(DeviceError, match="vision is not of patches; use --device cpu"):
        Engine.open(Bundle.open(), device="tensorrt")


def test_a_version_that_copies_caches(bundles: dict[str, Path], machine: Any) -> None:
    machine(in_place=False, version="10.13")
    with pytest.raises(DeviceError, match=r"TensorRT 10\.13 does not update a cache in place; it needs 10\.15"):
        judged(bundles["std24"], "tensorrt")


def test_no_gpu(bundles: dict[str, Path], machine: Any) -> None:
    trt = machine()
    trt.cuda.cudaStreamCreate = lambda: (100,)
    with pytest.raises(DeviceError, match=r"no NVIDIA GPU that works here \(cudaStreamCreate of CUDA failed \(100\)\)"):
        judged(bundles["std24"], "tensorrt")


def test_engines_are_built_ahead(bundles: dict[str, Path], machine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trt = machine()
    assert compiler.main([str(bundles["std24"])]) == 0
    assert "decoder" in capsys.readouterr().out
    judged(bundles["std24"], "tensorrt", 0)
    assert len(trt.built) == 2
    assert compiler.main([str(bundles["gqa"])]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tensorrt: error: --device tensorrt: TensorRT 10.15.1 does not take decoder.onnx")
    assert error.count("\n") == 1


def installed(*names: str) -> bool:
    try:
        return all(version(name) for name in names)
    except PackageNotFoundError:
        return False


@pytest.mark.tensorrt
@pytest.mark.skipif(
    not installed("tensorrt", "cuda-bindings"), reason="needs an NVIDIA GPU and pip install '.[tensorrt]'"
)
def test_real_engines_judge_nearly_as_the_cpu_does(bundles: dict[str, Path], tmp_path: Path) -> None:
    """In processes of their own, where nothing is played and the package is no script of ours."""
    command = [str(Path(sys.executable).with_name("qcheck")), str(EXAMPLE), "--json", "--model", str(bundles["std24"])]
    found = {}
    for device in ("cpu", "tensorrt"):
        line = [*command, "--max-probes", "1", "--device", device]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True)
        (found[device],) = json.loads(done.stdout)
    assert found["tensorrt"]["engine"]["provider"] == "tensorrt"
    assert found["tensorrt"]["score"] == pytest.approx(found["cpu"]["score"], abs=0.02)
