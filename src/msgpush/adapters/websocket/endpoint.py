"""`GET /ws`: a request becomes a WebSocket, or a refusal that a browser's page can read.

A page can't see how a handshake was answered. So whatever is wrong with a request whose page is
welcome, the WebSocket opens, tells it, and closes with a code.
"""

import asyncio
import secrets
from collections.abc import Container

from starlette.types import Message, Receive, Scope, Send

from msgpush.adapters.http.operation import Operation, problem_answer, repeatable
from msgpush.adapters.http.origins import Strangers, is_welcome
from msgpush.adapters.http.problems import (
    ProblemResponse,
    deny,
    error_response,
    problem,
)
from msgpush.adapters.http.requests import header
from msgpush.adapters.http.sinks import SendSink, WireSink, has_wire
from msgpush.adapters.http.subscribing import (
    ADVICE,
    Admitted,
    StreamQuery,
    Wanted,
    admit,
    come_in,
    is_over,
    permitted,
    stream_parameters,
)
from msgpush.adapters.websocket.commands import Conversation, Means
from msgpush.adapters.websocket.frames import FrameSink, Reason, SocketView, code_of
from msgpush.domain.channel import check_channel
from msgpush.domain.connection import Connection
from msgpush.domain.errors import (
    BusUnavailable,
    Denied,
    KeysUnavailable,
    Malformed,
    MsgpushError,
    Overloaded,
    Unauthorized,
)
from msgpush.domain.ports import Sink
from msgpush.domain.position import LATEST
from msgpush.domain.quoting import short_repr
from msgpush.domain.service import Push

SUBPROTOCOL = "msgpush.v1"
LAST_WORD = 1.0  # seconds in which a client may take the last frames

_WHO_MAY = (
    "CORS_ORIGINS has the origins whose pages may; where a proxy serves the page, it must pass the"
    " Host on, and TRUSTED_PROXIES makes its scheme count"
)


class _Over(Exception):
    """The client was told never to come back."""


class Sockets:
    """The endpoint of WebSockets.

    Args:
        means: what the commands of their clients are done with.
        origins: of pages that may open one, beside the service's own.
    """

    def __init__(self, push: Push, means: Means, origins: Container[str]) -> None:
        self._push, self._means, self._origins = push, means, origins
        self._strangers = Strangers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _without_upgrade(scope)(scope, receive, send)
            return
        if (refused := self._stranger(scope)) is not None:
            await deny(error_response(refused), scope, receive, send)
            return
        await receive()  # the request itself
        view = SocketView(framed=has_wire(scope))
        try:
            wanted = _read(scope)
            grant = await permitted(self._means.auth, scope, wanted)
            admitted = await admit(self._push, scope, grant, wanted, view=view, transport="ws")
        except (_Over, MsgpushError) as error:
            await _accept(scope, send)
            await self._refuse(send, error)
            return
        await _accept(scope, send)
        heard: list[Message] = []
        id = secrets.token_hex(8)
        try:
            if not await come_in(self._push, admitted, id, lambda: _has_gone(receive, heard)):
                return
        except MsgpushError as error:
            await self._refuse(send, error)
            return
        # What follows is one call deep: each level costs every open connection half a kilobyte.
        socket = _Socket(self._push, self._means, id, admitted, passive=wanted.passive)
        if has_wire(scope):
            await socket.serve(WireSink(scope["extensions"]["msgpush.wire"]), receive, heard)
        else:
            await socket.serve_by_send(FrameSink(send), receive, heard)

    def _stranger(self, scope: Scope) -> Denied | None:
        """Why a request is refused whatever credentials it has: another page has made it."""
        origin = header(scope, b"origin")
        if origin is None or is_welcome(origin, scope, self._origins):
            return None
        error = self._strangers.refuse(
            f"a page of {short_repr(origin)} may not open one here", _WHO_MAY
        )
        self._means.on_error(error)
        return error

    async def _refuse(self, send: Send, error: Exception) -> None:
        """Tell a client why it isn't served, and close its WebSocket."""
        reason: Reason = "malformed"
        reconnect, detail = False, str(error)
        match error:
            case _Over():
                reason, detail = "disconnected", "this client was told never to come back"
            case Unauthorized():
                reason = "unauthorized"
            case Denied():
                reason = "denied"
            case Overloaded() | BusUnavailable() | KeysUnavailable():
                reason, reconnect, detail = "overload", True, ADVICE[error.reason]
                self._push.refused(error.reason)
        if isinstance(error, MsgpushError) and reason != "overload":
            self._means.on_error(error)
        told = SocketView().closing(reason, reconnect, detail).rstrip(b"\n")
        await send({"type": "websocket.send", "text": told.decode()})
        code = code_of(reason, reconnect)
        await send({"type": "websocket.close", "code": code, "reason": reason})


