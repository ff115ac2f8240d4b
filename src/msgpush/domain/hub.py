"""The fan-out: one log, read by many connections, with no queue per connection.

    append            entries come from the log's tail; each marks the cohorts that it concerns
    sweep             gives a marked cohort what is pending: one chunk for all its connections
    attach, detach    connections come and go
    advance           brings one that is behind a step nearer to the head
    beat              heartbeats, and the end of those whose socket has been full for too long

Everything here is synchronous: it decides, and offers bytes to sinks, which never wait. `delivery`
owns the tasks.

A connection is *live*, at its cohort's head, or *behind*, with a cursor of its own. The invariant
of ids: no id is written to a connection before everything of its subscription at or below it."""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum, auto
from itertools import count
from math import inf

from msgspec import Struct

from msgpush.domain.connection import Cohort, Connection, End, FrameCache, Start, Subscription
from msgpush.domain.errors import Ending
from msgpush.domain.history import Gap, Page, Reason, Replay, reset_after
from msgpush.domain.log import Ring
from msgpush.domain.message import Entry
from msgpush.domain.places import Places
from msgpush.domain.ports import Sink
from msgpush.domain.position import TERMINAL, ZERO, Cursor, Position, cursor_text
from msgpush.domain.wheel import Wheel

CHUNK = 128 * 1024
CATCH_UP_CHUNK = 64 * 1024
# Entries waiting for a sweep, counted in each cohort; beyond it, cohorts go on from the log.
PENDING = 1_000_000
SCAN = 2_048  # entries that one step of a catch-up looks at, so that no reader holds up the others
ENDED_AT_ONCE = 500  # connections whose permissions have ended, in one turn
CLOSING = 1.0  # seconds in which a cut reader may still take the closing block


class Step(Enum):
    """What a step of a catch-up came to."""

    WROTE = auto()
    LIVE = auto()
    GONE = auto()
    BLOCKED = auto()  # its socket is full
    AHEAD = auto()  # its cursor is ahead of this hub: the tail will pass it
    HISTORY = auto()  # older than the ring: the bus has to be asked


class _Round(Struct):
    """One chunk on its way to a cohort's live connections.

    Attributes:
        taken: whether any client has taken it.
    """

    cohort: Cohort
    chunk: bytes
    entries: list[Entry]
    start: Position
    end: Position
    readers: Iterator[Connection]
    taken: bool = False


