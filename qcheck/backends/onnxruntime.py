"""The two graphs on ONNX Runtime's CPU provider, with the KV cache bound in place: one buffer is past and present."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcheck.bundle import Bundle
from qcheck.cache import Buffers, KVCache
from qcheck.contract import (
    IMAGE_TOKENS,
    INPUTS_EMBEDS,
    KV_LENGTH,
    LOGITS,
    POSITION_IDS,
    past_name,
    present_name,
)
from qcheck.errors import BundleError
from qcheck.verdict import EngineInfo

_FATAL_ONLY = 4


class OnnxRuntimeCpu:
    """Serves `Backend` on the CPU."""

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        """`threads`: of one operator; None lets ONNX Runtime take every physical core. Raises BundleError."""
        import onnxruntime

        self._ort: Any = onnxruntime
        self._spec = bundle.contract.decoder
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = _FATAL_ONLY  # errors come as exceptions; nothing of it belongs on a user's screen
        self._vision = self._session(bundle.path("vision"), options)
        self._decoder = self._session(bundle.path("decoder"), options)
        self._slots = [
            (past_name(layer, part), present_name(layer, part))
            for layer in range(self._spec.layers)
            for part in ("key", "value")
        ]
        self.info = EngineInfo("cpu", "onnxruntime-cpu", bundle.contract.precision)

    def _session(self, path: Path, options: Any) -> Any:
        try:
            return self._ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own exception types are not public
            reason = str(error).splitlines()[0]
            raise BundleError(f"{path} is not a graph that this onnxruntime can load ({reason})") from None

    def new_cache(self) -> KVCache:
        spec = self._spec
        shape = (1, spec.kv_heads, spec.max_tokens, spec.head_dim)
        buffers = {past: self._value(np.zeros(shape, spec.cache_dtype)) for past, _ in self._slots}
        return KVCache(buffers, spec.max_tokens, self._clone)

    def _value(self, array: NDArray[Any]) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(array)

    def _clone(self, buffers: Buffers) -> Buffers:
        return {name: self._value(value.numpy().copy()) for name, value in buffers.items()}

    def encode(self, inputs: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        tokens: NDArray[np.float32] = self._vision.run([IMAGE_TOKENS], dict(inputs))[0]
        return tokens

    def step(self, embeds: NDArray[np.float32], positions: NDArray[np.int64], cache: KVCache) -> NDArray[np.float32]:
        count = embeds.shape[1]
        cache.require(count)
        binding = self._decoder.io_binding()
        binding.bind_cpu_input(INPUTS_EMBEDS, np.ascontiguousarray(embeds))
        binding.bind_cpu_input(POSITION_IDS, np.ascontiguousarray(positions))
        binding.bind_cpu_input(KV_LENGTH, np.array([cache.length], np.int64))
        binding.bind_output(LOGITS, "cpu")
        for past, present in self._slots:
            binding.bind_ortvalue_input(past, cache.buffers[past])
            binding.bind_ortvalue_output(present, cache.buffers[past])
        self._decoder.run_with_iobinding(binding)
        cache.advance(count)
        logits: NDArray[np.float32] = binding.copy_outputs_to_cpu()[0]
        return logits.reshape(-1)
