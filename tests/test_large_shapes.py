"""benchmarks/large_shapes.py at a small shape: the export takes its checkpoint, and every figure is measured."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script

library("torch")
library("onnx")
shapes = script("large_shapes", "benchmarks")


def test_published_shapes_have_as_many_weights_as_published() -> None:
    """3.75 and 8.29 billion, as the model hub counts the files of Qwen2.5-VL-3B- and 7B-Instruct."""
    counts = {name: shapes.Architecture.of(shapes.config_of(name, None)).weights for name in shapes.SHAPES}
    assert counts == {"3b": pytest.approx(3.75e9, rel=0.005), "7b": pytest.approx(8.29e9, rel=0.005)}


def test_a_small_shape_is_exported_and_judges(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = {"hidden_size": 256, "intermediate_size": 320, "num_attention_heads": 2, "num_key_value_heads": 1}
    monkeypatch.setitem(shapes.SHAPES, "3b", {**shapes.SHAPES["3b"], **text, "vocab_size": 1200})
    for name, value in {"depth": 2, "hidden_size": 32, "intermediate_size": 40, "num_heads": 2}.items():
        monkeypatch.setitem(shapes.VISION, name, value)
    monkeypatch.setitem(shapes.VISION, "fullatt_block_indexes", [1])
    monkeypatch.setattr(
        shapes, "VIEW_PIXELS", ("--global-pixels", "50176", "--crop-pixels", "50176", "--think-tokens", "4")
    )
    monkeypatch.setattr(sys, "argv", ["large_shapes.py", "--layers", "2", "--folder", str(tmp_path), "--threads", "1"])
    assert shapes.main() == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert rows["layers"] == 2
    assert rows["weights"] == pytest.approx(1.2e6, rel=0.3)
    assert min(value for name, value in rows.items() if name.endswith(("_s", "_gb", "total_ms"))) > 0
    assert rows["command_peak_gb"] < 2
    assert not list(tmp_path.iterdir())
