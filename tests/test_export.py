"""Random tiny Qwen2.5-VL checkpoints, and the graphs that are made of them, against transformers' own eager model.

Every parameter is random, also the biases and norms that transformers starts at 0 and 1, so that each is compared.
"""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

import qwen
from fake_model import library, script

from qcheck import tiles, windows
from qcheck.backends.onnxruntime import OnnxRuntime
from qcheck.cache import KVCache
from qcheck.contract import (
    IMAGE_TOKENS,
    INPUTS_EMBEDS,
    KV_LENGTH,
    LOGITS,
    POSITION_IDS,
    DecoderSpec,
    PatchSpec,
    PixelSpec,
    past_name,
    present_name,
)
from qcheck.rope import image_positions, text_positions
from qcheck.vision import vision_inputs

torch = library("torch")
transformers = library("transformers")
onnx = library("onnx")
safetensors = library("safetensors.torch")
architecture = script("architecture", "export")
checkpoints = script("checkpoint", "export")
shards = script("shards", "export")
decoders = script("decoder_graph", "export")
errors = script("errors", "export")
graph_files = script("graph", "export")
rounding = script("rounding", "export")
vision = script("vision", "export")
weights = script("weights", "export")

# What float32 leaves over when the same sums are made in another order, against the largest value there is.
SAME_SUMS: Final = 1e-4
IMAGE, VISION_START, VISION_END = 90, 91, 92
CAPACITY: Final = 400
Grid = tuple[int, int]  # rows and columns in merged tokens
Edit = Callable[[Any], object]


@dataclass(frozen=True)
class Case:
    """Sizes of a model. What is not named follows: hidden sizes are heads times head_dim."""

    heads: int
    kv_heads: int
    head_dim: int
    sections: tuple[int, int, int]
    tied: bool
    layers: int = 2
    intermediate: int = 44
    vision_heads: int = 2
    vision_head_dim: int = 8
    blocks: int = 3
    full_blocks: tuple[int, ...] = (1,)
    patch_px: int = 14
    merge: int = 2
    window_px: int = 112


CASES: Final = {
    # As published, but small: two key heads, windows of 4 x 4 tokens.
    "published": Case(heads=4, kv_heads=2, head_dim=16, sections=(2, 3, 3), tied=True),
    # 7 queries a key head as in the 7B, and nothing that is a power of two but the heads' halves.
    "seven_to_one": Case(
        heads=7, kv_heads=1, head_dim=48, sections=(5, 10, 9), tied=False, intermediate=37, vision_heads=3,
        vision_head_dim=12, patch_px=5, window_px=30, full_blocks=(0, 2),
    ),
    # As many key heads as queries, short ones, tokens of 3 x 3 patches, no block where all attend, one layer.
    "short_heads": Case(
        heads=3, kv_heads=3, head_dim=8, sections=(1, 1, 2), tied=False, layers=1, vision_heads=5, vision_head_dim=4,
        patch_px=4, merge=3, window_px=24, full_blocks=(), blocks=2,
    ),
    # Only whole images attend.
    "no_windows": Case(
        heads=6, kv_heads=2, head_dim=16, sections=(5, 2, 1), tied=True, layers=3, patch_px=7, full_blocks=(0, 1),
        blocks=2, window_px=14,
    ),
}  # fmt: skip
GQA_CASES: Final = [name for name, case in CASES.items() if case.head_dim % 16 == 0]


@cache
def model_of(case_name: str) -> Any:
    """A transformers model whose activations neither die nor blow up."""
    case = CASES[case_name]
    hidden, vision_hidden = case.heads * case.head_dim, case.vision_heads * case.vision_head_dim
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": hidden,
            "intermediate_size": case.intermediate,
            "num_hidden_layers": case.layers,
            "num_attention_heads": case.heads,
            "num_key_value_heads": case.kv_heads,
            "vocab_size": 101,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e4, "mrope_section": list(case.sections)},
            "tie_word_embeddings": case.tied,
        },
        vision_config={
            "depth": case.blocks,
            "hidden_size": vision_hidden,
            "intermediate_size": 2 * vision_hidden + 3,
            "num_heads": case.vision_heads,
            "out_hidden_size": hidden,
            "patch_size": case.patch_px,
            "spatial_merge_size": case.merge,
            "window_size": case.window_px,
            "fullatt_block_indexes": list(case.full_blocks),
        },
        image_token_id=IMAGE,
        video_token_id=93,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=case.tied,
    )
    return qwen.random_model(config, len(case_name))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A case's checkpoint as transformers saves it, in several shards. Not to be changed: `copied` is for that."""
    root = tmp_path_factory.mktemp("checkpoints")

    def save(case_name: str) -> Path:
        folder = root / case_name
        if not folder.exists():
            model_of(case_name).save_pretrained(folder, max_shard_size="40KB")
            assert len(list(folder.glob("*.safetensors"))) > 2
        return folder

    return save


@pytest.fixture
def copied(saved: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved("published"), tmp_path / "checkpoint"))


def everything(folder: Path) -> dict[str, Any]:
    """All tensors of a checkpoint by their stored names."""
    return {
        name: tensor for path in folder.glob("*.safetensors") for name, tensor in safetensors.load_file(path).items()
    }


def restore(folder: Path, tensors: dict[str, Any]) -> None:
    """Writes all tensors into the one file of a small checkpoint."""
    for path in (*folder.glob("*.safetensors"), folder / shards.INDEX_FILE):
        path.unlink(missing_ok=True)
    safetensors.save_file(tensors, folder / shards.SINGLE_FILE)


