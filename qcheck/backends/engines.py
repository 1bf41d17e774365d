"""TensorRT engines of a bundle's graphs: built for one GPU and one version, and kept until one of those changes."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from qcheck.backends.placement import kept_in
from qcheck.bundle import Bundle
from qcheck.contract import CACHE_PARTS, INPUTS_EMBEDS, KV_LENGTH, POSITION_IDS, Contract, past_name
from qcheck.errors import DeviceError
from qcheck.tiles import ViewSpec
from qcheck.windows import IMAGES, INDEX, MASK, PATCH_POSITIONS, PATCHES, PLACE, WINDOWS

MOST_CROPS: Final = 8  # in one call of the vision engine
SPOKEN_TOKENS: Final = 16  # that a decoding step takes at most; longer ones are prefills
TEXT_TOKENS: Final = 1024  # that may stand around a view in one prefill; longer ones are cut in pieces
PIXEL_CHANNELS: Final = 3

Shape = tuple[int, ...]
# Three shapes of each input: the least, the usual and the greatest.
Profile = Mapping[str, Sequence[Shape]]


def vision_profile(contract: Contract) -> Profile:
    """Of one view of any size that the contract allows to MOST_CROPS crops. Raises DeviceError for a layout without
    patches."""
    patches = contract.pixels.patches
    if patches is None:
        raise DeviceError("--device tensorrt: this model's vision is not of patches; use --device cpu")
    token, side = patches.merge**2, patches.window_tokens
    usual, most_in_one = (
        view.max_pixels // patches.token_px**2 for view in (contract.crop_view, _larger(contract))
    )  # image tokens
    most = max(MOST_CROPS * usual, most_in_one)
    # A view that is one token high has a window for every `side` tokens; the last one of each may be narrower.
    windows = -(-most // side) + MOST_CROPS
    usual_windows = max(1, usual // side**2)
    width = PIXEL_CHANNELS * patches.patch_px**2

    def of_patches(*rest: int) -> Sequence[Shape]:
        return [(count * token, *rest) for count in (1, usual, most)]

    window = ((1, token), (usual_windows, side**2 * token), (windows, side**2 * token))
    image = ((1, token), (1, usual * token), (MOST_CROPS, most_in_one * token))
    return {
        PATCHES: of_patches(width),
        PATCH_POSITIONS: of_patches(2),
        **{f"{WINDOWS}.{part}": window for part in (INDEX, MASK)},
        **{f"{IMAGES}.{part}": image for part in (INDEX, MASK)},
        **{f"{prefix}.{PLACE}": of_patches() for prefix in (WINDOWS, IMAGES)},
    }


def _larger(contract: Contract) -> ViewSpec:
    return max(contract.global_view, contract.crop_view, key=lambda view: view.max_pixels)


def most_prefilled(contract: Contract) -> int:
    """Tokens that one call of the decoder's engine takes at most."""
    view = _larger(contract)
    return min(contract.decoder.max_tokens, view.max_pixels // view.token_px**2 + TEXT_TOKENS)


def decoder_profiles(contract: Contract) -> tuple[Profile, Profile]:
    """One for what is said, a few tokens a step, and one for prefills. The cache has the contract's length."""
    spec = contract.decoder
    cache = (1, spec.kv_heads, spec.max_tokens, spec.head_dim)
    fixed = {past_name(layer, part): [cache] * 3 for layer in range(spec.layers) for part in CACHE_PARTS}

    def of(usual: int, most: int) -> Profile:
        counts = (1, min(usual, most), most)
        return {
            INPUTS_EMBEDS: [(1, count, spec.hidden) for count in counts],
            POSITION_IDS: [(3, 1, count) for count in counts],
            KV_LENGTH: [(1,)] * 3,
            **fixed,
        }

    most = most_prefilled(contract)
    return of(1, min(SPOKEN_TOKENS, most)), of(512, most)


@dataclass(frozen=True, slots=True)
class EngineKey:
    """What an engine is good for; another of any of these needs another engine."""

    gpu: str
    tensorrt: str
    graph: str  # sha256 of the graph and its data
    profiles: str

    @classmethod
    def of(cls, bundle: Bundle, part: str, profiles: Sequence[Profile], gpu: str, tensorrt: str) -> "EngineKey":
        files = bundle.contract.files
        sums = [files[name].sha256 for name in (part, f"{part}_data") if name in files]
        return cls(gpu, tensorrt, " ".join(sums), json.dumps([dict(profile) for profile in profiles]))

    @property
    def file_name(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:32] + ".engine"


@dataclass(frozen=True, slots=True)
class EngineCache:
    """Engines on the disk, by what they are good for."""

    folder: Path

    @classmethod
    def of_user(cls) -> "EngineCache":
        return cls(kept_in("engines"))

    def engine(self, key: EngineKey, build: Callable[[], bytes]) -> bytes:
        """The engine that is kept, or else a new one, which is then kept whole or not at all."""
        path = self.folder / key.file_name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            plan = build()
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".partial", delete=False) as file:
            try:
                file.write(plan)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        return plan

    def forget(self, key: EngineKey) -> None:
        (self.folder / key.file_name).unlink(missing_ok=True)


def build(trt: Any, graph: Path, profiles: Sequence[Profile]) -> bytes:
    """Compiles an ONNX graph with its types as they are. `trt`: the package tensorrt. Raises DeviceError with what
    TensorRT does not take."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    # Ignored from 11 on, where nothing else is left; without it, 10 would choose types by itself, and float16 overflows
    # in the last MLPs of Qwen2.5's vision tower.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        reason = " ".join(parser.get_error(0).desc().split()) if parser.num_errors else "no reason given"
        raise DeviceError(
            f"--device tensorrt: TensorRT {trt.__version__} does not take {graph.name} ({reason}); export the model"
            " with --provider tensorrt --form std24"
        )
    config = builder.create_builder_config()
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in shapes.items():
            profile.set_shape(name, least, usual, most)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise DeviceError(f"--device tensorrt: TensorRT {trt.__version__} could not compile {graph.name} for this GPU")
    return bytes(plan)
