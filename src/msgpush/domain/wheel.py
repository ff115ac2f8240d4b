"""A timer wheel: one timer for any number of things that are due some time."""

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Wheel(Generic[T]):
    """Things by when they are due, to within a tick.

    Args:
        tick: seconds.
    """

    def __init__(self, tick: float) -> None:
        self._tick = tick
        self._slots: dict[int, dict[T, None]] = {}
        self._slot_of: dict[T, int] = {}

    def __len__(self) -> int:
        return len(self._slot_of)

    def put(self, thing: T, when: float) -> None:
        """Have a thing due at a moment, instead of when it was before.

        Never early, and late by a tick at most."""
        self.remove(thing)
        slot = int(when / self._tick) + 1
        self._slot_of[thing] = slot
        self._slots.setdefault(slot, {})[thing] = None

    def remove(self, thing: T) -> None:
        """Forget a thing, if it is here."""
        slot = self._slot_of.pop(thing, None)
        if slot is not None:
            things = self._slots[slot]
            del things[thing]
            if not things:
                del self._slots[slot]

    def due(self, now: float) -> Iterator[T]:
        """Take out what is due by now; the wheel may change meanwhile."""
        last = int(now / self._tick)
        for slot in sorted(slot for slot in self._slots if slot <= last):
            for thing in list(self._slots.get(slot, ())):
                self.remove(thing)
                yield thing
