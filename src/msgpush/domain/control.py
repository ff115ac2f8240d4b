"""Commands to all instances: messages of a channel that no client can name.

They travel in the log as everything does, and each instance reads them as a client reads its
channels: whoever was away gets them when it is back, or a gap where the log has lost some
meanwhile."""

import asyncio
import logging
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct

from msgpush.domain.credentials import Revocation
from msgpush.domain.history import Gap
from msgpush.domain.message import CONTROL, Draft, Entry

CHANNEL = "/control"  # a slash can be in no client's channel
KEPT = 86_400  # seconds


class Close(Struct, frozen=True, tag="close"):
    """Close a connection, wherever it is."""

    id: str
    reconnect: bool


class Restored(Struct, frozen=True, tag="restored"):
    """The store of credentials has been given back what it had lost: read it again."""


Command = Close | Revocation | Restored

log = logging.getLogger("msgpush.delivery")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Command | None).decode


def command_draft(command: Command) -> Draft:
    """A command as the bus takes it."""
    return Draft("", "", (CHANNEL,), CONTROL, "msgpush", KEPT, _encode(command), None)


class Commands:
    """View and sink of an instance's own connection: each command is obeyed soon.

    Not at once: the hub, which would be changed, is in the middle of a sweep.

    Args:
        obey: gets each command, and None where some have been lost.
    """

    writable = True
    backlog = 0

    def __init__(self, obey: Callable[[Command | None], None]) -> None:
        self._obey = obey

    def opening(self, connection: str, channels: frozenset[str], cursor: str, **_: object) -> bytes:
        return b""

    def message(self, entry: Entry, cursor: str) -> bytes:
        return entry.body + b"\n"

    def pending(self, body: bytes) -> bytes:
        return b""  # it acts for nobody

    acknowledged = pending

    def gap(self, gap: Gap) -> bytes:
        return b"null\n"

    def heartbeat(self, cursor: str) -> bytes:
        return b""

    def close(self, reason: str, reconnect: bool, cursor: str) -> bytes:
        return b""

    def chunk(self, frames: Sequence[bytes]) -> bytes:
        return b"".join(frames)

    def offer(self, chunk: bytes) -> bool:
        for line in chunk.splitlines():
            try:
                command = _decode(line)
            except msgspec.MsgspecError:
                # Of a newer release, while instances are replaced one by one.
                log.warning("a command is not understood: %.200r", line)
                continue
            asyncio.get_running_loop().call_soon(self._obey, command)
        return True

    def finish(self, chunk: bytes) -> None:
        pass

    def abort(self) -> None:
        pass

    async def drained(self) -> bool:
        return True
