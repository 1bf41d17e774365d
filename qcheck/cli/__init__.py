"""The command line. Only here does qcheck print or exit."""

from qcheck.cli.run import main

__all__ = ["main"]
