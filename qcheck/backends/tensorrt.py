"""The two graphs as native TensorRT engines, built when there are none for this GPU; the KV cache is on the device."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcheck.backends.cuda import Buffer, Cuda
from qcheck.backends.engines import (
    SPOKEN_TOKENS,
    EngineCache,
    EngineKey,
    Profile,
    build,
    decoder_profiles,
    most_prefilled,
    vision_profile,
)
from qcheck.bundle import Bundle
from qcheck.cache import Buffers, KVCache
from qcheck.contract import (
    IMAGE_TOKENS,
    INPUTS_EMBEDS,
    KV_LENGTH,
    LOGITS,
    POSITION_IDS,
    cache_names,
)
from qcheck.errors import DeviceError, EngineError
from qcheck.verdict import EngineInfo

_log = logging.getLogger(__name__)


class Context:
    """One profile of an engine, ready to run."""

    def __init__(self, trt: Any, cuda: Cuda, engine: Any, number: int, profile: Profile) -> None:
        """`number`: of `profile` in the engine. Inputs that it gives one shape alone need none later."""
        self._trt, self._cuda, self._engine = trt, cuda, engine
        self._context = engine.create_execution_context()
        if self._context is None or not self._context.set_optimization_profile_async(number, cuda.stream):
            raise EngineError("TensorRT has no room for an engine's workspace; use a GPU with more memory")
        for name, (least, _, most) in profile.items():
            if least == most:
                self._context.set_input_shape(name, most)
        self._staged: dict[str, Buffer] = {}

    def run(
        self, inputs: Mapping[str, NDArray[np.generic]], wanted: str, cached: Mapping[str, Buffer] | None = None
    ) -> NDArray[np.float32]:
        """The output `wanted`. `cached`: inputs and outputs that lie on the device already."""
        for name, array in inputs.items():
            array = np.ascontiguousarray(array)
            buffer = self._room(name, array.nbytes)
            self._cuda.write(buffer, array)
            if not self._context.set_input_shape(name, array.shape):
                raise EngineError(f"the engine was not built for {name} of shape {array.shape}")
            self._context.set_tensor_address(name, buffer.address)
        for name, buffer in (cached or {}).items():
            self._context.set_tensor_address(name, buffer.address)
        out = np.empty(tuple(self._context.get_tensor_shape(wanted)), self._dtype(wanted))
        buffer = self._room(wanted, out.nbytes)
        self._context.set_tensor_address(wanted, buffer.address)
        if not self._context.execute_async_v3(self._cuda.stream):
            raise EngineError("TensorRT could not run an engine; the GPU may be out of memory")
        self._cuda.read(buffer, out)
        return out.astype(np.float32, copy=False)

    def _room(self, name: str, size_bytes: int) -> Buffer:
        """A buffer that holds a tensor, the one of before where it is large enough."""
        buffer = self._staged.get(name)
        if buffer is None or buffer.size_bytes < size_bytes:
            buffer = self._staged[name] = self._cuda.allocate(size_bytes)
        return buffer

    def _dtype(self, name: str) -> Any:
        return self._trt.nptype(self._engine.get_tensor_dtype(name))


class TensorRt:
    """Serves `Backend` on an NVIDIA GPU."""

    def __init__(self, bundle: Bundle, engines: EngineCache | None = None) -> None:
        """`engines`: the user's own unless given. Building takes minutes, once a GPU, version and model. Raises
        DeviceError."""
        try:
            import tensorrt
        except ImportError:
            raise DeviceError("--device tensorrt: needs the package tensorrt; pip install tensorrt") from None
        self._trt: Any = tensorrt
        self._cuda = Cuda()
        self._contract, self._engines = bundle.contract, engines or EngineCache.of_user()
        self.gpu, self.keys = self._cuda.gpu, dict[str, EngineKey]()  # of both graphs
        self._runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        self._slots = cache_names(bundle.contract.decoder.layers)
        of_vision, of_decoder = [vision_profile(bundle.contract)], decoder_profiles(bundle.contract)
        vision, decoder = self._engine(bundle, "vision", of_vision), self._engine(bundle, "decoder", of_decoder)
        self._require_in_place(decoder)
        (self._vision,) = self._contexts(vision, of_vision)
        self._saying, self._prefilling = self._contexts(decoder, of_decoder)
        self.info = EngineInfo("tensorrt", "tensorrt", bundle.contract.precision)

    def _engine(self, bundle: Bundle, part: str, profiles: Sequence[Profile]) -> Any:
        key = self.keys[part] = EngineKey.of(bundle, part, profiles, self.gpu, self._trt.__version__)

        def made() -> bytes:
            _log.debug("building a TensorRT engine of %s for %s", part, self.gpu)
            return build(self._trt, bundle.path(part), profiles)

        engine = self._runtime.deserialize_cuda_engine(self._engines.engine(key, made))
        if engine is None:  # damaged on the disk: the key says that it was built for this GPU and version
            self._engines.forget(key)
            engine = self._runtime.deserialize_cuda_engine(self._engines.engine(key, made))
        if engine is None:
            raise DeviceError(f"--device tensorrt: TensorRT does not load the engine of {part} that it just built")
        return engine

    def _contexts(self, engine: Any, profiles: Sequence[Profile]) -> list[Context]:
        return [Context(self._trt, self._cuda, engine, number, each) for number, each in enumerate(profiles)]

    def _require_in_place(self, decoder: Any) -> None:
        """Raises DeviceError where the engine would not write a cache into the buffer that it reads."""
        for past, present in self._slots:
            if decoder.get_aliased_input_tensor(present) != past:
                raise DeviceError(
                    f"--device tensorrt: TensorRT {self._trt.__version__} does not update a cache in place; it needs"
                    " 10.15 or newer"
                )

    def new_cache(self) -> KVCache:
        spec = self._contract.decoder
        empty = np.zeros((1, spec.kv_heads, spec.max_tokens, spec.head_dim), spec.cache_dtype)
        buffers = {past: self._cuda.allocate(empty.nbytes) for past, _ in self._slots}
        for buffer in buffers.values():  # what is not yet written is multiplied by 0, and must be a number
            self._cuda.write(buffer, empty)
        return KVCache(buffers, spec.max_tokens, self._clone)

    def _clone(self, buffers: Buffers) -> Buffers:
        return {name: self._cuda.copied(buffer) for name, buffer in buffers.items()}

    def encode(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float32]]:
        return {IMAGE_TOKENS: self._vision.run(inputs, IMAGE_TOKENS)}

    def step(self, embeds: NDArray[np.float32], positions: NDArray[np.int64], cache: KVCache) -> NDArray[np.float32]:
        cache.require(embeds.shape[1])
        most = most_prefilled(self._contract)
        logits = np.empty(0, np.float32)
        for start in range(0, embeds.shape[1], most):
            piece = slice(start, start + most)
            logits = self._append(embeds[:, piece], positions[:, :, piece], cache)
        return logits

    def _append(self, embeds: NDArray[np.float32], positions: NDArray[np.int64], cache: KVCache) -> NDArray[np.float32]:
        count = embeds.shape[1]
        context = self._saying if count <= SPOKEN_TOKENS else self._prefilling
        inputs: dict[str, NDArray[Any]] = {
            INPUTS_EMBEDS: embeds,
            POSITION_IDS: positions,
            KV_LENGTH: np.array([cache.length], np.int64),
        }
        cached = {name: cache.buffers[past] for past, present in self._slots for name in (past, present)}
        logits = context.run(inputs, LOGITS, cached)
        cache.advance(count)
        return logits.reshape(-1)
