"""How messages and other answers are shown: lines of JSON for programs, and text for people."""

from collections.abc import Iterable, Sequence
from typing import Any

import click
import msgspec
from msgspec import Raw, Struct

from msgpush.client.events import Gap
from msgpush.entrypoints.output import on_terminal, safe, table

COLORS = {
    "error": "red",
    "warning": "yellow",
    "success": "green",
    "progress": "blue",
    "status": "cyan",
}


class Shown(Struct):
    """What is shown of a message."""

    type: str = ""
    service: str = ""
    timestamp: str = ""
    target: dict[str, str] = {}
    channels: tuple[str, ...] = ()
    data: Raw = Raw(b"{}")


_decode = msgspec.json.Decoder(Shown).decode


def message(raw: bytes) -> None:
    """Show a message: as it is, or as a person reads it."""
    if not on_terminal():
        click.echo(raw)
        return
    told = _decode(raw)
    date, _, time = told.timestamp.removesuffix("Z").partition("T")
    color = COLORS.get(told.type)
    targets = (f"{kind.removesuffix('_id')}:{value}" for kind, value in told.target.items())
    whom = " ".join([*targets, *told.channels])
    data = safe(bytes(told.data).decode())
    click.echo(
        f"{click.style(f'{date} {time}', dim=True)}  {click.style(f'{told.type:8}', fg=color)}"
        f"  {click.style(safe(told.service), bold=True)}"
        f"{click.style(f' -> {safe(whom)}', dim=True) if whom else ''}  {data}"
    )


def rows(titles: Sequence[str], items: Iterable[Any], cells: Any) -> None:
    """Show structs: a line of JSON each, or a table.

    Args:
        cells: gives the cells of an item's row.
    """
    if on_terminal():
        click.echo(table(titles, [cells(each) for each in items]))
        return
    for each in items:
        click.echo(msgspec.json.encode(each))


def one(item: Any, lines: Sequence[tuple[str, object]]) -> None:
    """Show one struct: as JSON, or what it says line by line."""
    if not on_terminal():
        click.echo(msgspec.json.encode(item))
        return
    width = max(len(safe(name)) for name, _ in lines)
    for name, value in lines:
        click.echo(f"{safe(name):{width}}  {safe(str(value))}")


def gap(gap: Gap) -> None:
    """Say, on stderr, that messages are missing here."""
    where = f" of {gap.channel}" if gap.channel else ""
    note(f"messages{where} are missing here: {gap.reason}")


def note(text: str) -> None:
    """Say something beside the output, on stderr."""
    click.echo(f"msgpush: {safe(text)}", err=True)
