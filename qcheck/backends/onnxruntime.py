"""The two graphs on ONNX Runtime's providers, with the KV cache bound in place: one buffer is past and present."""

import contextlib
import io
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcheck.backends.placement import CPU, ON_CPU, TENSORRT, Placement, kept_in
from qcheck.bundle import Bundle
from qcheck.cache import Buffers, KVCache
from qcheck.contract import (
    INPUTS_EMBEDS,
    KV_LENGTH,
    LOGITS,
    POSITION_IDS,
    cache_names,
)
from qcheck.errors import BundleError, DeviceError
from qcheck.verdict import EngineInfo

_FATAL_ONLY = 4
# What a graph spends its time on. One of these on the CPU would make a GPU run a CPU run that nobody asked for.
_WORK: Final = frozenset(
    {"Conv", "Gemm", "MatMul", "FusedMatMul", "MatMulNBits", "Attention", "MultiHeadAttention", "GroupQueryAttention"}
)
_RECORD_ASSIGNMENT: Final = "session.record_ep_graph_assignment_info"


class OnnxRuntime:
    """Serves `Backend` where a placement says."""

    def __init__(self, bundle: Bundle, threads: int | None, place: Placement = ON_CPU) -> None:
        """`threads`: of one operator on the CPU; None lets ONNX Runtime take every physical core. Raises BundleError;
        DeviceError where the device is not there, or leaves any of the work of these graphs to the CPU."""
        import onnxruntime

        self._ort: Any = onnxruntime
        self._spec, self._place = bundle.contract.decoder, place
        if place.wanted:
            self._require_providers()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = _FATAL_ONLY  # errors come as exceptions; nothing of it belongs on a user's screen
        if place.wanted:
            options.add_session_config_entry(_RECORD_ASSIGNMENT, "1")
        self._vision = self._session(bundle.path("vision"), options, place.vision)
        self._decoder = self._session(bundle.path("decoder"), options, place.decoder)
        self._slots = cache_names(self._spec.layers)
        self.info = EngineInfo(place.device, place.provider, bundle.contract.precision)

    def _require_providers(self) -> None:
        """Raises DeviceError where the installed ONNX Runtime was built without a provider that is wanted."""
        ort, device = self._ort, self._place.device
        if missing := set(self._place.wanted) - set(ort.get_available_providers()):
            install = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'"
            hidden = "onnxruntime, which was installed beside onnxruntime-gpu, hides it" if _both_installed() else ""
            reason = hidden or f"this onnxruntime was built without {' and '.join(sorted(missing))}"
            raise DeviceError(f"--device {device}: {reason}; {install}")
        if not hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"):
            raise DeviceError(f"--device {device}: onnxruntime-gpu {ort.__version__} is too old; pip install -U it")
        with _unheard():
            ort.preload_dlls()
        ort.set_default_logger_severity(_FATAL_ONLY)  # of loading a provider, which a session's options do not reach

    def _session(self, path: Path, options: Any, providers: tuple[str, ...]) -> Any:
        chosen = [(name, _options_of(name)) for name in providers]
        try:
            with _unheard():
                session = self._ort.InferenceSession(str(path), options, providers=chosen)
        except Exception as error:  # the runtime's own exception types are not public
            reason = str(error).splitlines()[0]
            raise BundleError(f"{path} is not a graph that this onnxruntime can load ({reason})") from None
        self._require_work(session, path, providers)
        return session

    def _require_work(self, session: Any, path: Path, providers: tuple[str, ...]) -> None:
        """Raises DeviceError where a provider did not start, or left work to the CPU: ONNX Runtime then goes on with
        the next in silence."""
        device = self._place.device
        if lost := [name for name in providers if name not in session.get_providers()]:
            raise DeviceError(
                f"--device {device}: {lost[0]} of ONNX Runtime does not start here; it needs an NVIDIA driver"
                " (nvidia-smi shows it) and the CUDA libraries, which onnxruntime-gpu[cuda,cudnn] brings"
                f"{', and TensorRT (pip install tensorrt)' if lost[0] == TENSORRT else ''}"
            )
        if providers[0] == CPU:
            return
        left = {
            node.op_type
            for part in session.get_provider_graph_assignment_info()
            if part.ep_name == CPU
            for node in part.get_nodes()
        }
        if left & _WORK:
            raise DeviceError(
                f"--device {device}: ONNX Runtime would run {', '.join(sorted(left & _WORK))} of {path.name} on the"
                " CPU; export the model with --provider cuda, or use --device cpu"
            )

    def new_cache(self) -> KVCache:
        spec = self._spec
        shape = (1, spec.kv_heads, spec.max_tokens, spec.head_dim)
        buffers = {past: self._value(np.zeros(shape, spec.cache_dtype)) for past, _ in self._slots}
        return KVCache(buffers, spec.max_tokens, self._clone)

    def _value(self, array: NDArray[Any]) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(array, self._place.memory)

    def _clone(self, buffers: Buffers) -> Buffers:
        return {name: self._value(value.numpy().copy()) for name, value in buffers.items()}

    def encode(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float32]]:
        names = [output.name for output in self._vision.get_outputs()]
        return dict(zip(names, self._vision.run(names, dict(inputs)), strict=True))

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
        # Of all outputs only the first: copy_outputs_to_cpu would copy the whole cache with every token.
        logits: NDArray[np.float32] = np.array(binding.get_outputs()[0].numpy())
        return logits.reshape(-1)


def _unheard() -> contextlib.AbstractContextManager[object]:
    """ONNX Runtime prints what it does not find, among the results; what a session then lacks is looked at."""
    return contextlib.redirect_stdout(io.StringIO())


def _options_of(provider: str) -> dict[str, str]:
    """TensorRT keeps what it compiled, which takes minutes; it looks by itself whether GPU and version still fit."""
    if provider != TENSORRT:
        return {}
    folder = kept_in("onnxruntime-tensorrt")
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }


def _both_installed() -> bool:
    """Whether the package without GPUs lies beside, and so over, the one with: they share their files."""
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            version(name)
        except PackageNotFoundError:
            return False
    return True