class Hub:
    """All connections of one process.

    Args:
        clock: seconds since 1970: what has expired.
        monotonic: seconds of a clock that never jumps: heartbeats, timeouts and the sweep's budget.
        heartbeat: seconds without a write after which a connection gets a heartbeat.
        write_timeout: seconds for which a connection's socket may take nothing.
        ring: the entries that are at hand.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        heartbeat: float = 30.0,
        write_timeout: float = 30.0,
        ring: Ring | None = None,
    ) -> None:
        self._clock, self._monotonic = clock, monotonic
        self._heartbeat, self._write_timeout = heartbeat, write_timeout
        self.epoch = self._prefix = ""
        self.head = ZERO
        self.connections: dict[str, Connection] = {}
        self.peak = 0
        self.places = Places()
        # Told what clients have taken live: not what is caught up on, nor what this instance reads
        # itself.
        self.on_delivered: Callable[[Sequence[Entry]], None] | None = None
        self._ring = ring if ring is not None else Ring()
        self._cohorts: dict[Subscription, Cohort] = {}
        self._listening: dict[str, dict[Cohort, None]] = {}
        self._frames = FrameCache()
        self._pending = 0
        self._marked: deque[Cohort] = deque()
        self._round: _Round | None = None
        self._newly_behind: list[Connection] = []
        self._blocked: dict[Connection, tuple[float, int]] = {}
        self._closing: dict[Sink, float] = {}
        self._wheel: Wheel[Connection] = Wheel(heartbeat / 300)
        self._phases = count(random.randrange(1024))
        self._next_end = inf

    # The log

    def begin(self, epoch: str, head: Position) -> None:
        """Follow the log of this name, from this position on."""
        self.epoch, self.head = epoch, head
        self._prefix = Cursor(epoch, head).prefix
        self._ring.clear(head)

    def cut(self, epoch: str, end: Position) -> None:
        """Go on as another log after `end`: what came after that is lost, or may be, and every
        reader is told.
        """
        end = min(end, self.head)
        readers = [
            each for cohort in self._cohorts.values() for each in (*cohort.live, *cohort.behind)
        ]
        for connection, position in [(each, self.position_of(each)) for each in readers]:
            self._restart(connection, min(position, end))
        self._round = None
        self._ring.cut(end)
        self._frames.clear()  # they carry cursors of the former log
        self.epoch, self.head = epoch, end
        self._prefix = Cursor(epoch, end).prefix

    def _restart(self, connection: Connection, after: Position) -> None:
        if not any(gap.reason == "reset" for gap in connection.gaps):
            connection.gaps.append(Gap(None, self.cursor_of(connection), "reset"))
        connection.last_event_id = None
        self._fall_behind(connection, after)

    def append(self, entries: Iterable[Entry]) -> None:
        """Take the log's next entries; `sweep` delivers them."""
        for entry in entries:
            if entry.prev > self.head:
                self._skip(entry.prev)
            self._ring.append(entry)
            for channel in entry.channels:
                if channel in self._listening:
                    for cohort in tuple(self._listening[channel]):
                        self._mark(cohort, entry)
            self.head = entry.position

    def _mark(self, cohort: Cohort, entry: Entry) -> None:
        pending = cohort.pending
        if not pending:
            if not cohort.subscription.wants(entry):
                return
            cohort.since = self.head
            pending.append(entry)
            self._pending += 1
            if not cohort.marked:
                cohort.marked = True
                self._marked.append(cohort)
        elif pending[-1] is not entry and cohort.subscription.wants(entry):
            if cohort.since < self._ring.floor or self._pending >= PENDING:
                # The log outruns this cohort's sockets: its readers go on from the log, each at its
                # own pace.
                self._scatter(cohort)
            else:
                pending.append(entry)
                self._pending += 1

    def _skip(self, to: Position) -> None:
        # The tail has lost entries: whoever listens goes on from the histories, or is told.
        for cohort in self._cohorts.values():
            self._scatter(cohort)
        self._ring.clear(to)
        self.head = to

    def _scatter(self, cohort: Cohort) -> None:
        for connection, position in [
            (connection, self.position_of(connection)) for connection in cohort.live
        ]:
            self._fall_behind(connection, position)

    # Connections

    def attach(
        self,
        connection: Connection,
        subscription: Subscription,
        start: Start,
        opening: Callable[[str], bytes],
    ) -> None:
        """Begin to serve a connection.

        Args:
            opening: makes its first bytes from the cursor that they carry.
        """
        cohort = self._cohort(subscription)
        connection.cohort = cohort
        if connection.listed:
            self.connections[connection.id] = connection
            self.peak = max(self.peak, len(self.connections))
            self.places.take(connection.info, connection.grant.ticket)
            self._next_end = min(self._next_end, connection.ends)
        connection.last_event_id = start.last_event_id
        if start.last_event_id is None:
            connection.cursor = self._floor(cohort)
        else:
            connection.cursor = start.after or ZERO
            connection.replay = Replay(start.after, self._now_ms(), subscription.types)
            if start.reset:
                connection.gaps.append(reset_after(start.last_event_id))
        taken = connection.sink.offer(opening(self.cursor_of(connection)))
        connection.written = self._monotonic()
        self._schedule(connection)
        if start.last_event_id is None and taken:
            self._join(connection)
            return
        if connection.replay is None:
            connection.replay = Replay(connection.cursor, self._now_ms(), subscription.types)
        cohort.behind.add(connection)
        self._newly_behind.append(connection)

    def detach(self, connection: Connection) -> None:
        """Forget a connection; nothing is written to it any more."""
        cohort = connection.cohort
        if cohort is None:
            return
        self._leave(connection)
        cohort.behind.discard(connection)
        connection.cohort = None
        connection.replay = None
        self._blocked.pop(connection, None)
        self._wheel.remove(connection)
        if self.connections.pop(connection.id, None) is not None:
            self.places.leave(connection.info, connection.grant.ticket)
        if not cohort.live and not cohort.behind:
            del self._cohorts[cohort.subscription]
            self._frames.leave(cohort.frames)

    def close(self, connection: Connection, reason: Ending, *, reconnect: bool) -> None:
        """End a connection openly; without `reconnect` its client is told never to come back."""
        if connection.cohort is None:
            return
        view = connection.cohort.subscription.view
        # What it hasn't been told yet it will be again, from where that began.
        go_on = connection.gaps[0].after if connection.gaps else self.cursor_of(connection)
        connection.end = End(reason, reconnect, go_on)
        cursor = self.cursor_of(connection) + TERMINAL if not reconnect else ""
        connection.sink.finish(view.chunk([view.close(reason, reconnect, cursor)]))
        self._closing[connection.sink] = self._monotonic() + CLOSING
        self.detach(connection)

    def cursor_of(self, connection: Connection) -> str:
        """The cursor up to which a connection has been given everything."""
        if connection.last_event_id is not None:
            return connection.last_event_id
        return self._text(self.position_of(connection))

    def position_of(self, connection: Connection) -> Position:
        cohort = connection.cohort
        if cohort is None or not connection.live:
            return connection.cursor
        if self._round is not None and self._round.cohort is cohort:
            return max(connection.cursor, self._round.start)
        return max(connection.cursor, self._floor(cohort))

    @property
    def pending(self) -> int:
        """Entries that are still to be swept, counted in each cohort."""
        return self._pending

    def leftovers(self) -> int:
        """How much is kept for connections; without any, nothing but what an instance's own
        connection needs.
        """
        by_connection = (
            len(self._wheel) + len(self._blocked) + len(self._closing) + len(self._newly_behind)
        )
        return by_connection + len(self._cohorts) + len(self._listening) + len(self._frames)

    def lag_of(self, connection: Connection) -> int:
        """Milliseconds of the log that a connection has still to be given; 0 where it has
        everything.
        """
        return 0 if connection.live else max(0, self.head.ms - self.position_of(connection).ms)

    def channels_of(self, connection: Connection) -> frozenset[str]:
        """What a connection listens to."""
        return connection.cohort.subscription.channels if connection.cohort else frozenset()

    def take_newly_behind(self) -> list[Connection]:
        """The connections that have fallen behind since the last call: each needs `advance`."""
        connections, self._newly_behind = self._newly_behind, []
        return connections

    def _cohort(self, subscription: Subscription) -> Cohort:
        cohort = self._cohorts.get(subscription)
        if cohort is None:
            cohort = self._cohorts[subscription] = Cohort(
                subscription, self._frames.enter(subscription.view)
            )
        return cohort

    def _floor(self, cohort: Cohort) -> Position:
        # A connection that has everything up to here may be live: what is pending comes after it.
        return cohort.since if cohort.pending else self.head

    def _join(self, connection: Connection) -> None:
        cohort = connection.cohort
        assert cohort is not None
        cohort.behind.discard(connection)
        connection.live = True
        connection.replay = None
        connection.last_event_id = None
        if not cohort.live:
            for channel in cohort.subscription.channels:
                self._listening.setdefault(channel, {})[cohort] = None
        cohort.live[connection] = None

    def _leave(self, connection: Connection) -> None:
        cohort = connection.cohort
        assert cohort is not None
        if not connection.live:
            return
        connection.live = False
        del cohort.live[connection]
        if not cohort.live:
            self._pending -= len(cohort.pending)
            cohort.pending.clear()
            for channel in cohort.subscription.channels:
                cohorts = self._listening[channel]
                del cohorts[cohort]
                if not cohorts:
                    del self._listening[channel]

    def _fall_behind(self, connection: Connection, cursor: Position) -> None:
        cohort = connection.cohort
        assert cohort is not None
        self._leave(connection)
        connection.cursor = cursor
        # Before the log's first entry nothing can be missing.
        connection.replay = Replay(
            cursor if cursor > ZERO else None, self._now_ms(), cohort.subscription.types
        )
        cohort.behind.add(connection)
        self._newly_behind.append(connection)

    # The sweep

    def sweep(self, budget: float = float("inf")) -> bool:
        """Give the marked cohorts what is pending, for about `budget` seconds.

        Returns:
            whether there is more to do.
        """
        deadline = self._monotonic() + budget
        while True:
            if self._round is None:
                if not self._marked:
                    break
                self._round = self._take(self._marked.popleft())
                if self._round is None:
                    continue
            if not self._serve(self._round, deadline):
                return True
            self._finish_round(self._round)
            if self._monotonic() >= deadline:
                break
        if self._marked:
            return True
        self._frames.clear()
        return False

    def _take(self, cohort: Cohort) -> _Round | None:
        cohort.marked = False
        if not cohort.pending:
            return None
        frames, size, taken = [], 0, 0
        for entry in cohort.pending:
            frame = cohort.frames.of(entry, self._prefix)
            frames.append(frame)
            size += len(frame)
            taken += 1
            if size >= CHUNK:
                break
        start, end = cohort.since, cohort.pending[taken - 1].position
        entries = cohort.pending[:taken]
        del cohort.pending[:taken]
        self._pending -= taken
        cohort.since = end
        chunk = cohort.subscription.view.chunk(frames)
        return _Round(cohort, chunk, entries, start, end, iter(list(cohort.live)))

    def _serve(self, round: _Round, deadline: float) -> bool:
        cohort, chunk, start, end = round.cohort, round.chunk, round.start, round.end
        messages, size = len(round.entries), len(chunk)
        served, more, taker = 0, False, None
        for connection in round.readers:
            # It may have gone, or fallen behind, or come anew since the round began.
            if not connection.live or connection.cohort is not cohort or connection.cursor >= end:
                continue
            if connection.sink.offer(chunk):
                connection.cursor = end
                taker = connection
                connection.messages_sent += messages
                connection.bytes_sent += size
            else:
                self._fall_behind(connection, max(start, connection.cursor))
            served += 1
            if not served & 31 and self._monotonic() >= deadline:
                more = True
                break
        round.taken |= taker is not None and taker.listed
        return not more

    def _finish_round(self, round: _Round) -> None:
        cohort = round.cohort
        cohort.written = self._monotonic()
        self._round = None
        if round.taken and self.on_delivered is not None:
            self.on_delivered(round.entries)
        if cohort.pending and not cohort.marked:
            cohort.marked = True
            self._marked.append(cohort)

    # Catching up

    def advance(self, connection: Connection) -> Step:
        """Bring a connection that is behind a step nearer to the head, from the ring.

        HISTORY is returned where the ring doesn't reach back far enough: read the bus's histories
        of its channels after `connection.replay.after`, and pass them to `deliver`."""
        cohort, replay = connection.cohort, connection.replay
        if cohort is None:
            return Step.GONE
        if connection.live or replay is None:
            return Step.LIVE
        if not connection.sink.writable:
            self._block(connection)
            return Step.BLOCKED
        floor = self._floor(cohort)
        if replay.after is None or replay.after < self._ring.floor:
            return Step.HISTORY
        if replay.after > floor:
            return Step.AHEAD
        now, missing, entries = self._now_ms(), dict[str, Reason](), list[Entry]()
        last, end, size = replay.after, floor, 0
        for scanned, entry in enumerate(
            self._ring.after(cohort.subscription.channels, replay.after)
        ):
            if entry.position > floor:
                break
            if scanned == SCAN:
                end = last
                break
            last = entry.position
            if entry.expires > now:
                if replay.wants(entry):
                    entries.append(entry)
                    size += len(entry.body)
                    if size >= CATCH_UP_CHUNK:
                        end = last
                        break
            elif replay.owes(entry):
                missing.update(
                    (channel, "expired")
                    for channel in cohort.subscription.channels & {*entry.channels}
                )
        return self._write(connection, entries, list(missing.items()), end)

    def floor_of(self, connection: Connection) -> Position:
        """How far the bus's histories may be delivered to a connection, when they are read after
        this call.

        From there on the ring has everything, and more than the histories may have.
        """
        return (
            self.head
            if connection.cohort is None
            else min(self._floor(connection.cohort), self._ring.floor)
        )

    def deliver(self, connection: Connection, pages: Mapping[str, Page], limit: Position) -> Step:
        """Go on with `advance`, with pages of the bus's histories, read after `floor_of` gave
        `limit`.
        """
        replay = connection.replay
        if connection.cohort is None:
            return Step.GONE
        if replay is None:
            return Step.LIVE
        if not connection.sink.writable:
            self._block(connection)
            return Step.BLOCKED
        if replay.after is not None and replay.after > limit:
            return Step.AHEAD
        start, now = replay.after, self._now_ms()
        entries, missing, end = replay.step(pages, limit, now, CATCH_UP_CHUNK)
        written = self._write(connection, entries, missing, end)
        if written is Step.BLOCKED:
            connection.replay = Replay(start, now, connection.cohort.subscription.types)
        return written

    def _write(
        self,
        connection: Connection,
        entries: list[Entry],
        missing: list[tuple[str, Reason]],
        end: Position,
    ) -> Step:
        cohort, replay = connection.cohort, connection.replay
        assert cohort is not None
        assert replay is not None
        view = cohort.subscription.view
        before = self.cursor_of(connection)
        frames = [view.gap(gap) for gap in connection.gaps]
        frames += [view.gap(Gap(channel, before, reason)) for channel, reason in missing]
        frames += [cohort.frames.of(entry, self._prefix) for entry in entries]
        if frames:
            chunk = view.chunk(frames)
            if not connection.sink.offer(chunk):
                self._block(connection)
                return Step.BLOCKED
            connection.gaps.clear()
            connection.messages_sent += len(entries)
            connection.bytes_sent += len(chunk)
            connection.written = self._monotonic()
        self._blocked.pop(connection, None)
        connection.last_event_id = None
        connection.cursor = replay.after = end
        if end == self._floor(cohort):
            self._join(connection)
            return Step.LIVE
        return Step.WROTE

    def _block(self, connection: Connection) -> None:
        if connection not in self._blocked:
            self._blocked[connection] = (self._monotonic(), connection.sink.backlog)

    # Time

    def beat(self) -> None:
        """Send the heartbeats that are due, and cut those that have taken nothing for too long.

        And close those whose permissions have ended.
        """
        self._end_permissions(self._clock())
        now = self._monotonic()
        for connection in self._wheel.due(now):
            self._beat_one(connection, now)
        for connection, (since, backlog) in list(self._blocked.items()):
            if connection.sink.writable:
                del self._blocked[connection]
            elif connection.sink.backlog < backlog:
                self._blocked[connection] = (now, connection.sink.backlog)
            elif now - since >= self._write_timeout:
                self.close(connection, "slow", reconnect=True)
        if not self._marked and self._round is None:
            self._frames.clear()  # those that catch up fill it, too
        self.cut_closing(now)

    def cut_closing(self, now: float = inf) -> None:
        """Cut those that were closed and have had their time to take the closing block."""
        for sink, until in list(self._closing.items()):
            if now >= until:
                del self._closing[sink]
                sink.abort()

    def _end_permissions(self, now: float) -> None:
        if now < self._next_end:
            return
        ended = [each for each in self.connections.values() if each.ends <= now]
        for connection in ended[:ENDED_AT_ONCE]:
            self.close(connection, "expired", reconnect=True)
        # However close together they end, all connections are looked at once a second, not with
        # each beat.
        soonest = min((each.ends for each in self.connections.values()), default=inf)
        self._next_end = max(soonest, now + 1.0) if len(ended) <= ENDED_AT_ONCE else now

    def _beat_one(self, connection: Connection, now: float) -> None:
        cohort = connection.cohort
        if cohort is None:
            return
        if connection.live:
            connection.written = max(connection.written, cohort.written)
        if now >= connection.written + self._heartbeat:
            self._send_heartbeat(connection, cohort)
            connection.written = now
        self._schedule(connection)

    def _send_heartbeat(self, connection: Connection, cohort: Cohort) -> None:
        busy = cohort.pending or (self._round is not None and self._round.cohort is cohort)
        if busy and connection.live:
            return  # what is pending is a sign of life itself
        view = cohort.subscription.view
        # What is missing comes first: the cursor is after it.
        frames = [*map(view.gap, connection.gaps), view.heartbeat(self.cursor_of(connection))]
        if connection.sink.offer(view.chunk(frames)):
            connection.gaps.clear()
        elif connection.live:
            self._fall_behind(connection, self.position_of(connection))
        elif not connection.sink.writable:
            self._block(connection)

    def _schedule(self, connection: Connection) -> None:
        # A tenth of the interval is spread evenly over the connections, or all that got the same
        # message at the same moment would get their heartbeats in step.
        spread = (next(self._phases) * 0.6180339887) % 1 * self._heartbeat / 10
        self._wheel.put(connection, connection.written + self._heartbeat + spread)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _text(self, position: Position) -> str:
        return cursor_text(self._prefix, position)
