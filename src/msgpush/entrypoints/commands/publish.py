"""`msgpush publish`: one message from flags, or many from stdin."""

import codecs
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import click
import httpx2
import msgspec
from msgspec import Raw

from msgpush.client.errors import MsgpushError, Rejected, Unavailable
from msgpush.client.exchange import Verdict
from msgpush.client.messages import TYPES, Priority, Sent, Type
from msgpush.client.publisher import Publisher
from msgpush.entrypoints.commands import show
from msgpush.entrypoints.commands.remote import WAITS, Failed, Remote, talks_to_service
from msgpush.entrypoints.output import on_terminal, safe

CHUNK = 1 << 18
LONGEST_LINE = 64 << 20
ONCE_MORE = 0.5  # seconds between two tries to reach a service
ITS_OWN = (400, 403, 409, 413, 422)  # what is wrong with one message, and not with the next
TOLD = 10  # refused lines that are told one by one


class _Json(click.ParamType[Raw]):
    """A JSON object, or `@` and the file that has it; `@-` is stdin."""

    name = "JSON|@FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Raw:
        text = value.encode(errors="surrogateescape")
        if value.startswith("@"):
            try:
                text = sys.stdin.buffer.read() if value == "@-" else Path(value[1:]).read_bytes()
            except OSError as error:
                self.fail(f"{value[1:]}: {error.strerror}", param, ctx)
        try:
            msgspec.json.decode(text, type=dict[str, Raw])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.fail(f"it must be a JSON object ({error})", param, ctx)
        return Raw(text)


