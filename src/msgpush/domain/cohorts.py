"""The cohorts of a process, found by subscription and by channel.

Every change of a connection's state, as `connection` tells them, is made here."""

from collections.abc import Callable, Iterator

from msgpush.domain.connection import Cohort, Connection, Subscription
from msgpush.domain.frames import FrameCache
from msgpush.domain.log import Log
from msgpush.domain.openings import Opening
from msgpush.domain.position import ZERO, Position


class Cohorts:
    """All cohorts of a process.

    Args:
        clock: seconds since 1970.

    Attributes:
        listening: those that have live connections, by each of their channels.
        pending: entries that are still to be swept, counted in each cohort.
    """

    def __init__(self, log: Log, clock: Callable[[], float]) -> None:
        self._log, self._clock = log, clock
        self._by_subscription: dict[Subscription, Cohort] = {}
        self._newly_behind: list[Connection] = []
        self._opened: list[tuple[Connection, Opening]] = []
        self.listening: dict[str, dict[Cohort, None]] = {}
        self.frames = FrameCache()
        self.pending = 0

    def __len__(self) -> int:
        """The amount that is kept for connections."""
        return (
            len(self._by_subscription)
            + len(self.listening)
            + len(self.frames)
            + len(self._newly_behind)
            + len(self._opened)
        )

    def __iter__(self) -> Iterator[Cohort]:
        return iter(self._by_subscription.values())

    def of(self, subscription: Subscription) -> Cohort:
        """The cohort of a subscription, to be entered at once."""
        cohort = self._by_subscription.get(subscription)
        if cohort is None:
            cohort = Cohort(subscription, self.frames.enter(subscription.view))
            self._by_subscription[subscription] = cohort
        return cohort

    def enter(self, connection: Connection, cohort: Cohort, after: Position | None) -> None:
        """Have a connection read on after a position or from the earliest retained.

        It takes steps, for which `take_newly_behind` gives it to somebody."""
        was_live = connection.live
        cohort.enter(connection, after, int(self._clock() * 1000))
        if was_live:
            self._forsake(cohort)
        self._newly_behind.append(connection)

    def join(self, connection: Connection, cohort: Cohort, floor: Position) -> None:
        """Have a connection live that has everything up to its cohort's floor."""
        if not cohort.live:
            for channel in cohort.subscription.channels:
                self.listening.setdefault(channel, {})[cohort] = None
        opening = connection.opening
        cohort.join(connection, floor)
        if opening is not None:
            opening.upto = floor
            if opening.users is None:
                opening.users = cohort.subscription.acts_for
            self._opened.append((connection, opening))

    def fall_behind(self, connection: Connection, position: Position) -> None:
        """Have a connection read on from a position, wherever it was."""
        assert connection.cohort is not None
        # Before the log's first entry nothing can be missing.
        self.enter(connection, connection.cohort, position if position > ZERO else None)

    def move(self, connection: Connection, subscription: Subscription) -> None:
        """Have a connection listen to something else, after what it has been given so far."""
        former = connection.cohort
        assert former is not None
        # Found before the other one is left: their frames are the same, and stay.
        cohort = self.of(subscription)
        position, replay = connection.position_in(self._log), connection.replay
        opening, added = connection.opening, subscription.acts_for - former.subscription.acts_for
        asked = connection.last_event_id
        self.leave(connection)
        floor = cohort.floor(self._log.head)
        if replay is None and position == floor:
            if added:
                opening = Opening(None)
                opening.users = added
            connection.opening = opening
            self.join(connection, cohort, floor)
            return
        if opening is None and added:
            opening = Opening(None if replay is not None and replay.after is None else position)
            opening.lost = bool(connection.gaps)
        if opening is not None:
            opening.added |= added
        connection.opening = opening if subscription.acts_for else None
        after = position if replay is None else replay.after
        self.enter(connection, cohort, after if after != ZERO else None)
        if replay is not None:
            connection.replay = replay.of(subscription.channels)
            connection.last_event_id = asked

    def scatter(self, cohort: Cohort) -> None:
        """Have all live connections of a cohort read on from the log, each at its own pace."""
        positions = [(each, each.position_in(self._log)) for each in cohort.live]
        for connection, position in positions:
            self.fall_behind(connection, position)

    def leave(self, connection: Connection) -> None:
        """Forget a connection, and its cohort with the last one."""
        cohort, was_live = connection.cohort, connection.live
        assert cohort is not None
        cohort.leave(connection)
        if was_live:
            self._forsake(cohort)
        if not cohort.live and not cohort.behind:
            del self._by_subscription[cohort.subscription]
            self.frames.leave(cohort.frames)

    def take_newly_behind(self) -> list[Connection]:
        """The connections that have fallen behind since the last call: each needs `advance`."""
        connections, self._newly_behind = self._newly_behind, []
        return connections

    def take_opened(self) -> list[tuple[Connection, Opening]]:
        """The streams of users that have become live since the last call: each is to be shown what
        is pending.
        """
        opened, self._opened = self._opened, []
        return opened

    def _forsake(self, cohort: Cohort) -> None:
        if cohort.live:
            return
        self.pending -= len(cohort.pending)
        cohort.pending.clear()
        cohort.asked = False
        for channel in cohort.subscription.channels:
            cohorts = self.listening[channel]
            del cohorts[cohort]
            if not cohorts:
                del self.listening[channel]
