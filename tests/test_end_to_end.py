"""The installed command on real photos with the model that ships: what a user gets, to the byte where that is promised.

QCHECK_UPDATE_GOLDEN=1 rewrites tests/golden/examples.json instead of comparing with it.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from PIL import Image

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden" / "examples.json"
EXAMPLES = sorted((ROOT / "examples").glob("*.jpg"))
NAMES = [path.name for path in EXAMPLES]
BUNDLE = Path(str(files("qcheck").joinpath("models", "nano")))
SCORE_TOLERANCE = 0.05  # int8 kernels differ a little from CPU to CPU
TIMEOUT_S = 300

Record = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def shipped() -> None:
    """The embedded model; a checkout may lack it, a release may not."""
    if not (BUNDLE / "qcheck.json").exists():
        message = "no embedded model: train one and export it to qcheck/models/nano (training/README.md)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)


def qcheck(*args: str | Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """The console script of this environment, in a directory from which no source tree can be seen."""
    script = Path(sys.executable).with_name("qcheck.exe" if os.name == "nt" else "qcheck")
    assert script.exists(), f"{script} is missing: install the package"
    command = [str(script), *map(str, args)]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "QCHECK_DEBUG")}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8", check=False, timeout=TIMEOUT_S
    )


def records(*args: str | Path, cwd: Path, code: int = 0) -> list[Record]:
    done = qcheck("--json", *args, cwd=cwd)
    assert done.returncode == code, done.stderr
    parsed: list[Record] = json.loads(done.stdout)
    return parsed


def lasting(record: Record) -> Record:
    """What must not differ from run to run."""
    kept = {name: value for name, value in record.items() if name != "timing_ms"}
    return {**kept, "path": Path(record["path"]).name}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return records(*EXAMPLES, cwd=tmp_path_factory.mktemp("judged"))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4


def test_records_follow_the_schema_that_the_command_prints(judged: list[Record], tmp_path: Path) -> None:
    printed = qcheck("schema", cwd=tmp_path)
    assert printed.returncode == 0
    schema = json.loads(printed.stdout)
    Draft202012Validator.check_schema(schema)
    assert [Path(record["path"]).name for record in judged] == NAMES
    for record in judged:
        errors = [error.message for error in Draft202012Validator(schema).iter_errors(record)]
        assert not errors, errors
        assert record["status"] == "ok"
        with Image.open(ROOT / "examples" / Path(record["path"]).name) as image:
            assert (record["width"], record["height"]) == image.size
        for part in (*record["defects"], *record["probes"]):
            x1, y1, x2, y2 = part["box"]
            assert 0 <= x1 < x2 <= record["width"]
            assert 0 <= y1 < y2 <= record["height"]
        assert record["budget"]["used"] == len(record["probes"]) <= record["budget"]["max_probes"] == 3
        assert record["timing_ms"]["total"] >= record["timing_ms"]["vision"] > 0


def golden_form(record: Record) -> Record:
    """What a golden file holds: no checksum, which any new export changes."""
    kept = lasting(record)
    return {**kept, "model": {name: value for name, value in kept["model"].items() if name != "sha256"}}


def rough(value: Any, at: str = "") -> Any:
    """A record to compare: scores, confidences and spreads as tolerant numbers; the words that hang on them exactly."""
    if isinstance(value, dict):
        return {name: rough(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [rough(inner, at) for inner in value]
    if isinstance(value, float):
        return pytest.approx(value, abs=SCORE_TOLERANCE)
    return value


def test_golden(judged: list[Record]) -> None:
    found = [golden_form(record) for record in judged]
    if os.environ.get("QCHECK_UPDATE_GOLDEN") == "1":
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        pytest.skip(f"wrote {GOLDEN.name}")
    assert GOLDEN.exists(), "no golden file; QCHECK_UPDATE_GOLDEN=1 makes one"
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert [record["path"] for record in found] == [record["path"] for record in expected]
    for got, wanted in zip(found, expected, strict=True):
        assert got == rough(wanted), got["path"]


def test_a_second_run_says_the_same(judged: list[Record], tmp_path: Path) -> None:
    again = records(*EXAMPLES, cwd=tmp_path)
    assert [lasting(record) for record in again] == [lasting(record) for record in judged]


def test_a_photo_is_judged_the_same_alone_and_among_eight(judged: list[Record], tmp_path: Path) -> None:
    alone = records(EXAMPLES[0], cwd=tmp_path)
    eight = [*EXAMPLES[1:], *EXAMPLES, EXAMPLES[1]][:7]
    batch = records(*eight[:4], EXAMPLES[0], *eight[4:], cwd=tmp_path)
    assert len(batch) == 8
    assert lasting(batch[4]) == lasting(alone[0]) == lasting(judged[0])
    of_name = {record["path"]: record for record in map(lasting, judged)}
    assert all(lasting(record) == of_name[Path(record["path"]).name] for record in batch)


def test_no_probes_is_a_single_pass(tmp_path: Path) -> None:
    for record in records("--max-probes", "0", *EXAMPLES, cwd=tmp_path):
        assert record["probes"] == []
        assert record["budget"] == {"max_probes": 0, "used": 0, "stopped_by": "max_probes"}


def test_a_fast_decode_is_refused_where_every_pixel_is_looked_at(tmp_path: Path) -> None:
    for given, message in (
        ((), "crops are cut from every pixel of a photo; add --max-probes 0"),
        (("--max-probes", "0"), "nano looks at every pixel of a photo; leave it out"),
    ):
        refused = qcheck(str(EXAMPLES[0]), "--fast-decode", *given, cwd=tmp_path)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr == f"qcheck: error: --fast-decode: {message}\n"


def test_rollouts_are_reported_beside_the_greedy_run(judged: list[Record], tmp_path: Path) -> None:
    for record, alone in zip(records("--rollouts", "3", *EXAMPLES, cwd=tmp_path), judged, strict=True):
        rollouts = record.pop("rollouts")
        assert rollouts["k"] == len(rollouts["scores"]) == 3
        assert {**record, "timing_ms": None} == {**alone, "timing_ms": None}


def test_one_probe_is_at_most_one(judged: list[Record], tmp_path: Path) -> None:
    for record, full in zip(records("--max-probes", "1", *EXAMPLES, cwd=tmp_path), judged, strict=True):
        assert len(record["probes"]) == min(1, len(full["probes"]))
        # What it finds there may differ, because by then it has been told whether it may look on.
        looks = [[{**probe, "finding": None} for probe in some] for some in (record["probes"], full["probes"][:1])]
        assert looks[0] == looks[1], "the first look depends on what is allowed later"


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_bad_input_does_not_stop_the_good(judged: list[Record], tmp_path: Path) -> None:
    good = shutil.copyfile(EXAMPLES[0], tmp_path / "good.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no photo")
    (tmp_path / "text.jpg").write_text("this is not a photo\n")
    (tmp_path / "short.jpg").write_bytes(EXAMPLES[1].read_bytes()[:20_000])
    (tmp_path / "nothing.png").write_bytes(b"")
    (tmp_path / "bomb.png").write_bytes(png_header(100_000, 100_000))
    Image.new("RGB", (1, 1), (200, 30, 30)).save(tmp_path / "dot.png")
    expected = {
        "missing.jpg": "not_found",
        "empty": "not_found",
        "text.jpg": "not_an_image",
        "short.jpg": "truncated",
        "nothing.png": "not_an_image",
        "bomb.png": "too_large",
        "dot.png": None,
        good.name: None,
    }
    done = qcheck("--json", *expected, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    assert {record["path"]: record.get("error", {}).get("kind") for record in found} == expected
    assert [record["path"] for record in found] == list(expected)
    for record in found:
        if record["status"] == "error":
            assert "score" not in record
            assert record["error"]["message"].startswith(record["path"])
            assert "\n" not in record["error"]["message"]
    original = {**lasting(judged[0]), "path": good.name}
    assert lasting(found[-1]) == original, "its neighbours changed a good photo's verdict"
    assert (found[-2]["width"], found[-2]["height"]) == (1, 1)
    assert 1 <= found[-2]["score"] <= 5

    human = qcheck(*expected, cwd=tmp_path)
    assert human.returncode == 2
    assert "Traceback" not in human.stderr
    assert len(human.stderr.splitlines()) == sum(kind is not None for kind in expected.values())
    assert all(f"[{kind}]" in human.stderr for kind in expected.values() if kind)
    assert "good.jpg" in human.stdout


def test_the_gate(judged: list[Record], tmp_path: Path) -> None:
    score = judged[0]["score"]
    passes = qcheck("--fail-under", f"{max(1.0, score - 0.1):.2f}", EXAMPLES[0], cwd=tmp_path)
    fails = qcheck("--fail-under", f"{min(5.0, score + 0.1):.2f}", EXAMPLES[0], cwd=tmp_path)
    assert (passes.returncode, fails.returncode) == (0, 1)


@pytest.mark.parametrize("part", ["vision.onnx", "decoder.onnx", "embeddings.safetensors", "tokenizer.json"])
def test_a_tampered_model_is_refused(tmp_path: Path, part: str) -> None:
    copy = Path(shutil.copytree(BUNDLE, tmp_path / "model"))
    data = bytearray((copy / part).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / part).write_bytes(data)
    done = qcheck("--json", "--model", copy, EXAMPLES[0], cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("qcheck: error: ")
    assert part in line
    assert "checksum" in line


def test_a_copy_of_the_model_judges_like_the_embedded_one(judged: list[Record], tmp_path: Path) -> None:
    copy = shutil.copytree(BUNDLE, tmp_path / "model")
    (record,) = records("--model", copy, EXAMPLES[0], cwd=tmp_path)
    assert lasting(record) == lasting(judged[0])


def test_the_model_says_who_it_is(judged: list[Record], tmp_path: Path) -> None:
    done = qcheck("model", cwd=tmp_path)
    assert done.returncode == 0
    told = dict(line.split(":", 1) for line in done.stdout.split("\n\n")[0].splitlines())
    assert {name: told[name].strip() for name in ("name", "version", "sha256")} == judged[0]["model"]
