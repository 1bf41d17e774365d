"""`qcheck schema`: what a record may look like."""

import typer


def schema() -> None:
    """Print the JSON Schema of a record."""
    from qcheck.verdict import schema_text

    typer.echo(schema_text(), nl=False)