def _targets(_: click.Context, __: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    targets = {}
    for each in values:
        kind, equals, value = each.partition("=")
        if not (kind and equals):
            raise click.BadParameter(f"{each} is not such as kb=kb789")
        targets[kind if kind.endswith("_id") else f"{kind}_id"] = value
    return targets


def _ack(_: click.Context, __: click.Parameter, value: str | None) -> Any:
    if value is None:
        return None
    try:
        return msgspec.json.decode(value, type=bool | dict[str, Any])
    except msgspec.DecodeError:
        raise click.BadParameter(
            """it must be alone, or JSON such as '{"deadline": 30, "deliveries": 5}'"""
        ) from None


@click.command(
    epilog="""\
\b
Examples:
  msgpush publish --type success --service importer --user 123 --data '{"documents": 20}'
  msgpush publish --type progress --service importer --channel imports --data '{"progress": 65}'
  msgpush publish --type info --service ops --broadcast --data '{"message": "Back at 5"}'
  msgpush publish --service importer < messages.ndjson
"""
)
@click.option("--type", type=click.Choice(TYPES), help="Without it, messages are read from stdin.")
@click.option("--service", metavar="NAME", help="Who publishes; of stdin, where a line has none.")
@click.option("--user", help="Whom it is for: target.user_id.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="KIND=VALUE",
    callback=_targets,
    help="Whom or what else it is for, as in kb=kb789; repeatable.",
)
@click.option("--channel", "channels", multiple=True, help="What it belongs to; repeatable.")
@click.option("--broadcast", is_flag=True, help="It is for everybody.")
@click.option("--data", type=_Json(), help="What it says; @- reads stdin.")
@click.option("--id", help="Its own; published again with the same id, it is stored once.")
@click.option("--ttl", type=int, metavar="SECONDS", help="How long it is kept.")
@click.option("--priority", type=click.Choice(get_args(Priority)))
@click.option(
    "--ack",
    is_flag=False,
    flag_value="true",
    metavar="[JSON]",
    callback=_ack,
    help="Deliver it again until its user has acknowledged it; JSON says how often.",
)
@WAITS
@talks_to_service
def publish(
    remote: Remote,
    type: str | None,
    service: str | None,
    broadcast: bool,
    wait: float,
    **given: Any,
) -> None:
    """Publish a message, or many from stdin.

    Without --type, each line of stdin is a message in JSON, as the service's API reads it.

    A message without an id gets one before it is sent. Once the service has been reached, it is
    tried again for 5 minutes where that may help, and stored once.
    """
    options = {name: value for name, value in given.items() if value not in (None, (), {})}
    if type is None:
        _check_stdin(options, broadcast=broadcast)
    elif service is None:
        raise click.UsageError("--service is missing: who publishes")
    _reach(remote, wait)
    with Publisher(remote.url, token=remote.token, service=service or "") as publisher:
        if type is None:
            _publish_lines(remote, publisher, service)
        else:
            _publish_one(remote, publisher, type, options, broadcast=broadcast)


def _check_stdin(options: Mapping[str, Any], *, broadcast: bool) -> None:
    flags = [*options, *(["broadcast"] if broadcast else [])]
    if flags:
        raise click.UsageError(
            f"--type is missing: --{flags[0].rstrip('s')} goes with it; a line of stdin says all of"
            " that itself"
        )
    if sys.stdin.isatty():
        raise click.UsageError("--type is missing, and on stdin there are no messages")


def _reach(remote: Remote, wait: float) -> None:
    """Raise `Unreachable` at once where nobody answers: a wrong URL isn't worth 5 minutes."""
    until = time.monotonic() + wait
    with remote.client() as client:
        while True:
            try:
                client.get(f"{remote.url}/health/live")
            except httpx2.HTTPError as error:
                if time.monotonic() >= until:
                    raise remote.unreachable(error) from None
                time.sleep(min(ONCE_MORE, until - time.monotonic()))
            else:
                return


def _publish_one(
    remote: Remote, publisher: Publisher, type: str, options: dict[str, Any], *, broadcast: bool
) -> None:
    named = {"targets": "target"}
    options = {named.get(name, name): value for name, value in options.items()}
    say = publisher.broadcast if broadcast else publisher.send
    try:
        sent = say(cast("Type", type), options.pop("data", None), **options)
    except MsgpushError as error:
        raise remote.failed(error) from None
    before = " (it was before)" if sent.duplicate else ""
    if on_terminal():
        click.echo(f"{safe(sent.key)} is published to {safe(', '.join(sent.channels))}{before}")
    else:
        click.echo(msgspec.json.encode(sent))


class _Line(NamedTuple):
    number: int
    message: dict[str, Any]


class _Tally:
    """What became of the lines."""

    def __init__(self) -> None:
        self.published = self.refused = 0
        self._first: list[tuple[int, str]] = []

    def refuse(self, number: int, why: str) -> None:
        self.refused += 1
        self._first = sorted([*self._first, (number, why)])[:TOLD]

    def tell(self) -> None:
        for number, why in self._first:
            show.note(f"line {number}: {why}")
        if self.refused > TOLD:
            show.note(f"and {self.refused - TOLD} more")
        if self.refused or sys.stderr.isatty():
            show.note(f"{self.published} published, {self.refused} refused")


def _publish_lines(remote: Remote, publisher: Publisher, service: str | None) -> None:
    """Publish what stdin has; a line that is refused holds none of the others up."""
    tally = _Tally()
    number = 0
    try:
        with _bar() as advance:
            for lines, size in _chunks(sys.stdin.fileno()):
                read = [
                    line
                    for number, text in enumerate(lines, number + 1)
                    if (line := _read(number, text, service, tally)) is not None
                ]
                number += len(lines)
                verdicts = publisher.batch([line.message for line in read])
                for line, verdict in zip(read, verdicts, strict=True):
                    _judge(remote, line.number, verdict, tally)
                advance(len(lines), size)
    finally:
        tally.tell()
    if tally.refused:
        raise click.exceptions.Exit(Failed.exit_code)


def _chunks(file: int) -> Iterator[tuple[list[bytes], int]]:
    """The lines of a file as they arrive, and the number of bytes with each chunk of them."""
    rest = bytearray()
    while chunk := os.read(file, CHUNK):
        first, newline, more = chunk.partition(b"\n")
        rest += first
        if len(rest) > LONGEST_LINE:
            raise Failed(f"a line has more than {LONGEST_LINE} bytes: is that NDJSON?")
        if not newline:
            yield [], len(chunk)
            continue
        *lines, last = more.split(b"\n")
        yield [bytes(rest), *lines], len(chunk)
        rest = bytearray(last)
    if rest:
        yield [bytes(rest)], 0


def _read(number: int, text: bytes, service: str | None, tally: _Tally) -> _Line | None:
    """A line's message, whose values stay as they are written; none, and counted, if it is none."""
    text = text.removeprefix(codecs.BOM_UTF8)
    if not text.strip():
        return None
    try:
        message: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        tally.refuse(number, f"it is no JSON object ({error})")
        return None
    for name in ("id", "service"):
        if name in message:
            message[name] = msgspec.json.decode(message[name])
    if not message.get("service") and not service:
        tally.refuse(number, "service is missing: give it in the line, or for all by --service")
        return None
    return _Line(number, message)


def _judge(remote: Remote, number: int, verdict: Verdict, tally: _Tally) -> None:
    """Count what became of a message; raises `Failed` where the next one would fare alike."""
    match verdict:
        case Sent():
            tally.published += 1
        case Rejected() if verdict.status in ITS_OWN:
            tally.refuse(number, str(remote.failed(verdict)))
        case Rejected() | Unavailable():
            error = remote.failed(verdict)
            raise type(error)(f"from line {number} on nothing was published: {error.message}")


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, if that is a terminal; it is told of lines and bytes."""
    status = os.fstat(sys.stdin.fileno())
    size = status.st_size if stat.S_ISREG(status.st_mode) else 0
    if not sys.stderr.isatty():
        yield lambda lines, bytes: None
    elif size:
        with click.progressbar(length=size, label="publishing", file=sys.stderr) as bar:
            yield lambda lines, bytes: bar.update(bytes)
    else:
        endless = click.progressbar(count(), label="publishing", file=sys.stderr, show_pos=True)
        with endless as bar:
            yield lambda lines, bytes: bar.update(lines)
