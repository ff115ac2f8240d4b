"""The facade: publish, subscribe, read histories.

Services that embed the domain use this, and so does the HTTP API."""

import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

from msgspec import Raw, Struct

from msgpush.domain.channel import BROADCAST, check_channel
from msgpush.domain.connection import NOW, Connection, Start, Subscription
from msgpush.domain.control import Close, Command, command_draft
from msgpush.domain.credentials import Revocation
from msgpush.domain.delivery import Delivery
from msgpush.domain.errors import (
    BusUnavailable,
    Closed,
    MsgpushError,
    Overloaded,
    Rejection,
)
from msgpush.domain.grant import Grant
from msgpush.domain.history import Gap, Reason, Replay, reset_after
from msgpush.domain.hub import Hub
from msgpush.domain.inbox import LINES, Inbox
from msgpush.domain.listing import Listing
from msgpush.domain.message import Draft, Message, draft
from msgpush.domain.observer import IGNORANT, Observer
from msgpush.domain.permissions import Permissions
from msgpush.domain.ports import (
    UNKNOWN,
    Bus,
    ClientInfo,
    Credentials,
    Devices,
    Notifier,
    Stored,
)
from msgpush.domain.position import (
    EARLIEST,
    LATEST,
    ZERO,
    Cursor,
    Position,
    check_cursor,
    cursor_text,
    parse_cursor,
)
from msgpush.domain.pushing import CONCURRENCY, Pushing
from msgpush.domain.redelivery import Redelivery
from msgpush.domain.words import Words

CLOSED_ELSEWHERE = 10_000  # connections to be closed that weren't here
HISTORY_STEP = 64  # messages of a history that are read at once
ANSWER_BYTES = 4 * 1024 * 1024  # of messages, after which an answer ends: it says how to go on


class Receipt(Struct, frozen=True, gc=False):
    """The answer to a publish: readable by all, from here on."""

    id: str
    timestamp: str
    channels: tuple[str, ...]
    cursor: str
    duplicate: bool


class History(Struct, frozen=True):
    """Part of a channel's history: messages, the cursor after them, and what is missing before
    them.
    """

    messages: list[Raw]
    cursor: str
    gap: Gap | None


