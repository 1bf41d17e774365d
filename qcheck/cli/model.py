"""`qcheck model`: who judges."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qcheck.contract import Contract


def model(
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The bundle to describe; if not given, the embedded nano.")
    ] = None,
) -> None:
    """Print what a model is: its identity and its card."""
    from qcheck.bundle import Bundle

    bundle = Bundle.open(model)
    card = bundle.contract.files.get("card")
    typer.echo(identity(bundle.contract, bundle.sha256))
    if card is not None:
        text = (bundle.directory / card.path).read_text(encoding="utf-8")
        typer.echo(f"\n{text.rstrip()}")


def identity(contract: "Contract", sha256: str) -> str:
    """What a record says about its model, and what the model can say, a field a line; `sha256` is the contract's."""
    fields = {
        "name": contract.name,
        "version": contract.version,
        "sha256": sha256,
        "licence": contract.licence,
        "precision": contract.precision,
        "kinds": ", ".join(contract.kinds) or "none",
        "attributes": ", ".join(contract.attributes) or "none",
    }
    return "\n".join(f"{label + ':':<12}{value}" for label, value in fields.items())
