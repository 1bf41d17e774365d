"""Photos to verify a bundle with, or to calibrate it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from errors import ExportError
from numpy.typing import NDArray

from qcheck.inputs import expand
from qcheck.photo import Photo
from qcheck.verdict import Failure

# (width, height) of pictures that are made up: both directions, none of them whole tokens or windows.
SIZES: Final = ((640, 480), (450, 700), (1000, 300))


MOST_PHOTOS: Final = 16  # that a bundle is verified with


def made() -> list[Photo]:
    """A few pictures with edges, waves of all lengths and a noisy corner; the same ones every time."""
    return [Photo(f"made {number}", _picture(*size, number)) for number, size in enumerate(SIZES, 1)]


def _picture(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = [np.sin(2 * np.pi * 2**octave * (x * np.cos(turn) + y * np.sin(turn)) ** 2) for octave, turn in
             enumerate(rng.uniform(0, np.pi, 6))]  # fmt: skip
    colours = np.stack([np.tensordot(rng.normal(size=6), waves, 1) for _ in range(3)], 2)
    colours[(x - 0.3) ** 2 + (y - 0.25) ** 2 < 0.02] += 1.5  # a disc with a sharp edge
    corner = colours[height // 2 :, width // 2 :]
    corner += rng.normal(scale=0.7, size=corner.shape)
    return np.clip(128 + 40 * colours, 0, 255).astype(np.uint8)


def of_folder(folder: Path, most: int) -> Iterator[Photo]:
    """The first photos of a folder by name, each opened when it is its turn. Raises ExportError if there is none, and
    on the way PhotoError for one that cannot be read."""
    if not folder.is_dir():
        raise ExportError(f"{folder} is not a directory; name one with photos")
    found = list(expand([str(folder)]))
    for path in found:
        if isinstance(path, Failure):
            raise ExportError(path.message)
    return (Photo.open(str(path)) for path in found[:most])
