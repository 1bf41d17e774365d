"""How weights become steps: ONNX Runtime's quantiser on one matrix at a time, GPTQ's inputs, and what is refused."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

import qwen
from fake_model import library, script

from qcheck.bundle import Bundle
from qcheck.engine import Engine
from qcheck.errors import UsageError
from qcheck.photo import Photo
from qcheck.probe import Limits, Prober
from qcheck.rope import image_positions, text_positions

torch = library("torch")
transformers = library("transformers")
onnx = library("onnx")
calibration = script("calibration", "export")
checkpoints = script("checkpoint", "export")
shards = script("shards", "export")
command = script("export", "export")
decoders = script("decoder_graph", "export")
errors = script("errors", "export")
graph_files = script("graph", "export")
precisions = script("precisions", "export")
rounding = script("rounding", "export")
trials = script("trials", "export")
weights = script("weights", "export")

EXAMPLES: Final = Path(__file__).parent.parent / "examples"
SMALL: Final = (
    *("--global-pixels", "50176", "--crop-pixels", "25088", "--think-tokens", "12", "--threads", "1", "--no-verify"),
)


class Seen:
    """Inputs of a layer that is alone; see calibration.Calibration."""

    def __init__(self, x: NDArray[np.float32]) -> None:
        self.x = x
        self.kept: dict[str, NDArray[np.float32]] = {}

    def hessian(self, name: str) -> NDArray[np.float64]:
        x = self.x.astype(np.float64)
        return 2 / len(x) * x.T @ x

    def keep(self, name: str, weight: NDArray[np.float32]) -> None:
        self.kept[name] = weight


def correlated(rows: int, columns: int) -> NDArray[np.float32]:
    """Inputs that come together, as those of real layers do, some of them never."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((rows, 12)) @ rng.standard_normal((12, columns)) + 0.3 * rng.standard_normal(
        (rows, columns)
    )
    x[:, 3] = 0
    return x.astype(np.float32)


def ways(bits: int, block: int, x: NDArray[np.float32]) -> dict[str, tuple[Any, Any]]:
    """Each way to round on each grid that it can make."""
    made = {}
    for name, kinds in precisions.ALGORITHMS.items():
        for symmetric in kinds:
            folder = Path() if name == "gptq" else None
            how = precisions.Quantisation(name, block, symmetric, folder)
            made[f"{name}{' symmetric' * symmetric}"] = how.grid(bits), how.rounding(bits, Seen(x))
    return made


