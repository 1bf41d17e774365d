"""The few calls of CUDA's runtime that a native engine needs, through NVIDIA's own bindings (cuda-bindings)."""

import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcheck.errors import DeviceError, EngineError

_HOST_TO_DEVICE, _DEVICE_TO_HOST, _DEVICE_TO_DEVICE = 1, 2, 3  # cudaMemcpyKind


class Cuda:
    """Device 0 and one stream of it. Everything is enqueued in order; `read` waits for what was before it."""

    def __init__(self) -> None:
        """Raises DeviceError where the bindings or the GPU are missing."""
        try:
            from cuda.bindings import runtime
        except ImportError:
            raise DeviceError("--device tensorrt: needs NVIDIA's bindings; pip install cuda-bindings") from None
        self._runtime: Any = runtime
        try:
            self.stream = int(self._call("cudaStreamCreate"))
            properties = self._call("cudaGetDeviceProperties", 0)
        except (EngineError, RuntimeError) as error:  # the bindings raise RuntimeError where there is no driver
            raise DeviceError(f"--device tensorrt: no NVIDIA GPU that works here ({error}); see nvidia-smi") from None
        name = properties.name
        self.gpu = f"{name.decode() if isinstance(name, bytes) else name} sm_{properties.major}{properties.minor}"

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *values = getattr(self._runtime, name)(*arguments)
        if int(error):
            raise EngineError(f"{name} of CUDA failed ({getattr(error, 'name', error)})")
        return values[0] if values else None

    def allocate(self, size_bytes: int) -> "Buffer":
        """Uninitialised memory. Raises EngineError where there is not enough."""
        return Buffer(self, int(self._call("cudaMalloc", max(1, size_bytes))), size_bytes)

    def free(self, address: int) -> None:
        self._runtime.cudaFree(address)

    def write(self, buffer: "Buffer", array: NDArray[np.generic]) -> None:
        self._copy(buffer.address, array.ctypes.data, array.nbytes, _HOST_TO_DEVICE)

    def read(self, buffer: "Buffer", array: NDArray[np.generic]) -> None:
        """Fills `array`, and waits for it."""
        self._copy(array.ctypes.data, buffer.address, array.nbytes, _DEVICE_TO_HOST)
        self._call("cudaStreamSynchronize", self.stream)

    def copied(self, buffer: "Buffer") -> "Buffer":
        other = self.allocate(buffer.size_bytes)
        self._copy(other.address, buffer.address, buffer.size_bytes, _DEVICE_TO_DEVICE)
        return other

    def _copy(self, to: int, of: int, size_bytes: int, kind: int) -> None:
        way = self._runtime.cudaMemcpyKind(kind)
        self._call("cudaMemcpyAsync", to, of, size_bytes, way, self.stream)


class Buffer:
    """Memory of the device, freed with the last reference to it."""

    def __init__(self, cuda: Cuda, address: int, size_bytes: int) -> None:
        self.address, self.size_bytes = address, size_bytes
        weakref.finalize(self, cuda.free, address)
