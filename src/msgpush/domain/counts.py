"""Counts of what became of messages in a span of time: they add up, and are packed to be kept.

Counts            by type, by service, and a histogram of latency
pack, unpack      the same as a few dozen bytes; services become numbers, which a store gives
quantile          from a histogram, by interpolation within the bucket"""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Literal

import msgspec

from msgpush.domain.message import TYPES
from msgpush.domain.tally import LATENCY, OTHER

Step = Literal[60, 3600]

MINUTE: Step = 60
HOUR: Step = 3600
# Seconds for which the counts of steps are kept: a day, and a month; somewhat more, so that who
# asks for just as much has it.
KEPT: Mapping[Step, int] = {MINUTE: 25 * 3600, HOUR: 31 * 86_400}

FIELDS = ("published", "failed", "delivered", "acknowledged", "dead", "pushed")
counted: Callable[[object], tuple[int, ...]] = attrgetter(*FIELDS)
WIDTH = 1 + len(FIELDS)  # numbers that a packed row has
BUCKETS = len(LATENCY) + 1

# The number of a row: of a type below 16; of a service, where that isn't known; of `other`; and of
# each that is told apart.
UNKNOWN_TYPE, OTHER_TYPE = 14, 15
UNKNOWN_SERVICE, OTHER_SERVICE, FIRST_SERVICE = 16, 17, 18
_TYPE_NUMBERS = {name: number for number, name in enumerate(TYPES)} | {
    "": UNKNOWN_TYPE,
    OTHER: OTHER_TYPE,
}
_TYPE_NAMES = {number: name for name, number in _TYPE_NUMBERS.items()}

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[int]).decode


class Counts:
    """What happened in a span of time.

    Attributes:
        types, services: by the name, numbers in the order of `FIELDS`. The same messages, told
            apart in two ways: each alone adds up to all of them.
        latency: how many fell into each bucket of `tally.LATENCY`.
    """

    __slots__ = ("latency", "services", "types")

    def __init__(self) -> None:
        self.types: dict[str, list[int]] = {}
        self.services: dict[str, list[int]] = {}
        self.latency = [0] * BUCKETS

    def __bool__(self) -> bool:
        return bool(self.types) or any(self.latency)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Counts) and (self.types, self.services, self.latency) == (
            other.types,
            other.services,
            other.latency,
        )

    __hash__ = None  # type: ignore[assignment]  # it changes

    def count(self, service: str, type: str, numbers: Sequence[int]) -> None:
        """Count messages of a service and type."""
        _add(self.types, type, numbers)
        _add(self.services, service, numbers)

    def observe(self, latency: Sequence[int]) -> None:
        """Count values in the buckets of the latency."""
        self.latency = [here + more for here, more in zip(self.latency, latency, strict=True)]

    def add(self, other: "Counts") -> None:
        """Count the same once more, as in the sum of two spans."""
        for mine, theirs in ((self.types, other.types), (self.services, other.services)):
            for name, numbers in theirs.items():
                _add(mine, name, numbers)
        self.observe(other.latency)

    def total(self) -> list[int]:
        """All messages together, in the order of `FIELDS`."""
        return [sum(column) for column in zip(*self.types.values(), strict=True)] or [0] * len(
            FIELDS
        )


def pack(counts: Counts, number_of: Callable[[str], int]) -> bytes:
    """Counts as MessagePack: an array of the latency's buckets, then of rows, each with its number.

    Args:
        number_of: the number of a service, from 0; it isn't asked about those that have none.
    """
    numbers = list(counts.latency)
    for type, row in counts.types.items():
        numbers += (_TYPE_NUMBERS.get(type, OTHER_TYPE), *row)
    for service, row in counts.services.items():
        if not service:
            number = UNKNOWN_SERVICE
        elif service == OTHER:
            number = OTHER_SERVICE
        else:
            number = FIRST_SERVICE + number_of(service)
        numbers += (number, *row)
    return _encode(numbers)


def unpack(packed: bytes, names: Mapping[int, str]) -> Counts:
    """Counts that were packed.

    Args:
        names: of the services, by their numbers from 0; whose name isn't known is among the others.
    """
    numbers = _decode(packed)
    counts = Counts()
    counts.latency = numbers[:BUCKETS]
    for start in range(BUCKETS, len(numbers), WIDTH):
        number, row = numbers[start], numbers[start + 1 : start + WIDTH]
        if number < UNKNOWN_SERVICE:
            rows, name = counts.types, _TYPE_NAMES.get(number, OTHER)
        elif number < FIRST_SERVICE:
            rows, name = counts.services, "" if number == UNKNOWN_SERVICE else OTHER
        else:
            rows, name = counts.services, names.get(number - FIRST_SERVICE, OTHER)
        if name in rows:
            _add(rows, name, row)
        else:
            rows[name] = row
    return counts


def quantile(latency: Sequence[int], share: float) -> float | None:
    """The seconds that a share of all values doesn't exceed; None: there are no values.

    Interpolated within the bucket, as if its values were spread evenly over it. What is in the last
    bucket, which has no upper bound, counts as its lower one.

    Args:
        share: above 0, at most 1.
    """
    rank = share * sum(latency)
    below = 0
    for number, count in enumerate(latency):
        if count and below + count >= rank:
            low = LATENCY[number - 1] if number else 0.0
            if number == len(LATENCY):
                return low
            return low + (LATENCY[number] - low) * (rank - below) / count
        below += count
    return None


def _add(rows: dict[str, list[int]], name: str, numbers: Sequence[int]) -> None:
    row = rows.get(name)
    if row is None:
        rows[name] = list(numbers)
    else:
        for place, number in enumerate(numbers):
            row[place] += number
