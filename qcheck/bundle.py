"""A model on disk: the contract, the files it names, and their checksums, verified before anything is loaded."""

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from qcheck.contract import CONTRACT_FILE, Contract, sha256_of
from qcheck.embeddings import Embeddings, read_safetensor
from qcheck.errors import BundleError
from qcheck.verdict import ModelInfo

EMBEDDED: Final = "nano"
PARTS: Final = ("vision", "decoder", "embeddings", "tokenizer", "card")
GRAPHS: Final = ("vision", "decoder")
EMBEDDINGS_TENSOR: Final = "embeddings"
_READ_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle: every file is there, of the right size, with the right sha256."""

    directory: Path
    contract: Contract
    sha256: str  # of the contract's text, which pins every file

    @classmethod
    def open(cls, directory: Path | None = None) -> "Bundle":
        """The bundle in `directory`, or the embedded nano. Raises BundleError."""
        if directory is None:
            directory = Path(str(files("qcheck").joinpath("models", EMBEDDED)))
        path = directory / CONTRACT_FILE
        if not directory.is_dir():
            raise BundleError(f"no model bundle at {directory}: it is not a directory")
        try:
            text = path.read_text(encoding="utf-8")
        except OSError:
            raise BundleError(f"no model bundle at {directory}: it has no readable {CONTRACT_FILE}") from None
        except UnicodeDecodeError:
            raise BundleError(f"{path} is not UTF-8 text; get the bundle again") from None
        contract = Contract.from_json(text)
        missing = [part for part in PARTS if part not in contract.files]
        if missing:
            raise BundleError(f"{path} names no file for {', '.join(missing)}")
        for entry in contract.files.values():
            _verify(directory, entry.path, entry.bytes, entry.sha256)
        listed = {entry.path for entry in contract.files.values()}
        for part in GRAPHS:  # the runtime reads a graph's data by itself, so no such file may go unchecked
            data = data_name(contract.files[part].path)
            if data not in listed and (directory / data).exists():
                raise BundleError(f"{path} does not list {data}; the bundle was changed, get it again")
        return cls(directory, contract, sha256_of(text))

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(self.contract.name, self.contract.version, self.sha256)

    def path(self, part: str) -> Path:
        """Where a part (one of PARTS) lies."""
        return self.directory / self.contract.files[part].path

    def card(self) -> str:
        """The model card, Markdown."""
        return self.path("card").read_text(encoding="utf-8")

    def embeddings(self) -> Embeddings:
        """(vocabulary, hidden) token embeddings. Raises BundleError."""
        table = read_safetensor(self.path("embeddings"), EMBEDDINGS_TENSOR)
        if table.ndim != 2:
            raise BundleError(f"{self.path('embeddings')} holds embeddings of {table.ndim} dimensions instead of 2")
        return Embeddings(table)


def data_name(graph: str) -> str:
    """Where the large constants of a graph lie that is in the file `graph`."""
    return f"{graph}.data"


def _verify(directory: Path, name: str, size: int, sha256: str) -> None:
    path = directory / name
    if Path(name).name != name:
        raise BundleError(f"{CONTRACT_FILE} names {name!r}, which is not a plain file name inside the bundle")
    try:
        found = path.stat().st_size
        if found != size:
            raise BundleError(f"{path} has {found} bytes and should have {size}; the bundle is damaged, get it again")
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror or error}); get the bundle again") from None
    except ValueError:  # a NUL or a lone surrogate in the name
        raise BundleError(f"{CONTRACT_FILE} names {name!r}, which cannot be a file") from None
    if digest.hexdigest() != sha256:
        raise BundleError(f"{path} does not match its checksum; the bundle is damaged or was changed, get it again")
