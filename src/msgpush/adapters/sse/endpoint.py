"""`GET /sse/...`: a request becomes a stream, or a refusal that an EventSource survives."""

import re
import secrets
from typing import Literal
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from msgpush.adapters.http.callers import Authenticator
from msgpush.adapters.http.operation import Json, Operation, content, parameter
from msgpush.adapters.http.problems import ProblemResponse, problem
from msgpush.adapters.http.requests import path_tail
from msgpush.adapters.http.sinks import has_wire
from msgpush.adapters.http.subscribing import (
    REFUSED,
    TYPES_PATTERN,
    StreamQuery,
    admit,
    is_over,
    permitted,
    read_types,
    stream_parameters,
)
from msgpush.adapters.sse.stream import HEADERS, EventStream, EventView, refusal
from msgpush.domain.channel import (
    NAME_CHARACTER,
    NAME_RULE,
    encode_name,
    encoding_advice,
    is_channel,
    no_channel,
)
from msgpush.domain.errors import Malformed
from msgpush.domain.message import TYPES
from msgpush.domain.service import Push

Kind = Literal["stream", "user", "service"]

# What polyfills add besides: against caches, and to ask for padding that only old browsers need.
POLYFILLS = re.compile(r"_|[rt]\Z|evs_")

STREAM_EXAMPLE = """\
retry: 2750
event: msgpush.open
id: 1lgbdur5w.1753859399000-0
data: {"connection":"9f2c51b7a0d4e863","channels":["user:user123"],"resumed":false,"heartbeat":30}

event: progress
data: {"task_id":"task_abc123","progress":65,"stage":"embedding"}
id: 1lgbdur5w.1753859400123-0

"""

_STREAM = """\
Server-Sent Events. The types in `events` come as events of that name with the message's `data` \
alone; all others come without a name, as whole messages. (The event of `error` is named \
`message.error`.) Besides, there are

- `msgpush.open`: the stream has begun; `id` is a cursor already;
- `msgpush.heartbeat`: a sign of life, with the cursor now;
- `msgpush.acknowledged`: `{"keys", "state"}`: a client of the user has acknowledged these \
messages, or their publisher has withdrawn them (`acknowledged`, `withdrawn`);
- `msgpush.gap`: `{"channel", "after", "reason"}`: messages are missing \
(`trimmed`, `expired`, `reset`);
- `msgpush.close`: `{"reason", "reconnect"}`: the server ends the stream \
(`drain`, `overload`, `slow`, `expired`, \
`disconnected`, `revoked`).

Where no more streams can be served, the answer is 200 all the same: `retry`, and \
`msgpush.close` with `overload`.
"""
_PARAMETERS = stream_parameters(
    parameter(
        "events",
        "Types that come as events of their name; `*`: all; `none`: none.",
        pattern=rf"^(\*|none|{TYPES_PATTERN})$",
    )
)


def _described(path: str, id: str, summary: str, names: str, pattern: str) -> list[Operation]:
    """GET and HEAD of one kind of stream; `names`: what stands at the end of its path."""
    name = path.rpartition("{")[2].removesuffix("}")
    parameters = [parameter(name, names, "path", pattern=pattern), *_PARAMETERS]
    headers = {
        name: {"schema": {"const": value}}
        for name, value in (
            ("Cache-Control", "no-store, no-transform"),
            ("X-Accel-Buffering", "no"),
        )
    }
    events = content("text/event-stream", {"type": "string"}, example=STREAM_EXAMPLE)
    got: Json = {"description": _STREAM, "headers": headers, "content": events}
    head: Json = {
        "description": "There is such a stream.",
        "headers": headers,
        "content": {"text/event-stream": {}},
    }
    over = {"description": "The cursor is terminal: this client was told never to come back."}
    return [
        Operation(
            "GET",
            path,
            tag="Receive",
            id=id,
            summary=summary,
            answers={200: got, 204: over},
            parameters=parameters,
        ),
        Operation(
            "HEAD",
            path,
            tag="Receive",
            id=f"{id}Head",
            summary=f"{summary}: only the headers",
            answers={200: head, 204: over},
            parameters=parameters,
        ),
    ]


OPERATIONS = (
    *_described(
        "/sse/stream/{channel}",
        "stream",
        "Listen to channels",
        f"A channel, or several, separated by commas. Each: {NAME_RULE}.",
        f"^{NAME_CHARACTER}{{1,200}}(,{NAME_CHARACTER}{{1,200}})*$",
    ),
    *_described(
        "/sse/user/{user_id}",
        "userStream",
        "Listen to a user's channel",
        "The user.",
        f"^{NAME_CHARACTER}{{1,195}}$",
    ),
    *_described(
        "/sse/service/{service_name}",
        "serviceStream",
        "Listen to all messages of a service",
        "The publishing service.",
        f"^{NAME_CHARACTER}{{1,192}}$",
    ),
)


class Streams:
    """The endpoint of one kind of stream.

    Args:
        kind: whether the path names channels, a user or a service.
        default_events: types that come as events of their name where the client doesn't choose.
    """

    def __init__(
        self,
        kind: Kind,
        push: Push,
        auth: Authenticator,
        *,
        default_events: frozenset[str],
    ) -> None:
        self._kind, self._push, self._auth = kind, push, auth
        self._default_events = default_events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The order of refusals is part of the contract.
        if is_over(scope):
            await Response(status_code=204)(scope, receive, send)
        elif scope["method"] not in ("GET", "HEAD"):
            response = ProblemResponse(
                problem(405, "a stream is read with GET"), {"Allow": "GET, HEAD"}
            )
            await response(scope, receive, send)
        elif (stream := await self._open(scope, send)) is not None:
            # From here, not from deeper down: each level costs every open stream half a kilobyte.
            await stream(scope, receive, send)

    async def _open(self, scope: Scope, send: Send) -> EventStream | None:
        """Read and check a request; returns its stream, unless it is answered already."""
        query = StreamQuery(scope)
        wanted = query.wanted(self._named(scope))
        events = query.one("events")
        query.done(POLYFILLS)
        view = EventView(
            self._default_events if events is None else read_events(events),
            chunked=has_wire(scope),
        )
        try:
            grant = await permitted(self._auth, scope, wanted)
            if scope["method"] == "HEAD":
                await _answer(send, b"")
                return None
            admitted = await admit(self._push, scope, grant, wanted, view=view, transport="sse")
        except REFUSED as error:
            # Never a 5xx or 429: a native EventSource would give up for good.
            self._push.refused(error.reason)
            await _answer(send, refusal(error.reason))
            return None
        return EventStream(self._push, secrets.token_hex(8), admitted)

    def _named(self, scope: Scope) -> list[str]:
        """The channels that the path names."""
        kind = self._kind
        names = path_tail(scope, f"/sse/{kind}/")
        if not names:
            raise Malformed(f"the path ends before the name: /sse/{kind}/<name>")
        channels = names.split(",") if kind == "stream" else [f"{kind}:{names}"]
        for channel in channels:
            if not is_channel(channel):
                # Elsewhere a comma separates names.
                advice = "" if kind == "stream" else encoding_advice(names)
                if advice:
                    advice += f", and in this path /sse/{kind}/{quote(encode_name(names), safe='')}"
                raise Malformed(no_channel(channel, advice))
        return channels


async def _answer(send: Send, body: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": body})


def read_events(text: str) -> frozenset[str]:
    """The types that come as events of their name: a list of types, `*` for all, `none` for none.

    Raises:
        Malformed: something else.
    """
    if text == "*":
        return frozenset(TYPES)
    if text == "none":
        return frozenset()
    return read_types("events", text, also=" (or *, or none)")
