"""The tile kernel without Python: for aarch64 under an emulator, and under the address and undefined-behaviour
sanitizers. Both run kernels/parity over cases that Pillow and NumPy solved."""

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from oracle import patched, photo, planar, random_box, survey

from qcheck._kernels import processors
from qcheck.tiles import normalise_table

KERNELS = Path(__file__).parent.parent / "kernels"
SOURCES = (
    "coefficients.cpp",
    "passes.cpp",
    "passes_baseline.cpp",
    "placement.cpp",
    "survey.cpp",
    "tiles.cpp",
    "parity/parity.cpp",
)
# What is compiled for some processors of a kind only: the files' flags, and the definition that says they are there.
SPECIAL = {
    "x86_64": (
        "-DQCHECK_X86",
        {
            "passes_vnni.cpp": ("-mavx512bw", "-mavx512vl", "-mavx512vnni"),
            "passes_avx2.cpp": ("-mavx2",),
            "passes_sse41.cpp": ("-msse4.1",),
        },
    ),
    "aarch64": ("-DQCHECK_DOTPROD", {"passes_dotprod.cpp": ("-march=armv8.2-a+dotprod",)}),
}
MAGIC = b"qcktile2"
CASES = 400
FLAGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-pthread", "-ffp-contract=off")


def tool(name: str, package: str) -> str:
    """A program's path. Where it is missing the test is skipped, but fails on CI."""
    found = shutil.which(name)
    if found is None:
        reason = f"{name} is not installed (Debian: {package})"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def case(rng: np.random.Generator, number: int) -> bytes:
    """Any sizes, both directions, in all layouts, fp32 and fp16."""
    # Now and then a side is longer than what a GPU's block holds at once.
    sides = [160, 3000 if number % 10 == 0 else 160]
    height, width = (int(np.exp(rng.uniform(0, np.log(most)))) for most in rng.permutation(sides))
    image = photo(height, width, number, number % 3)
    patches = (0, 0, 1) if number % 2 else [(14, 2, 2), (16, 4, 1), (1, 1, 1)][number // 2 % 3]
    unit = max(1, patches[0] * patches[1])
    size = tuple(unit * int(np.exp(rng.uniform(0, np.log(max(2, 100 // unit))))) for _ in range(2))
    boxes = [random_box(rng, width, height) for _ in range(int(rng.integers(1, 4)))]
    table: NDArray[Any] = normalise_table((0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
    table = table.astype(np.float16) if number % 5 == 0 else table
    tiles = [planar(image, box, size, table) for box in boxes]
    want = np.concatenate([patched(tile, *patches).ravel() if patches[0] else tile.ravel() for tile in tiles])
    gap = int(rng.integers(0, 9))  # between rows
    rows = np.zeros((height, 3 * width + gap), np.uint8)
    rows[:, : 3 * width] = image.reshape(height, -1)
    head = [width, height, 3 * width + gap, int(rng.integers(1, 4)), len(boxes)]
    for x1, y1, x2, y2 in boxes:
        head += [x1, y1, x2 - x1, y2 - y1, *size]
    numbers = struct.pack(f"<{len(head) + 3}i", *head, *patches)
    pixels = rows.tobytes()[: len(rows.tobytes()) - gap]
    values = table.tobytes() + want.tobytes() + survey(image).tobytes()
    return numbers + pixels + struct.pack("<i", 8 * table.itemsize) + values


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("parity") / "cases"
    rng = np.random.default_rng(11)
    path.write_bytes(MAGIC + struct.pack("<i", CASES) + b"".join(case(rng, number) for number in range(CASES)))
    return path


def built(compiler: str, folder: Path, *flags: str, machine: str = "") -> str:
    """Compiles the parity program, with all that is special to a kind of machine, and returns its path."""
    program, sources = str(folder / "parity"), [str(KERNELS / source) for source in SOURCES]
    definition, special = SPECIAL.get(machine, ("", {}))
    for source, its_flags in special.items():
        sources.append(str(folder / f"{source}.o"))
        one = [compiler, *FLAGS, *flags, *its_flags, "-c", str(KERNELS / source), "-o", sources[-1]]
        subprocess.run(one, check=True)
    if definition:
        flags = (*flags, definition)
    subprocess.run([compiler, *FLAGS, *flags, *sources, "-o", program], check=True)
    return program


def assert_equal(command: list[str], cases: Path, *passes: str) -> None:
    done = subprocess.run([*command, str(cases)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [*(f"{name}: {CASES} cases" for name in (*passes, "fused")), "0 values differ"]


def test_aarch64_equals_pillow(cases: Path, tmp_path: Path) -> None:
    """As Jetson boards run it, in an emulator: the bits, not the time."""
    compiler = tool("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
    emulator = tool("qemu-aarch64", "qemu-user")
    assert_equal(
        [emulator, built(compiler, tmp_path, "-O3", "-static", machine="aarch64")], cases, "dot product", "baseline"
    )


def test_sanitizers_find_nothing(cases: Path, tmp_path: Path) -> None:
    """In any pass that this processor runs."""
    sanitize = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    sanitize += ("-Wno-maybe-uninitialized",)  # GCC 12 finds it in its own header of AVX-512
    program = built(tool("g++", "g++"), tmp_path, *sanitize, machine=os.uname().machine)
    assert_equal([program], cases, *processors())


def test_a_difference_is_found_and_named(cases: Path, tmp_path: Path) -> None:
    """One flipped bit in the last answer."""
    program = built(tool("g++", "g++"), tmp_path, "-O1")
    data = bytearray(cases.read_bytes())
    data[-1] ^= 1
    (tmp_path / "wrong").write_bytes(data)
    done = subprocess.run([program, str(tmp_path / "wrong")], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"case {CASES - 1} differs first at value" in done.stdout
    assert done.stdout.endswith("\n2 values differ\n")  # by the one pass and by the fused kernel
    (tmp_path / "cut").write_bytes(data[:-5])
    done = subprocess.run([program, str(tmp_path / "cut")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "the file ends too early\n")