def session(path: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def product(path: Path, precision: Any, weight: NDArray[np.float32], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What ONNX Runtime makes of a linear layer."""
    with graph_files.Graph(path, 18) as graph:
        given = graph.input("x", onnx.TensorProto.FLOAT, ("n", weight.shape[1]))
        graph.node("Identity", (precision.linear(graph, given, "linear", weight),), output="y")
        graph.output("y", onnx.TensorProto.FLOAT, ("n", weight.shape[0]))
    found: NDArray[np.float32] = session(path).run(None, {"x": x})[0]
    return found


@pytest.mark.parametrize("block", precisions.BLOCKS)
@pytest.mark.parametrize("bits", [4, 8])
def test_every_way_multiplies_as_it_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, block: int
) -> None:
    """By the operator of ONNX Runtime; 200 columns are no whole blocks, 21 rows are taken 8 at a time."""
    monkeypatch.setattr(rounding, "ROWS_AT_ONCE", 8)
    rng, x = np.random.default_rng(bits), correlated(400, 200)
    weight = rng.standard_normal((21, 200)).astype(np.float32)
    weight[4] = 0
    weight[6] *= np.float32(1e-6)
    found = {}
    for name, (grid, way) in ways(bits, block, x).items():
        if (name, bits) == ("hqq", 8):
            continue  # refused; see below
        rounded = way("linear", weight)
        assert rounded.steps.dtype == np.uint8
        assert rounded.steps.max() <= grid.top
        assert rounded.zeros.dtype == (np.float32 if name == "hqq" else np.uint8)
        assert not grid.symmetric or (rounded.zeros == grid.middle).all()
        close = rounded.weights(200)
        assert_array_equal(close[4], 0)
        precision = weights.Blocks(grid, accuracy_level=1, rounding=way)
        y = product(tmp_path / f"{name}.onnx", precision, weight, x[:50])
        assert_allclose(y, x[:50] @ close.T, atol=1e-4 * float(np.abs(y).max()))
        found[name] = close
        # Of the values of a row, the small one's too: no way loses more than a step or so.
        worst = np.abs(close - weight).max(1) / np.maximum(np.abs(weight).max(1), 1e-30)
        compensates = name.startswith("gptq")
        assert worst.max() < (1 if compensates else 0.3) * (1 if bits == 4 else 0.1), name
    outputs = {name: float(np.square(x @ (close - weight).T).mean()) for name, close in found.items()}
    lost = {name: float(np.square(close - weight).mean()) for name, close in found.items()}
    assert lost["rtn"] < lost["rtn symmetric"]
    assert lost["k-quant"] < 1.1 * lost["rtn"]
    assert bits == 8 or lost["hqq"] < lost["rtn"], "a 0 between the steps gains nothing"
    for kind in ("", " symmetric"):
        assert outputs[f"gptq{kind}"] < 0.3 * outputs[f"rtn{kind}"], "looking at inputs gains nothing"
        assert lost[f"gptq{kind}"] > lost[f"rtn{kind}"]


def test_rounding_to_nearest_is_onnxruntimes_own() -> None:
    """Its kernel takes (in, out)."""
    from onnxruntime.quantization import matmul_nbits_quantizer as theirs

    weight = np.random.default_rng(0).standard_normal((24, 128)).astype(np.float32)
    for bits, symmetric in ((4, True), (4, False), (8, True), (8, False)):
        config = theirs.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=symmetric, bits=bits)
        packed, scales, zeros = theirs.DefaultWeightOnlyQuantizer(config).qbits_block_quant(weight.T.copy())
        ours = weights.Blocks(rounding.Grid(bits, 32, symmetric))
        found = rounding.Nearest(ours.grid)("x", weight)
        assert_allclose(found.scales, scales.reshape(24, 4), rtol=1e-6)
        # Where a value lies between two steps, the last bit of a scale decides.
        assert (ours._packed(found.steps) != packed.reshape(24, 4, -1)).mean() < 0.01
        if not symmetric:
            assert_array_equal(ours._packed(found.zeros), zeros.reshape(24, -1))


def test_blocks_on_one_side_of_zero_survive_k_quant() -> None:
    """onnxruntime's k-quant alone loses them: it has no step for 0, and takes the nearest there is."""
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

    weight = np.random.default_rng(1).uniform(0.9, 1.1, (3, 32)).astype(np.float32)
    weight[1] *= -1
    weight[2, 0] = -1  # on both sides
    steps, scales, zeros = quant_tensor_k_quant_cpu(weight, 4, 32)
    lost = ((steps - zeros) * scales)[:2]
    assert np.abs(lost - weight[:2]).max() > 0.5
    found = rounding.KQuant(rounding.Grid(4, 32, symmetric=False))("x", weight).weights(32)
    assert np.abs(found - weight).max() < 0.1


def test_gptq_of_inputs_that_have_nothing_to_do_with_each_other_rounds_to_the_nearest() -> None:
    """And so does onnxruntime's whatever the inputs, which is why it is not used."""
    from onnxruntime.quantization.neural_compressor.weight_only import gptq

    weight, grid = np.random.default_rng(2).standard_normal((16, 70)).astype(np.float32), rounding.Grid(4, 32, False)
    nearest = rounding.Nearest(grid)("layer", weight).weights(70)
    alone, together = Seen(np.eye(70, dtype=np.float32)), Seen(correlated(300, 70))
    assert_allclose(rounding.Gptq(grid, alone)("layer", weight).weights(70), nearest, atol=1e-6)
    found = rounding.Gptq(grid, together)("layer", weight).weights(70)
    assert_array_equal(together.kept["layer"], found)
    assert np.abs(found - nearest).max() > 0.1
    part = weight[:, 4:68]  # without an input that is always 0, whose weights they drop
    theirs = gptq(part.T.copy(), together.hessian("layer")[4:68, 4:68], 4, 32, "asym", blocksize=32).T
    assert_allclose(theirs, rounding.Nearest(grid)("x", part).weights(64), atol=1e-5)


def test_gptq_rounds_column_by_column() -> None:
    """Two columns by hand: the second takes on what the first lost, by what its input has of the first one's."""
    x = np.array([[1.0, 0.8], [0.0, 0.6]], np.float32).repeat(16, 0)
    weight = np.array([[0.46, 0.3, *[0] * 13, -8.0]], np.float32)  # whole steps of 1: -8 is the lowest
    inputs = np.hstack((x, np.zeros((32, 14), np.float32)))
    found = rounding.Gptq(rounding.Grid(4, 16), Seen(inputs))("layer", weight).weights(16)
    assert rounding.Nearest(rounding.Grid(4, 16))("layer", weight).weights(16)[0, :2].tolist() == [0, 0]
    # 0.46 of the first is lost; 0.8 of it is in the second, which becomes about 0.3 + 0.37, and then 1.
    assert found[0].tolist() == [0, 1, *[0] * 13, -8]


def test_gptq_of_inputs_that_are_not_finite_is_refused() -> None:
    way = rounding.Gptq(rounding.Grid(4, 32), Seen(np.full((3, 32), np.inf, np.float32)))
    with pytest.raises(errors.ExportError, match=r"^layer: its inputs over the calibration photos are not finite"):
        way("layer", np.ones((2, 32), np.float32))


def test_a_quantiser_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime.quantization.neural_compressor import weight_only

    monkeypatch.delattr(weight_only, "quant_tensor_k_quant_cpu")
    with pytest.raises(errors.ExportError, match=r"^this onnxruntime has not the quantiser that is asked for"):
        rounding.KQuant(rounding.Grid(4, 32, False))("layer", np.ones((2, 32), np.float32))


def test_the_quantiser_does_not_turn_the_log_on() -> None:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    with rounding._quantiser():
        logging.basicConfig(level=logging.DEBUG, force=True)
    assert (root.level, root.handlers) == before


# What GPTQ looks at


def talk(tokens: int, rows: int, columns: int, seed: int) -> Any:
    """Embeddings and positions of a conversation with one image."""
    first, position = text_positions(0, tokens)
    middle, position = image_positions(position, rows, columns)
    last, _ = text_positions(position, tokens)
    places = np.concatenate((first, middle, last), 1)
    embeds = np.random.default_rng(seed).standard_normal((places.shape[1], 64)).astype(np.float32)
    return embeds, places


def test_inputs_of_layers_are_those_of_transformers(checkpoint: Path) -> None:
    """Layer after layer, over conversations of different lengths, and those of the head."""
    talks = [talk(5, 3, 4, 0), talk(2, 6, 2, 1)]
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint)
    decoder, taken = model.model.language_model, dict[str, list[Any]]()
    modules = {f"text.layers.{i}.{part}": layer.get_submodule(of) for i, layer in enumerate(decoder.layers)
               for part, of in calibration.INPUT_OF.items()} | {"lm_head": model.lm_head}  # fmt: skip
    for name, module in modules.items():
        module.register_forward_pre_hook(
            lambda _, given, name=name: taken.setdefault(name, []).append(given[0][0].detach().double().numpy())
        )
    with torch.inference_mode():
        for embeds, places in talks:
            hidden = decoder(
                inputs_embeds=torch.from_numpy(embeds)[None], position_ids=torch.from_numpy(places)[:, None]
            )
            model.lm_head(hidden.last_hidden_state)
    found = calibration.Calibration(checkpoints.Checkpoint.open(checkpoint), talks)
    for name in modules:
        x = np.concatenate(taken[name])
        expected = 2 / len(x) * x.T @ x
        assert_allclose(found.hessian(name), expected, atol=1e-4 * float(np.abs(expected).max()), err_msg=name)


def test_later_layers_see_what_rounding_did_to_earlier_ones(checkpoint: Path) -> None:
    opened = checkpoints.Checkpoint.open(checkpoint)
    exact, rounded = (calibration.Calibration(opened, [talk(5, 3, 4, 0)]) for _ in range(2))
    first, second = "text.layers.0.self_attn.qkv_proj", "text.layers.1.self_attn.qkv_proj"
    for inputs in (exact, rounded):
        inputs.hessian(first)
    weight = np.concatenate([opened.read(f"text.layers.0.self_attn.{part}_proj.weight") for part in "qkv"])
    exact.keep(first, weight)
    rounded.keep(first, np.round(weight))
    size = float(np.abs(exact.hessian(second)).max())
    assert np.abs(exact.hessian(second) - rounded.hessian(second)).max() > 0.01 * size
    again = calibration.Calibration(opened, [talk(5, 3, 4, 0)])
    assert_allclose(again.hessian(second), exact.hessian(second), atol=1e-5 * size)


def test_a_draft_is_fed_whole_conversations(checkpoint: Path, tmp_path: Path) -> None:
    assert command.main([str(checkpoint), str(tmp_path / "out"), "--precision", "int4", *SMALL]) == 0
    bundle, photos = Bundle.open(tmp_path / "out"), trials.made()[:2]
    fed = list(calibration.conversations(bundle, photos, 1, 1))
    assert len(fed) == 2
    prober = Prober(Engine.open(bundle, threads=1))
    for photo, (embeds, places) in zip(photos, fed, strict=True):
        tokens = prober.judge(photo, Limits(1))
        assert embeds.shape == (places.shape[1], 64)
        assert places[:, 0].tolist() == [0, 0, 0]
        assert (np.diff(places[0]) >= 0).all()
        views = 1 + len(tokens.probes)
        assert len(embeds) > 64 * views, "the tokens of a view of 50,176 pixels are 64"


# Whole bundles


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    for number, photo in enumerate(trials.made()):
        Image.fromarray(photo.pixels).resize((150, 200)).save(folder / f"{number}.png")
    return folder


def test_a_calibrated_bundle_runs_and_keeps_no_draft(
    checkpoint: Path, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--algorithm", "gptq", "--calibration", str(photos), "--no-symmetric")
    assert command.main([str(checkpoint), str(out), "--precision", "int4", *options, *SMALL]) == 0
    assert capfd.readouterr().err == ""
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert not list(out.glob("draft*"))
    bundle = Bundle.open(out)
    assert "at int4, gptq, blocks of 32, form `gqa`" in bundle.card()
    verdict = Prober(Engine.open(bundle, threads=1)).judge(trials.made()[0], Limits(1))
    assert 1 <= verdict.score <= 5
    assert command.main([str(checkpoint), str(tmp_path / "rtn"), "--precision", "int4", *SMALL]) == 0
    ours, plain = (onnx.load(path / "decoder.onnx") for path in (out, tmp_path / "rtn"))
    steps = [
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for model in (ours, plain)
    ]
    name = "text.layers.1.mlp.down_proj.steps"
    assert (steps[0][name] != steps[1][name]).mean() > 0.1


def size_of(folder: Path) -> int:
    return Bundle.open(folder).contract.files["decoder_data"].bytes


def test_larger_blocks_are_smaller(tmp_path: Path) -> None:
    """By as much as is said where room on the disk is looked at."""
    weight = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    for name, (grid, _) in ways(4, 32, np.zeros((1, 1024), np.float32)).items():
        sizes = []
        for block in precisions.BLOCKS:
            precision = weights.Blocks(rounding.Grid(4, block, grid.symmetric, grid.fractional))
            rounded = rounding.Nearest(precision.grid)("x", weight)
            given = rounded._replace(zeros=rounded.zeros.astype(np.float32 if grid.fractional else np.uint8))
            path = tmp_path / f"{name}{block}.onnx"
            product(path, weights.Blocks(precision.grid, 1, lambda *_, given=given: given), weight, weight[:1])
            sizes.append(path.stat().st_size + path.with_name(f"{path.name}.data").stat().st_size)
            assert sizes[-1] == pytest.approx(precision.bytes_a_weight * weight.size, rel=0.15)
        assert sizes[1] < sizes[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_bf16_keeps_weights_in_two_bytes(tmp_path: Path, dtype: str) -> None:
    """And those of a checkpoint in bfloat16 as they are, but for the sums that embed patches."""
    qwen.save_checkpoint(tmp_path / "checkpoint", dtype=dtype)
    opened = checkpoints.Checkpoint.open(tmp_path / "checkpoint")
    for precision in ("bf16", "fp32"):
        out = tmp_path / precision
        assert command.main([str(tmp_path / "checkpoint"), str(out), "--precision", precision, *SMALL]) == 0
    assert size_of(tmp_path / "bf16") < 0.6 * size_of(tmp_path / "fp32")
    model = onnx.load(tmp_path / "bf16" / "decoder.onnx")
    found = next(t for t in model.graph.initializer if t.name == "text.layers.0.mlp.down_proj.weight")
    assert found.data_type == onnx.TensorProto.BFLOAT16
    weight = opened.read("text.layers.0.mlp.down_proj.weight").T
    expected = torch.from_numpy(weight.copy()).bfloat16().float().numpy()
    assert_array_equal(onnx.numpy_helper.to_array(found).astype(np.float32), expected)
    table = Bundle.open(tmp_path / "bf16").embeddings()
    assert table._table.dtype == np.dtype("<u2")
    photo = Photo.open(str(next(EXAMPLES.glob("*.jpg"))))
    scores = [
        Prober(Engine.open(Bundle.open(tmp_path / precision), threads=1)).judge(photo, Limits(0)).score
        for precision in ("bf16", "fp32")
    ]
    if dtype == "bfloat16":
        assert scores[0] == pytest.approx(scores[1], abs=1e-3)


# The overflow of halves

# Gate and up stay below 65,504, their product does not.
LOUD_MLP: Final = {"mlp.gate_proj": 16.0, "mlp.up_proj": 4096.0, "mlp.down_proj": 1 / 4096}
# Values of attention do not; at float32 the model says the same.
LOUD_ATTENTION: Final = {"self_attn.v_proj": 32768.0, "self_attn.o_proj": 1 / 32768}


def loud(folder: Path, factors: dict[str, float]) -> Path:
    """A checkpoint with parts of its first decoder layer scaled."""
    qwen.save_checkpoint(folder)
    path, storage = folder / shards.SINGLE_FILE, library("safetensors.torch")
    tensors = storage.load_file(path)
    for part, factor in factors.items():
        for kind in ("weight", "bias"):
            if (name := f"model.layers.0.{part}.{kind}") in tensors:
                tensors[name] *= factor
    storage.save_file(tensors, path, metadata={"format": "pt"})
    return folder


def step_of(folder: Path, precision: Any, path: Path, run: Callable[[Path, Any], Any]) -> NDArray[np.float32]:
    """Logits after one conversation in one step of a std24 graph."""
    decoders.Std24.write(checkpoints.Checkpoint.open(folder), precision, path)
    embeds, places = talk(4, 3, 4, 7)
    dtype = np.float16 if precision.dtype == onnx.TensorProto.FLOAT16 else np.float32
    past = np.zeros((1, 2, 32, 16), dtype)
    feeds = {f"past.{layer}.{part}": past for layer in range(2) for part in ("key", "value")}
    feeds |= {"inputs_embeds": embeds[None], "position_ids": places[:, None], "kv_length": np.zeros(1, np.int64)}
    logits: NDArray[np.float32] = run(path, feeds).reshape(-1)
    return logits


def by_onnxruntime(path: Path, feeds: Any) -> Any:
    return session(path).run(["logits"], feeds)[0]


def by_the_standard(path: Path, feeds: Any) -> Any:
    """ONNX's own evaluator, which rounds to halves after every operator, as GPUs do. ONNX Runtime's CPU provider leaves
    conversions out between operators that it has for float32 alone, and so hides an overflow there."""
    from onnx.reference import ReferenceEvaluator

    with np.errstate(all="ignore"):
        return ReferenceEvaluator(str(path)).run(["logits"], feeds)[0]


def in_halves(decoder: Any, h: str, name: str) -> str:
    """A decoder's MLP with nothing in float32."""
    h = decoder.inner(h)
    gate, up = (decoder.linear(h, f"{name}.{part}_proj", bias=False) for part in ("gate", "up"))
    product = decoder.graph.node("Mul", (decoder.silu(gate), up))
    out: str = decoder.outer(decoder.linear(product, f"{name}.down_proj", bias=False))
    return out


def test_products_that_overflow_a_half_do_not_in_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet, folder = loud(tmp_path / "quiet", {}), loud(tmp_path / "loud", LOUD_MLP)
    exact = step_of(folder, weights.FP32, tmp_path / "exact.onnx", by_onnxruntime)
    size = float(np.abs(exact).max())
    for run in (by_onnxruntime, by_the_standard):
        guarded = step_of(folder, weights.FP16, tmp_path / "guarded.onnx", run)
        assert np.abs(guarded - exact).max() < 0.02 * size
    # Without the guard, and everything else the same:
    monkeypatch.setattr(decoders.Decoder, "_mlp", in_halves)
    assert np.isfinite(step_of(quiet, weights.FP16, tmp_path / "quiet.onnx", by_the_standard)).all()
    assert not np.isfinite(step_of(folder, weights.FP16, tmp_path / "loud.onnx", by_the_standard)).all()


def test_what_overflows_all_the_same_is_not_kept(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Values of attention, which a cache of halves cannot hold: the end of the export sees it."""
    folder = loud(tmp_path / "loud", LOUD_ATTENTION)
    options = [*SMALL[:-1], "--photos", str(photos)]
    capfd.readouterr()
    assert command.main([str(folder), str(tmp_path / "out"), "--precision", "fp16", *options]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "logits are not finite: fp16 overflows with this checkpoint; use bf16 or fp32; the bundle is not" in line
    assert list(tmp_path.iterdir()) == [folder]
    assert command.main([str(folder), str(tmp_path / "out"), "--precision", "bf16", *options]) == 0


# What is refused


def refused(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capfd.readouterr()
    assert command.main([*map(str, arguments), "--no-verify"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    return line.removeprefix("export: error: ")


def test_ways_to_round_that_do_not_fit_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Before the checkpoint is even looked at."""
    place = (tmp_path / "none", tmp_path / "out")
    int4 = (*place, "--precision", "int4")
    for way in ("hqq", "k-quant"):
        assert refused(capfd, *int4, "--algorithm", way, "--symmetric") == (
            f"--symmetric: {way} gives each block its own step of 0; use rtn or gptq"
        )
    assert refused(capfd, *int4, "--algorithm", "gptq").startswith("--algorithm gptq: needs --calibration FOLDER")
    assert refused(capfd, *int4, "--calibration", tmp_path) == "--calibration is for --algorithm gptq; leave it out"
    hqq = (*place, "--precision", "int8", "--algorithm", "hqq")
    assert refused(capfd, *hqq).startswith("--algorithm hqq: ONNX Runtime multiplies by its steps of 0 at 4 bits only")
    expected = "--algorithm, --block, --symmetric and --calibration are of int8 and int4; leave them out, or"
    for option in (("--block", "128"), ("--algorithm", "hqq"), ("--symmetric",)):
        assert refused(capfd, *place, "--precision", "bf16", *option) == f"{expected} --precision bf16"
    gptq = (*int4, "--algorithm", "gptq", "--calibration")
    assert refused(capfd, *gptq, tmp_path / "x") == f"{tmp_path / 'x'} is not a directory; name one with photos"
    assert refused(capfd, *gptq, tmp_path).startswith(f"{tmp_path}: no images here")
    for wrong in ({"algorithm": "awq"}, {"block": 64}):
        with pytest.raises(UsageError, match="must be one of"):
            precisions.Quantisation(**wrong)


def test_blocks_of_8_bits_have_their_own_0_unless_it_is_said() -> None:
    """A byte more a block; with symmetric ones a trained model's perplexity is 1% worse (benchmarks/README.md)."""
    for how, symmetric in ((None, {4: True, 8: False}), (True, {4: True, 8: True}), (False, {4: False, 8: False})):
        for bits, expected in symmetric.items():
            given = precisions.Quantisation("rtn", symmetric=how)
            assert given.grid(bits).symmetric == expected
            assert given.described(bits) == f"rtn, {'symmetric ' * expected}blocks of 32"
    for name, bits in precisions.BITS.items():
        assert precisions.PRECISIONS[name].decoder.grid == precisions.Quantisation().grid(bits)


def test_providers_refuse_what_they_cannot_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    served = {
        (provider, form, precision)
        for provider in command.PROVIDERS
        for form in decoders.FORMS
        for precision in precisions.PRECISIONS
        if precisions.refusal(precision, form, provider) is None
    }
    every = set(precisions.PRECISIONS)
    assert {(form, name) for provider, form, name in served if provider == "cpu"} == {
        (form, name) for form in decoders.FORMS for name in every
    }
    assert {name for provider, form, name in served if (provider, form) == ("cuda", "gqa")} == {"fp16"}
    assert {(form, name) for provider, form, name in served if provider == "tensorrt"} == {
        ("std24", name) for name in every - {"int8", "int4"}
    }
    place = (tmp_path / "none", tmp_path / "out")
    assert refused(capfd, *place, "--precision", "int4", "--provider", "cuda") == (
        "--provider cuda: CUDA's GroupQueryAttention takes float16; use --precision fp16, or --form std24"
    )
    assert refused(capfd, *place, "--precision", "int8", "--provider", "tensorrt").startswith(
        "--provider tensorrt: TensorRT does not know MatMulNBits"
    )
