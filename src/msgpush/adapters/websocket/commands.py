"""What a client says on an open WebSocket, and the answers.

A command is done when it is read, and answered at once. Publishes and acknowledgements wait for the
bus: they begin in order, each in a task of its own, and are answered when they are done. While an
answer waits for the socket, or as many of them are under way as may be, nothing more is read.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from msgpush.adapters.http.acknowledgements import read_keys, take_acknowledgements
from msgpush.adapters.http.callers import Authenticator
from msgpush.adapters.http.problems import Problem, problem
from msgpush.adapters.http.publish import store_one, take_one, traceparent_of
from msgpush.adapters.http.requests import no_field
from msgpush.adapters.http.subscribing import users_served
from msgpush.adapters.http.tracing import IDLE, Tracing
from msgpush.adapters.websocket.frames import SocketView
from msgpush.domain.channel import (
    BROADCAST,
    MAX_LISTENED,
    NAME_RULE,
    USER,
    encode_name,
    is_channel,
    no_channel,
)
from msgpush.domain.connection import Connection
from msgpush.domain.errors import Denied, Fault, Invalid, Malformed, MsgpushError, TooLarge
from msgpush.domain.grant import Grant
from msgpush.domain.json_text import mask_surrogates, unreadable
from msgpush.domain.message import Draft, parse
from msgpush.domain.ports import Limiter
from msgpush.domain.quoting import short_repr
from msgpush.domain.service import Push

UNDER_WAY = 16  # publishes and acknowledgements of one connection
MAX_REF = 64  # characters

log = logging.getLogger("msgpush.http")

_encode = msgspec.json.Encoder().encode
_fields = msgspec.json.Decoder(dict[str, Raw]).decode
# A number that no float can hold is one all the same.
_value = msgspec.json.Decoder(float_hook=float).decode


class Listening(Struct):
    """The answer to a change of channels: those that are listened to from here on.

    `left` are those that a new token doesn't allow."""

    channels: list[str]
    left: list[str] | msgspec.UnsetType = msgspec.UNSET


class Means(NamedTuple):
    """What commands are done with.

    `max_bytes` are those of a message, and `on_error` is told of each error that a command is
    answered with."""

    push: Push
    auth: Authenticator
    publishing: Limiter | None
    acknowledging: Limiter | None
    max_bytes: int
    on_error: Callable[[MsgpushError], None]
    tracing: Tracing = IDLE


class Command(NamedTuple):
    """A command as it was read: its name and value, and what the answer repeats of it."""

    name: str
    value: Raw
    user: Raw | None
    ref: bytes | None


class Refused(Exception):
    """A command that can't be read, though it is a JSON object; it is answered all the same."""

    def __init__(self, error: MsgpushError, ref: bytes | None) -> None:
        super().__init__(error)
        self.error, self.ref = error, ref


