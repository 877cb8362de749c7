"""The click group of all commands, and `status` as a click command.

Commands are imported when they are used. A wrong command line exits 2 with a suggestion; bare `metricsd` is its
help. Errors of ours pass through to `metricsd.__main__`, which prints them.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import import_module

import click

from metricsd import __version__
from metricsd.cli import COMMANDS
from metricsd.errors import EXIT_USAGE


class LazyGroup(click.Group):
    """A group whose commands are the table's, imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        command = getattr(import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{entry.target} is not a command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else " `metricsd --help` lists them."
            raise click.UsageError(f"no such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="metricsd")
@click.pass_context
def app(ctx: click.Context) -> None:
    """Metrics of AI coding sessions: captured by hooks, kept on your machine, synced on your terms."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; fields are only added.")
@click.option("--metrics", is_flag=True, help="Print the daemon's own figures in Prometheus' text format.")
def status(as_json: bool, metrics: bool) -> int:
    """Show what runs, what waits, and why sync is off if it is.

    Exit codes: 0 ok, 3 degraded, 4 the daemon is not running, 5 the cloud wants a new login.
    """
    from metricsd.cli.status import print_metrics, run_status

    if metrics:
        return print_metrics()
    return run_status(as_json=as_json)


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        code = app.main(args=list(arguments), prog_name="metricsd", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code if error.exit_code != 1 else EXIT_USAGE
    except click.exceptions.Abort as error:
        raise KeyboardInterrupt from error
    return code if isinstance(code, int) and not isinstance(code, bool) else 0
