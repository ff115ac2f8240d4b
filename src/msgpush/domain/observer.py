"""The observer: told what happens, so that it can be counted."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from msgpush.domain.connection import Connection
from msgpush.domain.devices import Kind
from msgpush.domain.errors import MsgpushError
from msgpush.domain.history import Gap
from msgpush.domain.message import Draft, Entry

Source = Literal["ring", "bus"]


class Observer:
    """Is told what happens, and ignores it; others count. Nothing here waits, or raises."""

    def accepted(self, drafts: Sequence[Draft]) -> None:
        """Messages are in the bus, none of them for the second time."""

    def rejected(self, error: MsgpushError, draft: Draft | None) -> None:
        """A message was refused, or not stored; without a draft, before it was known as one."""

    def stored(self, seconds: float) -> None:
        """The bus has answered a publish, of one message or of several, after so long."""

    def delivered(self, entries: Sequence[Entry], streams: int) -> None:
        """So many of a set of like connections have taken these entries, live; one at least.

        Not what is caught up on, nor what this instance reads itself."""

    def caught_up(self, connection: Connection, entries: Sequence[Entry], source: Source) -> None:
        """A connection that was behind has taken these entries, which were read from there."""

    def refused(self, reason: str) -> None:
        """A stream was refused."""

    def opened(self, connection: Connection) -> None:
        """A client's connection is served from now on."""

    def closed(self, connection: Connection) -> None:
        """A client's connection is served no longer; its `end` says why, if that is known here."""

    def gap(self, connection: Connection, gap: Gap) -> None:
        """A client was told that messages are missing."""

    def acknowledged(self, service: str, type: str, seconds: float) -> None:
        """A client has acknowledged a message, so long after it was accepted; once each."""

    def redelivered(self, drafts: Sequence[Draft]) -> None:
        """Messages that nobody has acknowledged were appended once more."""

    def died(self, service: str, type: str, reason: str) -> None:
        """A message was given up, and is a dead letter now; once each."""

    def buried(self, service: str) -> None:
        """A dead letter went, since its time was up, or for want of room."""

    def pushed(self, service: str, type: str, kind: Kind, outcome: str, seconds: float) -> None:
        """A device's provider was sent a message, and has answered so, after so long."""

    def draining(self) -> None:
        """No new streams are taken, and those that are open end."""

    def swept(self, seconds: float, messages: int) -> None:
        """A sweep has given sets of like connections so many messages, or begun to."""

    def probed(self, seconds: float) -> None:
        """A sign of life has come back from the bus, so long after it was written."""


class Observers(Observer):
    """Tells several observers; each is called for what it has a method of its own for."""

    def __init__(self, *observers: Observer) -> None:
        for name in (each for each in vars(Observer) if not each.startswith("_")):
            own = [
                getattr(each, name)
                for each in observers
                if getattr(type(each), name) is not getattr(Observer, name)
            ]
            if len(own) == 1:
                setattr(self, name, own[0])  # what one alone wants to know costs no further call
            elif own:
                setattr(self, name, _all(own))


def _all(told: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def tell(*what: Any) -> None:
        for each in told:
            each(*what)

    return tell


IGNORANT = Observer()