def change_json(path: Path, change: Edit) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def assert_near(ours: NDArray[Any], theirs: NDArray[Any], tolerance: float = SAME_SUMS) -> None:
    """To a share of the largest value of `theirs`."""
    assert ours.shape == theirs.shape
    difference, size = float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())
    assert difference <= tolerance * size, f"{difference:.3g} at values up to {size:.3g}"


def session(path: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


# The checkpoint


def parameters(model: Any) -> dict[str, Any]:
    """transformers' parameters by our names."""
    sides = {"model.language_model.": "text.", "model.visual.": "visual.", "lm_head.": "lm_head."}
    return {
        new + name.removeprefix(old): parameter.detach().numpy()
        for name, parameter in model.named_parameters(remove_duplicate=False)
        for old, new in sides.items()
        if name.startswith(old)
    }


@pytest.mark.parametrize("case_name", CASES)
def test_reads_every_tensor_of_what_transformers_saves(saved: Callable[[str], Path], case_name: str) -> None:
    opened, case = checkpoints.Checkpoint.open(saved(case_name)), CASES[case_name]
    assert opened.architecture.tied == case.tied
    assert opened.architecture.text.head_dim == case.head_dim
    assert opened.architecture.vision.full_blocks == case.full_blocks
    expected = parameters(model_of(case_name))
    named = {"lm_head.weight", *(f"text.{name}" for name in opened.architecture.text.tensors())}
    assert named | {f"visual.{name}" for name in opened.architecture.vision.tensors()} == set(expected)
    for name, values in expected.items():
        found = opened.read(name)
        assert found.dtype == np.float32
        assert_array_equal(found, values)


def test_reads_the_new_names_in_one_file(copied: Path) -> None:
    renamed = {
        name.replace("visual.", "model.visual.", 1) if name.startswith("visual.") else name.replace(
            "model.", "model.language_model.", 1
        ): tensor
        for name, tensor in everything(copied).items()
    }  # fmt: skip
    assert "model.language_model.layers.0.mlp.up_proj.weight" in renamed
    restore(copied, renamed)
    opened = checkpoints.Checkpoint.open(copied)
    for name, values in parameters(model_of("published")).items():
        assert_array_equal(opened.read(name), values)


def test_reads_a_config_as_published(copied: Path) -> None:
    """Text settings at the top, M-RoPE as a kind of scaling, and keys that say nothing new."""
    before = checkpoints.Checkpoint.open(copied).architecture

    def flatten(config: Any) -> None:
        text = config.pop("text_config")
        rope = text.pop("rope_parameters")
        text.pop("model_type")
        config |= text | {
            "rope_theta": rope["rope_theta"],
            "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
            "torch_dtype": "bfloat16",
        }
        config["vision_config"] |= {"in_chans": 3, "spatial_patch_size": 14}
        for default in ("rope_parameters", "in_channels", "temporal_patch_size"):
            config["vision_config"].pop(default)

    change_json(copied / "config.json", flatten)
    assert checkpoints.Checkpoint.open(copied).architecture == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reads_halves_as_floats(copied: Path, dtype: Any) -> None:
    restore(copied, {name: tensor.to(dtype) for name, tensor in everything(copied).items()})
    opened = checkpoints.Checkpoint.open(copied)
    for name, values in parameters(model_of("published")).items():
        assert_array_equal(opened.read(name), torch.from_numpy(values).to(dtype).float().numpy())


def test_an_untied_head_is_its_own(copied: Path) -> None:
    """Also where a tied one lies beside it, which says nothing."""
    tensors = everything(copied)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2
    restore(copied, tensors)
    tied = checkpoints.Checkpoint.open(copied)
    assert_array_equal(tied.read("lm_head.weight"), tied.read("text.embed_tokens.weight"))

    def untie(config: Any) -> None:
        config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False

    change_json(copied / "config.json", untie)
    untied = checkpoints.Checkpoint.open(copied)
    assert_array_equal(untied.read("lm_head.weight"), 2 * untied.read("text.embed_tokens.weight"))


def refused(folder: Path) -> str:
    """Why a checkpoint is not opened: one line."""
    with pytest.raises(errors.ExportError) as caught:
        checkpoints.Checkpoint.open(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def text_set(**changes: Any) -> Edit:
    return lambda config: config["text_config"].update(changes)


def vision_set(**changes: Any) -> Edit:
    return lambda config: config["vision_config"].update(changes)


def rope_set(**changes: Any) -> Edit:
    return lambda config: config["text_config"]["rope_parameters"].update(changes)


BAD_CONFIGS: Final[dict[str, tuple[Edit, str]]] = {
    "another model": (
        lambda config: config.update(model_type="llava"),
        "config.json describes a 'llava' model; supported: Qwen2_5_VLForConditionalGeneration (qwen2_5_vl)",
    ),
    "another head": (
        lambda config: config.update(architectures=["Qwen2_5_VLForTokenClassification"]),
        "names the architecture ['Qwen2_5_VLForTokenClassification']; supported: Qwen2_5_VLForConditionalGeneration",
    ),
    "quantised": (
        lambda config: config.update(quantization_config={"quant_method": "bitsandbytes"}),
        "config.json is of 'bitsandbytes'; supported: gptq, as gptqmodel writes it. Or export the checkpoint that was",
    ),
    "yarn": (rope_set(rope_type="yarn"), "asks for the rope type 'yarn'; supported: default, mrope"),
    "yarn beside M-RoPE": (
        rope_set(rope_type="yarn", type="mrope"),
        "asks for the rope type 'yarn'; supported: default, mrope",
    ),
    "linear, as it was spelled": (
        text_set(rope_scaling={"type": "linear", "factor": 2.0}),
        "asks for the rope type 'linear'; supported: default, mrope",
    ),
    "vision rope": (
        vision_set(rope_parameters={"rope_type": "yarn"}),
        "asks for the rope type 'yarn' in the vision tower; supported: axial",
    ),
    "sections": (
        rope_set(mrope_section=[2, 3, 4]),
        "mrope_section [2, 3, 4] does not add up to half a head of 16 values",
    ),
    "two sections": (rope_set(mrope_section=[4, 4]), "mrope_section [4, 4] does not add up to"),
    "theta": (rope_set(rope_theta=-1), "rope_theta must be a positive number, not -1"),
    "heads": (text_set(num_attention_heads=5), "hidden_size 64 is not a multiple of 5 heads"),
    "key heads": (text_set(num_key_value_heads=3), "4 attention heads cannot share 3 key and value heads"),
    "head_dim": (text_set(head_dim=32), "head_dim 32 is not hidden_size / num_attention_heads"),
    "no size": (lambda config: config["text_config"].pop("hidden_size"), "hidden_size is missing"),
    "size": (text_set(hidden_size="64"), "hidden_size must be a positive integer, not '64'"),
    "truth": (text_set(num_hidden_layers=True), "num_hidden_layers must be a positive integer, not True"),
    "sliding": (text_set(use_sliding_window=True), "asks for sliding window attention"),
    "activation": (text_set(hidden_act="gelu"), "hidden_act 'gelu' is not supported; silu is"),
    "no vision": (lambda config: config.pop("vision_config"), "vision_config must be an object"),
    "no text": (lambda config: config.update(text_config=[]), "text_config must be an object"),
    "vision heads": (vision_set(num_heads=3), "vision hidden_size 16 is not a multiple of 3 heads"),
    "vision head": (vision_set(num_heads=8), "a vision head of 2 values has no quarters to rotate"),
    "window": (vision_set(window_size=27), "window_size 27 holds no token of 28 pixels"),
    "blocks": (vision_set(fullatt_block_indexes=[1, 3]), "fullatt_block_indexes [1, 3] are not all among 3 blocks"),
    "no blocks": (vision_set(fullatt_block_indexes=1), "fullatt_block_indexes must be a list of integers"),
    "between": (vision_set(out_hidden_size=32), "image tokens of 32 values do not fit a decoder of 64"),
    # What fits together, but not the tensors.
    "fewer key heads": (
        text_set(num_key_value_heads=1),
        "model.layers.0.self_attn.k_proj.weight has the shape (32, 64) and config.json asks for (16, 64)",
    ),
    "a larger head": (
        text_set(vocab_size=102),
        "model.embed_tokens.weight has the shape (101, 64) and config.json asks for (102, 64)",
    ),
    "more layers": (text_set(num_hidden_layers=3), "has no tensor model.layers.2.self_attn.q_proj.weight"),
    "untied": (
        lambda config: (config.update(tie_word_embeddings=False), text_set(tie_word_embeddings=False)(config)),
        "has no tensor lm_head.weight",
    ),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_config_that_does_not_fit_is_refused(copied: Path, name: str) -> None:
    change, expected = BAD_CONFIGS[name]
    change_json(copied / "config.json", change)
    assert expected in refused(copied)


def test_what_is_no_checkpoint_is_refused(copied: Path) -> None:
    assert refused(copied / "nowhere").endswith(
        "nowhere is not a directory; a checkpoint is a directory with config.json"
    )
    assert "is not a directory" in refused(copied / "config.json")
    for text, expected in (
        ("{", "config.json is not valid JSON"),
        ("[]", "config.json holds no object"),
        ("[" * 100_000, "config.json is not valid JSON"),
    ):
        (copied / "config.json").write_text(text)
        assert expected in refused(copied)
    (copied / "config.json").unlink()
    assert "has no readable config.json; is it a checkpoint?" in refused(copied)


def test_missing_and_damaged_shards_are_refused(copied: Path) -> None:
    index = copied / shards.INDEX_FILE
    places = json.loads(index.read_text())["weight_map"]
    name, shard = "model.norm.weight", copied / places["model.norm.weight"]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    assert f"{shard.name} is not a whole safetensors file" in refused(copied)
    shard.unlink()
    assert f"lacks the shard {shard.name} that {index.name} names" in refused(copied)
    shard.write_bytes(whole)

    other = next(file for file in places.values() if file != shard.name)
    change_json(index, lambda content: content["weight_map"].update({name: other}))
    assert f"{other} has no tensor {name}, although {index.name} says so" in refused(copied)
    change_json(index, lambda content: content["weight_map"].pop(name))
    assert f"has no tensor {name}; get the checkpoint again" in refused(copied)
    for elsewhere in ("../stolen.safetensors", "weights.bin"):
        change_json(index, lambda content, file=elsewhere: content["weight_map"].update({name: file}))
        assert f"names {elsewhere!r}, which is no safetensors file beside it" in refused(copied)
    change_json(index, lambda content: content.update(weight_map=[]))
    assert "has no weight_map of file names" in refused(copied)


def test_pickled_weights_are_refused(copied: Path) -> None:
    for path in (*copied.glob("*.safetensors"), copied / shards.INDEX_FILE):
        path.unlink()
    assert "has neither model.safetensors.index.json nor model.safetensors" in refused(copied)
    (copied / "pytorch_model-00001-of-00002.bin").write_bytes(b"")
    message = refused(copied)
    assert "holds pickled weights (pytorch_model-00001-of-00002.bin)" in message
    assert message.endswith("convert to safetensors")


def test_pickled_weights_beside_safetensors_are_not_looked_at(copied: Path) -> None:
    (copied / "pytorch_model.bin").write_bytes(b"not to be read")
    (copied / "optimizer.pt").write_bytes(b"not to be read")
    checkpoints.Checkpoint.open(copied)


def test_tensors_that_are_no_floats_are_refused(copied: Path) -> None:
    tensors = everything(copied)
    restore(copied, tensors | {"model.norm.weight": tensors["model.norm.weight"].to(torch.int8)})
    assert "model.norm.weight is stored as I8; supported: F32, F16, BF16" in refused(copied)
    restore(copied, tensors | {"model.norm.weight": torch.full_like(tensors["model.norm.weight"], torch.inf)})
    opened = checkpoints.Checkpoint.open(copied)
    with pytest.raises(errors.ExportError, match=r"model\.norm\.weight holds numbers that are not finite"):
        opened.read("text.norm.weight")


# The decoder


@dataclass(frozen=True)
class Talk:
    """A conversation in turns: `tokens` are ids, with one IMAGE for each image token; `grids` of the images in order.
    `positions` (3, 1, tokens) are the runtime's own; `ends`: where each turn ends."""

    tokens: list[int]
    positions: NDArray[np.int64]
    ends: list[int]
    grids: list[Grid]


def talk_of(turns: Sequence[Sequence[int | Grid]]) -> Talk:
    """`turns`: in each, numbers of text tokens and grids of images."""
    rng, tokens, ends = np.random.default_rng(len(turns)), list[int](), list[int]()
    parts, grids, start = list[NDArray[np.int64]](), list[Grid](), 0

    def say(ids: Sequence[int]) -> None:
        nonlocal start
        positions, start = text_positions(start, len(ids))
        parts.append(positions)
        tokens.extend(ids)

    for turn in turns:
        for item in turn:
            if isinstance(item, int):
                say(rng.integers(0, IMAGE, item).tolist())
                continue
            say([VISION_START])
            positions, start = image_positions(start, *item)
            parts.append(positions)
            tokens += [IMAGE] * (item[0] * item[1])
            grids.append(item)
            say([VISION_END])
        ends.append(len(tokens))
    return Talk(tokens, np.concatenate(parts, 1)[:, None], ends, grids)


# Six turns: the global view, a few words, crops in the middle of the conversation.
TALKS: Final = {
    "one image": talk_of([[3, (5, 7), 2], [1], [1], [4], [1], [2]]),
    "two images": talk_of([[1, (4, 4)], [1], [2, (1, 6), 1], [1], [1], [3]]),
    "four images": talk_of([[2, (6, 3), 1], [1], [(1, 1), 2], [1, (8, 5), (2, 9), 1], [1], [1]]),
}


@dataclass(frozen=True)
class Reference:
    """What transformers makes of a talk: all logits of one forward (tokens, vocabulary), of which the embeddings are
    (1, tokens, hidden), and the patches of its images, (patches, channels * patch_px^2)."""

    logits: NDArray[np.float32]
    embeds: NDArray[np.float32]
    patches: NDArray[np.float32]


def patch_grid(case: Case, grid: Grid) -> Grid:
    return grid[0] * case.merge, grid[1] * case.merge


def both_halves(patches: NDArray[np.float32]) -> Any:
    """Patches of stills as transformers takes them: both times of a patch the same."""
    return torch.from_numpy(patches).unflatten(1, (3, 1, -1)).expand(-1, -1, 2, -1).flatten(1)


@cache
def reference(case_name: str, talk_name: str) -> Reference:
    model, talk, case = model_of(case_name), TALKS[talk_name], CASES[case_name]
    grids = [patch_grid(case, grid) for grid in talk.grids]
    count = sum(rows * cols for rows, cols in grids)
    patches = np.random.default_rng(count).standard_normal((count, 3 * case.patch_px**2)).astype(np.float32)
    ids = torch.tensor([talk.tokens])
    images = ids == IMAGE
    seen = {"pixel_values": both_halves(patches), "image_grid_thw": torch.tensor([(1, *grid) for grid in grids])}
    with torch.inference_mode():
        logits = model(input_ids=ids, mm_token_type_ids=images.int(), **seen).logits[0].numpy()
        embeds = model.get_input_embeddings()(ids).clone()
        embeds[images] = model.model.visual(seen["pixel_values"], grid_thw=seen["image_grid_thw"]).pooler_output
    assert 0.3 < logits.std() < 30
    return Reference(logits, embeds.numpy(), patches)


class Part(SimpleNamespace):
    """Stands in for a bundle of one decoder."""

    def path(self, part: str) -> Path:
        return self.graph


def runtime(case_name: str, graph: Path) -> OnnxRuntime:
    """The package's own backend on a decoder; it has no vision graph of these yet, so it is given the decoder twice."""
    case = CASES[case_name]
    spec = DecoderSpec(case.layers, case.kv_heads, case.head_dim, case.heads * case.head_dim, CAPACITY)
    bundle: Any = Part(graph=graph, contract=SimpleNamespace(decoder=spec, precision="fp32"))
    return OnnxRuntime(bundle, threads=1)


@pytest.fixture(scope="module")
def graphs(saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A graph of a case: `kind` is a builder, made once for each precision."""
    root, made = tmp_path_factory.mktemp("graphs"), dict[tuple[str, str, str], Path]()

    def graph(case_name: str, kind: Any, precision: Any = weights.FP32) -> Path:
        key = (case_name, kind.__name__, precision.name)
        if key not in made:
            made[key] = root / f"{'_'.join(key)}.onnx"
            kind.write(checkpoints.Checkpoint.open(saved(case_name)), precision, made[key])
            onnx.checker.check_model(made[key])
        return made[key]

    return graph


class Feed:
    """Feeds a talk to a backend, any part of it at a time."""

    def __init__(self, backend: OnnxRuntime, case_name: str, talk_name: str) -> None:
        self.backend, self.talk, self.known = backend, TALKS[talk_name], reference(case_name, talk_name)
        self.cache = backend.new_cache()

    def until(self, end: int) -> NDArray[np.float32]:
        """Appends tokens up to `end`; the logits after the last."""
        new = slice(self.cache.length, end)
        return self.backend.step(self.known.embeds[:, new], self.talk.positions[:, :, new], self.cache)


@pytest.mark.parametrize("talk_name", TALKS)
@pytest.mark.parametrize("case_name", GQA_CASES)
def test_six_turns_in_place_equal_one_forward(graphs: Callable[..., Path], case_name: str, talk_name: str) -> None:
    feed = Feed(runtime(case_name, graphs(case_name, decoders.Gqa)), case_name, talk_name)
    logits = np.stack([feed.until(end) for end in feed.talk.ends])
    assert len(logits) == 6
    assert_near(logits, feed.known.logits[np.array(feed.talk.ends) - 1])
    assert np.ptp(logits, axis=0).max() > 0.5, "the same logits after every turn"


def test_any_cut_of_a_talk_gives_the_same(graphs: Callable[..., Path]) -> None:
    """Token by token, all at once, and cut inside an image."""
    backend = runtime("published", graphs("published", decoders.Gqa))
    count = len(TALKS["two images"].tokens)
    for ends in (range(1, count + 1), [count], [3, 9, 10, count]):
        feed = Feed(backend, "published", "two images")
        for end in ends:
            assert_near(feed.until(end), feed.known.logits[end - 1])


def test_a_rewound_conversation_goes_on_as_if_nothing_had_been_said(graphs: Callable[..., Path]) -> None:
    case_name, talk_name = "seven_to_one", "four images"
    feed = Feed(runtime(case_name, graphs(case_name, decoders.Gqa)), case_name, talk_name)
    first, *_, last = feed.talk.ends
    feed.until(first)
    other = Feed(feed.backend, case_name, "one image")  # what is said instead, and then taken back
    other.cache = feed.cache
    other.until(first + 20)
    feed.cache.rewind(first)
    assert_near(feed.until(last), feed.known.logits[last - 1])
    for length in (last - 1, first + 7, 1, 0):
        feed.cache.rewind(length)
        assert_near(feed.until(last), feed.known.logits[last - 1])


def test_a_fork_leaves_its_origin_alone(graphs: Callable[..., Path]) -> None:
    feed = Feed(runtime("published", graphs("published", decoders.Gqa)), "published", "two images")
    end = feed.talk.ends[2]
    feed.until(end)
    fork: KVCache = feed.cache.fork()
    feed.backend.step(-feed.known.embeds[:, :5], feed.talk.positions[:, :, :5], fork)
    assert_near(feed.until(end + 1), feed.known.logits[end])


def test_heads_that_the_fused_operator_does_not_turn_are_refused(saved: Callable[[str], Path], tmp_path: Path) -> None:
    opened = checkpoints.Checkpoint.open(saved("short_heads"))
    with pytest.raises(
        errors.ExportError, match=r"^heads of 8 values: the form gqa needs a multiple of 16; use std24$"
    ):
        decoders.Gqa.write(opened, weights.FP32, tmp_path / "decoder.onnx")


def test_the_graph_is_fused_and_names_no_machine(graphs: Callable[..., Path]) -> None:
    """One product for queries, keys and values; turning, attention and cache are one operator, sums and norms one."""
    path, layers = graphs("published", decoders.Gqa), CASES["published"].layers
    model = onnx.load(path, load_external_data=False)
    names = [node.op_type for node in model.graph.node]
    assert names.count("MatMul") == 5 * layers + 1
    assert names.count("GroupQueryAttention") == names.count("QuickGelu") == layers
    assert names.count("SkipSimplifiedLayerNormalization") == 2 * layers
    assert len(names) < 12 * layers + 40
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert str(path.parent).encode() not in path.read_bytes()


def test_the_same_checkpoint_gives_the_same_bytes(graphs: Callable[..., Path], saved: Any, tmp_path: Path) -> None:
    made = graphs("published", decoders.Gqa)
    again = tmp_path / made.name
    decoders.Gqa.write(checkpoints.Checkpoint.open(saved("published")), weights.FP32, again)
    for suffix in ("", ".data"):
        assert again.with_name(again.name + suffix).read_bytes() == made.with_name(made.name + suffix).read_bytes()


# The form for batches and for TensorRT


class Rows:
    """Conversations side by side in the std24 form, each with its own length."""

    def __init__(self, graph: Path, case_name: str, talk_names: Sequence[str]) -> None:
        case = CASES[case_name]
        self.session, self.case = session(graph), case
        self.talks = [TALKS[name] for name in talk_names]
        self.known = [reference(case_name, name) for name in talk_names]
        shape = (len(talk_names), case.kv_heads, CAPACITY, case.head_dim)
        names = [(layer, part) for layer in range(case.layers) for part in ("key", "value")]
        self.slots = [(past_name(*name), present_name(*name)) for name in names]
        # What was there before must not matter.
        self.buffers = {
            past: ort.OrtValue.ortvalue_from_numpy(np.full(shape, 9.0, np.float32)) for past, _ in self.slots
        }
        self.lengths = np.zeros(len(talk_names), np.int64)

    def step(self, count: int) -> NDArray[np.float32]:
        """Appends the next `count` tokens to each; (rows, vocabulary) logits. Buffers are bound in place."""
        spans = [slice(length, length + count) for length in self.lengths]
        embeds = np.concatenate([known.embeds[:, span] for known, span in zip(self.known, spans, strict=True)])
        places = np.concatenate([talk.positions[:, :, span] for talk, span in zip(self.talks, spans, strict=True)], 1)
        binding = self.session.io_binding()
        for name, value in ((INPUTS_EMBEDS, embeds), (POSITION_IDS, places), (KV_LENGTH, self.lengths.copy())):
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        binding.bind_output(LOGITS, "cpu")
        for past, present in self.slots:
            binding.bind_ortvalue_input(past, self.buffers[past])
            binding.bind_ortvalue_output(present, self.buffers[past])
        self.session.run_with_iobinding(binding)
        self.lengths += count
        logits: NDArray[np.float32] = binding.copy_outputs_to_cpu()[0]
        return logits[:, 0]

    def expected(self) -> NDArray[np.float32]:
        """transformers' logits where each row stands."""
        return np.stack([known.logits[length - 1] for known, length in zip(self.known, self.lengths, strict=True)])


@pytest.mark.parametrize("talk_name", TALKS)
@pytest.mark.parametrize("case_name", CASES)
def test_std24_in_place_equals_one_forward(graphs: Callable[..., Path], case_name: str, talk_name: str) -> None:
    """By the package's own backend: both forms take and give the same."""
    feed = Feed(runtime(case_name, graphs(case_name, decoders.Std24)), case_name, talk_name)
    for end in feed.talk.ends:
        assert_near(feed.until(end), feed.known.logits[end - 1])
    first, *_, last = feed.talk.ends
    for length in (first, last - 1, 0):
        feed.cache.rewind(length)
        assert_near(feed.until(last), feed.known.logits[last - 1])


@pytest.mark.parametrize("case_name", CASES)
def test_rows_of_different_lengths_are_as_if_alone(graphs: Callable[..., Path], case_name: str) -> None:
    names = list(TALKS)
    rows = Rows(graphs(case_name, decoders.Std24), case_name, names)
    for count in (3, 1, 12, 1):
        assert_near(rows.step(count), rows.expected())
    # One goes back, another starts anew; all go on together.
    rows.lengths[:] = (5, rows.lengths[1], 0)
    for count in (4, 1, 1, 9):
        assert_near(rows.step(count), rows.expected())


def test_std24_has_no_operator_of_a_runtime(graphs: Callable[..., Path]) -> None:
    model = onnx.load(graphs("published", decoders.Std24), load_external_data=False)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 24)]
    assert {node.domain for node in model.graph.node} == {""}
    fused = onnx.load(graphs("published", decoders.Gqa), load_external_data=False)
    for ours, theirs in ((model.graph.input, fused.graph.input), (model.graph.output, fused.graph.output)):
        assert [value.name for value in ours] == [value.name for value in theirs]


# Precisions

# Of the largest value, on models of 16 to 64 values a token, where rounding hardly averages out.
TOLERANCES: Final = {"fp16": 0.01, "bf16": 0.05, "int8": 0.06}
OTHERS: Final = [weights.FP16, weights.BF16, weights.Blocks(rounding.Grid(8, 16), accuracy_level=1)]


def first_step(graph: Path, cache_dtype: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits after a whole talk in one step of a graph of the published case, and transformers'."""
    case, talk, known = CASES["published"], TALKS["one image"], reference("published", "one image")
    past = np.zeros((1, case.kv_heads, CAPACITY, case.head_dim), cache_dtype)
    feeds = {past_name(layer, part): past for layer in range(case.layers) for part in ("key", "value")}
    feeds |= {INPUTS_EMBEDS: known.embeds, POSITION_IDS: talk.positions, KV_LENGTH: np.zeros(1, np.int64)}
    logits = session(graph).run([LOGITS], feeds)[0]
    assert logits.dtype == np.float32
    return logits[0, 0], known.logits[-1]


@pytest.mark.parametrize(
    "precision", [weights.FP16, weights.Blocks(rounding.Grid(8, 16), accuracy_level=1)], ids=lambda p: p.name
)
@pytest.mark.parametrize("form", decoders.FORMS)
def test_other_precisions_come_close(graphs: Callable[..., Path], form: str, precision: Any) -> None:
    graph = graphs("published", decoders.FORMS[form], precision)
    cache_dtype = np.float16 if precision.name == "fp16" else np.float32
    assert_near(*first_step(graph, cache_dtype), TOLERANCES[precision.name])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", [(5, 32), (3, 50), (4, 7), (6, 96)], ids=str)
def test_blocks_are_multiplied_as_they_are_rounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, symmetric: bool, shape: tuple[int, int]
) -> None:
    """The operator reads steps, scales and zeros as we wrote them, and no weight is further off than its step."""
    monkeypatch.setattr(rounding, "ROWS_AT_ONCE", 2)
    rng = np.random.default_rng(bits)
    weight = rng.standard_normal(shape).astype(np.float32) + 0.7
    weight[1], weight[2, 0] = 0, -9  # a row that is zeros, and one with a value that is far off
    weight[0] *= np.float32(1e-40)  # smaller than what has a reciprocal
    grid = rounding.Grid(bits, 32, symmetric)
    precision, found = weights.Blocks(grid, accuracy_level=1), rounding.Nearest(grid)("linear", weight)
    scales = found.scales
    assert not found.weights(32 * scales.shape[1])[:, shape[1] :].any(), "what fills the last block up is not 0"
    rounded = found.weights(shape[1])
    # The largest of the other sign of a symmetric block may be cut by one step.
    step = np.abs(scales).repeat(32, 1)[:, : shape[1]]
    assert (np.abs(rounded - weight) <= (1.001 if symmetric else 0.501) * step + 1e-37).all()
    assert (rounded[1] == 0).all()

    bias = rng.standard_normal(shape[0]).astype(np.float32)
    path = tmp_path / "linear.onnx"
    with graph_files.Graph(path, 18) as graph:
        x = graph.input("x", onnx.TensorProto.FLOAT, (1, "n", shape[1]))
        graph.node("Identity", (precision.linear(graph, x, "linear", weight, bias),), output="y")
        graph.output("y", onnx.TensorProto.FLOAT, (1, "n", shape[0]))
    given = rng.standard_normal((1, 3, shape[1])).astype(np.float32)
    assert_near(session(path).run(None, {"x": given})[0], given @ rounded.T + bias, 1e-5)


def test_four_bits_are_those_of_onnxruntime(tmp_path: Path) -> None:
    """Of whose quantiser only the symmetric rounding is compared: it keeps weights of other graphs."""
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    weight = np.random.default_rng(0).standard_normal((24, 64)).astype(np.float32)
    path = tmp_path / "linear.onnx"
    with graph_files.Graph(path, 18) as graph:
        x = graph.input("x", onnx.TensorProto.FLOAT, (1, "n", 64))
        graph.node("Identity", (weights.FP32.linear(graph, x, "linear", weight),), output="y")
        graph.output("y", onnx.TensorProto.FLOAT, (1, "n", 24))
    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, accuracy_level=1, bits=4)
    quantizer = MatMulNBitsQuantizer(onnx.load(path), algo_config=config)
    quantizer.process()
    theirs = {
        len(tensor.dims): onnx.numpy_helper.to_array(tensor) for tensor in quantizer.model.model.graph.initializer
    }
    steps, scales, _ = rounding.Nearest(rounding.Grid(4, 32))("linear", weight)
    packed = steps[..., ::2] | steps[..., 1::2] << 4
    assert_array_equal(packed, theirs[3])
    assert_array_equal(scales.reshape(-1), theirs[min(theirs)].reshape(-1))


def test_weights_that_overflow_a_half_are_refused(tmp_path: Path) -> None:
    weight = np.full((2, 2), 7e4, np.float32)
    with pytest.raises(errors.ExportError, match=r"^mlp holds 7e\+04, which is too large for float16; use fp32$"):
        weights.FP16.linear(graph_files.Graph(tmp_path / "x.onnx", 18), "x", "mlp", weight)
    for bits, block in ((3, 32), (4, 8), (4, 48)):
        with pytest.raises(ValueError, match=r"are supported|is needed"):
            rounding.Grid(bits, block)


# Files


def test_large_constants_lie_in_pages_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "sums.onnx"
    large = [np.arange(size, dtype=np.float32) for size in (300, 5000)]
    with graph_files.Graph(path, 18) as graph:
        x = graph.input("x", onnx.TensorProto.FLOAT, ("n", 1))
        y = graph.input("y", onnx.TensorProto.FLOAT, ("n", 1))
        for name, value, other in zip("ab", large, (x, y), strict=True):
            more = graph.node("Add", (other, graph.number(2)))
            graph.node("Add", (more, graph.constant(value)), output=name)
            graph.output(name, onnx.TensorProto.FLOAT, ("n", len(value)))
    model = onnx.load(path, load_external_data=False)
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in model.graph.initializer]
    assert [place.get("offset") for place in places] == [None, "0", "4096"], "the number 2 is one constant"
    assert (tmp_path / "sums.onnx.data").stat().st_size == 4096 + 4 * 5000
    ones = np.ones((1, 1), np.float32)
    for found, value in zip(session(path).run(None, {"x": ones, "y": ones}), large, strict=True):
        assert_array_equal(found[0], value + 3)


