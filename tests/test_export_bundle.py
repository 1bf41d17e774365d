"""From a checkpoint to the installed command: export.py's bundles of a tiny Qwen2.5-VL, run, and compared with
transformers' own model over the same conversation."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

import qwen
from fake_model import library, script

from qcheck.bundle import Bundle
from qcheck.cache import KVCache
from qcheck.contract import CONTRACT_FILE, IMAGE_SLOT
from qcheck.dialects import chat
from qcheck.engine import Conversation, Engine, Request, Sampler, Token
from qcheck.errors import BundleError
from qcheck.grammar import Matcher
from qcheck.photo import Photo
from qcheck.probe import Limits, Prober, _Session
from qcheck.prompt import Call
from qcheck.tiles import View, crop_box, smart_resize
from qcheck.verdict import schema

torch = library("torch")
transformers = library("transformers")
library("onnx")
command = script("export", "export")
bundles = script("bundle", "export")
templates = script("templates", "export")
precisions = script("precisions", "export")

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.jpg"))
GLOBAL_PIXELS, CROP_PIXELS, THINK_TOKENS = 100352, 50176, 24
SMALL: Final = (
    "--no-verify",
    "--global-pixels",
    str(GLOBAL_PIXELS),
    "--crop-pixels",
    str(CROP_PIXELS),
    "--think-tokens",
    "24",
)
SAME_LOGITS: Final = 1e-4  # of the largest there are
DIALECTS: Final = ("qwen-chat", "visualquality-r1", "q-insight")


@pytest.fixture(scope="module")
def made(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A bundle of the checkpoint, by export.py's command line, made once for each."""
    root, known = tmp_path_factory.mktemp("bundles"), dict[tuple[str, ...], Path]()

    def make(precision: str = "fp32", *options: str) -> Path:
        key = (precision, *options)
        if key not in known:
            known[key] = root / f"{len(known)}"
            arguments = [str(checkpoint), str(known[key]), "--precision", precision, *SMALL, *options]
            assert command.main(arguments) == 0
        return known[key]

    return make


def qcheck(*args: str | Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """The console script of this environment, in a directory from which no source tree can be seen."""
    line = [str(Path(sys.executable).with_name("qcheck")), *map(str, args)]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "QCHECK_DEBUG")}
    return subprocess.run(
        line, cwd=cwd, env=environment, capture_output=True, encoding="utf-8", check=False, timeout=300
    )


# The command


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_the_installed_command_runs_a_bundle_with_any_number_of_probes(
    made: Callable[..., Path], tmp_path: Path, precision: str
) -> None:
    used: dict[int, list[int]] = {}
    for probes in range(4):
        done = qcheck(
            "--json", "--model", made(precision), "--threads", "1", "--max-probes", str(probes), *EXAMPLES, cwd=tmp_path
        )
        assert (done.returncode, done.stderr) == (0, "")
        records = json.loads(done.stdout)
        assert len(records) == len(EXAMPLES) == 4
        for record in records:
            assert not [error.message for error in Draft202012Validator(schema()).iter_errors(record)]
            assert record["model"]["name"] == "tiny-vl"
            assert record["engine"] == {"device": "cpu", "provider": "onnxruntime-cpu", "precision": precision}
            assert record["budget"]["max_probes"] == probes
            assert record["reasoning"]
            assert set(record["attributes"]) == set(bundles.ATTRIBUTES)
            for probe in record["probes"]:
                assert probe["seen_px"][0] * probe["seen_px"][1] <= CROP_PIXELS
        used[probes] = [record["budget"]["used"] for record in records]
    assert [max(used[probes]) for probes in range(4)] == [0, 1, 2, 3]
    assert min(used[3]) < 3, "nothing was answered while a probe was left"


