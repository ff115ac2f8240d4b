"""Reports: which messages streams of their users have taken, told to the outbox together."""

from collections.abc import Callable, Iterable
from itertools import islice

from msgpush.domain.marks import Mark
from msgpush.domain.outbox import Written

MOST = 100_000  # that wait while the outbox can't be told; the oldest go first


class Reports:
    """What is still to be reported.

    Args:
        monotonic: seconds of a clock that never jumps.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        # The newest attempt of each message, and when it was taken.
        self._taken: dict[tuple[str, str], tuple[int, float]] = {}

    def __len__(self) -> int:
        return len(self._taken)

    def add(self, mark: Mark, users: frozenset[str]) -> None:
        """A stream has taken an attempt, if it is a stream of the user that is asked."""
        if mark.key and mark.user in users:
            self._add(mark.user, mark.key, mark.attempt, self._monotonic())

    def shown(self, user: str, key: str) -> None:
        """A stream of the user has been shown it as it opened."""
        self._add(user, key, 0, self._monotonic())

    def take(self, most: int) -> list[Written]:
        """The oldest of them; they are reported now."""
        now = self._monotonic()
        return [self._report(*place, now) for place in list(islice(self._taken, most))]

    def take_of(self, user: str, keys: Iterable[str]) -> list[Written]:
        """Those of some messages of a user, to be reported at once."""
        now = self._monotonic()
        known = [(user, key) for key in keys if (user, key) in self._taken]
        return [self._report(*place, now) for place in known]

    def put_back(self, reports: Iterable[Written]) -> None:
        """Those couldn't be told."""
        now = self._monotonic()
        for each in reports:
            self._add(each.user, each.key, each.attempt, now - each.age / 1000)

    def _report(self, user: str, key: str, now: float) -> Written:
        attempt, at = self._taken.pop((user, key))
        return Written(user, key, attempt, int((now - at) * 1000))

    def _add(self, user: str, key: str, attempt: int, at: float) -> None:
        known = self._taken.get((user, key))
        if known is None or attempt > known[0]:
            self._taken[user, key] = (attempt, at)
            if len(self._taken) > MOST:
                del self._taken[next(iter(self._taken))]
