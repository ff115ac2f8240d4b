"""Request ids: each answer tells its request's (`X-Request-Id`), and so does each line of the log
that belongs to it."""

import random
import re
from collections.abc import Awaitable

from starlette.types import Message, Scope, Send

from msgpush.adapters.logs import REQUEST_ID

NAME = b"x-request-id"
HEADER = "X-Request-Id"
RULE = "[A-Za-z0-9._~-]{1,128}"

_is_safe = re.compile(RULE.encode()).fullmatch
_number = random.Random().getrandbits  # they tell nobody how many there were, and guard nothing
# Annotations within a function are evaluated each time that it runs: this one costs nothing.
Sent = Awaitable[None]
_STARTS = frozenset(("http.response.start", "websocket.accept", "websocket.http.response.start"))


def id_of(headers: list[tuple[bytes, bytes]]) -> bytes:
    """A request's id: what the client says, where that is safe to repeat; else a new one."""
    for name, value in headers:
        if name == NAME:
            return value if _is_safe(value) else new_id()
    return new_id()


def new_id() -> bytes:
    """An id that no other request has."""
    return _number(64).to_bytes(8, "big").hex().encode()


def identified(scope: Scope, send: Send) -> Send:
    """Give a request its id; returns what sends its answer with it."""
    id = id_of(scope["headers"])
    REQUEST_ID.set(id.decode())
    told = (NAME, id)

    def send_with_id(message: Message) -> Sent:
        # Not a coroutine of its own: that would cost each part of an answer a microsecond.
        if message["type"] in _STARTS:
            message["headers"] = [*message.get("headers", ()), told]
        return send(message)

    return send_with_id
