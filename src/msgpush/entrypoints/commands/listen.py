"""`msgpush listen`: messages as they come."""

import asyncio
import os
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast, get_args

import click

from msgpush.client.errors import MsgpushError
from msgpush.client.events import Closed, Gap, Message, Opened
from msgpush.client.listener import Listener, ListenerOptions
from msgpush.client.messages import TYPES, Priority
from msgpush.entrypoints.commands import show
from msgpush.entrypoints.commands.remote import WAITS, Failed, Remote, talks_to_service
from msgpush.entrypoints.output import on_terminal

TICKET = "ticket_"  # how one begins


def _types(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...]:
    types = tuple(value.split(",")) if value else ()
    if unknown := [each for each in types if each not in TYPES]:
        raise click.BadParameter(f"{unknown[0]} is none of {', '.join(TYPES)}")
    return types


def _with_ticket(command: Any) -> Any:
    return talks_to_service(command, token_flags=("--token", "--ticket"))


@click.command(
    epilog="""\
\b
Examples:
  msgpush listen --user 123
  msgpush listen imports exports --types error,warning --since earliest
  msgpush listen demo | head -1
"""
)
@click.argument("channels", metavar="[CHANNEL]...", nargs=-1)
@click.option("--user", help="Hear what is for this user: the channel user:USER.")
@click.option("--service", help="Hear what this service publishes: the channel service:SERVICE.")
@click.option(
    "--since",
    metavar="CURSOR",
    help="Begin after this cursor, or with all that is retained: earliest. By default from now on.",
)
@click.option("--types", metavar="TYPE,...", callback=_types, help="Hear only these types.")
@click.option(
    "--priority",
    type=click.Choice(get_args(Priority)),
    help="Hear only messages of at least this priority.",
)
@click.option("--no-broadcast", is_flag=True, help="Don't hear what is for everybody.")
@click.option(
    "--as-user",
    is_flag=True,
    help="Count as one of the user's own clients: what wants an acknowledgement counts as written.",
)
@click.option(
    "--cursor-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the place here, and go on there the next time.",
)
@WAITS
@_with_ticket
def listen(
    remote: Remote,
    *,
    channels: Sequence[str],
    user: str | None,
    service: str | None,
    types: tuple[str, ...],
    no_broadcast: bool,
    as_user: bool,
    wait: float,
    **given: Any,
) -> None:
    """Show messages as they come, until it is interrupted.

    Text on a terminal; elsewhere a line of JSON each. When the connection breaks it is made again,
    and nothing is missed; where something was missed all the same, stderr says so.
    """
    options = cast(
        "ListenerOptions",
        {
            "channels": channels,
            "user": user,
            "service": service,
            "types": types,
            "broadcast": not no_broadcast,
            "passive": not as_user,
            **_shown(remote),
            **given,
        },
    )
    remote.client().close()  # what the environment lacks is told, and not raised by the listener
    try:
        listener = Listener(remote.url, **options)
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error)) from None
    try:
        asyncio.run(_listen(remote, listener, wait))
    except MsgpushError as error:
        raise remote.failed(error) from None


def _shown(remote: Remote) -> dict[str, Any]:
    """What the service is shown: a ticket goes into the query, the only place where it counts."""
    if remote.token and remote.token.startswith(TICKET):
        return {"http": {"params": {"token": remote.token}}}
    return {"token": remote.token}


async def _listen(remote: Remote, listener: Listener, wait: float) -> None:
    """Show what comes, until nobody reads it any longer."""
    loop = asyncio.get_running_loop()
    unread = loop.create_future()
    showing = asyncio.ensure_future(_show(remote, listener, wait))
    if stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode):
        # A pipe that is written to becomes readable when its reader goes: so that is known at once,
        # and not at the next message.
        loop.add_reader(sys.stdout, unread.cancel)
    await asyncio.wait([showing, unread], return_when=asyncio.FIRST_COMPLETED)
    loop.remove_reader(sys.stdout)
    if unread.done():
        showing.cancel()
        with suppress(asyncio.CancelledError, BrokenPipeError):
            await showing
    else:
        await showing


async def _show(remote: Remote, listener: Listener, wait: float) -> None:
    """Show what comes.

    Raises:
        Failed: the service has ended the stream for good.
        Unreachable: the service isn't there at first, and not in time.
    """
    opened = False
    why = ""
    try:
        async with listener, asyncio.timeout(None) as patience:
            async for event in listener:
                match event:
                    case Message():
                        show.message(event.raw.encode())
                    case Gap():
                        show.gap(event)
                    case Opened():
                        patience.reschedule(None)
                        _tell_opened(event, again=opened)
                        opened = True
                    case Closed(reconnect=False):
                        raise Failed(f"the service has ended the stream: {event.reason}")
                    case Closed(reason="lost") if not opened:
                        why = event.detail
                        patience.reschedule(asyncio.get_running_loop().time() + wait)
                    case Closed():
                        show.note(f"the stream has ended ({_reason(event)}); trying again")
    except TimeoutError:
        raise remote.unreachable(why) from None


def _tell_opened(event: Opened, *, again: bool) -> None:
    if again:
        show.note("it goes on")
    elif on_terminal():
        show.note(f"listening to {', '.join(event.channels)}; Ctrl-C ends it")


def _reason(event: Closed) -> str:
    return event.detail or event.reason
