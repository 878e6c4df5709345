"""Groups whose commands are imported when they are called, and not for help."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click


class SentencesGroup(click.Group):
    """A group whose help shows the first sentence of each command whole; click's cuts it off at a line."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write name and first sentence of every command."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(n, c.get_short_help_str(limit=1000)) for n, c in commands if c is not None])


class LazyGroup(click.Group):
    """A group with a table of commands: where each is, and what it does in a line."""

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        """Make it; all but `table` as for click's own.

        Args:
            table: By name: ``module:attribute`` of the click command, and the line of help.
        """
        super().__init__(*args, **kwargs)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the table."""
        return sorted(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of this name; None where there is none."""
        if cmd_name not in self._table:
            return None
        module, _, attribute = self._table[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C ends it with the exit status that shells give it, 130; click has 1."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort) as e:
            # A prompt makes an Abort of Ctrl-C, and of the end of the input.
            if isinstance(e, click.Abort) and not isinstance(e.__context__, KeyboardInterrupt):
                raise
            click.echo("\nAborted!", err=True)
            ctx.exit(130)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the lines of the table; click's own would import every command."""
        if self._table:
            with formatter.section("Commands"):
                formatter.write_dl(sorted((name, line) for name, (_, line) in self._table.items()))
