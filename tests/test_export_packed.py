"""Checkpoints that were quantised elsewhere, as gptqmodel writes them: read exactly, kept step for step, verified."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script

from qcheck.bundle import Bundle

torch = library("torch")
library("transformers")
onnx = library("onnx")
safetensors = library("safetensors.numpy")
command = script("export", "export")
checkpoints = script("checkpoint", "export")
packed = script("packed", "export")
errors = script("errors", "export")

SMALL = ("--global-pixels", "50176", "--crop-pixels", "25088", "--think-tokens", "12", "--threads", "1")
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SINGLE = "model.safetensors"
LAYER = "model.layers.0."


def words(steps: NDArray[Any], bits: int) -> NDArray[np.int32]:
    """(n, .) steps -> (n * bits / 32, .) int32: neighbours along the first axis in a word, the first of them lowest."""
    each = 32 // bits
    grouped = steps.astype(np.uint64).reshape(-1, each, *steps.shape[1:])
    shifts = (bits * np.arange(each, dtype=np.uint64)).reshape(1, each, *[1] * (steps.ndim - 1))
    return (grouped << shifts).sum(1).astype(np.uint32).view(np.int32)


class Quantised:
    """A random layer: what a weight of `out` x `columns` is made of, and what is stored of it."""

    def __init__(self, out: int, columns: int, seed: int, bits: int = 4, group: int = 32, offset: int = 1) -> None:
        rng = np.random.default_rng(seed)
        groups, top = -(-columns // group), 2**bits
        steps = rng.integers(0, top, (columns, out))
        zeros = rng.integers(0, top, (groups, out))
        scales = (rng.uniform(0.5, 1.5, (groups, out)) * 4 / top / columns**0.5).astype(np.float16)
        of = np.arange(columns) // group
        self.weight = ((steps - zeros[of]) * scales.astype(np.float32)[of]).T.astype(np.float32)
        self.parts = {
            "qweight": words(steps, bits),
            "scales": scales,
            "qzeros": words(((zeros - offset) % top).T, bits).T.copy(),
            "g_idx": of.astype(np.int32),
        }


def packing_of(group: int = 32, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False, **more}


def read(layer: Quantised, packing: Any, ordered: bool = True) -> Any:
    out, columns = layer.weight.shape
    shapes = {name: part.shape for name, part in layer.parts.items()}
    assert packing.bits("layer", (out, columns), shapes) * columns == 32 * len(layer.parts["qweight"])
    return packing.rounded("layer", columns, layer.parts.__getitem__, ordered)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("form", "offset"), [("gptq", 1), ("gptq_v2", 0)])
@pytest.mark.parametrize(("columns", "group", "block"), [(96, 32, 32), (256, 128, 128), (192, 96, 32), (160, 160, 128)])
def test_a_layer_is_read_as_it_was_written(
    bits: int, form: str, offset: int, columns: int, group: int, block: int
) -> None:
    layer = Quantised(16, columns, 1, bits, group, offset)
    packing = packed.Packing.of(packing_of(group if group < columns else -1, checkpoint_format=form), "here")
    for ordered in (True, False):
        rounded = read(layer, packing, ordered)
        assert rounded.steps.shape == (16, -(-columns // block), block)
        assert_allclose(rounded.weights(columns), layer.weight, rtol=1e-6)


def test_a_last_group_may_be_short() -> None:
    layer = Quantised(8, 80, 2, group=32)
    assert_allclose(read(layer, packed.Packing.of(packing_of(), "here")).weights(80), layer.weight, rtol=1e-6)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(errors.ExportError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_inputs_that_are_grouped_out_of_order_are_refused() -> None:
    layer = Quantised(8, 64, 3)
    layer.parts["g_idx"] = layer.parts["g_idx"][::-1].copy()
    assert "quantise with desc_act=False" in refused(lambda: read(layer, packed.Packing.of(packing_of(), "here")))


def test_groups_that_no_block_fits_are_refused() -> None:
    layer = Quantised(8, 48, 4, group=24)
    assert "groups of 24 inputs are no whole blocks" in refused(
        lambda: read(layer, packed.Packing.of(packing_of(24), "here"))
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ([], "config.json is no object"),
        (packing_of(quant_method="awq"), "config.json is of 'awq'; supported: gptq"),
        (packing_of(checkpoint_format="marlin"), "names the format 'marlin'; supported: gptq, gptq_v2"),
        (packing_of(group_size="32"), "has the group_size '32'; a whole number is needed"),
    ],
)
def test_other_quantisations_are_refused(config: Any, expected: str) -> None:
    assert expected in refused(lambda: packed.Packing.of(config, "config.json"))


def quantise(directory: Path, change: Callable[[dict[str, Any]], None] = lambda _: None, **how: Any) -> dict[str, Any]:
    """The linear layers of a checkpoint's decoder in place of random ones; `change`: of what is stored. Their weights,
    by their stored names."""
    stored, weights = dict(safetensors.load_file(directory / SINGLE)), {}
    for number, name in enumerate(sorted(stored)):
        if ".layers." not in name or not name.endswith(".weight") or name.split(".")[-2] not in LINEARS:
            continue
        out, columns = stored.pop(name).shape
        layer = Quantised(out, columns, number, **how)
        base = name.removesuffix(".weight")
        stored |= {f"{base}.{part}": values for part, values in layer.parts.items()}
        weights[name] = layer.weight
    change(stored)
    safetensors.save_file(stored, directory / SINGLE)
    config = json.loads((directory / "config.json").read_text())
    form = "gptq" if how.get("offset", 1) else "gptq_v2"
    config["quantization_config"] = packing_of(how.get("group", 32), checkpoint_format=form)
    (directory / "config.json").write_text(json.dumps(config))
    return weights


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


def test_a_quantised_checkpoint_is_read(copied: Path) -> None:
    weights = quantise(copied)
    opened = checkpoints.Checkpoint.open(copied)
    assert opened.bits == 4
    assert len(weights) == 2 * len(LINEARS)
    for name, weight in weights.items():
        assert_allclose(opened.read(f"text.{name.removeprefix('model.')}"), weight, rtol=1e-6)
    assert opened.rounded("text.layers.0.input_layernorm.weight") is None


def export(directory: Path, out: Path, precision: str, *more: str) -> int:
    return int(command.main([str(directory), str(out), "--precision", precision, *SMALL, *more]))


@pytest.mark.parametrize(("precision", "how"), [("int4", {}), ("int8", {"bits": 8, "offset": 0}), ("fp32", {})])
def test_a_quantised_checkpoint_becomes_a_bundle_that_says_the_same(
    copied: Path, tmp_path: Path, precision: str, how: dict[str, Any]
) -> None:
    """Verified at the end of the export, against transformers with the weights that the steps stand for."""
    quantise(copied, **how)
    assert export(copied, tmp_path / "bundle", precision) == 0
    bundle = Bundle.open(tmp_path / "bundle")
    held = {i.name: i for i in onnx.load(bundle.path("decoder")).graph.initializer}
    name = "text.layers.1.mlp.down_proj"
    assert (f"{name}.steps" in held) == (precision != "fp32")
    if precision != "fp32":
        rounded = checkpoints.Checkpoint.open(copied).rounded(f"{name}.weight")
        assert_array_equal(onnx.numpy_helper.to_array(held[f"{name}.scales"]), rounded.scales)
        assert "as it was quantised" in bundle.path("card").read_text()


def test_the_old_place_of_what_says_how_is_known(copied: Path) -> None:
    quantise(copied)
    config = json.loads((copied / "config.json").read_text())
    (copied / "quantize_config.json").write_text(json.dumps(config.pop("quantization_config")))
    (copied / "config.json").write_text(json.dumps(config))
    assert checkpoints.Checkpoint.open(copied).bits == 4


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda stored: stored.pop(f"{LAYER}{name}")


def put(name: str, make: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def change(stored: dict[str, Any]) -> None:
        stored[f"{LAYER}{name}"] = make(stored)

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (drop("mlp.up_proj.qzeros"), "has no tensor model.layers.0.mlp.up_proj.qzeros"),
        (drop("mlp.up_proj.qweight"), "has no tensor model.layers.0.mlp.up_proj.weight"),
        (
            put("mlp.up_proj.scales", lambda stored: stored[f"{LAYER}mlp.up_proj.scales"][:, :8].copy()),
            "mlp.up_proj.scales has the shape (2, 8) and (2, 96) is needed",
        ),
        (
            put("mlp.up_proj.qweight", lambda stored: stored[f"{LAYER}mlp.up_proj.qweight"][:3].copy()),
            "3 rows of qweight for 64 inputs are 1.5 bits a weight; supported: 4 and 8",
        ),
        (
            put("mlp.up_proj.qweight", lambda stored: stored[f"{LAYER}mlp.up_proj.qweight"].astype(np.float32)),
            "qweight is stored as F32; supported: I32",
        ),
        (
            put("mlp.up_proj.bias", lambda _: np.ones(96, np.float16)),
            "mlp.up_proj.bias is not of this architecture, and would be left out",
        ),
    ],
)
def test_what_does_not_fit_is_refused(copied: Path, change: Callable[[dict[str, Any]], None], expected: str) -> None:
    quantise(copied, change)
    assert expected in refused(lambda: checkpoints.Checkpoint.open(copied))


def test_a_bias_of_zeros_is_none(copied: Path) -> None:
    quantise(copied, put("mlp.up_proj.bias", lambda _: np.zeros(96, np.float16)))
    assert checkpoints.Checkpoint.open(copied).bits == 4


def test_layers_of_different_bits_are_refused(copied: Path) -> None:
    layer = Quantised(96, 64, 0, bits=8)

    def change(stored: dict[str, Any]) -> None:
        stored.update({f"{LAYER}mlp.up_proj.{part}": values for part, values in layer.parts.items()})

    quantise(copied, change)
    assert "quantise all of them alike" in refused(lambda: checkpoints.Checkpoint.open(copied))


def test_what_is_rounded_is_not_rounded_again(copied: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quantise(copied)
    for precision, more, expected in (
        ("int8", (), "holds steps of 4 bits; use --precision int4, or one of floats"),
        ("int4", ("--algorithm", "hqq"), "its steps are kept; leave out --algorithm"),
    ):
        assert export(copied, tmp_path / "bundle", precision, "--no-verify", *more) == 2
        assert expected in capfd.readouterr().err
        assert not (tmp_path / "bundle").exists()


def test_a_part_of_what_is_multiplied_at_once_cannot_be_rounded_alone(copied: Path, tmp_path: Path) -> None:
    weight = Quantised(32, 64, 0).weight

    def change(stored: dict[str, Any]) -> None:
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            del stored[f"{LAYER}self_attn.k_proj.{part}"]
        stored[f"{LAYER}self_attn.k_proj.weight"] = weight

    quantise(copied, change)
    assert export(copied, tmp_path / "bundle", "int4", "--no-verify") == 2
    assert export(copied, tmp_path / "bundle", "fp32", "--no-verify") == 0
