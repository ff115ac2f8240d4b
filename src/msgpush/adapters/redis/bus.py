"""The bus over Redis: any number of instances, one log.

Every instance reads the whole log, over a connection of its own, and drops what it has nobody for.
Nothing travels by Pub/Sub, which loses what is sent while a connection is down."""

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Self

from msgpush.adapters.redis.epochs import Epochs
from msgpush.adapters.redis.link import TIMEOUT, Link, RedisCommand, RetryDelay, SharedLink
from msgpush.adapters.redis.log import EPOCH, LOG, Decoder, EntryRef, id_of, keys_of, position_of
from msgpush.adapters.redis.mending import Mender
from msgpush.adapters.redis.outbox import RedisOutbox
from msgpush.adapters.redis.records import Room
from msgpush.adapters.redis.sendings import RedisSendings
from msgpush.adapters.redis.target import RedisTarget
from msgpush.adapters.redis.writer import Writer
from msgpush.domain.errors import BusUnavailable, Rejection
from msgpush.domain.history import Page, Reason
from msgpush.domain.message import Draft, Entry
from msgpush.domain.outbox import jitter
from msgpush.domain.ports import Cut, Stored
from msgpush.domain.position import Cursor, Position

BLOCK = 1.0  # seconds for which one read of the tail waits
READ = 1_000
READ_BYTES = 4 * 1024 * 1024  # what one read of the tail should come to
DAY_MS = 86_400_000

log = logging.getLogger("msgpush.redis")