def test_no_graph_is_written_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    with pytest.raises(ValueError, match="half"), graph_files.Graph(path, 18) as graph:
        fail(graph)
    assert not path.exists()


def fail(graph: Any) -> None:
    graph.constant(np.zeros(10_000, np.float32))
    raise ValueError("half")


# The vision tower

# In merged tokens, for windows of 4, 3, 2 and 1 tokens: whole windows, ragged on either side or on both, one token.
IMAGE_SETS: Final[list[list[Grid]]] = [
    [(8, 4)],
    [(5, 7)],
    [(1, 1)],
    [(1, 13), (6, 2)],
    [(9, 8), (4, 3), (7, 7)],
    [(2, 2), (1, 1), (10, 3), (5, 5)],
]


def layout_of(case_name: str, grids: Sequence[Grid]) -> Any:
    """Where the patches of images lie that are so many tokens."""
    case = CASES[case_name]
    window_tokens = case.window_px // (case.merge * case.patch_px)
    return windows.Layout.of([patch_grid(case, grid) for grid in grids], case.merge, window_tokens)


def image_tokens(graph: Path, layout: Any, patches: NDArray[np.float32]) -> NDArray[np.float32]:
    tokens: NDArray[np.float32] = session(graph).run([IMAGE_TOKENS], {windows.PATCHES: patches, **layout.inputs()})[0]
    return tokens


