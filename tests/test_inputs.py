"""Directories become the images in them; everything else passes through."""

import os
from pathlib import Path

import pytest

from qcheck.errors import printable
from qcheck.inputs import IMAGE_SUFFIXES, expand, is_image_name
from qcheck.verdict import Failure


def _make(directory: Path, *names: str) -> None:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_files_pass_through_in_order_with_duplicates(tmp_path: Path) -> None:
    _make(tmp_path, "b.txt", "a.jpg")
    named = [str(tmp_path / "b.txt"), str(tmp_path / "missing.png"), "-", str(tmp_path / "a.jpg")] * 2
    assert list(expand(named)) == named


def test_directory_is_its_images_by_name(tmp_path: Path) -> None:
    _make(tmp_path, "c.PNG", "a.jpg", "b.Jpeg", "notes.txt", "jpg", "._a.jpg", "below/d.jpg", "folder.jpg/e.txt")
    assert list(expand(["x.gif", str(tmp_path), "y.gif"])) == [
        "x.gif",
        *(str(tmp_path / name) for name in ("a.jpg", "b.Jpeg", "c.PNG")),
        "y.gif",
    ]


def test_recursive_goes_below_folder_by_folder(tmp_path: Path) -> None:
    _make(tmp_path, "z.jpg", "b/y.jpg", "a/x.jpg", "a/deep/w.webp", "a/deep/readme.md")
    expected = [str(tmp_path / name) for name in ("z.jpg", "a/x.jpg", "a/deep/w.webp", "b/y.jpg")]
    assert list(expand([str(tmp_path)], recursive=True)) == expected


@pytest.mark.parametrize("recursive", [False, True])
def test_directory_without_images_is_one_failure(tmp_path: Path, recursive: bool) -> None:
    _make(tmp_path, "notes.txt")
    (found,) = expand([str(tmp_path)], recursive=recursive)
    assert isinstance(found, Failure)
    assert (found.path, found.kind) == (str(tmp_path), "not_found")
    assert found.message.startswith(f"{tmp_path}: no images here (looked for jpg jpeg png ")
    assert ("--recursive" in found.message) is not recursive


@pytest.mark.parametrize("recursive", [False, True])
def test_directory_that_cannot_be_listed(tmp_path: Path, recursive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    (found,) = expand([str(tmp_path)], recursive=recursive)
    assert isinstance(found, Failure)
    assert (found.kind, found.message) == ("unreadable", f"{tmp_path}: cannot be listed: Permission denied")


def test_expansion_is_lazy(tmp_path: Path) -> None:
    found = expand(["a.jpg", str(tmp_path)])
    assert next(found) == "a.jpg"
    _make(tmp_path, "late.jpg")  # seen, because the directory is listed only when its turn comes
    assert list(found) == [str(tmp_path / "late.jpg")]


def test_image_names() -> None:
    assert all(is_image_name("x" + suffix.upper()) for suffix in IMAGE_SUFFIXES)
    assert not any(map(is_image_name, ("x.heic", "x.jpg.txt", "xjpg", "._x.jpg")))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain photo.jpg", "plain photo.jpg"),
        ("schön ±.jpg", "schön ±.jpg"),
        ("two\nlines\t\x1b[31m.jpg", "two\\nlines\\t\\x1b[31m.jpg"),
        (os.fsdecode(b"odd\xff.jpg"), "odd\\xff.jpg"),
        ("flip\u202e.jpg", "flip\\u202e.jpg"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode()
