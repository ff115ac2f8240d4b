"""Catching up: a connection that is behind is given what it lacks, step by step.

Each step reads on from its cursor, from the ring or else from the bus's histories, as much as a
socket takes well at once; it tells what is missing before it gives what comes after. With the step
that reaches the cohort's floor the connection is live."""

from collections.abc import Callable, Mapping
from enum import Enum, auto

from msgpush.domain.channel import USER
from msgpush.domain.cohorts import Cohorts
from msgpush.domain.connection import Cohort, Connection
from msgpush.domain.history import Gap, Page, Reason, Replay, Replayed
from msgpush.domain.liveness import Liveness
from msgpush.domain.log import Log
from msgpush.domain.message import Entry
from msgpush.domain.observer import Observer, Source
from msgpush.domain.openings import Opening
from msgpush.domain.position import Position
from msgpush.domain.reports import Reports

CATCH_UP_CHUNK = 64 * 1024
SCAN = 2_048  # entries that one step looks at, so that no reader holds up the others


class Step(Enum):
    """The outcome of a step of a catch-up."""

    WROTE = auto()
    LIVE = auto()
    GONE = auto()
    BLOCKED = auto()  # its socket is full
    AHEAD = auto()  # its cursor is ahead of this hub: the tail will pass it
    HISTORY = auto()  # older than the ring: the bus has to be asked


class CatchUp:
    """Brings those that are behind to the head.

    Args:
        clock: seconds since 1970.
        monotonic: seconds of a clock that never jumps.
    """

    def __init__(
        self,
        log: Log,
        cohorts: Cohorts,
        liveness: Liveness,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        reports: Reports,
        observer: Observer,
    ) -> None:
        self._log, self._cohorts, self._liveness = log, cohorts, liveness
        self._clock, self._monotonic = clock, monotonic
        self._reports, self._observer = reports, observer

    def advance(self, connection: Connection) -> Step:
        """Bring a connection that is behind a step nearer to the head, from the ring.

        HISTORY is returned where the ring doesn't reach back far enough: read the bus's histories
        of its channels after `connection.replay.after`, and pass them to `deliver`."""
        reading = self._reading(connection)
        if isinstance(reading, Step):
            return reading
        cohort, replay = reading
        floor = cohort.floor(self._log.head)
        if replay.after is None or replay.after < self._log.ring.floor:
            return Step.HISTORY
        if replay.after > floor:
            return Step.AHEAD
        return self._write(connection, self._read_ring(cohort, replay, replay.after, floor), "ring")

    def floor_of(self, connection: Connection) -> Position:
        """The end of what may be delivered to a connection from histories that are read next.

        From there on the ring has everything, and more than the histories may have.
        """
        cohort, log = connection.cohort, self._log
        return log.head if cohort is None else min(cohort.floor(log.head), log.ring.floor)

    def deliver(self, connection: Connection, pages: Mapping[str, Page], limit: Position) -> Step:
        """Go on with `advance`, with pages of the bus's histories.

        Args:
            limit: what `floor_of` gave before they were read.
        """
        reading = self._reading(connection)
        if isinstance(reading, Step):
            return reading
        cohort, replay = reading
        if replay.after is not None and replay.after > limit:
            return Step.AHEAD
        after, now = replay.after, self._now()
        step = self._write(connection, replay.step(pages, limit, now, CATCH_UP_CHUNK), "bus")
        if step is Step.BLOCKED:
            cohort.enter(connection, after, now)
        return step

    def _reading(self, connection: Connection) -> tuple[Cohort, Replay] | Step:
        """The place where a connection reads, or the outcome of a step that can't be taken."""
        cohort, replay = connection.cohort, connection.replay
        if cohort is None:
            return Step.GONE
        if replay is None:
            return Step.LIVE
        if not connection.sink.writable:
            self._liveness.block(connection)
            return Step.BLOCKED
        return cohort, replay

    def _read_ring(
        self, cohort: Cohort, replay: Replay, after: Position, end: Position
    ) -> Replayed:
        """The next entries up to `end`, or to where a step ends."""
        channels, now = cohort.subscription.channels, self._now()
        entries, missing = list[Entry](), dict[str, Reason]()
        last, size = after, 0
        for scanned, entry in enumerate(self._log.ring.after(channels, after)):
            if entry.position > end:
                break
            if scanned == SCAN:
                end = last
                break
            last = entry.position
            if entry.expires <= now:
                if replay.owes(entry):
                    missing.update((each, "expired") for each in channels & {*entry.channels})
            elif replay.wants(entry):
                entries.append(entry)
                size += len(entry.body)
                if size >= CATCH_UP_CHUNK:
                    end = last
                    break
        return Replayed(entries, list(missing.items()), end)

    def _write(self, connection: Connection, found: Replayed, source: Source) -> Step:
        """Give a connection what a step has found, and move it behind that."""
        cohort, log = connection.cohort, self._log
        assert cohort is not None
        view, before = cohort.subscription.view, connection.cursor_in(log)
        missing = (Gap(channel, before, reason) for channel, reason in found.missing)
        gaps = [*connection.gaps, *missing]
        frames = [*map(view.gap, gaps)]
        frames += [cohort.frames.of(entry, log.prefix) for entry in found.entries]
        if frames:
            chunk = view.chunk(frames)
            if not connection.give(chunk, len(found.entries), self._monotonic()):
                self._liveness.block(connection)
                return Step.BLOCKED
            for gap in gaps:
                self._observer.gap(connection, gap)
            if found.entries:
                self._observer.caught_up(connection, found.entries, source)
            if connection.opening is not None:
                self._note(connection, connection.opening, found)
        self._liveness.unblock(connection)
        connection.move_to(found.end)
        if found.end == cohort.floor(log.head):
            self._cohorts.join(connection, cohort, found.end)
            return Step.LIVE
        return Step.WROTE

    def _note(self, connection: Connection, opening: Opening, found: Replayed) -> None:
        """Remember what a stream of a user has been given, and what it lacks."""
        assert connection.cohort is not None
        users = connection.cohort.subscription.acts_for
        own = {USER + user for user in users}
        opening.lost |= any(channel in own for channel, _ in found.missing)
        for entry in found.entries:
            if entry.mark is not None and entry.mark.key:
                self._reports.add(entry.mark, users)
                opening.given[entry.mark.key] = entry.mark.attempt

    def _now(self) -> int:
        return int(self._clock() * 1000)