class _Socket:
    """An open WebSocket, until its client goes or the hub closes it."""

    __slots__ = ("_admitted", "_id", "_means", "_passive", "_push")

    def __init__(
        self, push: Push, means: Means, id: str, admitted: Admitted, *, passive: bool
    ) -> None:
        self._push, self._means, self._id, self._admitted = push, means, id, admitted
        self._passive = passive

    async def serve(self, sink: Sink, receive: Receive, heard: list[Message]) -> None:
        """Serve it by the wire: one task, which waits for what its client says."""
        connection, conversation = self._subscribe(sink)
        try:
            await self._listen(connection, conversation, receive, heard)
        finally:
            self._push.unsubscribe(connection)
        await conversation.end()

    async def serve_by_send(self, sink: SendSink, receive: Receive, heard: list[Message]) -> None:
        """Serve it by plain ASGI, where another task writes."""
        sink.writer = writer = asyncio.create_task(sink.write(), name=f"msgpush writer {self._id}")
        connection, conversation = self._subscribe(sink)
        reader = asyncio.create_task(
            self._listen(connection, conversation, receive, heard),
            name=f"msgpush reader {self._id}",
        )
        try:
            await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
            if sink.ended:
                await asyncio.wait((writer,), timeout=LAST_WORD)
        finally:
            self._push.unsubscribe(connection)
            reader.cancel()
            sink.abort()  # who waits for it waits no longer
            await asyncio.gather(reader, writer, return_exceptions=True)
        await conversation.end()
        if not reader.cancelled() and (error := reader.exception()) is not None:
            raise error

    def _subscribe(self, sink: Sink) -> tuple[Connection, Conversation]:
        grant, client, subscription, start = self._admitted
        connection = Connection(self._id, sink, client, grant=grant)
        self._push.subscribe(connection, subscription, start)
        assert isinstance(subscription.view, SocketView)
        view = subscription.view
        return connection, Conversation(self._means, connection, view, passive=self._passive)

    async def _listen(
        self,
        connection: Connection,
        conversation: Conversation,
        receive: Receive,
        heard: list[Message],
    ) -> None:
        """Do what a client says, until it goes, or says what makes no sense."""
        while True:
            await conversation.ready()
            message = heard.pop() if heard else await receive()
            if message["type"] == "websocket.disconnect" or not connection.attached:
                return  # what comes after the end isn't done
            text = message.get("text")
            if text is None:
                told = "a command is a text frame, of one JSON object"
                self._close(connection, "binary", told)
                return
            try:
                await conversation.hear(text)
            except Malformed as error:
                self._close(connection, "malformed", str(error))
                return
            await asyncio.sleep(0)  # however many have come: others have their turn

    def _close(self, connection: Connection, reason: Reason, detail: str) -> None:
        """End a connection for its client's mistake."""
        if connection.attached:
            view = self._admitted.subscription.view
            assert isinstance(view, SocketView)
            connection.sink.finish(view.closing(reason, True, detail))
            self._push.unsubscribe(connection)


def _without_upgrade(scope: Scope) -> ProblemResponse:
    """The answer to a request that asks for no WebSocket."""
    if scope["method"] not in ("GET", "HEAD"):
        return ProblemResponse(
            problem(405, "a WebSocket is opened with GET"), {"Allow": "GET, HEAD"}
        )
    told = "this is a WebSocket: ask for it with Upgrade: websocket; /sse/ has plain streams"
    return ProblemResponse(problem(426, told), {"Upgrade": "websocket", "Connection": "Upgrade"})


def _read(scope: Scope) -> Wanted:
    """Read a request's query.

    Raises:
        _Over: its client was told never to come back.
        Malformed: it makes no sense.
    """
    if is_over(scope):
        raise _Over
    query = StreamQuery(scope)
    named = query.all("channel")
    for parameter in ("user", "service"):
        for name in query.all(parameter):
            if not name:
                raise Malformed(f"the parameter {parameter} names nobody: it is empty")
            named.append(f"{parameter}:{name}")
    for each in named:
        check_channel(each)
    wanted = query.wanted(named)
    query.done()
    if wanted.cursor not in (None, LATEST) and not named:
        # What comes before channels are added would be passed over in silence.
        raise Malformed(
            "the parameter last_event_id continues the channels of the query, and this names none"
        )
    return wanted


async def _accept(scope: Scope, send: Send) -> None:
    offered = SUBPROTOCOL in scope.get("subprotocols", ())
    await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL if offered else None})


async def _has_gone(receive: Receive, heard: list[Message]) -> bool:
    """True if the client is known to have gone by now; what it has said is kept."""
    await asyncio.sleep(0)  # what the loop knows already the server is told first
    try:
        async with asyncio.timeout(0):
            heard.append(await receive())
    except TimeoutError:
        return False
    return bool(heard[0]["type"] == "websocket.disconnect")


_ABOUT = """\
A WebSocket (RFC 6455, subprotocol `msgpush.v1`, offered or not): a stream like any other, whose \
channels may change while it is open, and which takes acknowledgements and messages.

A page can't see how a handshake was answered: refusals come as `msgpush.close` on a WebSocket \
that opens and closes at once. But a page of another origin, which isn't in CORS_ORIGINS, gets 403.
"""
OPERATIONS = (
    Operation(
        "GET",
        "/ws",
        tag="Receive",
        id="webSocket",
        summary="Open a WebSocket",
        answers={
            101: {"description": _ABOUT},
            426: problem_answer(426, "The request doesn't ask for a WebSocket."),
        },
        problems=(405,),
        parameters=stream_parameters(
            repeatable("user", "A user, whose channel is listened to."),
            repeatable("service", "A service, all of whose messages are listened to."),
        ),
    ),
)