@pytest.mark.parametrize("dialect", ["visualquality-r1", "q-insight"])
def test_a_single_pass_dialect_reports_a_score_alone(made: Callable[..., Path], tmp_path: Path, dialect: str) -> None:
    place = made("int8", "--dialect", dialect)
    contract = Bundle.open(place).contract
    assert (contract.kinds, contract.attributes, contract.language.crop) == ((), (), "")
    done = qcheck(
        "--json", "--model", place.name, "--threads", "1", EXAMPLES[0], cwd=place.parent
    )  # from where it lies
    assert (done.returncode, done.stderr) == (0, "")
    (record,) = json.loads(done.stdout)
    assert (record["defects"], record["attributes"], record["probes"]) == ([], {}, [])
    assert record["budget"] == {"max_probes": 3, "used": 0, "stopped_by": "model"}
    assert 1 <= record["score"] <= 5
    refused = qcheck("--model", place, "--fail-on", "any", EXAMPLES[0], cwd=tmp_path)
    assert (refused.returncode, refused.stderr) == (2, "qcheck: error: --fail-on any: this model names no defects\n")
    told = qcheck("model", "--model", place, cwd=tmp_path).stdout
    assert "kinds:      none\nattributes: none\n" in told
    assert "reports: a score alone: no defects, no attributes" in told


@pytest.mark.parametrize(("precision", "form"), [("fp16", "gqa"), ("fp32", "std24"), ("int8", "gqa")])
def test_other_precisions_and_forms_judge_much_the_same(made: Callable[..., Path], precision: str, form: str) -> None:
    scores = []
    for place in (made("fp32"), made(precision, "--form", form)):
        prober = Prober(Engine.open(Bundle.open(place), threads=1))
        scores.append([prober.judge(Photo.open(str(path)), Limits(0)).score for path in EXAMPLES[:2]])
    exact = form == "std24"
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-3 if exact else 0.8)


def test_rollouts_and_a_budget_of_time_work_as_with_any_model(made: Callable[..., Path]) -> None:
    prober, photo = Prober(Engine.open(Bundle.open(made()), threads=1)), Photo.open(str(EXAMPLES[0]))
    first, again = (prober.judge(photo, Limits(1, rollouts=2)) for _ in range(2))
    assert first.rollouts is not None
    assert first.rollouts == again.rollouts
    hurried = prober.judge(photo, Limits(3, budget_ms=0.001))
    assert (hurried.probes, hurried.budget.stopped_by) == ((), "budget_ms")


def test_what_made_a_bundle_is_not_needed_to_run_it(made: Callable[..., Path], tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from qcheck import Checker, Limits;"
        "checker = Checker.open(Path(sys.argv[1]), limits=Limits(3), threads=1);"
        "print(checker.check_one(sys.argv[2]).record()['status'], len(checker.kinds));"
        "print({'torch', 'transformers', 'onnx', 'safetensors'} & set(sys.modules))"
    )
    line = [sys.executable, "-P", "-c", code, str(made()), str(EXAMPLES[0])]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.splitlines() == [f"ok {len(bundles.KINDS)}", "set()"], done.stderr


# Against transformers


class Recorder:
    """The package's backend, and what each step fed and gave."""

    def __init__(self, engine: Engine) -> None:
        self.inner, self.info = engine.backend, engine.backend.info
        self.steps: list[tuple[int, NDArray[np.int64], NDArray[np.float32]]] = []
        self.new_cache, self.encode = self.inner.new_cache, self.inner.encode

    def step(self, embeds: NDArray[np.float32], positions: NDArray[np.int64], cache: KVCache) -> NDArray[np.float32]:
        logits = self.inner.step(embeds, positions, cache)
        self.steps.append((cache.length, positions, logits))
        return logits


@dataclass
class Transcript:
    """Token ids, and views where they were shown; where each turn ended."""

    entries: list[int | View]
    turns: list[int]


class Recorded(Conversation):
    """Writes down what is shown and said."""

    transcript: Transcript

    def show(self, request: Request, pixels: NDArray[np.uint8], view: View) -> None:
        super().show(request, pixels, view)
        before, after = self.engine.requests[request]
        self.transcript.entries += [*before, view, *after]

    def say(self, matcher: Matcher, sampler: Sampler | None = None) -> list[Token]:
        said = super().say(matcher, sampler)
        self.transcript.entries += [token.id for token in said]
        self.transcript.turns.append(self.cache.length)
        return said


def talk(bundle: Path, photo: Photo, probes: int) -> tuple[Engine, Recorder, Transcript, Any]:
    """A judged photo, recorded."""
    engine = Engine.open(Bundle.open(bundle), threads=1)
    recorder, transcript = Recorder(engine), Transcript([], [])
    engine.backend = recorder

    def conversation() -> Conversation:
        made = Recorded(engine, recorder.new_cache())
        made.transcript = transcript
        return made

    engine.conversation = conversation  # type: ignore[method-assign]
    return engine, recorder, transcript, Prober(engine).judge(photo, Limits(probes))


