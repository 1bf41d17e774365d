"""A checkpoint's bundle, written so that nothing half-written can ever be loaded.

Everything goes into a hidden directory beside the place where the bundle is to be, the contract last, because without
one it is no bundle; all of it is on the disk before the directory gets its name.
"""

import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import torch
from architecture import Architecture
from card import card_of, licence_of
from checkpoint import EMBEDDINGS, Checkpoint
from decoder_graph import FORMS
from errors import ExportError
from pictures import crop_of, pixels_of, view_of_budget
from precisions import BITS, PRECISIONS, Parts, Quantisation, decoder_of
from safetensors import SafetensorError
from safetensors.torch import save_file
from speech import TOKENIZER_FILE, check_speech, tokenizer_of
from templates import language_of
from trials import of_folder
from vision import VisionTower
from weights import AsStored, Blocks, Precision

from qcheck.bundle import EMBEDDINGS_TENSOR, Bundle, data_name
from qcheck.contract import CONTRACT_FILE, FORMAT, ZOOMING, Contract, DecoderSpec, Dialect, FileEntry
from qcheck.errors import printable

# What a photo's defects and attributes are called unless somebody says otherwise: nano's.
KINDS: Final = (
    "defocus", "motion_blur", "noise", "compression", "pixelation", "oversharpen", "banding", "moire", "overexposure",
    "underexposure", "color", "dirt", "corruption",
)  # fmt: skip
ATTRIBUTES: Final = ("sharpness", "noise", "color", "exposure", "compression")
CALIBRATION_PHOTOS: Final = 16  # conversations of thousands of tokens each, of which GPTQ wants tens of thousands
CALIBRATION_PROBES: Final = 3
DRAFT: Final = "draft.onnx"
SPARE: Final = 1.05  # of the disk: for what a size by weights leaves out
_READ_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """What an export is to make. `global_pixels`, `crop_pixels`: the most that a view has; `think_tokens`: that are
    thought in one turn; `max_tokens`: room of a conversation's cache. Kinds and attributes are of dialects that report
    any."""

    name: str
    precision: str
    version: str = "1"
    form: str = "gqa"
    dialect: Dialect = "qwen-chat"
    global_pixels: int = 1024 * 28 * 28
    crop_pixels: int = 512 * 28 * 28
    think_tokens: int = 512
    max_tokens: int = 8192
    kinds: tuple[str, ...] = KINDS
    attributes: tuple[str, ...] = ATTRIBUTES
    quantisation: Quantisation = field(default_factory=Quantisation)
    threads: int | None = None

    @property
    def parts(self) -> Parts:
        """Of what is decided before anything is calibrated."""
        return replace(PRECISIONS[self.precision], decoder=decoder_of(self.precision, self.quantisation))


def export(
    directory: Path, out: Path, settings: Settings, approve: Callable[[Bundle, Checkpoint], None] = lambda *_: None
) -> Bundle:
    """The bundle of the checkpoint in `directory`, at `out`, which must not exist. `approve` sees it before it gets its
    name, and raises if it is not to have one. Raises ExportError or BundleError; nothing is left of a bundle that could
    not be finished."""
    if out.exists() or out.is_symlink():
        raise ExportError(f"{out} exists; remove it, or name another place")
    if not out.parent.is_dir():
        raise ExportError(f"{out.parent} is not a directory; make it first")
    settings.quantisation.check(settings.precision)
    checkpoint = Checkpoint.open(directory)
    _check_steps(checkpoint, settings)
    contract = _contract(checkpoint, settings)
    check_speech(contract, tokenizer_of(directory, checkpoint.architecture.text.vocabulary))
    _check_room(out.parent, checkpoint.architecture, settings.parts)
    with _finished(out) as work:
        files = _write_parts(checkpoint, contract, settings, work)
        _write(work / CONTRACT_FILE, replace(contract, files=files).to_json())
        made = Bundle.open(work)
        approve(made, checkpoint)
    return replace(made, directory=out)


def _check_steps(checkpoint: Checkpoint, settings: Settings) -> None:
    """Raises ExportError if a checkpoint that is rounded already is to be rounded again."""
    bits = BITS.get(settings.precision)
    if checkpoint.bits is None or bits is None:
        return
    if bits != checkpoint.bits:
        raise ExportError(
            f"{checkpoint.directory} holds steps of {checkpoint.bits} bits; use --precision int{checkpoint.bits}, or"
            " one of floats"
        )
    if settings.quantisation != Quantisation():
        raise ExportError(
            f"{checkpoint.directory} is quantised, and its steps are kept; leave out --algorithm, --block, --symmetric"
            " and --calibration"
        )


def _decoder_of(checkpoint: Checkpoint, settings: Settings) -> Precision:
    """Of what is decided before anything is calibrated."""
    plain = settings.parts.decoder
    return AsStored(checkpoint.rounded, plain) if checkpoint.bits and isinstance(plain, Blocks) else plain