class Conversation:
    """The commands of one connection.

    Args:
        passive: whether the connection only looks on: it acts for nobody, whatever it listens to.
    """

    __slots__ = ("_connection", "_means", "_order", "_passive", "_tasks", "_unsaid", "_view")

    def __init__(
        self, means: Means, connection: Connection, view: SocketView, *, passive: bool
    ) -> None:
        self._means, self._connection, self._view = means, connection, view
        self._passive = passive
        self._unsaid = 0  # answers that wait for the socket
        # Made when they are needed: most connections never are.
        self._tasks: set[asyncio.Task[None]] | None = None
        self._order: asyncio.Lock | None = None

    async def ready(self) -> None:
        """Wait until another command may be read."""
        while self._tasks is not None and len(self._tasks) >= UNDER_WAY:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        while self._unsaid:
            if not await self._connection.sink.drained():
                return
            await asyncio.sleep(0)  # those who wait write first

    async def end(self) -> None:
        """Wait until what has begun is done: a publish isn't taken back since its client goes."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def hear(self, text: str) -> None:
        """Do what a client says, or begin to, and answer.

        Raises:
            Malformed: it is no JSON object. All other errors are answered.
        """
        try:
            command = read_command(text)
        except Refused as refused:
            await self._refuse(refused.error, refused.ref)
            return
        match command.name:
            case "publish":
                self._begin(self._publish(command.value), command.ref)
            case "acknowledge":
                self._begin(self._acknowledge(command.value, command.user), command.ref)
            case _:
                await self._answer(self._do(command), command.ref)

    async def _do(self, command: Command) -> Any:
        if command.name == "token":
            return await self._renew(command.value)
        self._means.push.check(self._connection.grant)
        if command.name == "subscribe":
            return self._subscribe(command.value)
        if command.name == "unsubscribe":
            return self._unsubscribe(command.value)
        return {}  # to a ping

    # Answers

    def _begin(self, work: Coroutine[Any, Any, Any], ref: bytes | None) -> None:
        if self._tasks is None:
            self._tasks, self._order = set(), asyncio.Lock()
        task = asyncio.create_task(
            self._answer(work, ref), name=f"msgpush command {self._connection.id}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, work: Coroutine[Any, Any, Any], ref: bytes | None) -> None:
        try:
            done = await work
        except MsgpushError as error:
            await self._refuse(error, ref)
        except Exception:
            # As of a request: the details go to the log alone.
            log.exception("a command has failed")
            await self._say(b"error", _encode(problem(500, "the server has made a mistake")), ref)
        else:
            await self._say(b"ok", _encode(done), ref)

    async def _refuse(self, error: MsgpushError, ref: bytes | None) -> None:
        self._means.on_error(error)
        await self._say(b"error", _encode(Problem.of(error)), ref)

    async def _say(self, kind: bytes, told: bytes, ref: bytes | None) -> None:
        named = b"" if ref is None else b'"ref":%b,' % ref
        frame = self._view.text(b'{%b"%b":%b}' % (named, kind, told))
        connection = self._connection
        self._unsaid += 1
        try:
            while connection.attached and not connection.sink.offer(frame):
                if not await connection.sink.drained():
                    return
        finally:
            self._unsaid -= 1
        connection.bytes_sent += len(frame)

    # Channels

    def _subscribe(self, value: Raw) -> Listening:
        connection = self._connection
        wanted = connection.channels | _read_channels("subscribe", value)
        if (number := len(wanted - {BROADCAST})) > MAX_LISTENED:
            told = f"{number} channels with those that it has; a connection has at most"
            raise Invalid(Fault("/subscribe", f"{told} {MAX_LISTENED}"))
        connection.grant.check_listen(wanted - connection.channels)
        return self._listen(wanted)

    def _unsubscribe(self, value: Raw) -> Listening:
        return self._listen(self._connection.channels - _read_channels("unsubscribe", value))

    def _listen(self, channels: frozenset[str]) -> Listening:
        """Listen to these channels from here on, for whom the grant lets it act."""
        connection = self._connection
        if connection.cohort is not None:
            users = frozenset() if self._passive else users_served(channels, connection.grant)
            former = connection.cohort.subscription
            wanted = replace(former, channels=channels, acts_for=users)
            self._means.push.change(connection, wanted)
        return Listening(sorted(channels))

    # The token

    async def _renew(self, value: Raw) -> Listening:
        token = _decode("token", value)
        if not isinstance(token, str):
            raise Invalid(Fault("/token", f"{short_repr(token)} is no token: it must be a string"))
        connection = self._connection
        if connection.grant.ticket is not None:
            raise Denied(
                "the connection was opened with a ticket, which can't be renewed: reconnect with a"
                " new one"
            )
        grant = await self._means.auth.read(token)
        _check_renewal(connection.grant, grant)
        self._means.push.renew(connection, grant)
        left = grant.not_listened(connection.channels)
        answer = self._listen(connection.channels - {*left})
        answer.left = sorted(left)
        return answer

    # Messages

    async def _publish(self, value: Raw) -> Any:
        push, grant = self._means.push, self._connection.grant
        draft: Draft | None = None
        assert self._order is not None
        try:
            async with self._order:
                push.check(grant)
                body = bytes(value)
                if len(body) > self._means.max_bytes:
                    raise TooLarge("the message", self._means.max_bytes)
                message = parse(body)
                draft = push.draft(message)
                grant.check_publish(draft.channels)
                if self._means.publishing is not None:
                    await take_one(self._means.publishing, grant)
        except MsgpushError as error:
            push.rejected(error, draft)
            raise
        # Nothing has waited since it was its turn: it is the next one that the bus is given.
        # The handshake's trace isn't the message's, which comes whenever it does.
        tracing = None if self._means.tracing.idle else self._means.tracing
        return await store_one(push, draft, tracing, traceparent_of(message))

    async def _acknowledge(self, value: Raw, named: Raw | None) -> Any:
        push, grant = self._means.push, self._connection.grant
        assert self._order is not None
        async with self._order:
            push.check(grant)
            keys = read_keys(_decode("acknowledge", value), "/acknowledge")
            user = _read_user(named, grant)
            grant.check_act(user)
            if self._means.acknowledging is not None and grant.subject is not None:
                await take_acknowledgements(self._means.acknowledging, grant.subject, len(keys))
        return await push.redelivery.acknowledge(user, keys)


COMMANDS = ("subscribe", "unsubscribe", "acknowledge", "publish", "token", "ping")


def read_command(text: str) -> Command:
    """The command that a text frame has.

    Raises:
        Malformed: it is no JSON object.
        Refused: it is one, and no command.
    """
    body = text.encode()
    try:
        given = _fields(body)
    except msgspec.ValidationError:
        raise Malformed(f"a command is a JSON object, not {short_repr(text)}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise _unread(body, error) from None
    ref = None
    try:
        if (found := given.pop("ref", None)) is not None:
            ref = _read_ref(found)
        user = given.pop("user", None)
        (name, value), *others = given.items() or ((None, None),)
        for each in given:
            if each not in COMMANDS:
                raise no_field(each, f"a command: there are {', '.join(COMMANDS)}")
        if name is None or value is None:
            raise Invalid(Fault("", f"it has no command: one of {', '.join(COMMANDS)}"))
        if others:
            raise Invalid(Fault(f"/{others[0][0]}", "a frame has one command, and this is another"))
        if user is not None and name != "acknowledge":
            raise Invalid(Fault("/user", f"it goes with acknowledge, not with {name}"))
        return Command(name, value, user, ref)
    except Invalid as error:
        raise Refused(error, ref) from None


def _unread(body: bytes, error: Exception) -> Malformed | Refused:
    """What is raised for a frame that the decoder can't read: it has raised `error`."""
    wrong = unreadable(body, error)
    if isinstance(wrong, Malformed):
        return wrong
    # It is JSON, and has half of a surrogate pair somewhere.
    given = _fields(mask_surrogates(body))
    ref = None
    # A masked one isn't as it was sent.
    if (found := given.get("ref")) is not None and b"\\uf" not in bytes(found):
        with suppress(Invalid):
            ref = _read_ref(found)
    # As of all that is wrong with a message, the pointer is into that.
    faults = (Fault(each.pointer.removeprefix("/publish"), each.detail) for each in wrong.faults)
    return Refused(Invalid(*faults), ref)


