"""An observer that remembers what it was told."""

from collections.abc import Sequence

from msgpush.domain.connection import Connection
from msgpush.domain.errors import MsgpushError
from msgpush.domain.history import Gap
from msgpush.domain.message import Draft, Entry
from msgpush.domain.observer import Observer


class Recorder(Observer):
    """Remembers what happened, each with a word of what it happened to."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.deliveries: list[list[str]] = []  # the types of what was delivered together

    def accepted(self, drafts: Sequence[Draft]) -> None:
        self.events += [("accepted", draft.id) for draft in drafts]

    def rejected(self, error: MsgpushError, draft: Draft | None) -> None:
        self.events.append(("rejected", type(error).__name__))

    def delivered(self, entries: Sequence[Entry], streams: int) -> None:
        self.deliveries.append([entry.type for entry in entries])

    def refused(self, reason: str) -> None:
        self.events.append(("refused", reason))

    def opened(self, connection: Connection) -> None:
        self.events.append(("opened", connection.id))

    def closed(self, connection: Connection) -> None:
        why = connection.end.reason if connection.end else "gone"
        self.events.append(("closed", f"{connection.id} {why}"))

    def gap(self, connection: Connection, gap: Gap) -> None:
        self.events.append(("gap", f"{connection.id} {gap.reason}"))

    def draining(self) -> None:
        self.events.append(("draining", ""))
