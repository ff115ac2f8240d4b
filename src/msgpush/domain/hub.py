"""The hub: one log, read by many connections, with no queue per connection.

    attach, detach    connections come and go; `places` counts them
    change            a connection listens to something else from now on
    append, sweep     live delivery, by cohorts: `fan_out`
    show              what waits for an acknowledgement, to a stream that has become live
    advance           one that is behind comes a step nearer to the head: `catch_up`
    beat              heartbeats, and the end of those that may no longer be served: `liveness`

Everything here is synchronous: it decides, and offers bytes to sinks, which never wait. `delivery`
owns the tasks. `connection` says which states a connection has, and `cohorts` changes them.

The invariant of ids: no id is written to a connection before everything of its subscription at or
below it."""

from collections.abc import Callable, Iterable

from msgpush.domain.catch_up import CatchUp
from msgpush.domain.cohorts import Cohorts
from msgpush.domain.connection import Connection, End, Start, Subscription
from msgpush.domain.errors import Ending
from msgpush.domain.fan_out import FanOut
from msgpush.domain.history import reset_after
from msgpush.domain.liveness import Liveness
from msgpush.domain.log import Log, Ring
from msgpush.domain.observer import IGNORANT, Observer
from msgpush.domain.openings import Opening
from msgpush.domain.outbox import Record, Wake
from msgpush.domain.places import Places
from msgpush.domain.position import TERMINAL, Position
from msgpush.domain.reports import Reports


