"""WebSocket (RFC 6455): what a client is sent, as text frames of one JSON object each; and a sink
over plain ASGI.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec
from msgspec import Struct
from starlette.types import Message
from websockets.frames import Close, Frame, Opcode

from msgpush.adapters.http.sinks import SendSink
from msgpush.domain.errors import Ending
from msgpush.domain.history import Gap
from msgpush.domain.message import Entry

# Why a connection ends: as the hub says, or before it began, or by a mistake of its client.
Reason = Ending | Literal["overload", "malformed", "binary", "unauthorized", "denied"]

CODES: Mapping[str, int] = {
    "drain": 1001,
    "binary": 1003,
    "overload": 1013,
    "slow": 1013,
    "malformed": 4400,
    "unauthorized": 4401,
    "expired": 4401,
    "denied": 4403,
    "revoked": 4403,
    "disconnected": 4410,
}
AGAIN = 1001  # instead of 4410, where its client is welcome again

_DETAILS: Mapping[str, str] = {
    "drain": "this process is about to end: the next try may reach another",
    "slow": "nothing that was sent has been read for too long",
    "expired": "the token has expired",
    "revoked": "the token has been revoked",
    "disconnected": "an operator has closed the connection, or another one uses its ticket",
}

_encode = msgspec.json.Encoder().encode


class SocketView(Struct, frozen=True):
    """A client that reads WebSocket frames.

    Args:
        framed: whether they are framed for the wire already; else they are lines, one each.
    """

    framed: bool = False

    def text(self, json: bytes) -> bytes:
        """A text frame that has this JSON."""
        return Frame(Opcode.TEXT, json).serialize(mask=False) if self.framed else json + b"\n"

    def opening(
        self,
        connection: str,
        channels: frozenset[str],
        cursor: str,
        *,
        resumed: bool,
        heartbeat: float,
    ) -> bytes:
        interval = int(heartbeat) if heartbeat == int(heartbeat) else heartbeat
        data = _Opening(connection, sorted(channels), resumed, interval)
        return self._event(b"msgpush.open", _encode(data), cursor)

    def message(self, entry: Entry, cursor: str) -> bytes:
        return self._event(b"message", entry.body, cursor)

    def pending(self, body: bytes) -> bytes:
        return self._event(b"message", body)

    def acknowledged(self, body: bytes) -> bytes:
        return self._event(b"msgpush.acknowledged", body)

    def gap(self, gap: Gap) -> bytes:
        # No id: what is missing can't be continued after.
        return self._event(b"msgpush.gap", _encode(gap))

    def heartbeat(self, cursor: str) -> bytes:
        return self._event(b"msgpush.heartbeat", b"{}", cursor)

    def close(self, reason: str, reconnect: bool, cursor: str) -> bytes:
        return self.closing(reason, reconnect, _DETAILS[reason], cursor)

    def closing(self, reason: str, reconnect: bool, detail: str, cursor: str = "") -> bytes:
        """The last frames of a connection; a cursor in them is terminal."""
        data = _encode(_Closing(reason, reconnect, detail))
        told = self._event(b"msgpush.close", data, cursor)
        if not self.framed:
            return told
        close = Close(code_of(reason, reconnect), reason).serialize()
        return told + Frame(Opcode.CLOSE, close).serialize(mask=False)

    def chunk(self, frames: Sequence[bytes]) -> bytes:
        return b"".join(frames)

    def _event(self, name: bytes, data: bytes, id: str = "") -> bytes:
        if not id:
            return self.text(b'{"event":"%b","data":%b}' % (name, data))
        # A cursor has no character that JSON would escape.
        return self.text(b'{"event":"%b","id":"%b","data":%b}' % (name, id.encode(), data))


class _Opening(Struct):
    connection: str
    channels: list[str]
    resumed: bool
    heartbeat: float


class _Closing(Struct):
    reason: str
    reconnect: bool
    detail: str


def code_of(reason: str, reconnect: bool) -> int:
    """The code of the close frame (RFC 6455, section 7.4) that goes with a reason."""
    return AGAIN if reason == "disconnected" and reconnect else CODES[reason]


class _Told(Struct):
    data: _Closing


_told = msgspec.json.Decoder(_Told).decode


class FrameSink(SendSink):
    """A sink over plain ASGI that passes on one frame after the other."""

    def messages(self, body: bytes) -> Iterable[tuple[int, Message]]:
        for line in body.split(b"\n")[:-1]:
            self._line = line
            yield len(line) + 1, {"type": "websocket.send", "text": line.decode()}

    def last(self) -> Message:
        # What was passed on last says why it ends.
        data = _told(self._line).data
        code = code_of(data.reason, data.reconnect)
        return {"type": "websocket.close", "code": code, "reason": data.reason}
