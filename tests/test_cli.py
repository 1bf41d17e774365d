"""The command line, on a judge that needs no model: what is printed where, and every exit code."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

import qcheck
from qcheck.cli.check import MAX_PIXELS
from qcheck.cli.gate import Gate
from qcheck.errors import BundleError, UsageError
from qcheck.photo import DEFAULT_MAX_PIXELS
from qcheck.tiles import Box
from qcheck.verdict import Budget, Defect, Rollouts, schema, schema_text

Run = Callable[..., tuple[int, str, str]]
Opened = list[tuple[Path | None, dict[str, Any]]]

LINE_A = "3.42 ±0.21 good       a.jpg  8000x6000  1 probe  312 ms\n  noise obvious [10,20,110,220] 0.83\n"
LINE_B = LINE_A.replace("a.jpg", "b.jpg")
VALID = Draft202012Validator(schema())

# A process of its own, on a fake judge: what signals, pipes and a fresh interpreter do cannot be seen from inside.
PREAMBLE = """
import os, signal, sys, time
from dataclasses import dataclass
import numpy as np
from qcheck.checker import Checker
from qcheck.cli import main
from qcheck.photo import Photo
from qcheck.verdict import Budget, EngineInfo, ModelInfo, Timing, Verdict

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a test run in the background has been told to ignore

class Judge:
    def judge(self, photo, limits, *, decode_ms=0.0):
        before(photo.path)
        return Verdict(photo.path, 1, 1, 1, 3.0, 0.1, {}, (), (), "", Budget(3, 0, "model"),
                       ModelInfo("fake", "1", "0" * 64), EngineInfo("cpu", "fake", "fp32"), Timing(0, 0, 0, 0, 0, 0))

Checker.open = lambda model=None, *, limits, **_: Checker(
    Judge(), limits, open_photo=lambda path, max_pixels: Photo(path, np.zeros((1, 1, 3), np.uint8)))
