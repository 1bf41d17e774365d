"""What was named on the command line, as photos: directories become the images in them."""

import os
from collections.abc import Iterable, Iterator
from typing import Final

from qcheck.errors import printable
from qcheck.verdict import Failure

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")


def expand(arguments: Iterable[str], *, recursive: bool = False) -> Iterator[str | Failure]:
    """Paths of photos, in the order of the arguments; duplicates stay.

    A directory stands for the images in it (`IMAGE_SUFFIXES`, in any case), sorted by name; with `recursive` also for
    those below it, without following links to directories. One that holds none, or cannot be listed, becomes one
    Failure. Whatever else was named passes through: a path that does not exist is for the opener to report.
    """
    for argument in arguments:
        if not os.path.isdir(argument):
            yield argument
            continue
        try:
            found = _images_below(argument) if recursive else _images_in(argument)
        except OSError as error:
            yield Failure(argument, "unreadable", f"{printable(argument)}: cannot be listed: {error.strerror or error}")
            continue
        yield from found
        if not found:
            yield _nothing_in(argument, recursive)


def is_image_name(name: str) -> bool:
    """Whether a directory's entry counts as an image, by its name alone."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("._")  # macOS leaves ._a.jpg beside a.jpg


def _images_in(directory: str) -> list[str]:
    with os.scandir(directory) as entries:
        names = sorted(entry.name for entry in entries if is_image_name(entry.name) and not entry.is_dir())
    return [os.path.join(directory, name) for name in names]


def _images_below(directory: str) -> list[str]:
    def refuse(error: OSError) -> None:
        raise error  # os.walk would skip the folder in silence, and its photos would go unjudged

    found = []
    for folder, subfolders, names in os.walk(directory, onerror=refuse):
        subfolders.sort()
        found += [os.path.join(folder, name) for name in sorted(names) if is_image_name(name)]
    return found


def _nothing_in(directory: str, recursive: bool) -> Failure:
    hint = "" if recursive else "; --recursive also looks below"
    looked_for = " ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
    return Failure(directory, "not_found", f"{printable(directory)}: no images here (looked for {looked_for}{hint})")
