"""`qcheck check FILES...`: judge photos, print a record each, and gate on the results."""

from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from qcheck.cli import exits

MAX_PIXELS: Final = 200_000_000  # photo.DEFAULT_MAX_PIXELS, which would load numpy for --help; a test compares them


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"


Files = Annotated[
    list[str], typer.Argument(metavar="FILES", help="Photos, or directories: the images in them, sorted by name.")
]
MaxProbes = Annotated[
    int, typer.Option(metavar="N", min=0, max=64, help="Most places to zoom into; 0 is a single pass.")
]
BudgetMs = Annotated[
    float | None,
    typer.Option(metavar="MS", min=1, help="Stop zooming after this many milliseconds; results may then vary."),
]
Rollouts = Annotated[
    int,
    typer.Option(metavar="K", min=0, max=64, help="Also report mean and spread of the score over K sampled runs."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON array, a record a line.")]
AsJsonl = Annotated[bool, typer.Option("--jsonl", help="Print JSON Lines: one record a line.")]
FailUnder = Annotated[
    float | None, typer.Option(metavar="SCORE", min=1, max=5, help="Exit with 1 if a photo scores less.")
]
FailOn = Annotated[
    list[str] | None,
    typer.Option(metavar="KIND", help="Exit with 1 if a photo has this defect, or `any`. May be repeated."),
]
Model = Annotated[
    Path | None, typer.Option(metavar="DIR", help="The model bundle to judge with; if not given, the embedded nano.")
]
DeviceChoice = Annotated[Device, typer.Option(help="Where to run; auto takes the best there is.")]
Threads = Annotated[int | None, typer.Option(metavar="N", min=1, help="CPU threads.")]
MaxPixels = Annotated[int, typer.Option(metavar="N", min=1, help="Refuse larger photos, in pixels.")]
FastDecode = Annotated[
    bool,
    typer.Option("--fast-decode", help="Decode JPEGs no larger than the view needs; scores may differ a little."),
]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Also look below the directories.")]


def check(
    files: Files,
    max_probes: MaxProbes = 3,
    budget_ms: BudgetMs = None,
    rollouts: Rollouts = 0,
    as_json: AsJson = False,
    as_jsonl: AsJsonl = False,
    fail_under: FailUnder = None,
    fail_on: FailOn = None,
    recursive: Recursive = False,
    model: Model = None,
    device: DeviceChoice = Device.AUTO,
    threads: Threads = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    fast_decode: FastDecode = False,
) -> None:
    """Judge photos. This is what qcheck does with FILES when no command is named."""
    from qcheck.checker import Checker, Limits  # here: numpy and the model's runtime are not for --help
    from qcheck.cli.gate import Gate
    from qcheck.cli.output import Format, open_printer
    from qcheck.errors import UsageError
    from qcheck.inputs import expand
    from qcheck.verdict import Failure

    if as_json and as_jsonl:
        raise UsageError("--json and --jsonl exclude each other; give one")
    limits = Limits(max_probes=max_probes, budget_ms=budget_ms, rollouts=rollouts)
    checker = Checker.open(
        model,
        limits=limits,
        device=device.value,
        threads=threads,
        max_pixels=max_pixels,
        fast_decode=fast_decode,
    )
    gate = Gate.of(fail_under, fail_on or [], known=checker.kinds)
    code = exits.PASSED
    output: Format = "json" if as_json else "jsonl" if as_jsonl else "human"
    with open_printer(output) as printer, closing(checker.check(expand(files, recursive=recursive))) as results:
        for result in results:
            reasons = gate.reasons(result)
            printer.show(result, reasons)
            # FAILED is the larger code, so it wins over GATED.
            code = max(code, exits.FAILED if isinstance(result, Failure) else exits.GATED if reasons else exits.PASSED)
    raise typer.Exit(code)
