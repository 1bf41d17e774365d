"""How results look: for people, as one JSON array, or as JSON Lines. Each is on stdout as soon as it is known."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Literal, Protocol

import typer

from qcheck.errors import printable
from qcheck.verdict import Defect, Failure, Verdict

Format = Literal["human", "json", "jsonl"]
Paint = Callable[[str, str], str]  # text, colour -> text

LEVEL_COLOURS: Final = {"bad": "red", "poor": "red", "fair": "yellow", "good": "green", "excellent": "green"}
LEVEL_WIDTH: Final = max(map(len, LEVEL_COLOURS))


class Printer(Protocol):
    """Shows results one by one; `reasons`: why the result does not pass the gate."""

    def show(self, result: Verdict | Failure, reasons: Sequence[str]) -> None: ...


@contextmanager
def open_printer(output: Format) -> Iterator[Printer]:
    """The printer for a format; leaving it completes what has to be completed, also after an interrupt."""
    if output == "json":
        array = JsonArray()
        try:
            yield array
        except BrokenPipeError:
            raise  # nobody is left to read the end of the array
        except BaseException:
            array.close()
            raise
        array.close()
    elif output == "jsonl":
        yield JsonLines()
    else:
        yield Human(_paint if _in_colour() else _plain)


class JsonLines:
    """One record a line."""

    def show(self, result: Verdict | Failure, reasons: Sequence[str]) -> None:
        _print(_json(result))


class JsonArray:
    """One array, a record a line. Nothing is printed before the first record or `close`, so that a run which cannot
    start leaves stdout empty."""

    def __init__(self) -> None:
        self._started = False

    def show(self, result: Verdict | Failure, reasons: Sequence[str]) -> None:
        # The comma leads its line: behind a record it would have to wait for the next one, and the line's end with it.
        _print(("," if self._started else "[\n") + _json(result))
        self._started = True

    def close(self) -> None:
        _print("]" if self._started else "[]")


class Human:
    """A line a photo, then an indented line for each defect and each reason not to pass. Errors go to stderr."""

    def __init__(self, paint: Paint) -> None:
        self._paint = paint

    def show(self, result: Verdict | Failure, reasons: Sequence[str]) -> None:
        if isinstance(result, Failure):
            typer.echo(f"qcheck: {printable(result.message)} [{result.kind}]", err=True)
            return
        lines = [self._headline(result), *map(self._defect, result.defects)]
        lines += [f"  {self._paint('fails', 'red')}: {printable(reason)}" for reason in reasons]
        _print("\n".join(lines))

    def _headline(self, verdict: Verdict) -> str:
        probes = f"{verdict.budget.used} probe{'' if verdict.budget.used == 1 else 's'}"
        if verdict.budget.stopped_by == "budget_ms":
            probes += " (out of time)"
        grade = f"{verdict.score:.2f} ±{verdict.score_std:.2f} {verdict.level:<{LEVEL_WIDTH}}"
        fields = [
            self._paint(grade, LEVEL_COLOURS[verdict.level]),
            printable(verdict.path),
            f"{verdict.width}x{verdict.height}",
            probes,
            f"{verdict.timing_ms.total:.0f} ms",
        ]
        if runs := verdict.rollouts:
            fields.append(f"rollouts {runs.mean:.2f} ±{runs.std:.2f}")
        return "  ".join(fields)

    def _defect(self, defect: Defect) -> str:
        corners = ",".join(map(str, defect.box.as_list()))
        return f"  {printable(defect.kind)} {defect.level} [{corners}] {defect.confidence:.2f}"


def _json(result: Verdict | Failure) -> str:
    # ASCII only: the same bytes under every locale, and a file name that is not UTF-8 survives as an escape.
    return json.dumps(result.record(), allow_nan=False)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _in_colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _paint(text: str, colour: str) -> str:
    return typer.style(text, fg=colour)


def _plain(text: str, colour: str) -> str:
    return text
