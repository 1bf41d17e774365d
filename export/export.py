"""A bundle for `qcheck --model`, made of a Qwen2.5-VL-class checkpoint.

    python export/export.py CHECKPOINT OUT --precision int4

Exit codes: 0 it is there; 2 it is not, and one line says why; 130 interrupted. README.md has the options' meaning.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, get_args

from bundle import Settings, export
from decoder import FORMS
from precisions import PRECISIONS

from qcheck.contract import Dialect
from qcheck.errors import QcheckError

DONE: Final = 0
FAILED: Final = 2
INTERRUPTED: Final = 130
DIALECTS: Final = tuple(name for name in get_args(Dialect) if name != "probe-json")  # which is nano's
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
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    given = vars(parser().parse_args(arguments))
    checkpoint, out = given.pop("checkpoint"), given.pop("out")
    given["name"] = given["name"] or checkpoint.resolve().name
    try:
        bundle = export(checkpoint, out, Settings(**given))
    except QcheckError as error:
        print(f"export: error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    size = sum(file.bytes for file in bundle.contract.files.values())
    print(f"{bundle.directory}: {bundle.contract.precision}, {size / 1e6:.1f} MB, sha256 {bundle.sha256[:16]}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
