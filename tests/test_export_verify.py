"""verify.py and the end of export.py: bundles of a tiny Qwen2.5-VL against the checkpoint in transformers."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

import qwen
from fake_model import library, script

from qcheck.bundle import Bundle
from qcheck.verdict import ModelInfo

torch = library("torch")
library("transformers")
library("onnx")
command = script("export", "export")
checkpoints = script("checkpoint", "export")
comparison = script("comparison", "export")
machine = script("machine", "export")
references = script("reference", "export")
trials = script("trials", "export")
talks = script("talk", "export")
verify = script("verify", "export")

# One thread: on two busy cores ONNX Runtime's and PyTorch's threads would wait for each other.
QUICK = ("--threads", "1")
SMALL = ("--global-pixels", "50176", "--crop-pixels", "25088", "--think-tokens", "12")


@pytest.fixture(scope="module")
def made(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A bundle of the checkpoint that nobody has verified, made once for each precision."""
    root, known = tmp_path_factory.mktemp("bundles"), dict[tuple[str, ...], Path]()

    def make(precision: str, *options: str) -> Path:
        key = (precision, *options)
        if key not in known:
            known[key] = root / f"{len(known)}"
            arguments = [str(checkpoint), str(known[key]), "--precision", precision, *SMALL, *options, "--no-verify"]
            assert command.main(arguments) == 0
        return known[key]

    return make


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, photo in enumerate(trials.made()[:2]):
        Image.fromarray(photo.pixels).resize((200, 150)).save(folder / f"{number}.png")
    return folder


def verified(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, dict[str, Any]]:
    """Exit code, table and record of verify.py."""
    capfd.readouterr()
    code = verify.main([*map(str, arguments), *QUICK])
    out, err = capfd.readouterr()
    assert err == ""
    *table, last = out.splitlines()
    return code, "\n".join(table), json.loads(last)


# What is compared


