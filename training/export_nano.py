"""A trained nano as a bundle: two ONNX graphs, embeddings, tokenizer, contract, checksums.

    python training/export_nano.py --run RUN/best.pt --card training/MODEL_CARD.md --out qcheck/models/nano

Precisions: fp32; int8 (matrices in symmetric blocks of 32 weights; the decoder's are multiplied in int8 where the CPU
can, those of the vision graph are only stored so; the convolutions that glance are stored in fp16, the others stay
fp32); int4 (the same with 4 bits in the decoder).
"""

import argparse
import hashlib
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from defects import Domain
from nano import Nano, NanoVisual, raise_bar
from nano_contract import contract_of
from nano_spec import TOKEN_PX
from onnx import helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from sft import start_of
from torch import Tensor, nn

from qcheck.bundle import EMBEDDINGS_TENSOR, Bundle
from qcheck.contract import (
    CONTRACT_FILE,
    GLANCED,
    IMAGE_TOKENS,
    INPUTS_EMBEDS,
    JUDGED,
    KNOWN,
    KV_LENGTH,
    LOGITS,
    PIXELS,
    POSITION_IDS,
    SURVEY,
    DecoderSpec,
    FileEntry,
    past_name,
    present_name,
)
from qcheck.survey import STATISTICS

VERSION: Final = "0.9.4"
OPSET: Final = 18
MOST_SURVEY_CELLS: Final = 1 << 12  # a side: 131,072 pixels, more than any JPEG has
BLOCK: Final = 32
GLANCE: Final = "visual.glance."
DECODER_BITS: Final = {"int8": 8, "int4": 4}
VISION_BITS: Final = 8


class VisionGraph(nn.Module):
    def __init__(self, visual: NanoVisual) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels: Tensor, survey: Tensor, glanced: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        return self.visual.image_tokens(pixels, survey, glanced, known)


class DecoderGraph(nn.Module):
    """The text side with its KV cache in fixed buffers: com.microsoft.GroupQueryAttention, rotary applied outside."""

    def __init__(self, model: Nano) -> None:
        super().__init__()
        self.text, self.head = model.model.language_model, model.lm_head

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, kv_length: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        x, (batch, count, _) = inputs_embeds, inputs_embeds.shape
        cos, sin = (part[:, None] for part in self.text.rotary_emb(x, position_ids))
        last = (kv_length + count - 1).to(torch.int32)
        total = (kv_length + count).max().to(torch.int32)
        present: list[Tensor] = []
        for index, layer in enumerate(self.text.layers):
            attention, h = layer.self_attn, layer.input_layernorm(x)
            q, k, v = (
                p(h).view(batch, count, -1, attention.head_dim).transpose(1, 2)
                for p in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            q, k = q * cos + rotated(q) * sin, k * cos + rotated(k) * sin
            keys, values = past[2 * index], past[2 * index + 1]
            heads, kv_heads = q.shape[1], k.shape[1]
            q, k, v = (part.transpose(1, 2).reshape(batch, count, -1) for part in (q, k, v))
            out, keys, values = torch.onnx.ops.symbolic_multi_out(
                "com.microsoft::GroupQueryAttention",
                (q, k, v, keys, values, last, total),
                {"num_heads": heads, "kv_num_heads": kv_heads, "scale": attention.scaling, "do_rotary": 0},
                dtypes=(q.dtype, keys.dtype, values.dtype),
                shapes=(q.shape, keys.shape, values.shape),
                version=1,
            )
            x = x + attention.o_proj(out)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            present += [keys, values]
        return self.head(self.text.norm(x)[:, -1:]), *present


def rotated(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


def export_vision(model: Nano, path: Path) -> None:
    shown, glanced = (
        {at: TOKEN_PX * torch.export.Dim(f"{name}_{at}", min=1, max=128) for at in (2, 3)}
        for name in ("tokens", "glanced")
    )
    cells = {at: torch.export.Dim(f"survey_{at}", min=1, max=MOST_SURVEY_CELLS) for at in (1, 2)}
    given = {
        PIXELS: torch.zeros(1, 3, 2 * TOKEN_PX, 3 * TOKEN_PX),
        SURVEY: torch.zeros(1, 5, 7, len(STATISTICS)),
        GLANCED: torch.zeros(1, 3, 3 * TOKEN_PX, 2 * TOKEN_PX),
        KNOWN: torch.zeros(1, 1),
    }
    program = torch.onnx.export(
        VisionGraph(model.model.visual).eval(),
        tuple(given.values()),
        input_names=list(given),
        output_names=[IMAGE_TOKENS, JUDGED],
        dynamic_shapes=(shown, cells, glanced, {}),
        dynamo=True,
        opset_version=OPSET,
        verbose=False,
    )
    program.save(str(path), external_data=False)


def export_decoder(model: Nano, spec: DecoderSpec, path: Path) -> None:
    slots = [(layer, part) for layer in range(spec.layers) for part in ("key", "value")]
    count = torch.export.Dim("count", min=1, max=spec.max_tokens)
    capacity = torch.export.Dim("capacity", min=2, max=1 << 16)
    past = [torch.zeros(1, spec.kv_heads, 16, spec.head_dim) for _ in slots]
    program = torch.onnx.export(
        DecoderGraph(model).eval(),
        (),
        kwargs={
            "inputs_embeds": torch.zeros(1, 5, spec.hidden),
            "position_ids": torch.zeros(3, 1, 5, dtype=torch.long),
            "kv_length": torch.zeros(1, dtype=torch.long),
            "past": past,
        },
        dynamic_shapes={
            "inputs_embeds": {1: count},
            "position_ids": {2: count},
            "kv_length": {},
            "past": [{2: capacity}] * len(past),
        },
        input_names=[INPUTS_EMBEDS, POSITION_IDS, KV_LENGTH, *(past_name(*slot) for slot in slots)],
        output_names=[LOGITS, *(present_name(*slot) for slot in slots)],
        dynamo=True,
        opset_version=OPSET,
        verbose=False,
    )
    program.save(str(path), external_data=False)


def strip(path: Path) -> None:
    """Takes the exporter's notes out in place: stack traces, which hold the paths of the machine it ran on."""
    model = onnx.load(path)
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    model.graph.ClearField("metadata_props")
    model.ClearField("metadata_props")
    onnx.save(model, path)


def quantise(path: Path, bits: int, accuracy_level: int) -> None:
    """Matrices to 4 or 8 bits in place: round to nearest, symmetric, blocks of 32. `accuracy_level`: of MatMulNBits, 1:
    multiplied in fp32, 4: in int8."""
    quantizer = MatMulNBitsQuantizer(
        onnx.load(path),
        algo_config=DefaultWeightOnlyQuantConfig(
            block_size=BLOCK, is_symmetric=True, accuracy_level=accuracy_level, bits=bits
        ),
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(path), False)


def halve(path: Path, prefix: str) -> None:
    """Stores weights whose names begin so in fp16, in place; they are made fp32 again when the graph is loaded."""
    model = onnx.load(path)
    graph, casts = model.graph, []
    for weight in [one for one in graph.initializer if one.name.startswith(prefix)]:
        half = numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), f"{weight.name}.half")
        casts.append(helper.make_node("Cast", [half.name], [weight.name], to=onnx.TensorProto.FLOAT))
        graph.initializer.remove(weight)
        graph.initializer.append(half)
    nodes = [*casts, *graph.node]  # what is read comes after what makes it
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, path)


