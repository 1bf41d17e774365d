"""A bundle on disk: it opens only if every file that its contract names is there, whole and untouched."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, plain_contract

from qcheck.bundle import EMBEDDINGS_TENSOR, PARTS, Bundle
from qcheck.contract import CONTRACT_FILE, FileEntry
from qcheck.embeddings import Embeddings, read_safetensor
from qcheck.errors import BundleError

CONTENTS = {
    "vision": ("vision.onnx", b"the eye" * 100),
    "decoder": ("decoder.onnx", b"the mouth" * 300_000),  # more than one block of the checksum reader
    "embeddings": ("embeddings.safetensors", b""),
    "tokenizer": ("tokenizer.json", b"{}"),
    "card": ("MODEL_CARD.md", "# fake ü\n".encode()),
}
TENSOR = np.arange(12, dtype="<f4").reshape(4, 3) / 7


def safetensors_bytes(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(name: str, data: bytes) -> FileEntry:
    return FileEntry(name, len(data), hashlib.sha256(data).hexdigest())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle whose files are bytes with the right checksums."""
    place = tmp_path / "bundle"
    place.mkdir()
    files = {}
    for part, (name, data) in CONTENTS.items():
        if part == "embeddings":
            header = {EMBEDDINGS_TENSOR: {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 48]}}
            data = safetensors_bytes(header, TENSOR.tobytes())
        (place / name).write_bytes(data)
        files[part] = entry(name, data)
    (place / CONTRACT_FILE).write_text(plain_contract(files=files).to_json(), encoding="utf-8")
    return place


def rewrite(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / CONTRACT_FILE
    data = json.loads(path.read_text(encoding="utf-8"))
    edit(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_whole_bundle_opens(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert bundle.directory == folder
    assert bundle.info.name == "fake"
    assert bundle.info.sha256 == hashlib.sha256((folder / CONTRACT_FILE).read_bytes()).hexdigest()
    assert bundle.card() == "# fake ü\n"
    assert set(bundle.contract.files) == set(PARTS)
    assert bundle.path("decoder").read_bytes() == CONTENTS["decoder"][1]
    np.testing.assert_array_equal(bundle.embeddings()[:], TENSOR)


def test_its_identity_changes_with_any_file(folder: Path) -> None:
    before = Bundle.open(folder).sha256
    (folder / "tokenizer.json").write_bytes(b"[]")
    rewrite(folder, lambda d: d["files"]["tokenizer"].update(sha256=hashlib.sha256(b"[]").hexdigest()))
    assert Bundle.open(folder).sha256 != before


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("where", ["first", "last"])
def test_one_changed_byte_is_seen(folder: Path, part: str, where: str) -> None:
    path = folder / Bundle.open(folder).contract.files[part].path
    data = bytearray(path.read_bytes())
    data[0 if where == "first" else -1] ^= 1
    path.write_bytes(data)
    message = refusal(folder)
    assert path.name in message
    assert "checksum" in message


@pytest.mark.parametrize("part", PARTS)
def test_a_truncated_file_is_seen(folder: Path, part: str) -> None:
    path = folder / Bundle.open(folder).contract.files[part].path
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    message = refusal(folder)
    assert path.name in message
    assert f"{size - 1} bytes and should have {size}" in message


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_file_is_named(folder: Path, part: str) -> None:
    path = folder / Bundle.open(folder).contract.files[part].path
    path.unlink()
    message = refusal(folder)
    assert path.name in message
    assert "cannot be read" in message


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_the_contract_forgets_is_named(folder: Path, part: str) -> None:
    rewrite(folder, lambda d: d["files"].pop(part))
    message = refusal(folder)
    assert CONTRACT_FILE in message
    assert f"no file for {part}" in message


@pytest.mark.parametrize("name", ["../decoder.onnx", "sub/decoder.onnx", "./decoder.onnx", "decoder.onnx/"])
def test_a_name_with_a_path_in_it_is_refused_even_if_it_leads_to_the_right_file(folder: Path, name: str) -> None:
    (folder / "sub").mkdir()
    for place in (folder.parent, folder / "sub"):
        shutil.copyfile(folder / "decoder.onnx", place / "decoder.onnx")
    rewrite(folder, lambda d: d["files"]["decoder"].update(path=name))
    message = refusal(folder)
    assert repr(name) in message
    assert "plain file name" in message


def test_an_absolute_name_is_refused(folder: Path) -> None:
    outside = folder.parent / "decoder.onnx"
    shutil.copyfile(folder / "decoder.onnx", outside)
    rewrite(folder, lambda d: d["files"]["decoder"].update(path=str(outside)))
    assert "plain file name" in refusal(folder)


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_is_a_directory_is_refused(folder: Path, name: str) -> None:
    size = (folder / name).stat().st_size  # the right size, so that only what it is gives it away
    rewrite(folder, lambda d: d["files"]["decoder"].update(path=name, bytes=size))
    refusal(folder)


def test_no_contract(folder: Path) -> None:
    (folder / CONTRACT_FILE).unlink()
    message = refusal(folder)
    assert str(folder) in message
    assert CONTRACT_FILE in message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8"),
        ('{"format": "\u00fc"}'.encode("latin-1"), "not UTF-8"),
        (b"{}", "format None"),
    ],
)
def test_a_contract_that_is_none(folder: Path, data: bytes, words: str) -> None:
    (folder / CONTRACT_FILE).write_bytes(data)
    message = refusal(folder)
    assert CONTRACT_FILE in message
    assert words in message


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_place_that_is_no_directory(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "nothing"
    if kind == "file":
        place.write_text("x")
    assert refusal(place) == f"no model bundle at {place}: it is not a directory"


def test_the_contract_may_not_be_a_directory(folder: Path) -> None:
    (folder / CONTRACT_FILE).unlink()
    (folder / CONTRACT_FILE).mkdir()
    assert CONTRACT_FILE in refusal(folder)


# safetensors


def test_what_safetensors_itself_writes_is_read_to_the_bit(tmp_path: Path) -> None:
    writer = library("safetensors.numpy")
    rng = np.random.default_rng(5)
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in (("a", (7, 5)), ("b", (3,)))}
    tensors["c"] = np.array(2.5, np.float32)
    path = tmp_path / "all.safetensors"
    writer.save_file(tensors, str(path), metadata={"format": "np"})
    for name, tensor in tensors.items():
        read = read_safetensor(path, name)
        assert read.dtype == np.float32
        assert read.shape == tensor.shape
        np.testing.assert_array_equal(read.view(np.uint32), tensor.view(np.uint32))


def test_other_dtypes_are_refused(tmp_path: Path) -> None:
    writer = library("safetensors.numpy")
    path = tmp_path / "whole.safetensors"
    writer.save_file({"a": np.zeros(4, np.int32)}, str(path))
    with pytest.raises(BundleError, match=r"whole\.safetensors.*I32, not one of F32, F16, BF16"):
        read_safetensor(path, "a")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_embeddings_of_any_float_are_looked_up_in_float32(tmp_path: Path, dtype: str) -> None:
    torch, writer = library("torch"), library("safetensors.torch")
    table = torch.randn(9, 5, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))
    writer.save_file({"a": table}, tmp_path / "any.safetensors")
    embeddings = Embeddings(read_safetensor(tmp_path / "any.safetensors", "a"))
    assert embeddings.shape == (9, 5)
    rows = embeddings[[8, 0, 8]]
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, table[[8, 0, 8]].float().numpy())


