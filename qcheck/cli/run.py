"""`main`, the console script: runs a command and turns every way it can end into one line and an exit code."""

import contextlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence

import typer

from qcheck.cli import exits
from qcheck.cli.app import ReaderGone, command
from qcheck.errors import QcheckError

DEBUG_VARIABLE = "QCHECK_DEBUG"


def main(args: Sequence[str] | None = None) -> int:
    """Run `qcheck` with `args` (None: those of the process) and return its exit code."""
    debug = os.environ.get(DEBUG_VARIABLE) == "1"
    with _log_to_stderr() if debug else contextlib.nullcontext():
        return _run(args, debug)


def _run(args: Sequence[str] | None, debug: bool) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without the character must not end the run
    try:
        code = command().main(args, prog_name="qcheck", standalone_mode=False)
        sys.stdout.flush()
        return int(code or exits.PASSED)
    except typer.TyperException as error:
        return _refused(error)
    except QcheckError as error:
        return _failed(f"error: {error}")
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except (ReaderGone, BrokenPipeError):
        _silence_stdout()
        return exits.READER_GONE
    except OSError as error:  # a full disk behind stdout, say: the machine's trouble, nothing to report to us
        return _failed(f"error: {error}")
    except Exception as error:
        if debug:
            traceback.print_exc()
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return _failed(f"internal error: {reason} (please report; {DEBUG_VARIABLE}=1 shows the traceback)")


def _refused(error: typer.TyperException) -> int:
    """A command line that does not parse: what is wrong, and where to read more."""
    _failed(f"error: {error.format_message()}")
    context: typer.Context | None = getattr(error, "ctx", None)
    if context is not None:
        typer.echo(f"Try '{context.command_path} --help' for help.", err=True)
    return exits.FAILED


def _failed(line: str) -> int:
    typer.echo(f"qcheck: {line}", err=True)
    return exits.FAILED


@contextlib.contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Whoever called `main` may close stderr later, and go on."""
    log, handler = logging.getLogger("qcheck"), logging.StreamHandler()
    before = log.level
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def _silence_stdout() -> None:
    """Let the interpreter flush what is left into nowhere, or it would complain about the pipe on its way out."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
