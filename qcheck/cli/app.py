"""The commands, and the rule that `qcheck FILES...` is `qcheck check FILES...`."""

from functools import cache
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup
from typer.main import get_command

from qcheck.cli import exits
from qcheck.cli.check import check
from qcheck.cli.model import model
from qcheck.cli.schema import schema

DEFAULT_COMMAND: Final = "check"
HELP: Final = """Says how good a photo is and where it is broken: looks at the whole, zooms in, scores.

FILES are photos, or directories: the images in them, sorted by name.
"""
EXAMPLES: Final = """\b
Examples:
  qcheck photo.jpg
  qcheck --json photos/ > verdicts.json
  qcheck --fail-under 3 --fail-on motion_blur *.jpg

\b
Exit codes: 0 all passed, 1 a photo fails --fail-under or --fail-on,
2 usage, model or input error, also if only some photos could not be judged.

A file named like a command needs a path: qcheck ./schema
"""


class ReaderGone(Exception):
    """Whoever read our stdout has closed it; not an error of ours."""


class DefaultingGroup(TyperGroup):
    """A group that takes a first word which is no command of its own for an argument of `check`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help(), err=True)
            raise typer.Exit(exits.FAILED)
        if args and args[0].partition("=")[0] not in self._own_words(ctx):
            args = [DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            # typer would exit with 1, which is how a photo fails here
            raise ReaderGone from error

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Commands and options of the group, and the options of `check`, which may come first too."""
        return super().shell_complete(ctx, incomplete) + self._default(ctx).command.shell_complete(ctx, incomplete)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS] FILES... | COMMAND [ARGS]..."]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The help shows the options of `check`, the main job, before its own."""
        inner = self._default(ctx)
        for heading, owner, params in (
            ("Options", inner, inner.command.get_params(inner)),
            ("Other options", ctx, self.params),
        ):
            records = [param.get_help_record(owner) for param in params if param.param_type_name == "option"]
            with formatter.section(heading):
                formatter.write_dl([record for record in records if record])
        self.format_commands(ctx, formatter)

    def _default(self, ctx: Any) -> typer.Context:
        return typer.Context(self.commands[DEFAULT_COMMAND], info_name=DEFAULT_COMMAND, parent=ctx)

    def _own_words(self, ctx: Any) -> set[str]:
        return {*self.commands, *(name for param in self.get_params(ctx) for name in param.opts)}


app = typer.Typer(
    cls=DefaultingGroup,
    help=HELP,
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # plain help: the same on a terminal, in a pipe and in the documentation
    pretty_exceptions_enable=False,
)
app.command()(check)
app.command()(model)
app.command()(schema)


def _print_version(wanted: bool) -> None:
    if wanted:
        from qcheck import __version__

        typer.echo(f"qcheck {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options that come before a command."""


@cache
def command() -> Any:
    """The parsed form of `app`, with everything registered."""
    return get_command(app)