def _read_ref(value: Raw) -> bytes | None:
    """What the answer is to be known by, as it was sent; None: nothing."""
    ref, sent = _decode("ref", value), bytes(value)
    if ref is None:
        return None
    number = isinstance(ref, int | float) and not isinstance(ref, bool) and len(sent) <= MAX_REF
    if not number and not (isinstance(ref, str) and len(ref) <= MAX_REF):
        told = f"a string or a number, of at most {MAX_REF} characters"
        raise Invalid(Fault("/ref", f"{short_repr(ref)} is not allowed: {told}"))
    return sent


def _read_channels(command: str, value: Raw) -> frozenset[str]:
    """The channels that a command names."""
    names = _decode(command, value)
    if not isinstance(names, list) or not 0 < len(names) <= MAX_LISTENED + 1:
        told = f"it must be a list of 1 to {MAX_LISTENED + 1} names of channels"
        raise Invalid(Fault(f"/{command}", told))
    faults = [
        Fault(f"/{command}/{index}", no_channel(name))
        for index, name in enumerate(names)
        if not isinstance(name, str) or not is_channel(name)
    ]
    if faults:
        raise Invalid(*faults)
    return frozenset(names)


def _read_user(value: Raw | None, grant: Grant) -> str:
    """The user whose messages are acknowledged: the one that is named, or the token's own."""
    user = None if value is None else _decode("user", value)
    if user is None:
        if grant.user is None and grant.subject is None:
            raise Invalid(Fault("/user", "it is missing: there is no token whose user it could be"))
        return grant.user or encode_name(grant.subject or "")
    if not isinstance(user, str) or not user or not is_channel(USER + user):
        raise Invalid(Fault("/user", f"{short_repr(user)} is no user: {NAME_RULE}"))
    return user


def _decode(name: str, value: Raw) -> Any:
    """The value of a field, whatever it is."""
    try:
        return _value(value)
    except (msgspec.DecodeError, RecursionError) as error:
        wrong = unreadable(bytes(value), error)
        faults = wrong.faults if isinstance(wrong, Invalid) else (Fault("", str(wrong)),)
        raise Invalid(*(Fault(f"/{name}{each.pointer}", each.detail) for each in faults)) from None


def _check_renewal(former: Grant, grant: Grant) -> None:
    """Raise an error unless a token may take the place of a connection's."""
    if grant.subject != former.subject:
        raise Denied(
            "the token is of another subject than the connection's: open a connection of its own"
        )
    if grant.expires is not None and former.expires is not None and grant.expires <= former.expires:
        raise Invalid(
            Fault("/token", "its exp is not later than that of the token that the connection has")
        )
