"""`msgpush doctor`: talks to a URL as a client would, and says what is wrong on the way."""

from collections.abc import Callable, Sequence
from contextlib import closing
from urllib.parse import urlsplit

import click

from msgpush.entrypoints.commands.examination import Examination
from msgpush.entrypoints.commands.remote import Remote, talks_to_service
from msgpush.entrypoints.output import safe

COLORS = {"ok": "green", "wrong": "red", "not tried": "yellow"}


def _of_url(command: Callable[..., None]) -> Callable[..., None]:
    return talks_to_service(command, url_argument=True)


def _origin(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    parts = urlsplit(value)
    if not (parts.scheme and parts.netloc) or parts.path.strip("/") or parts.query:
        raise click.BadParameter("an origin is such as https://app.example.com")
    return value.rstrip("/")


@click.command(
    epilog="""\
\b
Example:
  msgpush doctor http://127.0.0.1:8089 --user 123 --origin https://app.example.com
"""
)
@click.option("--channel", "channels", multiple=True, help="Try to listen to it; repeatable.")
@click.option("--user", help="Try to listen to this user's channel.")
@click.option(
    "--origin",
    callback=_origin,
    metavar="ORIGIN",
    help="Try whether this origin's pages may use it.",
)
@click.option("--websocket", is_flag=True, help="Try a WebSocket, too.")
@click.option(
    "--timeout",
    type=click.FloatRange(0.1),
    default=5.0,
    metavar="SECONDS",
    help="How long anything may take.  [5]",
)
@_of_url
def doctor(
    remote: Remote,
    *,
    channels: Sequence[str],
    user: str | None,
    origin: str | None,
    websocket: bool,
    timeout: float,
) -> None:
    """Find out what is wrong on the way to a service.

    URL is where clients find it; by default MSGPUSH_URL. It is tried whether there is a msgpush,
    whether its clock is right, whether a stream opens and events arrive at once, and whether the
    token is accepted. For that a message is published to a channel that nobody else listens to.

    Each line says what was tried, and what to do where it is wrong. The exit status is 0 where all
    is well, and 1 where something is wrong.
    """
    names = [*channels, *([f"user:{user}"] if user is not None else [])]
    sick = False
    with closing(Examination(remote, timeout)) as examination:
        for line in examination.run(names, origin, websocket=websocket):
            sick = sick or line.kind == "wrong"
            click.echo(f"{click.style(f'{line.kind:9}', fg=COLORS[line.kind])} {safe(line.text)}")
    if sick:
        raise click.exceptions.Exit(1)
