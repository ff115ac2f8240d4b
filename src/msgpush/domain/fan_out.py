"""Live delivery: each entry marks the cohorts that it concerns, a sweep gives them chunks."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf

from msgspec import Struct

from msgpush.domain.channel import USER
from msgpush.domain.cohorts import Cohorts
from msgpush.domain.connection import Cohort, Connection
from msgpush.domain.log import Log
from msgpush.domain.marks import Mark
from msgpush.domain.message import Entry
from msgpush.domain.observer import Observer
from msgpush.domain.position import Position
from msgpush.domain.reports import Reports

# Entries waiting for a sweep, counted in each cohort; beyond it, cohorts go on from the log.
PENDING = 1_000_000


class _Round(Struct):
    """One chunk on its way to a cohort's live connections.

    Attributes:
        end: the position after it.
        takers: how many clients have taken it.
        asked: whether some of it may ask for an acknowledgement, or be word of one.
    """

    cohort: Cohort
    entries: list[Entry]
    chunk: bytes
    start: Position
    end: Position
    readers: Iterator[Connection]
    asked: bool
    takers: int = 0


class FanOut:
    """Takes the log's entries as they come, and gives each live connection those that it wants.

    One chunk is made for all of a cohort, and nothing is queued for one connection.

    Args:
        monotonic: seconds of a clock that never jumps.
    """

    def __init__(
        self,
        log: Log,
        cohorts: Cohorts,
        monotonic: Callable[[], float],
        *,
        reports: Reports,
        observer: Observer,
    ) -> None:
        self._log, self._cohorts, self._monotonic = log, cohorts, monotonic
        self._reports, self._observer = reports, observer
        self._marked: deque[Cohort] = deque()
        self._round: _Round | None = None
        self._taken = 0  # messages that the present sweep has taken

    @property
    def idle(self) -> bool:
        """True: nothing is pending."""
        return not self._marked and self._round is None

    def append(self, entries: Iterable[Entry]) -> None:
        """Take the log's next entries; `sweep` delivers them."""
        log, listening = self._log, self._cohorts.listening
        for entry in entries:
            if entry.prev > log.head:
                self._skip(entry.prev)
            if entry.mark is not None and entry.mark.user:
                self._append_asking(entry, entry.mark)
            else:
                log.ring.append(entry)
                for channel in entry.channels:
                    if channel in listening:
                        self._mark(tuple(listening[channel]), entry)
            log.head = entry.position

    def _append_asking(self, entry: Entry, mark: Mark) -> None:
        """Take an entry that asks for a user's acknowledgement, or tells that it was given."""
        log, listening = self._log, self._cohorts.listening
        own = [
            cohort
            for cohort in listening.get(USER + mark.user, ())
            if mark.user in cohort.subscription.acts_for
        ]
        if mark.kind == "acknowledged":
            # Live only: whoever is behind asks what is pending when it is back.
            for cohort in own:
                cohort.tell(entry, log.head)
                self._cohorts.pending += 1
                if not cohort.marked:
                    self._queue(cohort)
            return
        log.ring.append(entry)
        for channel in entry.channels:
            self._mark(tuple(listening.get(channel, ())), entry)
        for cohort in own:
            cohort.asked = True

    def _mark(self, concerned: Sequence[Cohort], entry: Entry) -> None:
        cohorts, head, floor = self._cohorts, self._log.head, self._log.ring.floor
        for cohort in concerned:
            if not cohort.mark(entry, head):
                continue
            cohorts.pending += 1
            if len(cohort.pending) == 1:
                if not cohort.marked:
                    self._queue(cohort)
            elif cohort.since < floor or cohorts.pending > PENDING:
                # The log outruns this cohort's sockets.
                cohorts.scatter(cohort)

    def _queue(self, cohort: Cohort) -> None:
        cohort.marked = True
        self._marked.append(cohort)

    def _skip(self, to: Position) -> None:
        # The tail has lost entries: whoever listens goes on from the histories, or is told.
        for cohort in self._cohorts:
            self._cohorts.scatter(cohort)
        self._log.skip(to)

    def sweep(self, budget: float = inf) -> bool:
        """Give the marked cohorts what is pending, for about `budget` seconds.

        Returns:
            True: there is more to do.
        """
        if self.idle:
            self._cohorts.frames.clear()
            return False
        began = self._monotonic()
        self._taken = 0
        more = self._sweep(began + budget)
        self._observer.swept(self._monotonic() - began, self._taken)
        return more

    def _sweep(self, deadline: float) -> bool:
        while True:
            if self._round is None:
                if not self._marked:
                    break
                self._round = self._begin_round(self._marked.popleft())
                if self._round is None:
                    continue
            if not self._serve(self._round, deadline):
                return True
            now = self._monotonic()
            self._end_round(self._round, now)
            if now >= deadline:
                break
        if self._marked:
            return True
        self._cohorts.frames.clear()
        return False

    def _begin_round(self, cohort: Cohort) -> _Round | None:
        cohort.marked = False
        if not cohort.pending:
            return None
        start, asked = cohort.since, cohort.asked
        entries, chunk = cohort.take(self._log.prefix)
        self._cohorts.pending -= len(entries)
        self._taken += len(entries)
        cohort.asked = asked and bool(cohort.pending)
        return _Round(cohort, entries, chunk, start, cohort.since, iter(list(cohort.live)), asked)

    def _serve(self, round: _Round, deadline: float) -> bool:
        """Offer a round's chunk to its readers; False: time is up, and some are left."""
        cohort, chunk, start, end = round.cohort, round.chunk, round.start, round.end
        messages, size = len(round.entries), len(chunk)
        if round.asked:
            messages -= sum(map(_is_word, round.entries))
        served, fallen, finished, taker = 0, 0, True, None
        # No calls for each reader but those that give it the chunk: this is the hottest loop.
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
                self._cohorts.fall_behind(connection, max(start, connection.cursor))
                fallen += 1
            served += 1
            if not served & 31 and self._monotonic() >= deadline:
                finished = False
                break
        if taker is not None and taker.listed:
            round.takers += served - fallen
        return finished

    def _end_round(self, round: _Round, now: float) -> None:
        cohort = round.cohort
        cohort.served(now)
        self._round = None
        if round.takers:
            entries = self._report(round) if round.asked else round.entries
            self._observer.delivered(entries, round.takers)
        if cohort.pending and not cohort.marked:
            self._queue(cohort)

    def _report(self, round: _Round) -> list[Entry]:
        """Report what a round has brought to streams of its users; returns its messages."""
        users, messages = round.cohort.subscription.acts_for, []
        for entry in round.entries:
            if entry.mark is not None:
                if _is_word(entry):
                    continue
                self._reports.add(entry.mark, users)
            messages.append(entry)
        return messages

    def drop_round(self) -> None:
        """Give the chunk that is on its way to nobody else."""
        if self._round is not None:
            self._round.cohort.round_start = None
            self._round = None


def _is_word(entry: Entry) -> bool:
    """True if it is word of an acknowledgement, and no message."""
    return entry.mark is not None and entry.mark.kind == "acknowledged"
