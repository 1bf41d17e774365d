"""Large pictures strip by strip, because Pillow holds four bytes a pixel of every picture on the way to its pixels."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray

_STRIP_PIXELS: Final = 1 << 20
_MOST_HELD_TWICE: Final = 100_000_000  # pixels of a picture that is in memory with what it is made from

Cut = Callable[[int, int], NDArray[np.uint8]]


def strip_rows(width: int) -> int:
    return max(1, _STRIP_PIXELS // width)


def gathered(width: int, height: int, cut: Cut, release: Callable[[], None]) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 of `cut(top, bottom)`, rows of what it is made from.

    A very large one waits in a temporary file, if there is room for it, until `release` has given back the memory of
    what it is made from.
    """
    rows = strip_rows(width)

    def strips() -> Iterator[NDArray[np.uint8]]:
        for top in range(0, height, rows):
            yield np.ascontiguousarray(cut(top, min(height, top + rows)))

    spool = _spooled(strips()) if width * height > _MOST_HELD_TWICE else None
    if spool is None:
        return _stacked(width, height, strips())
    release()
    with spool:
        return _stacked(width, height, _read(spool, width, rows))


def _spooled(strips: Iterable[NDArray[np.uint8]]) -> IO[bytes] | None:
    """A temporary file of them, to be read from its beginning; None if there is no room for one."""
    with ExitStack() as undo:
        try:
            spool = undo.enter_context(TemporaryFile())
            for strip in strips:
                spool.write(strip.data)
            spool.seek(0)
        except OSError:
            return None
        undo.pop_all()
        return spool


def _read(spool: IO[bytes], width: int, rows: int) -> Iterator[NDArray[np.uint8]]:
    while data := spool.read(3 * width * rows):
        yield np.frombuffer(data, np.uint8).reshape(-1, width, 3)


def _stacked(width: int, height: int, strips: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    pixels, top = np.empty((height, width, 3), np.uint8), 0
    for strip in strips:
        pixels[top : top + len(strip)] = strip
        top += len(strip)
    return pixels