@pytest.mark.parametrize("grids", IMAGE_SETS, ids=str)
@pytest.mark.parametrize("case_name", CASES)
def test_image_tokens_equal_those_of_the_eager_tower(
    graphs: Callable[..., Path], case_name: str, grids: list[Grid]
) -> None:
    case, tower = CASES[case_name], model_of(case_name).model.visual
    shapes = [patch_grid(case, grid) for grid in grids]
    count = sum(rows * cols for rows, cols in shapes)
    patches = np.random.default_rng(count).standard_normal((count, 3 * case.patch_px**2)).astype(np.float32)
    with torch.inference_mode():
        pixels, thw = both_halves(patches), torch.tensor([(1, *shape) for shape in shapes])
        expected = tower(pixels, grid_thw=thw).pooler_output.numpy()
    tokens = image_tokens(graphs(case_name, vision.VisionTower), layout_of(case_name, grids), patches)
    assert_near(tokens, expected)
    assert len(tokens) == 1 or np.ptp(tokens, axis=0).max() > 0.5


def test_images_of_a_call_do_not_see_each_other(graphs: Callable[..., Path]) -> None:
    graph, grids = graphs("published", vision.VisionTower), [(5, 7), (2, 3)]
    patches = np.random.default_rng(0).standard_normal((4 * (35 + 6), 588)).astype(np.float32)
    both = image_tokens(graph, layout_of("published", grids), patches)
    for grid, part, tokens in ((grids[0], patches[: 4 * 35], both[:35]), (grids[1], patches[4 * 35 :], both[35:])):
        assert_near(tokens, image_tokens(graph, layout_of("published", [grid]), part))


