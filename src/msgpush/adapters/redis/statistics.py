"""The statistics of all instances, in one key of Redis: a hash of packed counts.

An instance adds its own in one call every ten seconds, and a range is read in one."""

from collections.abc import Mapping
from typing import Any, Final, Self

import msgspec

from msgpush.adapters.redis.link import HASH_TAG, Link, Script, lua
from msgpush.adapters.redis.target import RedisTarget
from msgpush.domain.counts import BUCKETS, HOUR, KEPT, MINUTE, Counts, Step, pack, unpack
from msgpush.domain.tally import MAX_SERVICES, OTHER

STATISTICS: Final = f"{HASH_TAG}:statistics"
ADD: Final = lua("statistics")

_LETTER: Final[Mapping[Step, str]] = {MINUTE: "m", HOUR: "h"}

_encode = msgspec.msgpack.Encoder().encode
# A table of Lua that is empty is packed as an array.
_services = msgspec.msgpack.Decoder(dict[str, tuple[int, int]] | tuple[()]).decode


class RedisStatistics:
    """What became of messages at all instances. An async context manager."""

    def __init__(self, target: RedisTarget) -> None:
        self._link = Link(target, "msgpush-statistics")
        self._script = Script(ADD)
        self._now = ""  # the server's own time

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._link.close()

    async def add(self, source: str, number: int, minutes: Mapping[int, Counts]) -> None:
        named = {service for counts in minutes.values() for service in counts.services}
        names = {name: place for place, name in enumerate(sorted(named - {"", OTHER}))}
        kept = KEPT[HOUR] // HOUR, KEPT[MINUTE] // MINUTE
        args: list[str | bytes | int] = [source, number, self._now, MAX_SERVICES, BUCKETS, *kept]
        args.append(_encode(list(names)))
        for minute, counts in minutes.items():
            args += (minute, pack(counts, names.__getitem__))
        await self._link.script(self._script, [STATISTICS], args)

    async def read(self, step: Step, first: int, last: int) -> dict[int, Counts]:
        places = range(first, last + 1)
        fields = [f"{_LETTER[step]}{place}" for place in places]
        found: list[Any] = await self._link.call("HMGET", STATISTICS, "services", "oldest", *fields)
        services, oldest, *packed = found
        if services is None:
            return {}
        numbers = dict(_services(services) or {})
        names = {number: name for name, (number, _) in numbers.items()}
        kept = msgspec.msgpack.decode(oldest)[0 if step == MINUTE else 1]
        return {
            place: unpack(each, names)
            for place, each in zip(places, packed, strict=True)
            if each is not None and place >= kept
        }
