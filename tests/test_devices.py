"""Devices: one that is asked for and absent is an error with the fix, and none is swapped for another in silence.

There is no GPU where these run. ONNX Runtime is played by itself, with providers that it claims to have.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from qcheck.backends import onnxruntime as backend
from qcheck.bundle import Bundle
from qcheck.engine import Engine
from qcheck.errors import DeviceError
from qcheck.photo import Photo
from qcheck.probe import Limits, Prober

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
HAS_CUDA = CUDA in onnxruntime.get_available_providers()


@dataclass
class Node:
    op_type: str


@dataclass
class Part:
    ep_name: str
    op_types: list[str]

    def get_nodes(self) -> list[Node]:
        return [Node(name) for name in self.op_types]


@dataclass
class Claimed:
    """An onnxruntime with `providers`, of which `start` do, and that leaves `on_cpu` of each graph to the CPU."""

    providers: list[str]
    start: list[str] = field(default_factory=lambda: [TENSORRT, CUDA, CPU])
    on_cpu: list[str] = field(default_factory=lambda: ["Shape", "Gather"])
    asked: list[tuple[str, list[str]]] = field(default_factory=list)
    memories: set[str] = field(default_factory=set)

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def get_available_providers(self) -> list[str]:
        return self.providers

    def preload_dlls(self) -> None:
        print("no libcudart here")

    def set_default_logger_severity(self, severity: int) -> None:
        assert severity == 4

    @property
    def OrtValue(self) -> Any:
        claimed = self

        class Value:
            @staticmethod
            def ortvalue_from_numpy(array: Any, device: str = "cpu") -> Any:
                claimed.memories.add(device)
                return onnxruntime.OrtValue.ortvalue_from_numpy(array)

        return Value

    @property
    def InferenceSession(self) -> Any:
        claimed = self

        class Session(onnxruntime.InferenceSession):
            def __init__(self, path: str, options: Any, providers: list[tuple[str, dict[str, str]]]) -> None:
                print("*** EP Error ***")
                claimed.asked.append((Path(path).name, [name for name, _ in providers]))
                self.claims = [name for name, _ in providers if name in claimed.start]
                super().__init__(path, options, providers=[CPU])

            def get_providers(self) -> list[str]:
                return self.claims

            def get_provider_graph_assignment_info(self) -> list[Part]:
                return [Part(CUDA, ["MatMul", "Conv"]), Part(CPU, claimed.on_cpu)]

        return Session


@pytest.fixture
def claim(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Makes qcheck find such an onnxruntime."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def installed(claimed: Claimed) -> Claimed:
        monkeypatch.setitem(sys.modules, "onnxruntime", claimed)
        return claimed

    return installed


def opened(device: str) -> Engine:
    return Engine.open(Bundle.open(), device=device, threads=1)


def photo() -> Photo:
    return Photo.from_pixels(np.random.default_rng(5).integers(0, 256, (300, 400, 3), dtype=np.uint8))


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has CUDA")
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_without_a_build_for_gpus(device: str) -> None:
    with pytest.raises(
        DeviceError, match=rf"--device {device}: this onnxruntime was built without .*CUDA.*pip install"
    ):
        opened(device)


def test_what_hides_the_build_for_gpus_is_named(monkeypatch: pytest.MonkeyPatch, claim: Any) -> None:
    claim(Claimed([CPU]))
    monkeypatch.setattr(backend, "version", lambda name: "1.0")
    with pytest.raises(
        DeviceError, match="onnxruntime, which was installed beside onnxruntime-gpu, hides it; pip unin"
    ):
        opened("cuda")


def test_a_provider_that_does_not_start(claim: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a driver ONNX Runtime goes on with the CPU and says so among the results."""
    claim(Claimed([TENSORRT, CUDA, CPU], start=[CPU]))
    with pytest.raises(DeviceError, match=r"CUDAExecutionProvider of ONNX Runtime does not start here; .*nvidia-smi"):
        opened("cuda")
    claim(Claimed([TENSORRT, CUDA, CPU], start=[CUDA, CPU]))
    with pytest.raises(DeviceError, match=r"TensorrtExecutionProvider .*pip install tensorrt"):
        opened("tensorrt")
    assert capsys.readouterr().out == ""


def test_work_that_would_be_left_to_the_cpu(claim: Any) -> None:
    claim(Claimed([CUDA, CPU], on_cpu=["Shape", "MatMul", "GroupQueryAttention"]))
    with pytest.raises(DeviceError, match=r"would run GroupQueryAttention, MatMul of vision\.onnx on the CPU"):
        opened("cuda")


def test_an_onnxruntime_that_cannot_tell_what_it_left_to_the_cpu(claim: Any) -> None:
    class Old(Claimed):
        InferenceSession = object

    claim(Old([CUDA, CPU]))
    with pytest.raises(DeviceError, match="is too old"):
        opened("cuda")


@pytest.mark.parametrize(
    ("claimed", "device"),
    [
        (Claimed([CPU]), "cpu"),
        (Claimed([CUDA, CPU], start=[CPU]), "cpu"),
        (Claimed([CUDA, CPU], on_cpu=["GroupQueryAttention"]), "cpu"),
        (Claimed([CUDA, CPU]), "cuda"),
    ],
)
def test_auto_takes_what_runs_the_model(claim: Any, claimed: Claimed, device: str) -> None:
    claim(claimed)
    engine = opened("auto")
    assert (engine.info.device, engine.info.provider) == (device, f"onnxruntime-{device}")


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_device_judges_and_is_on_the_record(claim: Any, device: str) -> None:
    """Caches lie where the decoder runs; the decoder is CUDA's on both."""
    want = Prober(opened("cpu")).judge(photo(), Limits(1))
    claimed = claim(Claimed([TENSORRT, CUDA, CPU]))
    got = Prober(opened(device)).judge(photo(), Limits(1))
    before = [TENSORRT] if device == "tensorrt" else []
    assert claimed.asked == [("vision.onnx", [*before, CUDA, CPU]), ("decoder.onnx", [CUDA, CPU])]
    assert claimed.memories == {"cuda"}
    assert (got.engine.device, got.engine.provider) == (device, f"onnxruntime-{device}")
    assert (got.score, got.defects, got.probes) == (want.score, want.defects, want.probes)
