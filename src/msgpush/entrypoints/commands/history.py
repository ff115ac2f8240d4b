"""`msgpush history`: what is retained of a channel."""

from urllib.parse import quote

import click
from msgspec import Raw, Struct

from msgpush.client.events import Gap
from msgpush.entrypoints.commands import show
from msgpush.entrypoints.commands.remote import Remote, talks_to_service

PAGE = 1000


class _Page(Struct):
    messages: list[Raw]
    cursor: str
    gap: Gap | None = None


@click.command(
    epilog="""\
\b
Example:
  msgpush history user:123 --last 10
"""
)
@click.argument("channel")
@click.option("--last", type=click.IntRange(1, PAGE), help="Only the newest so many.")
@click.option("--after", metavar="CURSOR", help="Only those after this cursor.")
@talks_to_service
def history(remote: Remote, channel: str, last: int | None, after: str | None) -> None:
    """Show the messages that a channel keeps, the oldest first.

    Text on a terminal; elsewhere a line of JSON each. Where some are missing, stderr says so.
    """
    if last and after:
        raise click.UsageError("--last and --after exclude each other")
    path = f"/api/v1/channels/{quote(channel, safe=':')}/messages"
    if last:
        _show(remote.get(path, _Page, {"last": last}))
        return
    while True:
        page = remote.get(path, _Page, {"after": after, "limit": PAGE})
        _show(page)
        if not page.messages or page.cursor == after:
            return
        after = page.cursor


def _show(page: _Page) -> None:
    if page.gap is not None:
        show.gap(page.gap)
    for each in page.messages:
        show.message(bytes(each))