def references(checkpoint: Path, photo: Photo, transcript: Transcript) -> tuple[NDArray[Any], NDArray[Any]]:
    """transformers' positions and logits of a whole transcript in one forward, its pictures cut and resized by Pillow
    and laid out by Qwen's own processor."""
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, attn_implementation="eager")
    processor = transformers.Qwen2VLImageProcessorPil(
        min_pixels=28 * 28, max_pixels=1 << 22, image_mean=qwen.MEAN, image_std=qwen.STD
    )
    image = qwen.tokenizer().token_to_id("<|image_pad|>")
    views = [entry for entry in transcript.entries if isinstance(entry, View)]
    whole = Image.fromarray(photo.pixels)
    boxes = [(view.box.x1, view.box.y1, view.box.x2, view.box.y2) for view in views]
    pictures = [
        whole.crop(box).resize(view.size, Image.Resampling.BICUBIC) for box, view in zip(boxes, views, strict=True)
    ]
    seen = processor(images=pictures, return_tensors="pt")
    assert seen["image_grid_thw"].tolist() == [[1, view.height // 14, view.width // 14] for view in views]
    ids = [
        token
        for entry in transcript.entries
        for token in ([image] * (entry.width * entry.height // 28**2) if isinstance(entry, View) else [entry])
    ]
    tokens = torch.tensor([ids])
    kinds = (tokens == image).int()
    with torch.inference_mode():
        positions, _ = model.model.get_rope_index(tokens, kinds, seen["image_grid_thw"])
        logits = model(input_ids=tokens, mm_token_type_ids=kinds, **seen).logits[0]
    return positions.numpy(), logits.numpy()


@pytest.mark.parametrize("form", ["gqa", "std24"])
@pytest.mark.parametrize("path", [EXAMPLES[0], EXAMPLES[2]], ids=lambda p: p.stem)
def test_every_step_of_a_conversation_equals_transformers(
    made: Callable[..., Path], checkpoint: Path, path: Path, form: str
) -> None:
    photo = Photo.open(str(path))
    engine, recorder, transcript, verdict = talk(made("fp32", "--form", form), photo, probes=3)
    assert len(verdict.probes) == 3
    assert len(transcript.turns) == 4
    positions, logits = references(checkpoint, photo, transcript)
    fed = np.concatenate([step[1] for step in recorder.steps], 2)
    np.testing.assert_array_equal(fed, positions[:, :, : fed.shape[2]])
    size = float(np.abs(logits).max())
    for before, end in pairwise([0, *transcript.turns]):
        steps = [(length, ours) for length, _, ours in recorder.steps if before < length <= end]
        assert len(steps) > 3
        for length, ours in steps:
            worst = float(np.abs(ours - logits[length - 1]).max())
            assert worst <= SAME_LOGITS * size, f"token {length}: {worst:.3g} at logits up to {size:.3g}"
    assert np.ptp(logits, axis=0).max() > 0.1 * size
    assert engine.contract.coordinates == "view_pixels"


def test_boxes_are_absolute_in_the_view_and_crops_come_from_the_original(made: Callable[..., Path]) -> None:
    """A photo that is shown much smaller: numbers of the view are not numbers of the photo."""
    photo = Photo.open(str(next(path for path in EXAMPLES if path.stem == "mountains-noise")))
    engine = Engine.open(Bundle.open(made()), threads=1)
    assert (photo.width, photo.height) == (2400, 1600)
    asked = Call((100, 50, 150, 100), "x")
    session = _Session(engine, crop_box, photo, Limits(1), 0.0)
    shown = session.global_view
    assert shown.width * shown.height <= GLOBAL_PIXELS
    crop = session._crop(asked).box
    across, down = 2400 / shown.width, 1600 / shown.height
    target = np.array([100 * across, 50 * down, 150 * across, 100 * down])
    margin = 0.1 * 50 * np.array([across, down, across, down])
    expected = target + margin * [-1, -1, 1, 1]
    np.testing.assert_allclose(crop.as_list(), expected, atol=2)


def test_the_only_limit_of_a_view_is_the_one_that_was_given() -> None:
    """Qwen's processor shrinks whatever has more than 12.85 MP, and says nothing."""
    spec = script("pictures", "export").view_of_budget("--global-pixels", 16_000_000, 28)
    assert smart_resize(5000, 2800, spec) == (5012, 2800)
    width, height = smart_resize(8000, 6000, spec)
    assert 15_500_000 < width * height <= 16_000_000


# What is said


@pytest.mark.parametrize("dialect", DIALECTS)
def test_templates_are_qwens_own(dialect: str) -> None:
    """As its chat template renders the same turns; that of Qwen3-VL where there is a tool."""
    pytest.importorskip("trl", reason="needs trl; pip install -e '.[large]'")
    from trl import chat_template_utils

    spoken = templates.language_of(dialect, ("noise", "dirt"), ("sharpness",), 99)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=qwen.tokenizer())
    picture: dict[str, Any] = {"type": "image"}

    def rendered(messages: list[dict[str, Any]], tools: Any = None) -> str:
        text: str = fast.apply_chat_template(
            messages,
            tools=tools,
            chat_template=chat_template_utils.qwen3_vl_chat_template,
            tokenize=False,
            add_generation_prompt=True,
        )
        return text.replace("<|image_pad|>", IMAGE_SLOT)

    def first(system: str, asked: str) -> list[dict[str, Any]]:
        return [
            {"role": "system", "content": system},
            {"role": "user", "content": [picture, {"type": "text", "text": asked}]},
        ]

    if dialect != "qwen-chat":
        system, asked = templates.SINGLE_PASS[dialect]
        assert spoken.first == spoken.first_final == rendered(first(system, asked))
        return
    asked = chat.question(templates.REQUEST, ("noise", "dirt"), ("sharpness",))
    messages = first(chat.SYSTEM, asked)
    assert spoken.first == rendered(messages, [chat.TOOL_SCHEMA])
    assert spoken.first_final == rendered(first(chat.SYSTEM, f"{asked} {templates.NO_MORE}"))
    call = {"name": chat.TOOL, "arguments": {"bbox_2d": [1, 2, 3, 4], "label": "x"}}
    messages.append(
        {"role": "assistant", "content": "<think>y</think>", "tool_calls": [{"type": "function", "function": call}]}
    )
    said = (
        '<think>y</think>\n<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [1, 2, 3, 4], "label": '
        '"x"}}\n</tool_call><|im_end|>'
    )
    for more, template in (([], spoken.crop), ([{"type": "text", "text": templates.NO_MORE}], spoken.crop_final)):
        response = {"role": "tool", "name": chat.TOOL, "content": [picture, *more]}
        assert spoken.first + said + template == rendered([*messages, response], [chat.TOOL_SCHEMA])


def test_the_tool_is_described_as_in_training() -> None:
    pytest.importorskip("trl", reason="needs trl; pip install -e '.[large]'")
    script("defects")
    from large import answers, environment

    tool = environment.PhotoEnvironment().image_zoom_in_tool
    assert transformers.utils.get_json_schema(tool) == chat.TOOL_SCHEMA
    photos = script("defects").PHOTOS
    assert (photos.kinds, photos.attributes) == (bundles.KINDS, bundles.ATTRIBUTES)
    assert photos.request == templates.REQUEST
    asked = chat.question(templates.REQUEST, bundles.KINDS, bundles.ATTRIBUTES)
    assert answers.question(photos, attributes=True) == asked


# What lies on the disk


def test_a_bundle_says_what_it_is(made: Callable[..., Path], checkpoint: Path) -> None:
    bundle = Bundle.open(made("int4"))
    contract = bundle.contract
    assert (contract.name, contract.precision, contract.licence) == ("tiny-vl", "int4", "tiny-research")
    assert list(contract.pixels.mean) == qwen.MEAN
    assert contract.global_view.max_pixels == GLOBAL_PIXELS
    assert contract.language.think_tokens == THINK_TOKENS
    assert {entry.path for entry in contract.files.values()} | {CONTRACT_FILE} == {
        path.name for path in bundle.directory.iterdir()
    }
    assert {"vision_data", "decoder_data"} < set(contract.files)
    assert "## Licence of the checkpoint\n\nDo as you like.\n" in bundle.card()
    assert str(checkpoint.parent) not in bundle.card()
    assert oct(bundle.directory.stat().st_mode)[-3:] == "755"
    sizes = {
        precision: sum(entry.bytes for entry in Bundle.open(made(precision)).contract.files.values())
        for precision in ("fp32", "int4")
    }
    assert sizes["int4"] < 0.5 * sizes["fp32"]


@pytest.mark.parametrize("part", ["vision_data", "decoder_data"])
def test_changed_constants_are_refused(made: Callable[..., Path], tmp_path: Path, part: str) -> None:
    copy = Path(shutil.copytree(made(), tmp_path / "copy"))
    path = Bundle.open(copy).path(part)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=rf"{path.name} does not match its checksum"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    ("dtype", "precision", "kept"),
    [("float32", "fp32", "<f4"), ("float32", "int4", "<f2"), ("bfloat16", "fp32", "<u2"), ("bfloat16", "int8", "<u2")],
)
def test_embeddings_stay_small(tmp_path: Path, dtype: str, precision: str, kept: str) -> None:
    model = qwen.save_checkpoint(tmp_path / "checkpoint", dtype=dtype)
    bundle = bundles.export(tmp_path / "checkpoint", tmp_path / "out", bundles.Settings("x", precision))
    table = model.get_input_embeddings().weight.detach().float().numpy()
    found = bundle.embeddings()
    assert found._table.dtype == np.dtype(kept)
    np.testing.assert_array_equal(found[:], table.astype("<f2").astype(np.float32) if kept == "<f2" else table)


def test_the_same_checkpoint_gives_the_same_bundle(made: Callable[..., Path], checkpoint: Path, tmp_path: Path) -> None:
    assert command.main([str(checkpoint), str(tmp_path / "again"), "--precision", "int4", *SMALL]) == 0
    assert Bundle.open(tmp_path / "again").sha256 == Bundle.open(made("int4")).sha256


# What goes wrong


def run(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a refused export prints; nothing is left of it."""
    place = Path(arguments[1]).parent
    before = sorted(place.iterdir()) if place.is_dir() else None
    capfd.readouterr()
    options = arguments if "--precision" in arguments else (*arguments, "--precision", "fp32")
    assert command.main([*(str(argument) for argument in options), "--no-verify"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("export: error: ")
    assert before is None or sorted(place.iterdir()) == before, "something was left"
    return line.removeprefix("export: error: ")


def test_refusals_are_one_line(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(capfd, tmp_path / "none", out).startswith(f"{tmp_path / 'none'} is not a directory")
    assert run(capfd, checkpoint, tmp_path / "a" / "b") == f"{tmp_path / 'a'} is not a directory; make it first"
    for make in (Path.mkdir, Path.touch):
        place = tmp_path / make.__name__
        make(place)
        assert run(capfd, checkpoint, place) == f"{place} exists; remove it, or name another place"
    assert (
        run(capfd, checkpoint, out, "--global-pixels", "3000") == "--global-pixels 3000: must be 3136 or more, 4 tokens"
    )
    assert "--crop-pixels 1: must be" in run(capfd, checkpoint, out, "--crop-pixels", "1")
    assert "--max-tokens 999: one look at a photo and its answer may need" in run(
        capfd, checkpoint, out, "--max-tokens", "999"
    )
    assert "kinds needs at least one name" in run(capfd, checkpoint, out, "--kinds", "")
    broken = Path(shutil.copytree(checkpoint, tmp_path / "broken"))
    (broken / "preprocessor_config.json").write_text('{"image_mean": [1, 2]}')
    assert "image_mean must be 3 numbers" in run(capfd, broken, out)
    (broken / "preprocessor_config.json").unlink()
    (broken / "tokenizer.json").write_text("{}")
    assert "tokenizer.json is not a tokenizer" in run(capfd, broken, out)
    (broken / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in run(capfd, broken, out)


@pytest.mark.parametrize(
    "how", ["--precision int3", "--form x", "--dialect probe-json", "--max-tokens 0", "--kinds a-b"]
)
def test_options_that_are_none_are_refused(checkpoint: Path, tmp_path: Path, how: str) -> None:
    options = how.split() if "--precision" in how else ["--precision", "fp32", *how.split()]
    with pytest.raises(SystemExit) as caught:
        command.main([str(checkpoint), str(tmp_path / "out"), *options])
    assert caught.value.code == 2


def test_tokenizers_that_do_not_fit_are_refused(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from tokenizers import Tokenizer, models

    broken = Path(shutil.copytree(checkpoint, tmp_path / "broken"))
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(broken / "tokenizer.json"))
    assert "has no token <|im_start|>, which Qwen's chat template needs" in run(capfd, broken, tmp_path / "out")
    known = {text: place for place, text in enumerate((*templates.MARKERS, ".", *"0123456789"))}
    Tokenizer(models.WordLevel(known, unk_token=".")).save(str(broken / "tokenizer.json"))
    assert "it must be byte-level" in run(capfd, broken, tmp_path / "out")
    known["far"] = 99_999
    Tokenizer(models.WordLevel(known, unk_token=".")).save(str(broken / "tokenizer.json"))
    assert "has a token of number 99999 and the checkpoint" in run(capfd, broken, tmp_path / "out")


def test_a_disk_without_room_is_seen_before_and_while_it_is_written(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=200_000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda place: usage)
        assert run(capfd, checkpoint, tmp_path / "out") == f"{tmp_path} has 0.0 GB of room and the bundle needs 0.0 GB"
    # No file may be larger than this, in a process of its own, as if the disk were full there.
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000));"
        "sys.path.insert(0, sys.argv.pop(1)); import export; sys.exit(export.main(sys.argv[1:]))"
    )
    line = [sys.executable, "-c", code, str(ROOT / "export"), str(checkpoint), str(tmp_path / "out")]
    line += ["--precision", "fp32", "--no-verify"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("export:")]
    assert line.startswith(f"export: error: {tmp_path}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["VisionTower", "check", "_entry", "_to_disk"])
def test_nothing_is_left_of_an_export_that_is_interrupted(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """At any point; and there is no contract before everything else is there."""
    seen: list[bool] = []

    def interrupted(*_: Any, **__: Any) -> Any:
        seen.append(any((path / CONTRACT_FILE).exists() for path in tmp_path.iterdir()))
        raise KeyboardInterrupt

    if step == "VisionTower":
        monkeypatch.setattr(bundles.VisionTower, "write", interrupted)
    elif step == "check":
        monkeypatch.setattr(bundles.Bundle, "open", interrupted)
    else:
        monkeypatch.setattr(bundles, step, interrupted)
    assert command.main([str(checkpoint), str(tmp_path / "out"), "--precision", "fp32", "--no-verify"]) == 130
    assert list(tmp_path.iterdir()) == []
    assert seen == [step in ("check", "_to_disk")]


def test_sizes_are_estimated_well(made: Callable[..., Path], checkpoint: Path) -> None:
    """Of weights; graphs and tokenizer are small where models are large, and so are norms and biases."""
    opened = script("checkpoint", "export").Checkpoint.open(checkpoint)
    for precision in ("fp32", "fp16", "int8", "int4"):
        files = Bundle.open(made(precision)).contract.files
        written = sum(files[part].bytes for part in ("vision_data", "decoder_data", "embeddings"))
        parts = precisions.PRECISIONS[precision]
        assert bundles.size_of(opened.architecture, parts) == pytest.approx(written, rel=0.35)


# Other devices


@pytest.mark.cuda
@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="needs an NVIDIA GPU and onnxruntime-gpu",
)
@pytest.mark.parametrize(("precision", "form"), [("fp16", "gqa"), ("fp16", "std24"), ("fp32", "std24")])
def test_cuda_judges_as_the_cpu_does(made: Callable[..., Path], precision: str, form: str) -> None:
    bundle, photo = Bundle.open(made(precision, "--form", form)), Photo.open(EXAMPLES[0])
    cpu, cuda = (Prober(Engine.open(bundle, device=name)).judge(photo, Limits(0)) for name in ("cpu", "cuda"))
    assert (cpu.engine.provider, cuda.engine.provider) == ("onnxruntime-cpu", "onnxruntime-cuda")
    assert cuda.score == pytest.approx(cpu.score, abs=0.05)
