"""The `msgpush` command: finds the command that is asked for, and says how it went."""

import importlib
import os
import sys
from collections.abc import MutableMapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem, shell_complete

from msgpush import __version__
from msgpush.entrypoints.output import complain, safe, standard_files

DONE, FAILED, ASKED_WRONGLY, INTERRUPTED = 0, 1, 2, 130
NAME = "msgpush"
COMPLETE = "_MSGPUSH_COMPLETE"  # how a shell asks what a line may go on with


class Place(NamedTuple):
    """Where a command is, and what is said of it: so the list of all imports none of them."""

    module: str
    help: str


COMMANDS = {
    "serve": Place("serve", "Run the service."),
    "publish": Place("publish", "Publish a message, or many from stdin."),
    "listen": Place("listen", "Show messages as they come."),
    "history": Place("history", "Show the messages that a channel keeps."),
    "connections": Place("connections", "List who is connected."),
    "disconnect": Place("connections", "Close a connection."),
    "stats": Place("connections", "Show how many are connected."),
    "acknowledge": Place("delivery", "Acknowledge messages for a user."),
    "dead-letters": Place("delivery", "List, redeliver or delete messages that were given up."),
    "push": Place("push", "Make keys for Web Push, or try a push."),
    "token": Place("token", "Issue a token, or say why one isn't accepted."),
    "doctor": Place("doctor", "Find out what is wrong on the way to a service."),
    "completion": Place("completion", "Print the completion script of a shell."),
}

EPILOG = """\
\b
Example:
  msgpush publish --type info --service me --channel demo --data '{"hello": "world"}'

\b
Each command has its own --help. Where the service is, and the token for it, are
read from MSGPUSH_URL and MSGPUSH_TOKEN. The exit status is 0: done, 1: failed or
refused, 2: asked wrongly, 3: the service couldn't be reached, 130: interrupted.
"""


class Commands(click.Group):
    """The commands of the table, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        try:
            module = importlib.import_module(f"msgpush.entrypoints.commands.{place.module}")
        except ImportError as error:
            if error.name != "httpx2" and "msgpush[client]" not in str(error):
                raise
            raise click.ClickException(
                f"{cmd_name} needs httpx2: pip install 'msgpush[client]'"
            ) from None
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name != "serve" and not all(map(_is_text, args)):
            # The settings of `serve` say themselves which of them it is.
            raise click.UsageError("the arguments are not in UTF-8")
        if name not in COMMANDS and not ctx.resilient_parsing:
            near = get_close_matches(name, COMMANDS, 1)
            advice = f"did you mean {near[0]}?" if near else "msgpush --help lists them all"
            raise click.UsageError(f'there is no command "{safe(name[:80])}"; {advice}')
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.help) for name, place in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[Any]]:
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [
            CompletionItem(name, help=place.help)
            for name, place in COMMANDS.items()
            if name.startswith(incomplete)
        ]


@click.command(
    cls=Commands,
    epilog=EPILOG,
    no_args_is_help=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name=NAME, message="%(prog)s %(version)s")
@click.pass_context
def commands(ctx: click.Context) -> None:
    """Real-time push: run the service, publish to it, listen to it, and see how it does."""
    if ctx.obj.get("NO_COLOR"):
        ctx.color = False
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        ctx.exit(ASKED_WRONGLY)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line, and exit with its status."""
    with standard_files():
        sys.exit(run(sys.argv[1:] if argv is None else argv, os.environ))


def run(argv: Sequence[str], environ: MutableMapping[str, str]) -> int:
    """Run one command; returns the exit status."""
    try:
        if instruction := environ.get(COMPLETE):
            return shell_complete(commands, {}, NAME, COMPLETE, instruction)
        # Not its `main`, which takes an end that nobody reads for a failure.
        with commands.make_context(NAME, list(argv), obj=environ) as ctx:
            commands.invoke(ctx)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        complain(error.format_message())  # the help itself
        return ASKED_WRONGLY
    except click.UsageError as error:
        complain(f"{_asked(error)}: {_sentence(error)}")
        return ASKED_WRONGLY
    except click.ClickException as error:
        complain(f"{NAME}: {safe(error.format_message())}")
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    return DONE


def _is_text(argument: str) -> bool:
    """Whether it can be sent: Python takes bytes that aren't UTF-8 for halves of characters."""
    return not any("\ud800" <= character <= "\udfff" for character in argument)


def _asked(error: click.UsageError) -> str:
    return error.ctx.command_path if error.ctx is not None else NAME


def _sentence(error: click.UsageError) -> str:
    """What was asked wrongly, and what to do, in one line."""
    text = safe(error.format_message()).rstrip(".")
    path = _asked(error)
    return text if path == NAME else f"{text} ({path} --help shows how)"
