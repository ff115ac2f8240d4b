"""`msgpush connections`, `disconnect` and `stats`: who is connected, and the end of that."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import click
from msgspec import Struct

from msgpush.entrypoints.commands import show
from msgpush.entrypoints.commands.remote import Remote, talks_to_service

PATH = "/api/v1/connections"
PAGE = 1000


class Connection(Struct):
    """A live connection, as the service tells it."""

    id: str
    node: str
    subject: str | None
    transport: str
    channels: tuple[str, ...]
    remote: str
    user_agent: str
    connected_at: str
    messages_sent: int
    bytes_sent: int
    state: str
    lag: int


class _Page(Struct):
    connections: list[Connection]
    next: str | None


@click.command(
    epilog="""\
\b
Example:
  msgpush connections --user 123
"""
)
@click.option("--user", "users", multiple=True, help="Those that listen to this user's channel.")
@click.option("--service", "services", multiple=True, help="To this service's.")
@click.option("--channel", "channels", multiple=True, help="To this channel.")
@click.option("--subject", help="Those of this subject (a token's sub).")
@click.option("--node", help="Those at this instance.")
@click.option("--limit", type=click.IntRange(1), help="So many at most; by default all.")
@talks_to_service
def connections(remote: Remote, limit: int | None, **filters: Any) -> None:
    """List who is connected, at all instances; needs a token with `admin`.

    A table on a terminal; elsewhere a line of JSON each.
    """
    query = {name.removesuffix("s"): value for name, value in filters.items()}
    found = _found(remote, query, limit)
    titles = ("ID", "STATE", "TRANSPORT", "SUBJECT", "REMOTE", "SINCE", "SENT", "CHANNELS")
    show.rows(titles, found, _cells)


def _found(remote: Remote, query: dict[str, Any], limit: int | None) -> Iterator[Connection]:
    left = limit
    after: str | None = None
    while left is None or left > 0:
        asked = {**query, "limit": min(PAGE, left or PAGE), "next": after}
        page = remote.get(PATH, _Page, asked)
        yield from page.connections
        left = None if left is None else left - len(page.connections)
        after = page.next
        if after is None:
            return


def _cells(each: Connection) -> tuple[object, ...]:
    return (
        each.id,
        each.state,
        each.transport,
        each.subject or "-",
        each.remote,
        each.connected_at,
        each.messages_sent,
        " ".join(each.channels),
    )


@click.command(
    epilog="""\
\b
Example:
  msgpush disconnect --final 4f1c2e9ab0d35c77
"""
)
@click.argument("id")
@click.option("--final", is_flag=True, help="Its client is told not to come back.")
@talks_to_service
def disconnect(remote: Remote, id: str, final: bool) -> None:
    """Close a connection, wherever it is; needs a token with `admin`.

    ID is as `msgpush connections` tells it.
    """
    query = {"reconnect": "false"} if final else None
    remote.ask("DELETE", f"{PATH}/{quote(id, safe='')}", query)


class _Stats(Struct):
    total: int
    peak: int
    by_node: dict[str, int] = {}
    by_transport: dict[str, int] = {}
    by_channel_kind: dict[str, int] = {}
    by_state: dict[str, int] = {}


@click.command(
    epilog="""\
\b
Example:
  msgpush stats
"""
)
@talks_to_service
def stats(remote: Remote) -> None:
    """Show how many are connected, at all instances; needs a token with `admin`.

    A table on a terminal; elsewhere JSON.
    """
    told = remote.get(f"{PATH}/stats", _Stats)
    show.one(told, [("total", told.total), ("peak", told.peak), *_groups(told)])


def _groups(told: _Stats) -> Iterator[tuple[str, int]]:
    groups = {
        "node": told.by_node,
        "transport": told.by_transport,
        "channel kind": told.by_channel_kind,
        "state": told.by_state,
    }
    for group, counts in groups.items():
        for name, count in counts.items():
            yield f"{group} {name}", count
