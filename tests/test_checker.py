"""Checker: order, isolation of failures, and how far ahead it decodes."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from qcheck.checker import Checker, Limits
from qcheck.errors import BundleError, EngineError, PhotoError, UsageError
from qcheck.photo import DEFAULT_MAX_PIXELS, Photo
from qcheck.verdict import Failure, Verdict

LIMITS = Limits(max_probes=2)
TIMEOUT_S = 10.0


@pytest.fixture
def checker(judge: Any) -> Checker:
    return Checker(judge, LIMITS, open_photo=judge.open)


def _paths(results: Iterator[Verdict | Failure]) -> list[str]:
    return [result.path for result in results]


def _decoders() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("qcheck-decode")]


def test_order_and_duplicates(checker: Checker) -> None:
    paths = ["c", "a", "b", "a", "missing", "c"]
    assert _paths(checker.check(paths)) == paths
    assert not _decoders()


def test_nothing_in_nothing_out(checker: Checker) -> None:
    assert list(checker.check([])) == []


def test_a_bad_file_between_good_ones(checker: Checker) -> None:
    first, second, third = checker.check(["a", "missing.jpg", "b"])
    assert isinstance(first, Verdict)
    assert second == Failure("missing.jpg", "not_found", "missing.jpg: no such file")
    assert isinstance(third, Verdict)


def test_a_failure_among_the_paths_passes_through(checker: Checker) -> None:
    failure = Failure("dir", "not_found", "dir: no images here")
    assert list(checker.check(["a", failure]))[1] is failure


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (EngineError("needs more cache"), "internal", "b: needs more cache"),
        (PhotoError("truncated", "b: is cut short"), "truncated", "b: is cut short"),
        (ValueError("two\nlines"), "internal", "b: ValueError: two\\nlines"),
        (MemoryError(), "internal", "b: MemoryError: "),
    ],
)
def test_what_goes_wrong_with_one_photo_stays_with_it(
    checker: Checker, judge: Any, error: Exception, kind: str, message: str
) -> None:
    judge.verdicts["b"] = error
    first, second, third = checker.check(["a", "b", "c"])
    assert (first.path, third.path) == ("a", "c")
    assert isinstance(second, Failure)
    assert (second.kind, second.message) == (kind, message)


def test_an_unexpected_error_while_opening(judge: Any) -> None:
    def explode(path: str, *, max_pixels: int) -> Photo:
        raise RuntimeError("boom")

    assert list(Checker(judge, LIMITS, open_photo=explode).check(["a"])) == [
        Failure("a", "internal", "a: RuntimeError: boom")
    ]


@pytest.mark.parametrize("error", [UsageError("impossible"), BundleError("damaged"), KeyboardInterrupt()])
def test_what_concerns_every_photo_is_raised(checker: Checker, judge: Any, error: BaseException) -> None:
    judge.verdicts["b"] = error
    results = checker.check(["a", "b", "c"])
    assert next(results).path == "a"
    with pytest.raises(type(error)):
        next(results)
    assert not _decoders()


def test_an_error_of_the_iterable_is_raised(checker: Checker) -> None:
    def paths() -> Iterator[str]:
        yield "a"
        raise OSError("list is gone")

    results = checker.check(paths())
    assert next(results).path == "a"
    with pytest.raises(OSError, match="list is gone"):
        next(results)


def test_limits_pixels_and_decode_time_arrive(judge: Any) -> None:
    seen = []

    def slow(path: str, *, max_pixels: int) -> Photo:
        seen.append(max_pixels)
        time.sleep(0.02)
        return Photo(path, np.zeros((1, 1, 3), np.uint8))

    list(Checker(judge, LIMITS, open_photo=slow).check(["a"]))
    list(Checker(judge, LIMITS, max_pixels=7, open_photo=slow).check(["a"]))
    assert seen == [DEFAULT_MAX_PIXELS, 7]
    assert all(limits is LIMITS and 20 <= decode_ms < 5000 for _, limits, decode_ms in judge.calls)


def test_the_next_photo_is_decoded_while_this_one_is_judged(judge: Any) -> None:
    second_opened = threading.Event()
    real_judge, real_open = judge.judge, judge.open

    def opening(path: str, *, max_pixels: int) -> Photo:
        if path == "b":
            second_opened.set()
        photo: Photo = real_open(path, max_pixels=max_pixels)
        return photo

    def judging(photo: Photo, limits: Limits, *, decode_ms: float = 0.0) -> Verdict:
        assert second_opened.wait(TIMEOUT_S)  # a checker that decodes only afterwards would never get here
        verdict: Verdict = real_judge(photo, limits, decode_ms=decode_ms)
        return verdict

    judge.judge = judging
    assert _paths(Checker(judge, LIMITS, open_photo=opening).check(["a", "b"])) == ["a", "b"]


def test_no_more_than_one_photo_is_decoded_ahead(judge: Any) -> None:
    names = [f"{number}" for number in range(6)]
    opened: list[str] = []

    def opening(path: str, *, max_pixels: int) -> Photo:
        opened.append(path)
        photo: Photo = judge.open(path, max_pixels=max_pixels)
        return photo

    results = Checker(judge, LIMITS, open_photo=opening).check(names)
    for index, result in enumerate(results):
        time.sleep(0.02)  # time enough for a decoder that runs further ahead to show itself
        assert result.path == names[index]
        assert len(opened) <= index + 2
    assert opened == names


def test_beside_a_very_large_photo_none_is_decoded(judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcheck.checker.LARGE_PIXELS", 11)
    events: list[str] = []

    def opening(path: str, *, max_pixels: int) -> Photo:
        events.append(f"open {path}")
        return Photo(path, np.zeros((3, 4 if path == "large" else 3, 3), np.uint8))

    real_judge = judge.judge

    def judging(photo: Photo, limits: Limits, *, decode_ms: float) -> Any:
        time.sleep(0.05)  # in which the next photo would have been opened
        events.append(f"judged {photo.path}")
        return real_judge(photo, limits, decode_ms=decode_ms)

    judge.judge = judging
    checker = Checker(judge, LIMITS, open_photo=opening)
    assert [result.path for result in checker.check(["a", "large", "b"])] == ["a", "large", "b"]
    assert events == ["open a", "open large", "judged a", "judged large", "open b", "judged b"]


def test_a_result_is_out_before_the_next_photo_is_judged(checker: Checker, judge: Any) -> None:
    results = checker.check(["a", "b"])
    next(results)
    assert [path for path, _, _ in judge.calls] == ["a"]
    results.close()


def test_closing_early_ends_the_thread(checker: Checker, judge: Any) -> None:
    endless = (f"{number}" for number in iter(int, 1))
    results = checker.check(endless)
    next(results)
    assert _decoders()
    results.close()
    assert not _decoders()
    assert len(judge.calls) == 1


def test_check_one(checker: Checker) -> None:
    assert isinstance(checker.check_one("a"), Verdict)
    assert checker.check_one("missing") == Failure("missing", "not_found", "missing: no such file")
    assert not _decoders()
