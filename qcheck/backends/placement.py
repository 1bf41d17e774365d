"""Where a bundle's graphs run: the devices by name, and the ONNX Runtime providers that serve each graph there."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"


@dataclass(frozen=True, slots=True)
class Placement:
    """`provider`: what records call it. `vision`, `decoder`: providers, the preferred first; the CPU's is always the
    last, because a graph's shapes are computed there. `memory`: where caches lie, as ONNX Runtime calls it."""

    device: str
    provider: str
    vision: tuple[str, ...]
    decoder: tuple[str, ...]
    memory: Literal["cpu", "cuda"]

    @property
    def wanted(self) -> tuple[str, ...]:
        """Providers that must be there, or the device is not."""
        return tuple(dict.fromkeys(name for name in (*self.vision, *self.decoder) if name != CPU))


ON_CPU: Final = Placement("cpu", "onnxruntime-cpu", (CPU,), (CPU,), "cpu")
ON_CUDA: Final = Placement("cuda", "onnxruntime-cuda", (CUDA, CPU), (CUDA, CPU), "cuda")
# The decoder stays with CUDA: its cache is one buffer for past and present, which TensorRT's provider is not asked to
# understand, and its length changes with every token.
ON_TENSORRT: Final = Placement("tensorrt", "onnxruntime-tensorrt", (TENSORRT, CUDA, CPU), (CUDA, CPU), "cuda")
PLACEMENTS: Final = {place.device: place for place in (ON_CPU, ON_CUDA, ON_TENSORRT)}
DEVICES: Final = ("auto", *PLACEMENTS)


def kept_in(name: str) -> Path:
    """The folder, of the user's own, where a backend keeps what it compiled; it may not be there yet."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "qcheck" / name
