"""A Qwen2.5-VL-class checkpoint directory, read tensor by tensor: the whole model is never in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from architecture import CONFIG_FILE, Architecture
from errors import ExportError
from numpy.typing import NDArray
from packed import PackedLayers, Packing
from rounding import Rounded
from shards import FLOATS, Shards, json_of

QUANTIZATION: Final = "quantization_config"  # of config.json
QUANTIZE_FILE: Final = "quantize_config.json"  # where auto-gptq had it
EMBEDDINGS: Final = "text.embed_tokens.weight"
HEAD: Final = "lm_head.weight"
# What tensors of the text and of the vision side are called, in the order in which layouts came up.
LAYOUTS: Final = (("model.", "visual."), ("model.language_model.", "model.visual."))


class Checkpoint:
    """An opened checkpoint: every tensor that the architecture needs is there, in the shape that it needs.

    Tensors are asked for as `text.*`, `visual.*` and `lm_head.weight`, whatever layout the files have. Some of its
    linear layers may be rounded already: to steps of `bits`, None where there are none.
    """

    def __init__(
        self,
        directory: Path,
        architecture: Architecture,
        shards: Shards,
        stored: Mapping[str, str],
        packed: PackedLayers | None,
    ) -> None:
        """`stored`: for each of our names, the one that the tensor is stored by."""
        self.directory, self.architecture = directory, architecture
        self._shards, self._stored, self._packed = shards, stored, packed
        self.bits = packed.bits if packed else None

    @classmethod
    def open(cls, directory: Path) -> "Checkpoint":
        """Reads config, index and the headers of the shards. Raises ExportError."""
        if not directory.is_dir():
            raise ExportError(f"{directory} is not a directory; a checkpoint is a directory with {CONFIG_FILE}")
        config = json_of(directory / CONFIG_FILE)
        architecture = Architecture.of(config)
        shards = Shards.of(directory)
        text, visual = next((names for names in LAYOUTS if f"{names[0]}embed_tokens.weight" in shards), LAYOUTS[0])
        wanted = {f"text.{name}": (text + name, shape) for name, shape in architecture.text.tensors().items()}
        wanted |= {f"visual.{name}": (visual + name, shape) for name, shape in architecture.vision.tensors().items()}
        if not architecture.tied:
            wanted[HEAD] = (HEAD, (architecture.text.vocabulary, architecture.text.hidden))
        packing = _packing(directory, config)
        packed = PackedLayers.of(packing, wanted, shards) if packing else None
        plain = {ours: one for ours, one in wanted.items() if packed is None or ours not in packed}
        for name, _ in plain.values():
            if name not in shards:
                raise ExportError(f"{directory} has no tensor {name}; get the checkpoint again")
        for name, shape in plain.values():
            if (found := shards.shape(name, FLOATS)) != shape:
                raise ExportError(
                    f"{shards.path(name)}: {name} has the shape {found} and {CONFIG_FILE} asks for {shape}"
                )
        return cls(directory, architecture, shards, {ours: name for ours, (name, _) in plain.items()}, packed)

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor in float32, whatever it is stored as; a tied head is the embeddings. Raises ExportError."""
        if self._packed is not None and name in self._packed:
            return self._packed.weights(name)
        values: NDArray[np.float32] = self.tensor(name).float().numpy()
        if not np.isfinite(values).all():
            stored = self._name(name)
            raise ExportError(f"{self._shards.path(stored)}: {stored} holds numbers that are not finite")
        return values

    def tensor(self, name: str) -> torch.Tensor:
        """The same as it is stored, and unchecked; not of what is rounded. Raises ExportError."""
        return self._shards.tensor(self._name(name))

    def rounded(self, name: str) -> Rounded | None:
        """The steps of a linear layer's weight, where the checkpoint holds those; else None. Raises ExportError."""
        return self._packed.rounded(name) if self._packed is not None and name in self._packed else None

    def _name(self, name: str) -> str:
        return self._stored[EMBEDDINGS if name == HEAD and self.architecture.tied else name]


def _packing(directory: Path, config: Any) -> Packing | None:
    """Raises ExportError."""
    if config.get(QUANTIZATION):
        return Packing.of(config[QUANTIZATION], f"{QUANTIZATION} of {directory / CONFIG_FILE}")
    path = directory / QUANTIZE_FILE
    return Packing.of(json_of(path), str(path)) if path.exists() else None