@pytest.mark.parametrize(
    "precision", [weights.FP16, weights.Blocks(rounding.Grid(8, 16), accuracy_level=1)], ids=lambda p: p.name
)
def test_image_tokens_of_other_precisions_come_close(graphs: Callable[..., Path], precision: Any) -> None:
    layout = layout_of("published", [(5, 7), (4, 4)])
    patches = np.random.default_rng(1).standard_normal((len(layout.positions), 588)).astype(np.float32)
    exact, close = (
        image_tokens(graphs("published", vision.VisionTower, each), layout, patches)
        for each in (weights.FP32, precision)
    )
    assert close.dtype == np.float32
    assert_near(close, exact, TOLERANCES[precision.name])


def test_windows_are_those_of_transformers() -> None:
    """Whose index sorts tokens by window, and whose lengths say where each ends."""
    from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

    for merge, window_tokens in ((2, 4), (3, 2), (1, 3)):
        grids = [(merge * rows, merge * cols) for rows, cols in ((9, 8), (1, 13), (4, 3), (1, 1))]
        thw = torch.tensor([(1, *grid) for grid in grids])
        layout = windows.Layout.of(grids, merge, window_tokens)
        assert_array_equal(layout.positions, get_vision_position_ids(thw, merge).numpy())
        order, ends = get_vision_window_index(thw, merge, window_size=14 * merge * window_tokens, patch_size=14)
        patches = (order.numpy()[:, None] * merge**2 + np.arange(merge**2)).reshape(-1)
        expected = [set(patches[first:end]) for first, end in pairwise(ends.tolist())]
        found = [set(row[meant]) for row, meant in zip(layout.windows.index, layout.windows.mask, strict=True)]
        assert found == expected
        bounds = np.cumsum([0] + [rows * cols for rows, cols in grids])
        whole = [set(row[meant]) for row, meant in zip(layout.images.index, layout.images.mask, strict=True)]
        assert whole == [set(range(first, end)) for first, end in pairwise(bounds)]
        for segments in (layout.windows, layout.images):
            assert_array_equal(segments.index.reshape(-1)[segments.place], np.arange(bounds[-1]))
            assert segments.mask.reshape(-1)[segments.place].all()
            assert segments.mask.sum() == bounds[-1]
            assert segments.mask.any(0).all(), "wider than its longest segment"


