"""`msgpush acknowledge` and `dead-letters`: messages that want an acknowledgement."""

from collections.abc import Iterator, Sequence
from urllib.parse import quote

import click
import msgspec
from msgspec import Raw, Struct

from msgpush.entrypoints.commands import show
from msgpush.entrypoints.commands.remote import Failed, Remote, talks_to_service

PAGE = 1000
KEYS = 1000  # that one request acknowledges
DEAD = "/api/v1/dead-letters"


class _Acknowledged(Struct):
    acknowledged: list[str]
    unknown: list[str]


@click.command(
    epilog="""\
\b
Example:
  msgpush acknowledge 123 importer/import-42-done
"""
)
@click.argument("user")
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@talks_to_service
def acknowledge(remote: Remote, user: str, keys: Sequence[str]) -> None:
    """Acknowledge messages for a user, so that they don't come again.

    A message's KEY is its service and id, as in importer/import-42-done. The exit status is 1 where
    one is unknown: it was withdrawn, or is another user's, or of more than a day ago.
    """
    path = f"/api/v1/users/{quote(user, safe='')}/acknowledgements"
    unknown: list[str] = []
    for start in range(0, len(keys), KEYS):
        body = remote.ask("POST", path, body={"keys": keys[start : start + KEYS]})
        unknown += remote.read(body, _Acknowledged).unknown
    if unknown:
        raise Failed(f"not waited for, of user {user}: {', '.join(unknown)}")


class DeadLetter(Struct):
    """A message that was given up."""

    message: Raw
    reason: str
    deliveries: int
    died_at: str


class _Page(Struct):
    dead_letters: list[DeadLetter]
    next: str | None


class _Name(Struct):
    service: str
    id: str
    target: dict[str, str] = {}


@click.group(
    "dead-letters",
    epilog="""\
\b
Example:
  msgpush dead-letters list --service importer
""",
)
def dead_letters() -> None:
    """List, redeliver or delete messages that were given up, since nobody acknowledged them."""


@dead_letters.command(
    "list",
    epilog="""\
\b
Example:
  msgpush dead-letters list --service importer
""",
)
@click.option("--service", required=True, help="Whose messages.")
@talks_to_service
def list_them(remote: Remote, service: str) -> None:
    """List a service's dead letters, the oldest first.

    A table on a terminal; elsewhere a line of JSON each, with the whole message.
    """
    titles = ("KEY", "USER", "REASON", "DELIVERIES", "DIED AT")
    show.rows(titles, _found(remote, service), _cells)


@dead_letters.command(
    epilog="""\
\b
Example:
  msgpush dead-letters redeliver importer/import-42-done
"""
)
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@talks_to_service
def redeliver(remote: Remote, keys: Sequence[str]) -> None:
    """Deliver dead letters again, at once, as often as new messages."""
    for path in map(_path, keys):
        remote.ask("POST", f"{path}/redeliver")


@dead_letters.command(
    epilog="""\
\b
Example:
  msgpush dead-letters delete importer/import-42-done
"""
)
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@talks_to_service
def delete(remote: Remote, keys: Sequence[str]) -> None:
    """Throw dead letters away."""
    for path in map(_path, keys):
        remote.ask("DELETE", path)


def _found(remote: Remote, service: str) -> Iterator[DeadLetter]:
    after: str | None = None
    while True:
        page = remote.get(DEAD, _Page, {"service": service, "limit": PAGE, "next": after})
        yield from page.dead_letters
        after = page.next
        if after is None:
            return


def _cells(each: DeadLetter) -> tuple[object, ...]:
    name = msgspec.json.decode(each.message, type=_Name)
    user = name.target.get("user_id", "-")
    return f"{name.service}/{name.id}", user, each.reason, each.deliveries, each.died_at


def _path(key: str) -> str:
    service, slash, id = key.partition("/")
    if not (service and slash and id):
        raise click.UsageError(f'"{key}" is no key: one is a service and an id, as in importer/42')
    return f"{DEAD}/{quote(service, safe='')}/{quote(id, safe='')}"