def write_safetensor(path: Path, name: str, tensor: Tensor) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().float().contiguous()}, str(path))
    path.chmod(0o644)  # safetensors keeps its files to their owner


def entry(path: Path) -> FileEntry:
    data = path.read_bytes()
    return FileEntry(path.name, len(data), hashlib.sha256(data).hexdigest())


def load(checkpoint: Path) -> tuple[Nano, Any, Domain]:
    """The model of a training checkpoint, in eval mode, its tokenizer and its domain."""
    model, tokenizer, domain = start_of(checkpoint)
    raise_bar(model, tokenizer)
    return model.eval(), tokenizer, domain


def export(checkpoint: Path, card: Path, out: Path, precision: str) -> Bundle:
    """Writes a bundle: into a temporary directory beside `out` first, so that no half-written one can be loaded."""
    work, old = out.with_name(out.name + ".partial"), out.with_name(out.name + ".old")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        write_parts(checkpoint, card, work, precision)
        Bundle.open(work)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    if out.exists():
        out.rename(old)
    work.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    return Bundle.open(out)


def write_parts(checkpoint: Path, card: Path, work: Path, precision: str) -> None:
    """The files of a bundle and its contract, into the directory `work`."""
    model, tokenizer, domain = load(checkpoint)
    with torch.inference_mode():
        export_vision(model, work / "vision.onnx")
        export_decoder(model, contract_of(model, domain, VERSION, precision, {}).decoder, work / "decoder.onnx")
    for name in ("vision.onnx", "decoder.onnx"):
        strip(work / name)
    if precision in DECODER_BITS:
        quantise(work / "decoder.onnx", DECODER_BITS[precision], 4)
        quantise(work / "vision.onnx", VISION_BITS, 1)
        halve(work / "vision.onnx", GLANCE)
    write_safetensor(work / "embeddings.safetensors", EMBEDDINGS_TENSOR, model.get_input_embeddings().weight)
    tokenizer.save(str(work / "tokenizer.json"), pretty=False)
    shutil.copyfile(card, work / "MODEL_CARD.md")
    names = {
        "vision": "vision.onnx",
        "decoder": "decoder.onnx",
        "embeddings": "embeddings.safetensors",
        "tokenizer": "tokenizer.json",
        "card": "MODEL_CARD.md",
    }
    files = {part: entry(work / name) for part, name in names.items()}
    contract = contract_of(model, domain, VERSION, precision, files)
    (work / CONTRACT_FILE).write_text(contract.to_json(), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a checkpoint of sft.py")
    parser.add_argument("--card", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--precision", choices=("fp32", *DECODER_BITS), default="int8")
    args = parser.parse_args()
    bundle = export(args.run, args.card, args.out, args.precision)
    total = sum(file.bytes for file in bundle.contract.files.values())
    print(f"{bundle.directory}: {bundle.contract.precision}, {total / 1e6:.1f} MB, sha256 {bundle.sha256[:16]}")


if __name__ == "__main__":
    main()