def test_data_beside_a_graph_is_checked_like_any_file(folder: Path) -> None:
    """An ONNX graph's constants may lie in a file of its own, which the runtime reads by itself."""
    (folder / "decoder.onnx.data").write_bytes(b"numbers")
    assert "does not list decoder.onnx.data" in refusal(folder)
    listed = {"path": "decoder.onnx.data", "bytes": 7, "sha256": hashlib.sha256(b"numbers").hexdigest()}
    rewrite(folder, lambda d: d["files"].update(decoder_data=listed))
    assert Bundle.open(folder).path("decoder_data").read_bytes() == b"numbers"
    (folder / "decoder.onnx.data").write_bytes(b"Numbers")
    assert "decoder.onnx.data does not match its checksum" in refusal(folder)
    (folder / "decoder.onnx.data").unlink()
    assert "decoder.onnx.data cannot be read" in refusal(folder)


HEADER = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"not a tensor file at all",
        b"\xff" * 64,
        safetensors_bytes(b"\xff\xff", b""),
        safetensors_bytes([1, 2], b""),
        safetensors_bytes({}, b""),
        safetensors_bytes({"b": HEADER["a"]}, bytes(16)),
        safetensors_bytes({"a": "F32"}, bytes(16)),
        safetensors_bytes({"a": {"dtype": "F32", "shape": [2, 2]}}, bytes(16)),
        safetensors_bytes({"a": {**HEADER["a"], "shape": [3, 2]}}, bytes(16)),
        safetensors_bytes({"a": {**HEADER["a"], "shape": "22"}}, bytes(16)),
        safetensors_bytes({"a": {**HEADER["a"], "data_offsets": [0]}}, bytes(16)),
        safetensors_bytes({"a": {**HEADER["a"], "data_offsets": 16}}, bytes(16)),
        safetensors_bytes({"a": {**HEADER["a"], "data_offsets": [0, 15]}}, bytes(16)),
        safetensors_bytes(HEADER, bytes(15)),
        safetensors_bytes(HEADER, b""),
    ],
)
def test_garbage_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(BundleError) as caught:
        read_safetensor(path, "a")
    message = str(caught.value)
    assert "bad.safetensors" in message
    assert "\n" not in message