class RedisBus:
    """The log and its histories in Redis or Valkey. An async context manager.

    Args:
        log_length: entries that the log keeps, so that an instance which was away finds them.
        history_length: messages retained a channel; up to a hundred more are kept.
        wait_replicas: replicas that must have a message before it counts as accepted.
        max_pending: messages of one service that may wait for one user's acknowledgement.
        pending_bytes: of all that wait; those of one service are a quarter at most.
        dead_letter_bytes: of all that was given up; beyond it the oldest go.
        dead_letter_ttl: seconds for which a message that was given up is kept.
        clock: seconds since 1970; None takes Redis's own, which all instances share.
        jitter: a factor for the time until the next delivery of a message.
    """

    def __init__(
        self,
        target: RedisTarget,
        *,
        log_length: int = 100_000,
        history_length: int = 1000,
        wait_replicas: int = 0,
        max_pending: int = 200,
        pending_bytes: int = 256 * 1024 * 1024,
        dead_letter_bytes: int = 64 * 1024 * 1024,
        dead_letter_ttl: int = 7 * 86_400,
        clock: Callable[[], float] | None = None,
        jitter: Callable[[], float] = jitter,
    ) -> None:
        self.reachable = False
        self.trouble: str | None = None
        self._target = target
        self._history_length = history_length
        self._clock = clock
        self._reader = SharedLink(target, "msgpush-reader")
        # Apart from the histories, which may be long.
        asker = SharedLink(target, "msgpush-asker")
        self._tail_link = Link(target, "msgpush-tail", BLOCK + TIMEOUT)
        self._decoder = Decoder()
        mender = Mender(asker, self._decoder, self._now_ms)
        self._epochs = Epochs(asker, mender, log_length=log_length, now_ms=self._now_ms)
        self._writer = Writer(
            target,
            self._epochs,
            mender,
            log_length=log_length,
            history_length=history_length,
            wait_replicas=wait_replicas,
            room=Room(max_pending, pending_bytes),
            now_ms=self._now_ms,
        )
        self.outbox = RedisOutbox(
            target,
            dead_letter_size=dead_letter_bytes,
            dead_letter_ttl=dead_letter_ttl,
            wait_replicas=wait_replicas,
            now_ms=self._now_ms,
            jitter=jitter,
        )
        self.sendings = RedisSendings(target, now_ms=self._now_ms)
        self._links = (self._writer.link, self._reader, asker, self._tail_link)
        self._open = False
        self._tailing = False
        self._count = READ
        self._failures = 0

    @property
    def epoch(self) -> str:
        return self._epochs.epoch

    @property
    def cut(self) -> Cursor | None:
        return self._epochs.cut

    @property
    def length(self) -> int:
        return self._epochs.length

    @property
    def unknown(self) -> int:
        return self._decoder.unknown

    async def __aenter__(self) -> Self:
        self._open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self._open = False
        await self._writer.close()
        await self.outbox.close()
        await self.sendings.close()
        for link in self._links:
            await link.close()

    async def append(self, drafts: Sequence[Draft]) -> list[Stored | Rejection]:
        if not self._open:
            return [BusUnavailable("the bus is not open")] * len(drafts)
        return await self._writer.append(drafts)

    def _now_ms(self) -> int:
        return 0 if self._clock is None else int(self._clock() * 1000)

    # Reading

    async def history(
        self, channels: Sequence[str], after: Position | None, limit: int
    ) -> list[Page]:
        start = "-" if after is None else f"({id_of(after)}"
        # The newest position first: what comes in between is then among the entries.
        commands: list[RedisCommand] = [("TIME",)]
        for channel in channels:
            history, last = keys_of(channel)
            commands.append(("GET", last))
            commands.append(("XRANGE", history, start, "+", "COUNT", limit + 1))
            commands.append(("XLEN", history))
        (seconds, _), *replies = await self._reader.calls(commands)
        now = self._now_ms() or int(seconds) * 1000
        forgotten = Position(max(0, now - DAY_MS), 0)
        return [
            self._page(limit, forgotten, *replies[n : n + 3]) for n in range(0, len(replies), 3)
        ]

    def _page(
        self, limit: int, forgotten: Position, last: bytes | None, items: list[Any], length: int
    ) -> Page:
        entries = self._decoder.history(items[:limit])
        newest = forgotten if last is None else position_of(last)
        # A history that isn't full has been trimmed by nobody: what it lacks went with its ttl.
        lost: Reason = "trimmed" if length >= self._history_length else "expired"
        return Page(entries, newest, len(items) > limit, lost)

    async def newest(self, channel: str, before: Position | None, limit: int) -> list[Entry]:
        history, _ = keys_of(channel)
        end = "+" if before is None else f"({id_of(before)}"
        items = await self._reader.call("XREVRANGE", history, end, "-", "COUNT", limit)
        return [linked.entry for linked in self._decoder.history(items)]

    async def end(self) -> Position:
        head = await self._epochs.read()
        if not self._tailing:
            head = await self._epochs.begin_at(head)
            self._find()
        elif head.epoch != self.epoch:
            self._epochs.doubt = True
            raise BusUnavailable("the log has begun anew: this instance is finding out where")
        return head.end.position

    # The tail

    async def tail(self, after: Position) -> AsyncGenerator[Sequence[Entry] | Cut, None]:
        self._tailing = True
        epochs = self._epochs
        delay = RetryDelay()
        epochs.chain.begin(await self._ref_at(after, delay))
        epochs.doubt = True
        broken = False
        while True:
            try:
                if epochs.doubt:
                    epochs.doubt = False
                    if broken:
                        self._expire()
                    cut = await epochs.reconcile(broken)
                    broken = False
                    if not self._failures:
                        self._find()
                    if cut is not None:
                        yield cut
                entries, broken = await self._next()
            except BusUnavailable as error:
                self._lose(error)
                await delay.pause()
                continue
            except Exception:
                # Delivery must outlive a mistake, or an entry that someone else has written.
                log.exception("the log can't be read")
                self._lose(BusUnavailable("the log can't be read"))
                await delay.pause()
                continue
            delay.reset()
            self._failures = 0
            self.trouble = None
            self._find()
            if entries:
                yield entries

    def _find(self) -> None:
        if not self.reachable:
            self.reachable = True
            log.info("reading the log of Redis (%s)", self._target)

    def _lose(self, error: BusUnavailable) -> None:
        # Whatever it comes back as has to be looked at first. A connection that is merely cut is no
        # word about Redis.
        self._epochs.doubt = True
        self._failures += 1
        self.trouble = error.public
        self._count = max(1, self._count // 2)  # it may have been too much to be read in time
        if self.reachable and self._failures > 1:
            self.reachable = False
            log.warning("%s; streams stay open, and continue when it is back", error)

    async def _ref_at(self, position: Position, delay: RetryDelay) -> EntryRef:
        while True:
            try:
                return await self._epochs.ref_at(position)
            except BusUnavailable as error:
                self._lose(error)
                await delay.pause()

    async def _next(self) -> tuple[list[Entry], bool]:
        """Read the next entries; true beside them: they show that the log isn't what was seen."""
        epochs, chain = self._epochs, self._epochs.chain
        unread = chain.unread
        head = chain.head
        # After a failure the question is whether it answers at all.
        wait = 1 if self._failures else int(BLOCK * 1000)
        reply = await self._tail_link.call(
            "XREAD", "COUNT", self._count, "BLOCK", wait, "STREAMS", LOG, id_of(chain.at)
        )
        if not reply:
            if unread:
                # What we have written isn't here: this server isn't the one that we write to, or it
                # has lost it.
                self._expire()
                epochs.doubt = True
            return [], False
        items = reply[0][1]
        entries, refs, before = self._decoder.log(items, head)
        self._fit_count(entries)
        if before.position <= head.position and not head.names(before):
            epochs.doubt = True
            return [], True
        trimmed = before.position > head.position
        # Where the log was trimmed past us, the word of a new epoch may have been in what is gone.
        if (trimmed or any(map(self._is_news, entries))) and (
            await epochs.read()
        ).epoch != self.epoch:
            epochs.doubt = True
            return [], False
        if trimmed:
            chain.skip(before)
        if not chain.read(refs):
            epochs.doubt = True
            return [], True
        chain.at = position_of(items[-1][0])
        return entries, False

    def _is_news(self, entry: Entry) -> bool:
        return not entry.channels and entry.type == EPOCH and entry.service != self.epoch

    def _fit_count(self, entries: Sequence[Entry]) -> None:
        # XREAD counts entries, whatever their size.
        if len(entries) < self._count:
            self._count = min(READ, 2 * self._count)
        else:
            size = sum(len(entry.body) for entry in entries)
            self._count = max(1, min(READ, READ_BYTES * len(entries) // max(size, 1)))

    def _expire(self) -> None:
        # They may lead to different servers, one of which is no longer the master.
        for link in self._links:
            link.expire()
