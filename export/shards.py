"""The safetensors files of a checkpoint: which holds what, in which shape, and single tensors out of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from errors import ExportError
from safetensors import SafetensorError, safe_open

INDEX_FILE: Final = "model.safetensors.index.json"
SINGLE_FILE: Final = "model.safetensors"
PICKLED: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")
FLOATS: Final = ("F32", "F16", "BF16")
WORDS: Final = ("I32",)

Header = dict[str, tuple[tuple[int, ...], str]]


class Shards:
    """Stored tensors, by their names."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """`files`: that hold each of them."""
        self._files = files
        self._headers = dict[Path, Header]()

    @classmethod
    def of(cls, directory: Path) -> "Shards":
        """Raises ExportError."""
        return cls(_files(directory))

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def path(self, name: str) -> Path:
        return self._files[name]

    def shape(self, name: str, types: tuple[str, ...]) -> tuple[int, ...]:
        """Of a tensor that must be of one of these types. Raises ExportError."""
        path = self._files[name]
        if path not in self._headers:
            self._headers[path] = _header(path)
        if name not in self._headers[path]:
            raise ExportError(f"{path} has no tensor {name}, although {INDEX_FILE} says so; get the checkpoint again")
        shape, dtype = self._headers[path][name]
        if dtype not in types:
            raise ExportError(f"{path}: {name} is stored as {dtype}; supported: {', '.join(types)}")
        return shape

    def tensor(self, name: str) -> torch.Tensor:
        """Raises ExportError."""
        path = self._files[name]
        try:
            # Opened for one tensor only, so that pages of the file that were read can leave the memory.
            with safe_open(path, framework="pt") as shard:
                tensor: torch.Tensor = shard.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise _damaged(path, error) from None
        return tensor


def json_of(path: Path) -> Any:
    """Raises ExportError."""
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
        index = json_of(directory / INDEX_FILE)
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


def _header(path: Path) -> Header:
    """Shape and type of each tensor of a shard; its numbers are not read. Raises ExportError."""
    try:
        with safe_open(path, framework="pt") as shard:
            # It is no mapping, whatever the rule believes.
            slices = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from None