"""


def _spawn(before: str, *args: str, **settings: Any) -> "subprocess.Popen[bytes]":
    """qcheck in a fresh process; `before`: the body of a function that sees each `path` before it is judged."""
    script = f"{PREAMBLE}\ndef before(path):\n    {before}\nsys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", script, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings
    )


# What a person sees


def test_human_output(run: Run) -> None:
    assert run("a.jpg", "b.jpg") == (0, LINE_A + LINE_B, "")


def test_human_errors_go_to_stderr_and_the_others_are_judged(run: Run) -> None:
    expected = "qcheck: missing.jpg: no such file [not_found]\n"
    assert run("a.jpg", "missing.jpg", "b.jpg") == (2, LINE_A + LINE_B, expected)


def test_human_output_says_when_time_ran_out(run: Run, judge: Any) -> None:
    judge.verdicts["a.jpg"] = {"budget": Budget(3, 2, "budget_ms")}
    assert "  2 probes (out of time)  " in run("a.jpg")[1]


def test_human_output_tells_what_sampled_runs_said(run: Run, judge: Any) -> None:
    judge.verdicts["a.jpg"] = {"rollouts": Rollouts((3.2, 3.4, 3.6))}
    assert run("a.jpg")[1] == LINE_A.replace("312 ms", "312 ms  rollouts 3.40 ±0.16")


def test_long_lines_are_not_wrapped_and_odd_names_stay_one_line(run: Run) -> None:
    name = "long/" * 40 + "two\nlines\x1b[31m.jpg"
    code, out, err = run(name)
    assert (code, err) == (0, "")
    assert "long/" * 40 + "two\\nlines\\x1b[31m.jpg  8000x6000" in out.splitlines()[0]


def test_colour_only_on_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b" not in run("a.jpg")[1]
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True)
    coloured = run("a.jpg")[1]
    assert "\x1b[32m" in coloured
    assert re.sub(r"\x1b\[\d+m", "", coloured) == LINE_A
    monkeypatch.setenv("NO_COLOR", "1")
    assert run("a.jpg")[1] == LINE_A


# What a program reads


@pytest.mark.parametrize("files", [["a.jpg"], ["missing.jpg"], ["a.jpg", "missing.jpg", "b.jpg"]])
def test_json_is_one_array_with_a_record_a_line(run: Run, files: list[str]) -> None:
    code, out, err = run("--json", *files)
    records = json.loads(out)
    assert [record["path"] for record in records] == files
    assert [json.loads(line.lstrip(",")) for line in out.splitlines()[1:-1]] == records
    assert (code, err) == (2 if "missing.jpg" in files else 0, "")
    for record in records:
        VALID.validate(record)


def test_jsonl_is_a_record_a_line(run: Run) -> None:
    code, out, err = run("a.jpg", "missing.jpg", "--jsonl")
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["status"] for record in records] == ["ok", "error"]
    assert (code, err) == (2, "")
    for record in records:
        VALID.validate(record)


def test_json_survives_names_that_are_not_utf8(run: Run) -> None:
    name = os.fsdecode(b"odd\xff.jpg")
    code, out, _ = run(name, "--json")
    assert code == 0
    assert out.isascii()
    assert os.fsencode(json.loads(out)[0]["path"]) == b"odd\xff.jpg"


def test_json_is_closed_when_the_run_breaks_off(run: Run, judge: Any) -> None:
    judge.verdicts["b.jpg"] = BundleError("the bundle is damaged")
    code, out, err = run("--json", "a.jpg", "b.jpg")
    assert [record["path"] for record in json.loads(out)] == ["a.jpg"]
    assert (code, err) == (2, "qcheck: error: the bundle is damaged\n")


def test_directories_and_recursive(run: Run, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("b.png", "a.jpg", "notes.txt", "below/c.gif"):
        (tmp_path / name).touch()

    def names(*args: str) -> list[str]:
        _, out, _ = run("--jsonl", str(tmp_path), *args)
        return [os.path.relpath(json.loads(line)["path"], tmp_path) for line in out.splitlines()]

    assert names() == ["a.jpg", "b.png"]
    assert names("-r") == names("--recursive") == ["a.jpg", "b.png", os.path.join("below", "c.gif")]


def test_directory_without_images(run: Run, tmp_path: Path) -> None:
    code, out, err = run(str(tmp_path))
    assert (code, out) == (2, "")
    assert err.startswith(f"qcheck: {tmp_path}: no images here (looked for jpg ")
    assert err.endswith("[not_found]\n")


# Exit codes


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["a.jpg"], 0),
        (["a.jpg", "--fail-under", "3.42"], 0),
        (["a.jpg", "--fail-under", "3.43"], 1),
        (["a.jpg", "--fail-on", "banding"], 0),
        (["a.jpg", "--fail-on", "noise"], 1),
        (["a.jpg", "--fail-on", "banding", "--fail-on", "noise"], 1),
        (["a.jpg", "--fail-on", "any"], 1),
        (["clean.jpg", "--fail-on", "any"], 0),
        (["clean.jpg", "a.jpg", "clean.jpg", "--fail-on", "any"], 1),
        (["missing.jpg"], 2),
        (["a.jpg", "missing.jpg"], 2),
        (["missing.jpg", "a.jpg", "--fail-under", "5"], 2),
        (["a.jpg", "missing.jpg", "--fail-under", "5"], 2),
    ],
)
@pytest.mark.parametrize("output", [[], ["--json"], ["--jsonl"]])
def test_exit_codes(run: Run, judge: Any, args: list[str], expected: int, output: list[str]) -> None:
    judge.verdicts["clean.jpg"] = {"defects": ()}
    assert run(*args, *output)[0] == expected


def test_the_gate_sees_the_score_that_is_printed(run: Run, judge: Any) -> None:
    judge.verdicts["a.jpg"] = {"score": 2.9996}
    assert run("a.jpg", "--fail-under", "3")[0] == 0


def test_reasons_are_printed_once_a_kind(run: Run, judge: Any) -> None:
    defects = tuple(Defect(kind, "slight", Box(0, 0, 1, 1), 0.5) for kind in ("noise", "banding", "noise"))
    judge.verdicts["a.jpg"] = {"defects": defects, "score": 2.996}
    code, out, err = run("a.jpg", "--fail-under", "3", "--fail-on", "noise")
    assert (code, err) == (1, "")
    assert out.splitlines()[-2:] == ["  fails: score 2.996 is under 3", "  fails: has noise"]


# Usage


def test_forms_of_the_main_job(run: Run, judge: Any) -> None:
    plain = run("a.jpg")
    assert run("check", "a.jpg") == run("a.jpg", "--max-probes", "3") == run("--max-probes=3", "a.jpg") == plain
    assert run("--json", "a.jpg") == run("a.jpg", "--json") == run("check", "a.jpg", "--json")
    for args in (["./schema"], ["--", "schema"], ["--", "--json"], ["a.jpg", "schema"]):
        judge.calls.clear()
        assert run(*args)[0] == 0
        assert judge.calls[-1][0] == args[-1]


def test_options_reach_the_checker(run: Run, opened: Opened) -> None:
    run("a.jpg")
    run(
        *("a.jpg", "--model", "m", "--device", "cpu", "--threads", "2", "--max-pixels", "9"),
        *("--max-probes", "0", "--budget-ms", "250.5", "--fast-decode"),
    )
    (no_model, plain), (model, given) = opened
    limits, few = plain.pop("limits"), given.pop("limits")
    assert (no_model, plain) == (
        None,
        {"device": "auto", "threads": None, "max_pixels": DEFAULT_MAX_PIXELS, "fast_decode": False},
    )
    assert (model, given) == (Path("m"), {"device": "cpu", "threads": 2, "max_pixels": 9, "fast_decode": True})
    assert (limits.max_probes, limits.budget_ms, few.max_probes, few.budget_ms) == (3, None, 0, 250.5)
    run("a.jpg", "--rollouts", "5")
    assert (limits.rollouts, opened[-1][1]["limits"].rollouts) == (0, 5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--jsno", "a.jpg"], "No such option: --jsno"),
        (["a.jpg", "--max-probes", "65"], "'--max-probes'"),
        (["a.jpg", "--rollouts", "65"], "'--rollouts'"),
        (["a.jpg", "--rollouts", "2", "--budget-ms", "9"], "--rollouts and --budget-ms exclude each other"),
        (["a.jpg", "--max-probes", "-1"], "'--max-probes'"),
        (["a.jpg", "--max-probes", "some"], "'--max-probes'"),
        (["a.jpg", "--max-probes"], "'--max-probes' requires an argument"),
        (["a.jpg", "--budget-ms", "0"], "'--budget-ms'"),
        (["a.jpg", "--budget-ms", "nan"], "'--budget-ms'"),
        (["a.jpg", "--fail-under", "0.5"], "'--fail-under'"),
        (["a.jpg", "--fail-under", "nan"], "'--fail-under'"),
        (["a.jpg", "--threads", "0"], "'--threads'"),
        (["a.jpg", "--device", "abacus"], "'--device'"),
        (["a.jpg", "--json", "--jsonl"], "--json and --jsonl exclude each other"),
        (["a.jpg", "--fail-on", "ugliness"], "--fail-on ugliness: this model knows noise, motion_blur, banding"),
        (["--json"], "Missing argument 'FILES'"),
        (["check"], "Missing argument 'FILES'"),
        (["schema", "a.jpg"], "unexpected extra argument"),
    ],
)
def test_usage_errors_are_short(run: Run, judge: Any, args: list[str], message: str) -> None:
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert err.startswith("qcheck: error: ")
    assert message in err
    assert len(err.splitlines()) <= 2
    assert not judge.calls


def test_errors_of_the_model_are_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **settings: object) -> None:
        raise UsageError("no GPU here; use --device cpu")

    monkeypatch.setattr("qcheck.checker.Checker.open", refuse)
    assert run("a.jpg", "--json") == (2, "", "qcheck: error: no GPU here; use --device cpu\n")


def test_internal_errors_show_a_traceback_only_on_request(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*args: object, **settings: object) -> None:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr("qcheck.checker.Checker.open", explode)
    code, out, err = run("a.jpg")
    hint = "(please report; QCHECK_DEBUG=1 shows the traceback)"
    assert (code, out, err) == (2, "", f"qcheck: internal error: RuntimeError: first second {hint}\n")
    monkeypatch.setenv("QCHECK_DEBUG", "1")
    code, out, err = run("a.jpg")
    assert (code, out) == (2, "")
    assert "Traceback" in err
    assert not logging.getLogger("qcheck").handlers, "whoever called main goes on, and may close stderr"


# Help and the other commands


def test_nothing_at_all_prints_help_to_stderr(run: Run) -> None:
    code, out, err = run()
    assert (code, out) == (2, "")
    assert err == run("--help")[1]


def test_help_shows_the_main_job(run: Run) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert out.startswith("Usage: qcheck [OPTIONS] FILES... | COMMAND [ARGS]...\n")
    for word in (
        *(
            "--max-probes N",
            "--budget-ms MS",
            "--rollouts K",
            "--json",
            "--jsonl",
            "--model DIR",
            "--device",
            "--threads N",
        ),
        *("--max-pixels N", "--fail-under SCORE", "--fail-on KIND", "-r, --recursive", "--version", "-h, --help"),
        *("--install-completion", "--show-completion", "[default: 3; 0<=x<=64]", "Exit codes: 0 all passed"),
        *("Commands:\n  check ", "\n  model ", "\n  schema ", "  qcheck --json photos/ > verdicts.json\n"),
    ):
        assert word in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("name", ["check", "model", "schema"])
def test_help_of_a_command(run: Run, name: str) -> None:
    code, out, err = run(name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: qcheck {name} [OPTIONS]")


def test_default_of_max_pixels_is_that_of_photo() -> None:
    assert MAX_PIXELS == DEFAULT_MAX_PIXELS


def test_version(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(qcheck), "__version__", "1.2.3")  # it is looked up when asked for
    assert run("--version") == (0, "qcheck 1.2.3\n", "")


def test_schema(run: Run) -> None:
    assert run("schema") == (0, schema_text(), "")


def test_a_gate_over_defects_needs_a_model_that_names_some() -> None:
    assert Gate.of(3.0, [], known=()).fail_on == frozenset()
    for kind in ("any", "noise"):
        with pytest.raises(UsageError, match=rf"^--fail-on {kind}: this model names no defects$"):
            Gate.of(None, [kind], known=())


def test_model(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contract = SimpleNamespace(
        name="nano",
        version="1.0",
        licence="Apache-2.0",
        precision="int8",
        kinds=("noise", "banding"),
        attributes=("sharpness",),
        files={"card": SimpleNamespace(path="MODEL_CARD.md")},
    )
    asked = []

    class Bundle:
        def __init__(self) -> None:
            self.contract, self.sha256, self.directory = contract, "0" * 64, tmp_path

        @classmethod
        def open(cls, directory: Path | None) -> "Bundle":
            asked.append(directory)
            return cls()

    monkeypatch.setitem(sys.modules, "qcheck.bundle", SimpleNamespace(Bundle=Bundle))
    (tmp_path / "MODEL_CARD.md").write_text("# nano\n\nSmall.\n", encoding="utf-8")
    code, out, err = run("model", "--model", "somewhere")
    assert (code, err, asked) == (0, "", [Path("somewhere")])
    fields = dict(line.split(":", 1) for line in out.partition("\n\n")[0].splitlines())
    assert {name: value.strip() for name, value in fields.items()} == {
        "name": "nano",
        "version": "1.0",
        "sha256": "0" * 64,
        "licence": "Apache-2.0",
        "precision": "int8",
        "kinds": "noise, banding",
        "attributes": "sharpness",
    }
    assert out.endswith("\n\n# nano\n\nSmall.\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "qcheck.cli", "schema"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr.startswith("qcheck: error: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("typed", "offered"), [("--max", ["--max-probes", "--max-pixels"]), ("--ver", ["--version"]), ("sch", ["schema"])]
)
def test_completion_offers_commands_and_the_options_of_check(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, typed: str, offered: list[str]
) -> None:
    from qcheck.cli import main

    monkeypatch.setenv("_QCHECK_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"qcheck {typed}")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit):
        main([])
    assert capfd.readouterr().out.split() == offered


def test_help_is_light() -> None:
    heavy = "{'torch', 'transformers', 'onnxruntime', 'numpy', 'PIL'}"
    script = f"import sys; from qcheck.cli import main; main(['--help']); sys.exit(str({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == "set()\n"


# Streams, pipes and signals


@pytest.mark.parametrize("output", ["--json", "--jsonl", "--max-probes=3"])
def test_a_record_is_out_before_the_next_photo_is_judged(output: str) -> None:
    # The second photo is judged only after the test has read the first record and says so through stdin.
    before = "path == 'b' and sys.stdin.read(1)"
    with _spawn(before, "a", "b", output, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        lines = [process.stdout.readline()]
        if output == "--json":
            lines.append(process.stdout.readline())
        assert lines[-1].endswith(b"\n")
        assert (b'"path": "a"' in lines[-1]) or (b"  a  " in lines[-1])
        rest, err = process.communicate(b"x", timeout=60)
        assert (process.returncode, err) == (0, b"")
        assert rest
        if output == "--json":
            assert len(json.loads(b"".join(lines) + rest)) == 2


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_interrupt_closes_the_array_and_exits_with_130() -> None:
    before = "path == 'b' and (os.kill(os.getpid(), signal.SIGINT), time.sleep(30))"
    with _spawn(before, "--json", "a", "b", "c") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + signal.SIGINT, b"")
    assert [record["path"] for record in json.loads(out)] == ["a"]


@pytest.mark.skipif(os.name == "nt", reason="pipes differ")
@pytest.mark.parametrize("output", ["--json", "--jsonl", "--max-probes=3"])
def test_a_closed_pipe_ends_the_run_quietly(output: str) -> None:
    before = "path == 'b' and sys.stdin.read(1)"
    with _spawn(before, output, "a", "b", *map(str, range(1000)), stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stdin is not None
        process.stdin.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_names_that_are_not_utf8_print_under_any_locale() -> None:
    if sys.platform in ("win32", "darwin"):
        pytest.skip("file names are Unicode here")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    with _spawn("pass", os.fsdecode(b"odd\xff.jpg"), "sch\u00f6n.jpg", env=environment) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert b"odd\\xff.jpg" in out
    assert b"sch\\xf6n.jpg" in out
