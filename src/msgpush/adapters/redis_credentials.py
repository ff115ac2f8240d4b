"""Tickets and standing revocations in Redis, where all instances find them."""

from math import ceil
from typing import Any, Final, Self

import msgspec

from msgpush.adapters.redis_link import HASH_TAG, Command, Link, NotNow, RedisTarget, Script
from msgpush.domain.credentials import Revocation, Ticket
from msgpush.domain.errors import BusUnavailable

REVOKED: Final = f"{HASH_TAG}:revoked"

# A ticket is used by one connection at a time: who used it before is told in the same step.
CLAIM = """\
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local before = redis.call('HGET', KEYS[1], 'connection') or ''
redis.call('HSET', KEYS[1], 'connection', ARGV[1])
redis.call('PEXPIREAT', KEYS[1], ARGV[2])
return before
"""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Ticket).decode


class RedisCredentials:
    """What instances share of credentials. An async context manager.

    Args:
        lifetime: seconds for which a revocation stands.
    """

    def __init__(self, target: RedisTarget, *, lifetime: float) -> None:
        self._link = Link(target, "msgpush-credentials")
        self._lifetime = lifetime
        self._claim = Script(CLAIM)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._link.close()

    async def add_ticket(self, digest: str, ticket: Ticket, seconds: float) -> None:
        key = _key(digest)
        await self._call(
            ("MULTI",),
            ("HSET", key, "ticket", _encode(ticket)),
            ("PEXPIRE", key, max(1, int(seconds * 1000))),
            ("EXEC",),
        )

    async def ticket(self, digest: str) -> Ticket | None:
        (found,) = await self._call(("HGET", _key(digest), "ticket"))
        return None if found is None else _decode(found)

    async def claim(self, digest: str, until: float, connection: str) -> str | None:
        try:
            (before,) = await self._link.script(self._claim, [_key(digest)], [connection, int(until * 1000)])
        except NotNow as error:
            raise BusUnavailable(str(error)) from error
        return None if before is None else str(before, "ascii")

    async def revoke(self, revocation: Revocation) -> None:
        # Rounded up: what was issued at that very moment is refused, too.
        at = ceil(revocation.at * 1000)
        await self._call(
            ("ZADD", REVOKED, "GT", at, f"{revocation.kind}:{revocation.value}"),
            ("ZREMRANGEBYSCORE", REVOKED, "-inf", int(at - self._lifetime * 1000)),
        )

    async def revocations(self) -> list[Revocation]:
        (found,) = await self._call(("ZRANGE", REVOKED, 0, -1, "WITHSCORES"))
        pairs = zip(found[::2], found[1::2], strict=True)
        return [_revocation(member.decode(errors="surrogateescape"), float(at) / 1000) for member, at in pairs]

    async def _call(self, *commands: Command) -> list[Any]:
        try:
            return await self._link.calls(commands)
        except NotNow as error:
            raise BusUnavailable(str(error)) from error


def _key(digest: str) -> str:
    return f"{HASH_TAG}:ticket:{digest}"


def _revocation(member: str, at: float) -> Revocation:
    kind, _, value = member.partition(":")
    return msgspec.convert({"type": "revoke", "kind": kind, "value": value, "at": at}, Revocation)