def test_a_faithful_bundle_passes_in_every_turn(
    made: Callable[..., Path], checkpoint: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, table, record = verified(capfd, made("fp32"), checkpoint, "--photos", photos)
    assert (code, record["passed"]) == (0, True)
    assert len(record["turns"]) == 4, "the first photo is zoomed into as often as is allowed"
    for turn in record["turns"]:
        assert turn["steps"] > 10
        assert 0 < turn["relative"] < 1e-4
        assert turn["max_absolute"] > turn["relative"], "the largest logit of this model is more than 1"
    assert (record["photos"], record["same_tokens"], record["same_turns"]) == (2, 1.0, 1.0)
    assert record["calls"] >= 3
    assert record["call_iou"] == 1.0
    assert record["score_difference_max"] < 1e-4
    assert record["bytes"]["bundle"] == sum(file.bytes for file in Bundle.open(made("fp32")).contract.files.values())
    assert record["bytes"]["pytorch"] == (checkpoint / "model.safetensors").stat().st_size
    for name in ("ms_a_turn", "tokens_a_second"):
        assert record[name]["pytorch"] > 0
        assert record[name]["bundle"] > 0
    assert "0.001 passes at fp32" in table
    assert table.splitlines()[1].split()[0] == "1"


def test_rounding_shows_and_passes(
    made: Callable[..., Path], checkpoint: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, record = verified(capfd, made("int4"), checkpoint, "--photos", photos)
    assert code == 0
    assert 0.01 < record["relative"] < comparison.TOLERANCES["int4"]
    assert 0.3 < record["same_tokens"] < 1, "in both, most choices are clear and some are not"
    assert record["same_turns"] < 1


def test_a_bundle_of_other_weights_is_found_out(
    made: Callable[..., Path], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    qwen.save_checkpoint(tmp_path / "other", seed=12)
    for precision in ("fp32", "int4"):
        code, table, record = verified(capfd, made(precision), tmp_path / "other", "--photos", photos)
        assert (code, record["passed"]) == (1, False)
        assert record["relative"] > 1.2 * comparison.TOLERANCES["int4"]
        assert table.splitlines()[-1].startswith("logits are off by ")


def test_a_single_pass_is_one_turn(
    made: Callable[..., Path], checkpoint: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, table, record = verified(capfd, made("fp32", "--dialect", "q-insight"), checkpoint, "--photos", photos)
    assert (code, len(record["turns"]), record["calls"], record["call_iou"]) == (0, 1, 0, None)
    assert "no calls" in table


def test_pictures_are_made_up_where_no_photos_are_named(
    made: Callable[..., Path], checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pictures = trials.made()
    assert [(photo.width, photo.height) for photo in pictures] == list(trials.SIZES)
    for photo, again in zip(pictures, trials.made(), strict=True):
        np.testing.assert_array_equal(photo.pixels, again.pixels)
        assert photo.pixels.std() > 20
    code, _, record = verified(capfd, made("fp32"), checkpoint, "--max-probes", "1", "--think-tokens", "2")
    assert (code, record["photos"], len(record["turns"])) == (0, len(pictures), 2)


def test_what_is_dictated_is_said_word_for_word(made: Callable[..., Path], checkpoint: Path) -> None:
    """By a model that would say something else."""
    photo, bundle = trials.made()[0], Bundle.open(made("int4"))
    exported: Any = talks.TalkingEngine.open(bundle, threads=1)
    model = references.Reference.open(checkpoints.Checkpoint.open(checkpoint), 4096)
    about = ModelInfo("x", "1", "0" * 64)
    origin = talks.TalkingEngine(bundle.contract, about, model, exported.tokenizer, model.embeddings)
    spoken = origin.talk(photo, 3, insist=True)
    assert all(turn.agreed == turn.choices > 0 for turn in spoken.turns)
    dictated, free = (exported.talk(photo, 3, insist=True, script=script) for script in (spoken.turns, None))
    assert [turn.said for turn in dictated.turns] == [turn.said for turn in spoken.turns]
    assert [turn.said for turn in free.turns] != [turn.said for turn in spoken.turns]
    assert [turn.choices for turn in dictated.turns] == [turn.choices for turn in spoken.turns]
    assert sum(turn.agreed for turn in dictated.turns) < sum(turn.choices for turn in dictated.turns)
    # Where both agree for the whole of a turn's beginning, the free one says the same.
    first = next(i for i, (a, b) in enumerate(zip(free.turns[0].said, spoken.turns[0].said, strict=False)) if a != b)
    assert free.turns[0].said[:first] == dictated.turns[0].said[:first]
    assert exported.talk(photo, 0).verdict.probes == (), "insisted without being asked to"


def test_a_conversation_in_pytorch_is_rewound_and_forked(checkpoint: Path) -> None:
    model = references.Reference.open(checkpoints.Checkpoint.open(checkpoint), 64)
    rng = np.random.default_rng(0)
    embeds = rng.standard_normal((1, 12, 64)).astype(np.float32)
    places = np.broadcast_to(np.arange(12), (3, 1, 12))

    def step(cache: Any, first: int, end: int) -> Any:
        return model.step(embeds[:, first:end], places[:, :, first:end], cache)

    whole, parts = model.new_cache(), model.new_cache()
    expected = step(whole, 0, 12)
    step(parts, 0, 7)
    fork = parts.fork()
    model.step(-embeds[:, :3], places[:, :, 7:10], parts)
    np.testing.assert_allclose(step(fork, 7, 12), expected, atol=1e-4)
    parts.rewind(7)
    np.testing.assert_allclose(step(parts, 7, 12), expected, atol=1e-4)
    assert not np.allclose(step(model.new_cache(), 7, 12), expected, atol=1e-2)


# Figures


def test_figures_of_logits() -> None:
    error = comparison.TurnError()
    error.add(np.array([1.0, -8.0, 2.0], np.float32), np.array([1.5, -8.0, 2.0], np.float32))
    error.add(np.array([1.0, 0.0, 0.0], np.float32), np.array([1.0, 0.25, 0.0], np.float32))
    assert (error.steps, error.absolute, error.largest, error.relative) == (2, 0.5, 8.0, 0.0625)
    error.add(np.zeros(3, np.float32), np.array([np.nan, np.inf, 0.125], np.float32))
    assert (error.strange, error.absolute, error.relative) == (2, 0.5, np.inf)


def test_numbers_that_are_not_finite_never_pass() -> None:
    found = comparison.Comparison("fp16", 1e9, 1, 1, [comparison.TurnError(1, 0.0, 1.0, 3)])
    found.choices = found.turns = 1
    found.score_differences = [0.0]
    found.bundle = found.pytorch = comparison.Speed(1, 1, 1.0, 1.0)
    assert not found.passed
    assert found.verdict == "3 logits are not finite: fp16 overflows with this checkpoint; use bf16 or fp32"
    assert json.loads(found.json_line())["relative"] is None


# What goes wrong


def refused(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a refused verification prints."""
    capfd.readouterr()
    assert verify.main([str(argument) for argument in arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("verify: error: ")
    return line.removeprefix("verify: error: ")


def test_bad_input_is_one_line(
    made: Callable[..., Path], checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle, none = made("fp32"), tmp_path / "none"
    assert refused(capfd, none, checkpoint).startswith(f"no model bundle at {none}")
    assert refused(capfd, bundle, none).startswith(f"{none} is not a directory; a checkpoint is")
    assert refused(capfd, bundle, checkpoint, "--threads", "0") == "--threads 0: must be 1 or more"
    assert refused(capfd, bundle, checkpoint, "--max-probes", "99") == "--max-probes 99: must be 0 to 64"
    assert refused(capfd, bundle, checkpoint, "--photos", none) == f"{none} is not a directory; name one with photos"
    folder = tmp_path / "photos"
    folder.mkdir()
    assert refused(capfd, bundle, checkpoint, "--photos", folder).startswith(f"{folder}: no images here")
    (folder / "a.jpg").write_bytes(b"no photo")
    assert str(folder / "a.jpg") in refused(capfd, bundle, checkpoint, "--photos", folder, *QUICK)
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    text = (other / "qcheck.json").read_text()
    (other / "qcheck.json").write_text(text.replace('"kv_heads": 2', '"kv_heads": 4'))
    assert refused(capfd, other, checkpoint) == (
        f"{other} was not made of {checkpoint}: their decoders differ in shape"
    )
    (other / "qcheck.json").write_text(text.replace('"precision": "fp32"', '"precision": "int3"'))
    assert refused(capfd, other, checkpoint) == f"{other} is of int3, of which nobody knows how close it must be"


def test_a_model_that_does_not_fit_the_memory_is_refused_before_it_is_loaded(
    made: Callable[..., Path],
    checkpoint: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(references, "available_bytes", lambda: 1_000_000)
    monkeypatch.setattr(references.Reference, "open", None)
    expected = "to verify takes the checkpoint at float32 beside the bundle, 0.0 GB of memory, and 0.0 GB are free; "
    assert refused(capfd, made("fp32"), checkpoint) == expected + "verify it on a machine that has more"
    out = tmp_path / "out"
    assert command.main([str(checkpoint), str(out), "--precision", "fp32"]) == 2
    printed = capfd.readouterr()
    assert printed.err == f"export: error: {expected}leave it out with --no-verify\n"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(references, "available_bytes", lambda: None)  # a system that does not say
    references.check_memory(checkpoints.Checkpoint.open(checkpoint), 1e15, "")


def test_memory_is_what_the_machine_and_the_container_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.available_bytes() is None
    (tmp_path / "meminfo").write_text("MemTotal:  999 kB\nMemAvailable:    300 kB\n")
    assert machine.available_bytes() == 300 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("100000\n")
    assert machine.available_bytes() == 300 * 1024
    (tmp_path / "memory.max").write_text("250000\n")
    assert machine.available_bytes() == 150000
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 40000\n")
    assert machine.available_bytes() == 190000


# At the end of an export


def test_an_export_keeps_what_it_has_verified(
    checkpoint: Path, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(checkpoint), str(tmp_path / "out"), "--precision", "fp32", *SMALL, *QUICK, "--photos", str(photos)]
    assert command.main(arguments) == 0
    out, err = capfd.readouterr()
    assert err == ""
    *_, verdict, last = out.splitlines()
    assert verdict.endswith("0.001 passes at fp32")
    assert last.startswith(f"{tmp_path / 'out'}: fp32, ")
    assert "not verified" not in last
    Bundle.open(tmp_path / "out")


def test_an_export_that_fails_verification_leaves_nothing(
    checkpoint: Path,
    photos: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(comparison.TOLERANCES, "int4", 1e-6)
    arguments = [str(checkpoint), str(tmp_path / "out"), "--precision", "int4", *SMALL]
    assert command.main([*arguments, *QUICK, "--photos", str(photos)]) == 1
    out, err = capfd.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("export: error: logits are off by ")
    assert line.endswith("; the bundle is not kept (--no-verify would)")
    assert "of largest" in out
    assert list(tmp_path.iterdir()) == []
    assert command.main([*arguments, "--no-verify"]) == 0
    assert capfd.readouterr().out.endswith(", not verified\n")
    assert command.main([*arguments, "--no-verify", "--photos", str(photos)]) == 2
    expected = "export: error: --photos: are to verify with; leave them out, or --no-verify\n"
    assert capfd.readouterr().err == expected


def test_a_bundle_of_another_contract_speaks_with_the_same_words(made: Callable[..., Path], checkpoint: Path) -> None:
    """Thoughts are cut for both alike, and the bundle on disk is not touched."""
    bundle = Bundle.open(made("fp32"))
    opened = checkpoints.Checkpoint.open(checkpoint)
    picture = [trials.made()[0]]
    short, long = (
        verify.verify(bundle, opened, picture, probes=0, think_tokens=tokens, threads=1) for tokens in (2, 999)
    )
    assert short.choices < long.choices
    assert replace(bundle) == Bundle.open(made("fp32"))
