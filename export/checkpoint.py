"""A Qwen2.5-VL-class checkpoint directory, read tensor by tensor: the whole model is never in memory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from architecture import CONFIG_FILE, Architecture
from errors import ExportError
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

INDEX_FILE: Final = "model.safetensors.index.json"
SINGLE_FILE: Final = "model.safetensors"
PICKLED: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")
EMBEDDINGS: Final = "text.embed_tokens.weight"
HEAD: Final = "lm_head.weight"
FLOATS: Final = ("F32", "F16", "BF16")
# What tensors of the text and of the vision side are called, in the order in which layouts came up.
LAYOUTS: Final = (("model.", "visual."), ("model.language_model.", "model.visual."))


class Checkpoint:
    """An opened checkpoint: every tensor that the architecture needs is there, in the shape that it needs.

    Tensors are asked for as `text.*`, `visual.*` and `lm_head.weight`, whatever layout the files have.
    """

    def __init__(self, directory: Path, architecture: Architecture, stored: Mapping[str, tuple[str, Path]]) -> None:
        """`stored`: for each of our names, the name and the file that hold the tensor."""
        self.directory, self.architecture, self._stored = directory, architecture, stored

    @classmethod
    def open(cls, directory: Path) -> "Checkpoint":
        """Reads config, index and the headers of the shards. Raises ExportError."""
        if not directory.is_dir():
            raise ExportError(f"{directory} is not a directory; a checkpoint is a directory with {CONFIG_FILE}")
        architecture = Architecture.of(_json(directory / CONFIG_FILE))
        files = _files(directory)
        text, visual = next((names for names in LAYOUTS if f"{names[0]}embed_tokens.weight" in files), LAYOUTS[0])
        wanted = {f"text.{name}": (text + name, shape) for name, shape in architecture.text.tensors().items()}
        wanted |= {f"visual.{name}": (visual + name, shape) for name, shape in architecture.vision.tensors().items()}
        if not architecture.tied:
            wanted[HEAD] = (HEAD, (architecture.text.vocabulary, architecture.text.hidden))
        for name, _ in wanted.values():
            if name not in files:
                raise ExportError(f"{directory} has no tensor {name}; get the checkpoint again")
        stored = {ours: (name, files[name]) for ours, (name, _) in wanted.items()}
        _check_headers(dict(wanted.values()), files)
        return cls(directory, architecture, stored)

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor in float32, whatever it is stored as; a tied head is the embeddings. Raises ExportError."""
        values: NDArray[np.float32] = self.tensor(name).float().numpy()
        if not np.isfinite(values).all():
            stored, path = self._place(name)
            raise ExportError(f"{path}: {stored} holds numbers that are not finite")
        return values

    def tensor(self, name: str) -> torch.Tensor:
        """The same as it is stored, and unchecked. Raises ExportError."""
        stored, path = self._place(name)
        try:
            # Opened for one tensor only, so that pages of the file that were read can leave the memory.
            with safe_open(path, framework="pt") as shard:
                tensor: torch.Tensor = shard.get_tensor(stored)
        except (OSError, SafetensorError) as error:
            raise _damaged(path, error) from None
        return tensor

    def _place(self, name: str) -> tuple[str, Path]:
        """The stored name of a tensor, and its file."""
        return self._stored[EMBEDDINGS if name == HEAD and self.architecture.tied else name]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ExportError(f"{path.parent} has no readable {path.name}; is it a checkpoint?") from None
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not valid JSON ({error})") from None


def _damaged(path: Path, error: Exception) -> ExportError:
    return ExportError(f"{path} is not a whole safetensors file ({error}); get it again")


def _files(directory: Path) -> dict[str, Path]:
    """The shard of each stored tensor. Raises ExportError."""
    if (directory / INDEX_FILE).exists():
        index = _json(directory / INDEX_FILE)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise ExportError(f"{directory / INDEX_FILE} has no weight_map of file names")
        for shard in sorted(set(shards.values())):
            if Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise ExportError(f"{directory / INDEX_FILE} names {shard!r}, which is no safetensors file beside it")
            if not (directory / shard).is_file():
                raise ExportError(f"{directory} lacks the shard {shard} that {INDEX_FILE} names; get it again")
        return {name: directory / shard for name, shard in shards.items()}
    single = directory / SINGLE_FILE
    if single.is_file():
        return dict.fromkeys(_header(single), single)
    pickled = sorted(path.name for pattern in PICKLED for path in directory.glob(pattern))
    if pickled:
        raise ExportError(
            f"{directory} holds pickled weights ({pickled[0]}), which may run code when read; convert to safetensors"
        )
    raise ExportError(f"{directory} has neither {INDEX_FILE} nor {SINGLE_FILE}")


def _header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each tensor of a shard; its numbers are not read. Raises ExportError."""
    try:
        with safe_open(path, framework="pt") as shard:
            # It is no mapping, whatever the rule believes.
            slices = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from None


def _check_headers(wanted: Mapping[str, tuple[int, ...]], files: Mapping[str, Path]) -> None:
    """Raises ExportError for a tensor that its shard lacks, or has in another shape or type."""
    headers = {path: _header(path) for path in sorted({files[name] for name in wanted})}
    for name, shape in wanted.items():
        path = files[name]
        if name not in headers[path]:
            raise ExportError(f"{path} has no tensor {name}, although {INDEX_FILE} says so; get the checkpoint again")
        found, dtype = headers[path][name]
        if dtype not in FLOATS:
            raise ExportError(f"{path}: {name} is stored as {dtype}; supported: {', '.join(FLOATS)}")
        if found != shape:
            raise ExportError(f"{path}: {name} has the shape {found} and {CONFIG_FILE} asks for {shape}")