def _contract(checkpoint: Checkpoint, settings: Settings) -> Contract:
    """Without files. Raises ExportError or BundleError."""
    text, vision = checkpoint.architecture.text, checkpoint.architecture.vision
    reports = settings.dialect in ZOOMING
    kinds, attributes = (settings.kinds, settings.attributes) if reports else ((), ())
    pixels = pixels_of(checkpoint.directory, vision)
    token_px = vision.patch_px * vision.merge
    cache_dtype = "float16" if settings.precision == "fp16" else "float32"
    contract = Contract(
        format=FORMAT,
        name=settings.name,
        version=settings.version,
        licence=printable(licence_of(checkpoint.directory)),
        precision=settings.precision,
        kinds=kinds,
        attributes=attributes,
        coordinates="view_pixels",
        pixels=pixels,
        global_view=view_of_budget("--global-pixels", settings.global_pixels, token_px),
        crop_view=view_of_budget("--crop-pixels", settings.crop_pixels, token_px),
        crop=crop_of(token_px),
        decoder=DecoderSpec(
            text.layers, text.kv_heads, text.head_dim, text.hidden, settings.max_tokens, cache_dtype=cache_dtype
        ),
        language=language_of(settings.dialect, kinds, attributes, settings.think_tokens),
        files={},
    )
    return Contract.from_json(contract.to_json())  # which checks it


def size_of(architecture: Architecture, parts: Parts) -> float:
    """Bytes of a bundle's weights, about."""

    def weights(shapes: dict[str, tuple[int, ...]]) -> int:
        return sum(math.prod(shape) for shape in shapes.values())

    text, vision = architecture.text, architecture.vision
    table = text.vocabulary * text.hidden  # in the decoder's tensors it stands for the head
    decoder = weights(text.tensors()) * parts.decoder.bytes_a_weight
    table_bytes = table * (4 if parts.table == "float32" else 2)
    return decoder + weights(vision.tensors()) * parts.vision.bytes_a_weight + table_bytes


def _check_room(place: Path, architecture: Architecture, parts: Parts) -> None:
    """Raises ExportError if the disk has too little room for the bundle."""
    needed, free = SPARE * size_of(architecture, parts), shutil.disk_usage(place).free
    if free < needed:
        raise ExportError(f"{place} has {free / 1e9:.1f} GB of room and the bundle needs {needed / 1e9:.1f} GB")


@contextmanager
def _finished(out: Path) -> Iterator[Path]:
    """A directory to fill, which becomes `out` if nothing goes wrong. Raises ExportError for what the disk refuses."""
    work: Path | None = None
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
        yield work
        for path in work.iterdir():
            path.chmod(0o644)
            _to_disk(path)
        work.chmod(0o755)
        _to_disk(work)
        work.rename(out)
        _to_disk(out.parent)
    except OSError as error:
        raise ExportError(f"{error.filename or out}: {error.strerror or error}") from None
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_parts(checkpoint: Checkpoint, contract: Contract, settings: Settings, work: Path) -> dict[str, FileEntry]:
    """All files but the contract, and their entries."""
    parts = settings.parts
    VisionTower.write(checkpoint, parts.vision, work / "vision.onnx")
    _write_embeddings(checkpoint, parts, work / "embeddings.safetensors")
    shutil.copyfile(checkpoint.directory / TOKENIZER_FILE, work / TOKENIZER_FILE)
    how = ""
    if settings.precision in BITS:
        rounded = settings.quantisation.described(BITS[settings.precision])
        how = f", {'as it was quantised' if checkpoint.bits else rounded}"
    _write(work / "MODEL_CARD.md", card_of(contract, checkpoint.directory, settings.form, how))
    decoder = _calibrated(checkpoint, contract, settings, work)
    FORMS[settings.form].write(checkpoint, decoder, work / "decoder.onnx")
    names = {
        "vision": "vision.onnx",
        "vision_data": data_name("vision.onnx"),
        "decoder": "decoder.onnx",
        "decoder_data": data_name("decoder.onnx"),
        "embeddings": "embeddings.safetensors",
        "tokenizer": TOKENIZER_FILE,
        "card": "MODEL_CARD.md",
    }
    return {part: _entry(work / name) for part, name in names.items() if (work / name).exists()}


def _calibrated(checkpoint: Checkpoint, contract: Contract, settings: Settings, work: Path) -> Precision:
    """The decoder's precision. Where it looks at photos, they are judged by a draft that is rounded to the nearest; the
    draft's decoder is gone from the disk before the real one is written, and it never has a contract there."""
    folder = settings.quantisation.calibration
    if folder is None:
        return _decoder_of(checkpoint, settings)
    from calibration import Calibration, conversations  # here, because transformers is not needed otherwise

    FORMS[settings.form].write(checkpoint, settings.parts.decoder, work / DRAFT)
    names = {
        "vision": "vision.onnx",
        "decoder": DRAFT,
        "embeddings": "embeddings.safetensors",
        "tokenizer": TOKENIZER_FILE,
    }
    files = {part: FileEntry(name, 0, "") for part, name in names.items()}
    draft = Bundle(work, replace(contract, files=files), "0" * 64)
    photos = of_folder(folder, CALIBRATION_PHOTOS)
    fed = list(conversations(draft, photos, CALIBRATION_PROBES, settings.threads))
    for name in (DRAFT, data_name(DRAFT)):
        (work / name).unlink(missing_ok=True)
    return decoder_of(settings.precision, settings.quantisation, Calibration(checkpoint, fed))


def _write_embeddings(checkpoint: Checkpoint, parts: Parts, path: Path) -> None:
    """As the checkpoint has them, so that halves stay halves."""
    table = checkpoint.tensor(EMBEDDINGS)
    if table.dtype == torch.float32:
        table = table.to(getattr(torch, parts.table))
    if not torch.isfinite(table).all():
        raise ExportError(f"the embeddings hold numbers that are not finite in {table.dtype}; use fp32")
    try:
        save_file({EMBEDDINGS_TENSOR: table.contiguous()}, path)
    except SafetensorError as error:
        raise ExportError(f"{path}: {error}") from None


def _entry(path: Path) -> FileEntry:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return FileEntry(path.name, path.stat().st_size, digest.hexdigest())


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