class Push:
    """Publish and subscribe, over a bus. An async context manager: it delivers while it is open.

    Leaving it, in whatever way, ends all streams and listeners with `drain`, and no new ones begin.

    Args:
        bus: where the messages are kept.
        clock: seconds since 1970.
        monotonic: seconds of a clock that never jumps.
        message_ttl: seconds that a message lives which doesn't say.
        ack_ttl: the same of one that asks for an acknowledgement.
        heartbeat: seconds without a write after which a connection gets a heartbeat.
        write_timeout: seconds that a connection's socket may take nothing before it is cut.
        max_connections: streams served at once; of one subject, and from one address (0: no limit).
        credentials: tickets and revocations; without them there are neither.
        leeway: seconds of grace for a connection whose permissions have ended.
        max_token_lifetime: seconds that a token is valid for at most.
        devices: where users can be reached whose pages are closed, and `notifiers`, by what;
            without any nothing is pushed.
        push_delay: seconds in which a stream may take what is pushed else.
        push_concurrency: pushes that are under way at most, for each notifier.
        words: acknowledge what was pushed, without a token.
        observer: told what happens.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        message_ttl: int = 3600,
        ack_ttl: int = 86_400,
        heartbeat: float = 30.0,
        write_timeout: float = 30.0,
        max_connections: int = 10_000,
        max_connections_per_subject: int = 0,
        max_connections_per_address: int = 0,
        credentials: Credentials | None = None,
        leeway: float = 30.0,
        max_token_lifetime: float = 30 * 86_400,
        devices: Devices | None = None,
        notifiers: Sequence[Notifier] = (),
        push_delay: float = 5.0,
        push_concurrency: int = CONCURRENCY,
        words: Words | None = None,
        observer: Observer = IGNORANT,
    ) -> None:
        self._bus, self._observer = bus, observer
        self._hub = Hub(
            clock=clock,
            monotonic=monotonic,
            heartbeat=heartbeat,
            write_timeout=write_timeout,
            observer=observer,
        )
        self.draining = self.leaving = False
        self._clock, self._monotonic = clock, monotonic
        self._message_ttl, self._ack_ttl = message_ttl, ack_ttl
        self.max_connections = max_connections
        self._max_per_subject, self._max_per_address = (
            max_connections_per_subject,
            max_connections_per_address,
        )
        self._permissions = Permissions(
            credentials,
            self._hub,
            self.command,
            clock=clock,
            leeway=leeway,
            lifetime=max_token_lifetime,
        )
        self.redelivery = Redelivery(bus, self._hub, receipt_ttl=ack_ttl, observer=observer)
        self.pushing: Pushing | None = None
        if devices is not None:
            self.pushing = Pushing(
                bus,
                devices,
                notifiers,
                words=words,
                concurrency=push_concurrency,
                receipt_ttl=ack_ttl,
                observer=observer,
                monotonic=monotonic,
            )
        self._push_delay = push_delay if devices is not None and notifiers else None
        self._delivery = Delivery(
            bus,
            self._hub,
            monotonic=monotonic,
            prepare=self._permissions.load,
            obey=self._obey,
            redelivery=self.redelivery,
            pushing=self.pushing,
            observer=observer,
        )
        self._ids = _Ids()
        self._closed: dict[str, bool] = {}  # connections that were to be closed, and were not here

    @property
    def alive(self) -> bool:
        """True while everything that delivery depends on runs."""
        return self._delivery.alive

    @property
    def ready(self) -> bool:
        """True once the bus has taken something, while what it takes comes back."""
        return self._delivery.ready

    @property
    def unready(self) -> str | None:
        """The reason why new requests should go elsewhere, as far as is known unasked.

        None: they should come here."""
        if self.draining or self.leaving:
            return "draining"
        if not self.alive:
            return "delivery has stopped"
        return None if self.ready else self.trouble or "nothing was published yet"

    @property
    def trouble(self) -> str | None:
        """The reason for which nothing can be published or delivered, as far as is known unasked.

        None: all is well."""
        return self._delivery.trouble

    @property
    def tail_lag(self) -> float:
        """Seconds that the newest sign of life took to come back from the bus, or has taken yet."""
        return self._delivery.tail_lag

    @property
    def connections(self) -> Mapping[str, Connection]:
        """The clients' connections that are open now, by their ids."""
        return self._hub.connections

    def listing(self, node: str) -> Listing:
        """The connections, as a roster lists those of a process of this name."""
        return Listing(self._hub, node)

    def cursor(self, position: Position) -> str:
        """The cursor that names a position of the log."""
        return str(Cursor(self._bus.epoch, position))

    async def ask_bus(self) -> None:
        """Raise BusUnavailable where the bus doesn't answer now."""
        await self._bus.end()

    async def __aenter__(self) -> Self:
        self.draining = self.leaving = False
        await self._delivery.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._admit_no_more()
        await self._delivery.__aexit__(*exc)

    def takes_word(self, word: str, user: str, key: str) -> bool:
        """True if a word acknowledges this message, for this user."""
        words = None if self.pushing is None else self.pushing.words
        return words is not None and words.good(word, user, key, self._clock())

    # Publishing

    def draft(
        self, message: Message, *, broadcast: bool = False, traceparent: str | None = None
    ) -> Draft:
        """Route and complete a message, so that it can be authorized and stored.

        Args:
            traceparent: where its trace goes on, for one that doesn't say: its readers see it.

        Raises:
            Invalid, TooLarge: it can't be published.
        """
        now = int(self._clock() * 1000)
        return self._draft(message, now, broadcast=broadcast, traceparent=traceparent)

    def _draft(
        self,
        message: Message,
        now: int,
        *,
        broadcast: bool = False,
        traceparent: str | None = None,
    ) -> Draft:
        new_id = self._ids.next(now) if message.id is None else message.id
        return draft(
            message,
            now,
            new_id,
            self._message_ttl,
            broadcast=broadcast,
            ack_ttl=self._ack_ttl,
            push_delay=self._push_delay,
            traceparent=traceparent,
        )

    def drafts(
        self, messages: Sequence[Message], traceparent: str | None = None
    ) -> list[Draft | MsgpushError]:
        """As `draft`, of several messages; an error stands in the place of one that it has."""
        now = int(self._clock() * 1000)
        drafts: list[Draft | MsgpushError] = []
        for each in messages:
            try:
                drafts.append(self._draft(each, now, traceparent=traceparent))
            except MsgpushError as error:
                drafts.append(error.as_value())
        return drafts

    async def store(self, drafts: Sequence[Draft]) -> list[Receipt | Rejection]:
        """Put drafts in the bus, in order, each by itself: readable by all once this returns."""
        prefix = Cursor(self._bus.epoch, ZERO).prefix
        results: list[Receipt | Rejection] = []
        new: list[Draft] = []
        replaced: list[tuple[str, str]] = []
        began = self._monotonic()
        answers = await self._bus.append(drafts)
        self._observer.stored(self._monotonic() - began)
        for each, stored in zip(drafts, answers, strict=True):
            if not isinstance(stored, Stored):
                self._observer.rejected(stored, each)
                results.append(stored)
                continue
            if not stored.duplicate:
                new.append(each)
                if stored.replaces is not None and each.mark is not None:
                    replaced.append((each.mark.user, stored.replaces))
            cursor = cursor_text(prefix, stored.position)
            results.append(
                Receipt(each.id, stored.timestamp, each.channels, cursor, stored.duplicate)
            )
        if new:
            self._observer.accepted(new)
            if self.pushing is not None and any(
                each.push is not None and not each.push.look for each in new
            ):
                self.pushing.wake()
        if replaced:
            await self.redelivery.replace(replaced)
        return results

    def rejected(self, error: MsgpushError, draft: Draft | None = None) -> None:
        """Have it counted that a message was refused before it could be stored."""
        self._observer.rejected(error, draft)

    async def publish(self, message: Message, *, broadcast: bool = False) -> Receipt:
        """Publish one message: readable by all once this returns.

        Raises:
            Invalid, TooLarge: it can't be published.
            Denied: it would pass for one of the service's own.
            Conflict: its service has published other content under its id.
            MailboxFull: its user has too many messages of this service to acknowledge.
            BusUnavailable: nothing is known to be stored; a message with an id may be published
                again."""
        (result,) = await self.store([self.draft(message, broadcast=broadcast)])
        if isinstance(result, MsgpushError):
            raise result
        return result

    async def command(self, command: Command) -> None:
        """Have a command obeyed by all instances.

        Those that are away obey it once they are back and find it.

        Raises:
            BusUnavailable: nothing is known to be stored.
        """
        (result,) = await self._bus.append([command_draft(command)])
        if isinstance(result, MsgpushError):
            raise result

    def _obey(self, command: Close | Revocation) -> None:
        if isinstance(command, Revocation):
            self._permissions.end(command)
        elif (connection := self._hub.connections.get(command.id)) is not None:
            self._hub.close(connection, "disconnected", reconnect=command.reconnect)
        else:
            # It may be about to open here.
            self._closed[command.id] = command.reconnect
            if len(self._closed) > CLOSED_ELSEWHERE:
                del self._closed[next(iter(self._closed))]

    # Subscribing

    async def start_at(self, cursor: str | None) -> Start:
        """The place where a reader begins that came with this cursor (None or empty: with none).

        Raises:
            Malformed: that is no cursor at all.
            BusUnavailable: the bus has never been reached, or can't be asked about a cursor from
                another instance."""
        if not self._delivery.begun:
            raise BusUnavailable("the bus has not been reached yet")
        if not cursor or check_cursor(cursor) == LATEST:
            return NOW
        if cursor == EARLIEST:
            return Start(EARLIEST)
        epoch, cut = self._bus.epoch, self._bus.cut
        position = parse_cursor(cursor, epoch)
        former = None if cut is None else parse_cursor(cursor, cut.epoch)
        if position is not None and position <= self._hub.log.head:
            return Start(cursor, position)
        if former is None:
            # It may come from another instance, which is further, or has learnt of a new epoch
            # before this one.
            end = await self._bus.end()
            if self._bus.epoch != epoch:
                return await self.start_at(cursor)
            if position is not None and position <= end:
                return Start(cursor, position)
        if cut is None or former is None or cut.position == ZERO:
            return Start(cursor, reset=True)
        return Start(cursor, min(former, cut.position), reset=True)

    def refused(self, reason: str) -> None:
        """Have it counted that a stream was refused."""
        self._observer.refused(reason)

    def admit(self, info: ClientInfo = UNKNOWN, ticket: str | None = None) -> None:
        """Raise `Overloaded` where no further stream can be served, or none of this client's.

        Args:
            ticket: the digest of the ticket that it would claim: a stream of the same ticket gives
                its place to it."""
        if self.draining:
            raise Overloaded("draining")
        if not (self._delivery.begun and self._bus.reachable):
            raise Overloaded("bus")
        places = self._hub.places
        new, elsewhere = places.needed(info, ticket)
        if new and places.total >= self.max_connections:
            raise Overloaded("connections")
        if (
            new
            and info.subject is not None
            and 0 < self._max_per_subject <= places.subjects[info.subject]
        ):
            raise Overloaded("subject")
        if (
            elsewhere
            and info.address
            and 0 < self._max_per_address <= places.addresses[info.address]
        ):
            raise Overloaded("address")

    @contextmanager
    def place(self, info: ClientInfo, ticket: str | None) -> Iterator[None]:
        """Keep a place for a stream that will be subscribed right after this.

        `Overloaded` is raised where there is none.

        Whatever is irrevocable, as the claim of its ticket is, may be done meanwhile: nobody else
        gets the place."""
        self.admit(info, ticket)
        self._hub.places.take(info, ticket)
        try:
            yield
        finally:
            self._hub.places.leave(info, ticket)

    def subscribe(self, connection: Connection, subscription: Subscription, start: Start) -> None:
        """Serve a connection from now on; all after `start` reaches its sink, in order, once."""
        connection.ends = self._permissions.end_of(connection.grant)
        self._hub.attach(connection, subscription, start)
        # Meanwhile it may have become too late.
        if self._permissions.revoked(connection.grant):
            self._hub.close(connection, "revoked", reconnect=False)
        elif (reconnect := self._closed.pop(connection.id, None)) is not None:
            self._hub.close(connection, "disconnected", reconnect=reconnect)
        elif self._delivery.ended:
            self._hub.close(connection, "drain", reconnect=True)
        else:
            self._delivery.start(connection)

    def change(self, connection: Connection, subscription: Subscription) -> None:
        """Have a connection listen to something else, from its cursor on: with no seam.

        Nothing is written before this returns: who has asked for it can be told first."""
        self._hub.change(connection, subscription)
        self._delivery.go_on()

    def renew(self, connection: Connection, grant: Grant) -> None:
        """Serve a connection by another grant of the same subject from now on."""
        connection.grant, connection.ends = grant, self._permissions.end_of(grant)

    def unsubscribe(self, connection: Connection) -> None:
        """Forget a connection."""
        self._delivery.stop(connection)

    def leave(self) -> None:
        """Have nobody sent here any more: readiness fails.

        Whoever comes all the same is served, until `drain`."""
        self.leaving = True

    async def drain(self, seconds: float) -> None:
        """Take no new streams, and end those that are open, over `seconds`.

        They get what was published first."""
        self._admit_no_more()
        await self._delivery.drain(seconds)

    def _admit_no_more(self) -> None:
        if not self.draining:
            self.draining = True
            self._observer.draining()

    async def listen(
        self, *channels: str, after: str | None = None, broadcast: bool = True
    ) -> AsyncGenerator[Message | Gap, None]:
        """The messages of some channels as they come, for a program that embeds the domain.

        Args:
            after: a cursor, `earliest` or `latest`; a `Gap` stands before what could not be
                continued exactly.
            broadcast: whether messages to everybody are wanted, too.

        Raises:
            Malformed: no channel name, or no cursor.
            BusUnavailable: the bus has never been reached, or can't be asked about the cursor.
            Overloaded: this `Push` ends, or was left.
            Closed: after the last item, where it was ended from here: why, and the cursor to listen
                on from."""
        for channel in channels:
            check_channel(channel)
        wanted = frozenset(channels) | ({BROADCAST} if broadcast else set())
        inbox = Inbox()
        connection = Connection(secrets.token_hex(8), inbox)
        start = await self.start_at(after)
        if self.draining:
            raise Overloaded("draining")
        self.subscribe(connection, Subscription(wanted, LINES), start)
        try:
            while (item := await inbox.next()) is not None:
                yield item
        finally:
            self.unsubscribe(connection)
        if (end := connection.end) is not None:
            raise Closed(end.reason, end.reconnect, end.cursor)

    # Permissions

    def check(self, grant: Grant) -> None:
        """Raise `Unauthorized` where a grant has ended or was revoked: see `Permissions`."""
        self._permissions.check(grant)

    def revoked(self, grant: Grant) -> str | None:
        """The reason why a grant is refused, if it was revoked."""
        return self._permissions.revoked(grant)

    async def revoke(self, revocation: Revocation) -> None:
        """Refuse tokens from now on, and end their connections, at all instances."""
        await self._permissions.revoke(revocation)

    async def new_ticket(
        self, grant: Grant, channels: Iterable[str], *, acknowledge: bool = False
    ) -> tuple[str, float]:
        """Make a ticket for some channels; returns it, and until when it serves."""
        return await self._permissions.new_ticket(grant, channels, acknowledge=acknowledge)

    async def ticket(self, ticket: str) -> Grant | None:
        """Find out what a ticket allows; None: it isn't valid."""
        return await self._permissions.ticket(ticket)

    async def claim(self, grant: Grant, connection: str) -> None:
        """Use the ticket of a grant, if it is one's, for a connection; its older one ends."""
        await self._permissions.claim(grant, connection)

    # Reading

    async def history(self, channel: str, after: str | None, limit: int) -> History:
        """The retained messages of a channel after a cursor; with none, from the earliest.

        Raises:
            Malformed: that is no cursor at all.
            BusUnavailable: the bus can't be read now.
        """
        start = await self.start_at(after or EARLIEST)
        head = await self._bus.end()
        position: Position | None = head if start is NOW else start.after
        now = int(self._clock() * 1000)
        replay = Replay(position, now)
        bodies: list[Raw] = []
        missing: Reason | None = None
        left, size = limit, 0
        while True:
            # A few at a time: they may be large, and an answer is no larger than it has to be.
            (page,) = await self._bus.history([channel], replay.after, min(left, HISTORY_STEP))
            newest = page.entries[-1].entry.position if page.entries else head
            found = replay.step(
                {channel: page}, max(newest, head), now, max(1, ANSWER_BYTES - size)
            )
            missing = missing or (found.missing[0][1] if found.missing else None)
            bodies += [Raw(entry.body) for entry in found.entries]
            size += sum(len(entry.body) for entry in found.entries)
            left -= len(page.entries)
            if not page.more or left <= 0 or size >= ANSWER_BYTES:
                break
        gap = None
        if start.reset:
            gap = reset_after(after or "")
        elif missing is not None:
            gap = Gap(channel, after or "", missing)
        return History(bodies, self.cursor(found.end), gap)

    async def newest(self, channel: str, number: int) -> History:
        """The newest messages of a channel, the oldest of them first, and the cursor after them.

        Whoever subscribes first and reads then has everything, some of it twice.

        Raises:
            BusUnavailable: the bus can't be read now.
        """
        await self.start_at(None)
        # In this order: what is published in between is among the messages, or after the cursor.
        end, now = await self._bus.end(), int(self._clock() * 1000)
        bodies: list[Raw] = []
        before: Position | None = None
        size = 0
        while len(bodies) < number and size < ANSWER_BYTES:
            step = min(number - len(bodies), HISTORY_STEP)
            entries = await self._bus.newest(channel, before, step)
            if before is None and entries:
                end = max(end, entries[0].position)
            for entry in entries:
                before = entry.position
                if entry.expires > now and size < ANSWER_BYTES:
                    bodies.append(Raw(entry.body))
                    size += len(entry.body)
            if len(entries) < step:
                break
        return History(bodies[::-1], self.cursor(end), None)


class _Ids:
    """Ids that no other process makes, in the order of time."""

    def __init__(self) -> None:
        self._suffix = "_" + secrets.token_hex(3)
        self._prefix = ""
        self._ms = self._count = 0

    def next(self, ms: int) -> str:
        if ms > self._ms:
            # Six digits from the start: text sorts as numbers do.
            self._ms, self._count = ms, 100_000
            self._prefix = f"msg_{ms:013d}_"
        self._count += 1
        return f"{self._prefix}{self._count}{self._suffix}"