def test_patches_of_a_view_are_those_of_qwens_processor() -> None:
    """But of one time, where the processor repeats a still for two."""
    photo = np.random.default_rng(3).integers(0, 256, (140, 224, 3), np.uint8)
    processor = transformers.Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=1 << 20)
    theirs = processor(images=[photo], return_tensors="np")
    assert theirs["image_grid_thw"].tolist() == [[1, 10, 16]]
    view = tiles.View(tiles.whole(224, 140), 224, 140)
    table = tiles.normalise_table(processor.image_mean, processor.image_std)
    spec = PixelSpec("patches", (0.0,) * 3, (1.0,) * 3, survey=False, patches=PatchSpec(14, 2, 112))
    inputs = vision_inputs(spec, photo, view, table, threads=2)
    twice = theirs["pixel_values"].reshape(-1, 3, 2, 14 * 14)
    for half in (0, 1):
        assert_near(inputs[windows.PATCHES].reshape(-1, 3, 14 * 14), twice[:, :, half], 1e-6)
    layout = windows.Layout.of([(10, 16)], 2, 4)
    for name, values in layout.inputs().items():
        assert_array_equal(inputs[name], values)


@pytest.mark.parametrize("grids", [[(3, 4)], [(4, 5)], [(0, 4)], [(4, 4), (2, 1)], []], ids=str)
def test_images_that_are_not_whole_tokens_are_refused(grids: list[Grid]) -> None:
    with pytest.raises(ValueError, match=r"patches are not whole tokens of 2 x 2|no image"):
        windows.Layout.of(grids, 2, 4)


# Both


@pytest.mark.parametrize("case_name", GQA_CASES)
def test_a_conversation_by_our_files_alone(graphs: Callable[..., Path], saved: Any, case_name: str) -> None:
    """Embeddings of the checkpoint and tokens of the vision graph, all images in one call, in place of transformers."""
    talk, known = TALKS["four images"], reference(case_name, "four images")
    tokens = image_tokens(graphs(case_name, vision.VisionTower), layout_of(case_name, talk.grids), known.patches)
    embeds = checkpoints.Checkpoint.open(saved(case_name)).read(checkpoints.EMBEDDINGS)[talk.tokens]
    embeds[np.array(talk.tokens) == IMAGE] = tokens
    backend = runtime(case_name, graphs(case_name, decoders.Gqa))
    cache = backend.new_cache()
    for first, end in pairwise([0, *talk.ends]):
        logits = backend.step(embeds[None, first:end], talk.positions[:, :, first:end], cache)
        assert_near(logits, known.logits[end - 1])
