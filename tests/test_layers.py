"""The house keeps its floors: a light start for the command, and imports that run downward only."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "qcheck"

# A module may import from lower floors, and within its own package. A new module needs a floor here.
FLOORS = {
    "_kernels": 0,
    "errors": 0,
    "strips": 0,
    "spent": 0,
    "tiles": 1,
    "survey": 2,
    "embeddings": 1,
    "windows": 1,
    "contract": 2,
    "verdict": 2,
    "inputs": 3,
    "prompt": 3,
    "dialects": 4,
    "cache": 3,
    "rope": 3,
    "photo": 4,
    "grammar": 5,
    "bundle": 4,
    "backends": 5,
    "vision": 6,
    "engine": 7,
    "probe": 8,
    "checker": 9,
    "cli": 10,
}
OUTSIDE = {"export", "training", "tests", "benchmarks"}
# Heavy things that training and export need, and that no installed qcheck has.
NEVER = {"torch", "torchvision", "transformers", "onnx", "onnxscript", "scipy", "sklearn"}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Full names that a file imports anywhere, also inside functions, and the line."""
    package = ("qcheck", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join([*base, *([node.module] if node.module else [])])
            if source == "qcheck":  # `from qcheck import tiles` imports the room, not the house
                yield from ((f"qcheck.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield source, node.lineno


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_run_downward(path: Path) -> None:
    own = room(path)
    if own == "models":
        pytest.skip("holds files, not code")
    assert own in FLOORS, f"give {own!r} a floor in {Path(__file__).name}"
    for name, line in imported(path):
        top, *rest = name.split(".")
        where = f"{path.name}:{line} imports {name}"
        assert top not in OUTSIDE | NEVER, where
        if top == "qcheck" and rest and rest[0] != own and rest[0] != "__version__":
            assert rest[0] in FLOORS, f"{where}, which has no floor"
            assert FLOORS[rest[0]] < FLOORS[own], f"{where}, which is not below it"


def run_isolated(code: str) -> str:
    """What a fresh interpreter prints, started so that the source tree does not shadow the installed package."""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_qcheck_loads_nothing_heavy() -> None:
    code = "import sys, qcheck; print(sorted({'numpy', 'PIL', 'onnxruntime', 'typer'} & set(sys.modules)))"
    assert run_isolated(code).strip() == "[]"


def test_every_public_name_is_there() -> None:
    code = "import qcheck; print([n for n in qcheck.__all__ if getattr(qcheck, n, None) is None], set(dir(qcheck)) >= "
    assert run_isolated(code + "set(qcheck.__all__))").split() == ["[]", "True"]
    assert "no attribute 'Nothing'" in run_isolated(
        "import qcheck\ntry: qcheck.Nothing\nexcept AttributeError as error: print(error)"
    )


def test_help_answers_without_a_runtime() -> None:
    code = """
import sys
sys.argv = ["qcheck", "--help"]
from qcheck.cli import main
try:
    status = main()
except SystemExit as stop:
    status = stop.code
heavy = {"torch", "transformers", "onnxruntime", "tokenizers", "llguidance"} & set(sys.modules)
print("status", status or 0, "heavy", sorted(heavy))
"""
    out = run_isolated(code)
    assert out.splitlines()[-1] == "status 0 heavy []"
    assert "--max-probes" in out


def test_scripts_of_the_rooms_do_not_hide_each_other() -> None:
    """They import each other by their bare names, from more than one room in one process."""
    root = Path(__file__).parent.parent
    names = [path.name for room in ("training", "export", "benchmarks") for path in (root / room).glob("*.py")]
    assert sorted(names) == sorted(set(names))
