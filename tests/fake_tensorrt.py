"""TensorRT and CUDA's bindings, played by ONNX Runtime on the CPU: device memory is memory, an engine is the name of
the graph that it was built of. What is asked for outside of a profile, a buffer or an order of calls fails."""

import ctypes
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


class FakeCuda:
    """`cuda.bindings.runtime`: every call gives an error code and what it returns."""

    STREAM = 7
    cudaMemcpyKind = staticmethod(int)

    def __init__(self, gpu: str = "Pretended GPU") -> None:
        self.gpu, self.blocks = gpu, dict[int, Any]()

    def cudaStreamCreate(self) -> tuple[int, int]:
        return 0, self.STREAM

    def cudaGetDeviceProperties(self, device: int) -> tuple[int, Any]:
        return 0, SimpleNamespace(name=self.gpu.encode(), major=9, minor=0)

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        block = (ctypes.c_char * size)(*b"\xff" * min(size, 64))  # NaN, at its beginning
        self.blocks[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def cudaFree(self, address: int) -> tuple[int]:
        del self.blocks[address]
        return (0,)

    def cudaMemcpyAsync(self, to: int, of: int, size: int, kind: int, stream: int) -> tuple[int]:
        assert stream == self.STREAM
        for address, on_device in ((to, kind in (1, 3)), (of, kind in (2, 3))):
            assert not on_device or len(self.blocks[address]) >= size
        ctypes.memmove(to, of, size)
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        assert stream == self.STREAM
        return (0,)


class FakeTensorRt:
    """The package `tensorrt`. `built`: graphs, in the order in which engines were made of them."""

    Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, severity: None})
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)

    def __init__(self, cuda: FakeCuda, version: str = "10.15.1", in_place: bool = True) -> None:
        self.cuda, self.__version__, self.in_place = cuda, version, in_place
        self.built = list[str]()

    def nptype(self, dtype: Any) -> Any:
        return dtype

    def Builder(self, logger: Any) -> Any:
        def profile() -> Any:
            shapes: dict[str, Any] = {}
            return SimpleNamespace(shapes=shapes, set_shape=lambda name, *three: shapes.__setitem__(name, three))

        def config() -> Any:
            profiles: list[Any] = []
            return SimpleNamespace(profiles=profiles, add_optimization_profile=lambda p: profiles.append(p.shapes))

        def network(flags: int) -> Any:
            assert flags == 2, "not strongly typed"
            return SimpleNamespace(path=None)

        def plan(network: Any, config: Any) -> bytes:
            self.built.append(network.path)
            return json.dumps({"path": network.path, "profiles": config.profiles}).encode()

        return SimpleNamespace(
            create_network=network,
            create_builder_config=config,
            create_optimization_profile=profile,
            build_serialized_network=plan,
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        def parse(path: str) -> bool:
            import onnx

            network.path = path
            return all(not node.domain for node in onnx.load(path, load_external_data=False).graph.node)

        reason = SimpleNamespace(desc=lambda: "no importer for\nGroupQueryAttention")
        return SimpleNamespace(parse_from_file=parse, num_errors=1, get_error=lambda n: reason)

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=self._engine)

    def _engine(self, plan: bytes) -> Any:
        try:
            known = json.loads(plan)
        except ValueError:
            return None
        session = onnxruntime.InferenceSession(known["path"], providers=["CPUExecutionProvider"])
        types = {t.name: DTYPES[t.type] for t in (*session.get_inputs(), *session.get_outputs())}
        return SimpleNamespace(
            get_tensor_dtype=types.__getitem__,
            get_aliased_input_tensor=lambda name: name.replace("present", "past") if self.in_place else None,
            create_execution_context=lambda: FakeContext(session, types, known["profiles"]),
        )


class FakeContext:
    def __init__(self, session: Any, types: dict[str, Any], profiles: list[dict[str, list[Sequence[int]]]]) -> None:
        self.session, self.types, self.profiles = session, types, profiles
        self.addresses, self.shapes = dict[str, int](), dict[str, tuple[int, ...]]()
        self.results: dict[str, Any] | None = None

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        self.profile = self.profiles[number]
        assert set(self.profile) == {t.name for t in self.session.get_inputs()}
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        least, _, most = self.profile[name]
        self.shapes[name] = tuple(shape)
        sizes = zip(least, shape, most, strict=True)
        return all(low <= size <= high for low, size, high in sizes)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        inputs = {}
        for known in self.session.get_inputs():
            dtype, shape = np.dtype(self.types[known.name]), self.shapes[known.name]
            size = int(np.prod(shape)) * dtype.itemsize
            data = ctypes.string_at(self.addresses[known.name], size)
            inputs[known.name] = np.frombuffer(data, dtype).reshape(shape)
        names = [output.name for output in self.session.get_outputs()]
        self.results = dict(zip(names, self.session.run(names, inputs), strict=True))
        shape = self.results[name].shape
        return tuple(shape)

    def execute_async_v3(self, stream: int) -> bool:
        assert self.results is not None
        for name, array in self.results.items():
            array = np.ascontiguousarray(array)
            ctypes.memmove(self.addresses[name], array.ctypes.data, array.nbytes)
        self.results = None
        return True
