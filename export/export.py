"""A bundle for `qcheck --model`, made of a Qwen2.5-VL-class checkpoint.

    python export/export.py CHECKPOINT OUT --precision int4

Before the bundle gets its name it is compared with the checkpoint in transformers, as verify.py does it.

Exit codes: 0 it is there; 1 it does not say what the checkpoint says, and is not kept; 2 something else was wrong, and
one line says what; 130 interrupted. README.md has the options' meaning.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, get_args

from bundle import Settings, export, size_of
from checkpoint import Checkpoint
from decoder_graph import FORMS
from errors import NotVerified
from precisions import ALGORITHMS, BLOCKS, PRECISIONS, Provider, Quantisation, refusal
from trials import MOST_PHOTOS, made, of_folder

from qcheck.bundle import Bundle
from qcheck.contract import Dialect
from qcheck.errors import QcheckError, UsageError

DONE: Final = 0
NOT_VERIFIED: Final = 1
FAILED: Final = 2
INTERRUPTED: Final = 130
DIALECTS: Final = tuple(name for name in get_args(Dialect) if name != "probe-json")  # which is nano's
PROVIDERS: Final = get_args(Provider)
DEFAULTS: Final = {field.name: field.default for field in fields(Settings)}


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def names(text: str) -> tuple[str, ...]:
    """Of letters, digits and _, between commas."""
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    if not all(name.replace("_", "").isalnum() and name.isascii() for name in found):
        raise ValueError
    return found


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a directory with config.json and safetensors"
    )
    made.add_argument("out", type=Path, metavar="OUT", help="where the bundle is to be; must not exist")
    made.add_argument("--precision", required=True, choices=tuple(PRECISIONS))

    def option(name: str, **how: Any) -> None:
        made.add_argument(f"--{name}", default=DEFAULTS[name.replace("-", "_")], **how)

    option("form", choices=tuple(FORMS), help="of the decoder's graph; default %(default)s")
    option("dialect", choices=DIALECTS, help="how the checkpoint speaks; default %(default)s")
    option("version", help="what records call this version of the model; default %(default)s")
    for name, of in (("global-pixels", "the view of the whole"), ("crop-pixels", "a crop")):
        option(name, type=positive, metavar="N", help=f"the most pixels of {of}; default %(default)s")
    option("think-tokens", type=positive, metavar="N", help="thought at most in one turn; default %(default)s")
    option("max-tokens", type=positive, metavar="N", help="room of a conversation; default %(default)s")
    for name in ("kinds", "attributes"):
        option(name, type=names, metavar="A,B,...", help=f"{name} that qwen-chat is asked for; default: nano's")
    made.add_argument("--name", help="what records call the model; default: the checkpoint's directory")
    made.add_argument("--algorithm", choices=tuple(ALGORITHMS), default="rtn", help="of int8 and int4; default rtn")
    made.add_argument("--block", type=int, choices=BLOCKS, default=BLOCKS[0], help="of int8 and int4; default 32")
    made.add_argument(
        "--symmetric", action=argparse.BooleanOptionalAction, help="whether blocks of int8 and int4 have their own 0"
    )
    made.add_argument("--calibration", type=Path, metavar="FOLDER", help="photos, which gptq needs")
    made.add_argument(
        "--provider", choices=PROVIDERS, default="cpu", help="of ONNX Runtime that is to run it; default %(default)s"
    )
    made.add_argument("--photos", type=Path, metavar="FOLDER", help="to verify with; default: a few made-up pictures")
    option("threads", type=positive, metavar="N", help="to calibrate and verify with; default: what engines take")
    made.add_argument("--no-verify", action="store_true", help="keep the bundle without a comparison")
    return made


class Verification:
    """What a bundle has to pass before it is kept. `photos`: a folder, or None for made-up pictures."""

    def __init__(self, checkpoint: Path, settings: Settings, photos: Path | None) -> None:
        """Raises ExportError where it could not be done later, after hours perhaps."""
        import verify  # here, because it loads transformers, which an export alone does not need

        self._verify, self._photos, self._threads = verify.verify, photos, settings.threads
        self._pictures()
        opened = Checkpoint.open(checkpoint)
        bundle_bytes = size_of(opened.architecture, settings.parts)
        beside = verify.memory_of(bundle_bytes, opened, settings.precision)
        verify.check_memory(opened, beside, "leave it out with --no-verify")

    def _pictures(self) -> Any:
        return made() if self._photos is None else of_folder(self._photos, MOST_PHOTOS)

    def __call__(self, bundle: Bundle, checkpoint: Checkpoint) -> None:
        """Prints how close they are. Raises NotVerified if that is not close enough."""
        found = self._verify(bundle, checkpoint, self._pictures(), threads=self._threads)
        print(found.table())
        if not found.passed:
            raise NotVerified(f"{found.verdict}; the bundle is not kept (--no-verify would)")


def main(arguments: Sequence[str] | None = None) -> int:
    given = vars(parser().parse_args(arguments))
    checkpoint, out, photos = (given.pop(name) for name in ("checkpoint", "out", "photos"))
    unseen, provider = given.pop("no_verify"), given.pop("provider")
    how = {name: given.pop(name) for name in ("algorithm", "block", "symmetric", "calibration")}
    given["name"] = given["name"] or checkpoint.resolve().name
    try:
        if why := refusal(given["precision"], given["form"], provider):
            raise UsageError(f"--provider {provider}: {why}")
        settings = Settings(**given, quantisation=Quantisation(**how))
        settings.quantisation.check(settings.precision)
        if settings.quantisation.calibration is not None:
            of_folder(settings.quantisation.calibration, 1)  # before anything else, because it is needed late
        if unseen and photos is not None:
            raise UsageError("--photos: are to verify with; leave them out, or --no-verify")
        checks = () if unseen else (Verification(checkpoint, settings, photos),)
        bundle = export(checkpoint, out, settings, *checks)
    except NotVerified as error:
        print(f"export: error: {error}", file=sys.stderr)
        return NOT_VERIFIED
    except QcheckError as error:
        print(f"export: error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    told = ", not verified" if unseen else ""
    size = sum(file.bytes for file in bundle.contract.files.values())
    print(f"{bundle.directory}: {bundle.contract.precision}, {size / 1e6:.1f} MB, sha256 {bundle.sha256[:16]}{told}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