class Hub:
    """All connections of one process.

    Args:
        clock: seconds since 1970: what has expired.
        monotonic: seconds of a clock that never jumps: heartbeats, timeouts and the sweep's budget.
        heartbeat: seconds without a write after which a connection gets a heartbeat.
        write_timeout: seconds for which a connection's socket may take nothing.
        ring: the entries that are at hand.
        observer: told what clients get, and that they come and go.

    Attributes:
        connections: those that count among the clients, by their ids.
        peak: the most of them that there have been at once.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        heartbeat: float = 30.0,
        write_timeout: float = 30.0,
        ring: Ring | None = None,
        observer: Observer = IGNORANT,
    ) -> None:
        self._clock, self._monotonic, self._observer = clock, monotonic, observer
        self._heartbeat = heartbeat
        self.log = log = Log(ring if ring is not None else Ring())
        self.connections: dict[str, Connection] = {}
        self.peak = 0
        self.places = Places()
        self._cohorts = Cohorts(log, clock)
        self._liveness = Liveness(
            log, self._cohorts, monotonic, heartbeat, write_timeout, observer=observer
        )
        self.reports = reports = Reports(monotonic)
        self._fan_out = FanOut(log, self._cohorts, monotonic, reports=reports, observer=observer)
        self._catch_up = CatchUp(
            log,
            self._cohorts,
            self._liveness,
            clock=clock,
            monotonic=monotonic,
            reports=reports,
            observer=observer,
        )
        # What the tasks around it call, each where it is done.
        self.begin = log.begin
        self.append, self.sweep = self._fan_out.append, self._fan_out.sweep
        self.take_newly_behind = self._cohorts.take_newly_behind
        self.take_opened = self._cohorts.take_opened
        self.advance, self.deliver = self._catch_up.advance, self._catch_up.deliver
        self.floor_of = self._catch_up.floor_of
        self.cut_closing = self._liveness.cut_closing

    def cut(self, epoch: str, end: Position) -> None:
        """Go on as another log after `end`: what came after it is lost, or may be.

        Every reader is told."""
        end = min(end, self.log.head)
        readers = [each for cohort in self._cohorts for each in (*cohort.live, *cohort.behind)]
        positions = [(each, each.position_in(self.log)) for each in readers]
        for connection, position in positions:
            connection.lose(self.log)
            self._cohorts.fall_behind(connection, min(position, end))
        self._fan_out.drop_round()
        self._cohorts.frames.clear()  # they carry cursors of the former log
        self.log.cut(epoch, end)

    # Connections

    def attach(self, connection: Connection, subscription: Subscription, start: Start) -> None:
        """Begin to serve a connection."""
        if connection.listed:
            self.connections[connection.id] = connection
            self.peak = max(self.peak, len(self.connections))
            self.places.take(connection.info, connection.grant.ticket)
        self._begin(connection, subscription, start)
        if connection.listed:
            self._observer.opened(connection)

    def _begin(self, connection: Connection, subscription: Subscription, start: Start) -> None:
        cohort, asked = self._cohorts.of(subscription), start.last_event_id
        floor = cohort.floor(self.log.head)
        cursor = self.log.cursor(floor) if asked is None else asked
        view = subscription.view
        opening = view.opening(
            connection.id,
            subscription.channels,
            cursor,
            resumed=asked is not None,
            heartbeat=self._heartbeat,
        )
        taken = connection.sink.offer(view.chunk([opening]))
        self._liveness.begin(connection)
        if subscription.acts_for:
            connection.opening = Opening(start.after)
            connection.opening.lost = start.reset
        if asked is None and taken:
            self._cohorts.join(connection, cohort, floor)
            return
        self._cohorts.enter(connection, cohort, floor if asked is None else start.after)
        connection.last_event_id = asked
        if start.reset:
            connection.gaps.append(reset_after(cursor))

    def change(self, connection: Connection, subscription: Subscription) -> None:
        """Have a connection listen to something else from its cursor on.

        Nothing is given to it any more of a channel that it leaves, and everything after its cursor
        of one that is new to it: what is missing of that it is told. Its view stays."""
        if connection.cohort is not None and connection.cohort.subscription != subscription:
            self._cohorts.move(connection, subscription)

    def show(
        self, connection: Connection, opening: Opening, records: Iterable[Record]
    ) -> list[Wake] | None:
        """Show a stream of a user what is pending and doesn't come by itself.

        Returns:
            those of which it missed the newest attempt; None: it takes nothing now.
        """
        cohort = connection.cohort
        if cohort is None:
            return []
        view, frames, shown = cohort.subscription.view, list[bytes](), list[Record]()
        wakes: list[Wake] = []
        for record in records:
            if record.user not in cohort.subscription.acts_for:
                continue  # its channel was left meanwhile
            if not cohort.subscription.wants(record.type, record.priority):
                continue
            match opening.brings(record):
                case "show":
                    frames.append(view.pending(record.message))
                    shown.append(record)
                case "count":
                    shown.append(record)
                case "wake":
                    wakes.append(Wake(record.user, record.key))
        if frames and not connection.show(view.chunk(frames), len(frames), self._monotonic()):
            self._liveness.block(connection)
            return None
        for record in shown:
            self.reports.shown(record.user, record.key)
        return wakes

    def detach(self, connection: Connection) -> None:
        """Forget a connection; nothing is written to it any more."""
        if connection.cohort is None:
            return
        if self.connections.pop(connection.id, None) is not None:
            self.places.leave(connection.info, connection.grant.ticket)
            self._observer.closed(connection)
        self._cohorts.leave(connection)
        self._liveness.forget(connection)

    def close(self, connection: Connection, reason: Ending, *, reconnect: bool) -> None:
        """End a connection openly; without `reconnect` its client is told never to come back."""
        if connection.cohort is None:
            return
        view = connection.cohort.subscription.view
        cursor = connection.cursor_in(self.log)
        # What it hasn't been told yet it will be again, from where that began.
        go_on = connection.gaps[0].after if connection.gaps else cursor
        connection.end = End(reason, reconnect, go_on)
        last = view.close(reason, reconnect, "" if reconnect else cursor + TERMINAL)
        connection.sink.finish(view.chunk([last]))
        self._liveness.closed(connection.sink)
        self.detach(connection)

    def beat(self) -> None:
        """Send the heartbeats that are due, and close those that may no longer be served.

        Their permissions have ended, or their sockets have taken nothing for too long."""
        for connection in self._liveness.expired(self.connections.values(), self._clock()):
            self.close(connection, "expired", reconnect=True)
        self._liveness.beat()
        for connection in self._liveness.stuck():
            self.close(connection, "slow", reconnect=True)
        if self._fan_out.idle:
            self._cohorts.frames.clear()  # those that catch up fill it, too
        self._liveness.cut_closing(self._monotonic())

    @property
    def pending(self) -> int:
        """Entries that are still to be swept, counted in each cohort."""
        return self._cohorts.pending

    def leftovers(self) -> int:
        """The amount that is kept for connections.

        Without any, nothing but what an instance's own connection needs."""
        return len(self._cohorts) + len(self._liveness)
