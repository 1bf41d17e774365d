"""Checker: many files in, verdicts out, in order, the next photo decoded while this one is judged."""

import logging
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from qcheck.errors import BundleError, EngineError, PhotoError, UsageError, printable
from qcheck.photo import DEFAULT_MAX_PIXELS, Photo
from qcheck.probe import Limits
from qcheck.tiles import smart_resize
from qcheck.verdict import Failure, Verdict

__all__ = ["Checker", "Judge", "Limits", "OpenPhoto"]

LARGE_PIXELS: Final = 100_000_000

_log = logging.getLogger(__name__)


class Judge(Protocol):
    """What turns a photo into a verdict; `qcheck.probe.Prober` is the real one. Called from one thread at a time."""

    def judge(self, photo: Photo, limits: Limits, *, decode_ms: float = 0.0) -> Verdict: ...


class OpenPhoto(Protocol):
    """What turns a path into a photo, or raises PhotoError. Called from the decoding thread."""

    def __call__(self, path: str, *, max_pixels: int) -> Photo: ...


@dataclass(frozen=True, slots=True)
class _Decoded:
    photo: Photo
    decode_ms: float


class Checker:
    """Judges photos one after another, all under the same limits.

    `kinds`: the defect kinds that the model knows. `max_pixels`: the largest photo that is decoded.
    """

    def __init__(
        self,
        judge: Judge,
        limits: Limits,
        *,
        kinds: Sequence[str] = (),
        max_pixels: int = DEFAULT_MAX_PIXELS,
        open_photo: OpenPhoto = Photo.open,
    ) -> None:
        self.kinds = tuple(kinds)
        self._judge = judge
        self._limits = limits
        self._max_pixels = max_pixels
        self._open_photo = open_photo

    @classmethod
    def open(
        cls,
        model: Path | None = None,
        *,
        limits: Limits | None = None,
        device: str = "auto",
        threads: int | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        fast_decode: bool = False,
    ) -> "Checker":
        """A checker over the bundle in directory `model` (None: the one that ships with qcheck).

        `fast_decode`: JPEGs are decoded no larger than the view needs, for a single pass only.
        Raises BundleError, EngineError or UsageError.
        """
        from qcheck.bundle import Bundle  # here, because they load the inference runtime
        from qcheck.engine import Engine
        from qcheck.probe import Prober

        limits = limits or Limits()
        if fast_decode and limits.max_probes:
            raise UsageError("--fast-decode: crops are cut from every pixel of a photo; add --max-probes 0")
        bundle = Bundle.open(model)
        contract = bundle.contract
        if fast_decode and contract.pixels.survey:
            raise UsageError(f"--fast-decode: {contract.name} looks at every pixel of a photo; leave it out")
        enough = partial(smart_resize, spec=contract.global_view) if fast_decode else None
        prober = Prober(Engine.open(bundle, device=device, threads=threads))
        open_photo = partial(Photo.open, enough=enough)
        return cls(prober, limits, kinds=contract.kinds, max_pixels=max_pixels, open_photo=open_photo)

    def check(self, paths: Iterable[str | Failure]) -> Generator[Verdict | Failure, None, None]:
        """One result a path, in order, each as soon as it is ready; a Failure among the paths passes through.

        While a photo is judged, the next is fetched from `paths` and decoded in one background thread, and no more
        than that one, so that at most two decoded photos are in memory; beside one of more than LARGE_PIXELS, none.
        What goes wrong with one photo becomes its Failure and the others go on. UsageError and BundleError concern
        every photo and are raised, as is whatever `paths` itself raises. Closing the iterator ends the thread.
        """
        source = iter(paths)
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="qcheck-decode")

        def ahead() -> Future[_Decoded | Failure | None]:
            return pool.submit(self._next, source)

        try:
            coming = ahead()
            while (current := coming.result()) is not None:
                alone = isinstance(current, _Decoded) and current.photo.pixels.size > 3 * LARGE_PIXELS
                if not alone:
                    coming = ahead()
                result = self._judged(current)
                del current  # the consumer may take its time; the pixels need not wait for it
                if alone:
                    coming = ahead()
                yield result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def check_one(self, path: str) -> Verdict | Failure:
        """The result for one path, without a thread. Raises UsageError or BundleError."""
        return self._judged(self._decode(path))

    def _next(self, source: Iterator[str | Failure]) -> _Decoded | Failure | None:
        path = next(source, None)
        return path if path is None or isinstance(path, Failure) else self._decode(path)

    def _decode(self, path: str) -> _Decoded | Failure:
        started = time.perf_counter()
        try:
            photo = self._open_photo(path, max_pixels=self._max_pixels)
        except Exception as error:
            return _failure(path, error)
        return _Decoded(photo, (time.perf_counter() - started) * 1000)

    def _judged(self, item: _Decoded | Failure) -> Verdict | Failure:
        if isinstance(item, Failure):
            return item
        try:
            return self._judge.judge(item.photo, self._limits, decode_ms=item.decode_ms)
        except Exception as error:
            return _failure(item.photo.path, error)


def _failure(path: str, error: Exception) -> Failure:
    """The record of what went wrong with one photo; raises what would go wrong with every photo."""
    if isinstance(error, UsageError | BundleError):
        raise error
    if isinstance(error, PhotoError):
        return Failure(path, error.kind, str(error))
    _log.debug("while judging %r", path, exc_info=error)
    reason = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
    return Failure(path, "internal", printable(f"{path}: {reason}"))
