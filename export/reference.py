"""A checkpoint in transformers, in float32, as the bundle that was made of it must behave."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers
from architecture import VisionArchitecture
from checkpoint import QUANTIZATION, Checkpoint
from errors import ExportError
from machine import available_bytes
from numpy.typing import NDArray
from torch_decoder import TorchDecoder

from qcheck.contract import IMAGE_TOKENS
from qcheck.windows import PATCH_POSITIONS, PATCHES

FLOAT_BYTES: Final = 4
LANGUAGE: Final = "language_model."  # of transformers' names of what is `text.` here


class Reference(TorchDecoder):
    """Serves `Backend` by transformers' own Qwen2.5-VL; `embeddings`: its (vocabulary, hidden) table."""

    def __init__(self, model: Any, vision: VisionArchitecture, max_tokens: int) -> None:
        super().__init__(model.model.language_model, model.lm_head, max_tokens)
        self._visual, self._vision = model.model.visual, vision
        self.embeddings: NDArray[np.float32] = model.get_input_embeddings().weight.detach().numpy()

    @classmethod
    def open(cls, checkpoint: Checkpoint, max_tokens: int) -> "Reference":
        """Raises ExportError for what transformers cannot load."""
        transformers.logging.set_verbosity_error()  # what goes wrong is raised; the rest is not a user's matter
        transformers.logging.disable_progress_bar()
        kind = transformers.Qwen2_5_VLForConditionalGeneration
        try:
            if checkpoint.bits is None:
                model = kind.from_pretrained(checkpoint.directory, dtype=torch.float32)
            else:
                model = unpacked(kind, checkpoint)
        except ExportError:
            raise
        except Exception as error:  # transformers raises whatever its parts do
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ExportError(f"{checkpoint.directory} cannot be loaded by transformers ({reason})") from None
        return cls(model.eval(), checkpoint.architecture.vision, max_tokens)

    @torch.inference_mode()
    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """One still; from where its patches lie, only how many there are is taken, because segments are the model's
        own matter."""
        vision, patches = self._vision, torch.from_numpy(inputs[PATCHES])
        # transformers wants each time of a patch, of which a still has the same one `temporal_patch` times.
        times = patches.unflatten(1, (vision.channels, 1, -1)).expand(-1, -1, vision.temporal_patch, -1).flatten(1)
        rows, cols = (inputs[PATCH_POSITIONS].max(0) + 1).tolist()
        tokens: NDArray[np.float32] = self._visual(
            times, grid_thw=torch.tensor([[1, rows, cols]])
        ).pooler_output.numpy()
        return {IMAGE_TOKENS: tokens}


def unpacked(kind: Any, checkpoint: Checkpoint) -> Any:
    """A model of the weights that a checkpoint's steps stand for: transformers would want gptqmodel to read them, and
    would multiply in halves. Raises ExportError, or whatever transformers does."""
    config = transformers.AutoConfig.from_pretrained(checkpoint.directory)
    if hasattr(config, QUANTIZATION):
        del config.quantization_config
    model = kind._from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        ours = name.removeprefix("model.")
        if ours.startswith(LANGUAGE):
            ours = f"text.{ours.removeprefix(LANGUAGE)}"
        parameter.data = torch.from_numpy(checkpoint.read(ours))
    model.tie_weights()
    return model


def check_memory(checkpoint: Checkpoint, beside_bytes: float, instead: str) -> None:
    """Raises ExportError, ending in `instead`, if a checkpoint at float32 does not fit into the memory that is left
    beside something else of `beside_bytes`. Where the system does not say, nothing is checked."""
    needed, free = checkpoint.architecture.weights * FLOAT_BYTES + beside_bytes, available_bytes()
    if free is not None and free < needed:
        raise ExportError(
            f"to verify takes the checkpoint at float32 beside the bundle, {needed / 1e9:.1f} GB of memory, and"
            f" {free / 1e9:.1f} GB are free; {instead}"
        )


def size_of(directory: Path) -> int:
    """Bytes of a checkpoint's weights on disk."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))
