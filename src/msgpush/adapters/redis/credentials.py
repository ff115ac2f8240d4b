"""Tickets and standing revocations in Redis, where all instances find them."""

import logging
from math import ceil
from typing import Self

import msgspec

from msgpush.adapters.redis.devices import REVOKED, devices_key, disown
from msgpush.adapters.redis.link import HASH_TAG, Script, SharedLink
from msgpush.adapters.redis.target import RedisTarget
from msgpush.domain.credentials import MOST, Revocation, Ticket
from msgpush.domain.devices import SKEW

log = logging.getLogger("msgpush.auth")

REVOKED_AT_ONCE = 2_000

# A subject's tickets stand in two sorted sets: by their end, and in the order in which they were
# made. Answers those that are too many, which are to be deleted.
ADD = """\
local digest, ticket, left, most = unpack(ARGV)
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('HSET', KEYS[1], 'ticket', ticket)
local refused = redis.pcall('PEXPIRE', KEYS[1], left)
if type(refused) == 'table' and refused.err then
  -- A ticket has an end, or there is none: a script that is stopped leaves what it has written.
  redis.call('DEL', KEYS[1])
  return refused
end
for _, ended in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)) do
  redis.call('ZREM', KEYS[2], ended)
  redis.call('ZREM', KEYS[3], ended)
end
redis.call('ZADD', KEYS[2], now + left, digest)
redis.call('ZADD', KEYS[3], now, digest)
for i = 2, 3 do
  redis.call('PEXPIRE', KEYS[i], left, 'NX')
  redis.call('PEXPIRE', KEYS[i], left, 'GT')
end
local surplus = redis.call('ZCARD', KEYS[3]) - tonumber(most)
local dropped = {}
if surplus > 0 then
  local popped = redis.call('ZPOPMIN', KEYS[3], surplus)
  for i = 1, #popped, 2 do
    redis.call('ZREM', KEYS[2], popped[i])
    dropped[#dropped + 1] = popped[i]
  end
end
return dropped
"""
# Answers 1 where the ticket had the holder that is known.
CLAIM = """\
local digest, connection, before, till = unpack(ARGV)
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if (redis.call('HGET', KEYS[1], 'connection') or '') ~= before then return 0 end
redis.call('HSET', KEYS[1], 'connection', connection)
redis.call('PEXPIREAT', KEYS[1], till)
redis.call('ZADD', KEYS[2], till, digest)
for i = 2, 3 do
  redis.call('PEXPIREAT', KEYS[i], till, 'NX')
  redis.call('PEXPIREAT', KEYS[i], till, 'GT')
end
return 1
"""
# What has had its time goes first: once a script has removed something, a full Redis lets it write.
# KEYS go on with the devices of the subjects. Answers the devices that went, each after its user's
# number.
REVOKE = """\
local lifetime, skew = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - lifetime)
local gone, subject = {}, 1
for i = 3, #ARGV, 2 do
  if string.sub(ARGV[i + 1], 1, 8) == 'subject:' then
    subject = subject + 1
    -- Rights that only devices need aren't asked for where there are none.
    local there = redis.call('EXISTS', KEYS[subject]) == 1
    local fields = there and redis.call('HGETALL', KEYS[subject]) or {}
    for f = 1, #fields, 2 do
      if string.sub(fields[f], 1, 2) == 'r:' and tonumber(fields[f + 1]) <= ARGV[i] + skew then
        local id = string.sub(fields[f], 3)
        redis.call('HDEL', KEYS[subject], id, 'c:' .. id, 'r:' .. id, 'u:' .. id)
        gone[#gone + 1] = subject - 1
        gone[#gone + 1] = id
      end
    end
  end
  redis.call('ZADD', KEYS[1], 'GT', ARGV[i], ARGV[i + 1])
end
local newest = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', newest[2] + lifetime))
return gone
"""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Ticket).decode


class RedisCredentials:
    """Tickets and revocations that instances share. An async context manager.

    Args:
        lifetime: seconds for which a revocation stands.
    """

    def __init__(self, target: RedisTarget, *, lifetime: float) -> None:
        # Tickets that are looked up, which anybody may ask for, hold up nothing else.
        self._finder = SharedLink(target, "msgpush-tickets")
        self._link = SharedLink(target, "msgpush-credentials")
        self._lifetime = lifetime
        self._add, self._claim, self._revoke = Script(ADD), Script(CLAIM), Script(REVOKE)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._finder.close()
        await self._link.close()

    async def add_ticket(self, digest: str, ticket: Ticket, seconds: float) -> None:
        args: list[str | bytes | int] = [digest, _encode(ticket), max(1, int(seconds * 1000)), MOST]
        dropped = await self._link.script(self._add, _keys(digest, ticket.subject), args)
        if dropped:
            await self._link.call("DEL", *(_key(each.decode()) for each in dropped))

    async def ticket(self, digest: str) -> Ticket | None:
        found = await self._finder.call("HGET", _key(digest), "ticket")
        return None if found is None else _decode(found)

    async def holder(self, digest: str) -> str | None:
        there, found = await self._link.calls(
            [("EXISTS", _key(digest)), ("HGET", _key(digest), "connection")]
        )
        return str(found or b"", "ascii") if there else None

    async def claim(
        self, digest: str, subject: str | None, *, connection: str, before: str, until: float
    ) -> bool:
        args: list[str | bytes | int] = [digest, connection, before, int(until * 1000)]
        return bool(await self._link.script(self._claim, _keys(digest, subject), args))

    async def revoke(self, *revocations: Revocation) -> None:
        for start in range(0, len(revocations), REVOKED_AT_ONCE):
            args: list[str | bytes | int] = [int(self._lifetime * 1000), int(SKEW * 1000)]
            users: list[bytes] = []
            for each in revocations[start : start + REVOKED_AT_ONCE]:
                # Rounded up: what was issued at that very moment is refused, too.
                args += (ceil(each.at * 1000), f"{each.kind}:{each.value}")
                if each.kind == "subject":
                    users.append(each.value.encode(errors="surrogatepass"))
            keys: list[str | bytes] = [REVOKED, *map(devices_key, users)]
            gone = await self._link.script(self._revoke, keys, args)
            for number, id in zip(gone[::2], gone[1::2], strict=True):
                await disown(self._link, users[number - 1], [id.decode()])

    async def revocations(self) -> list[Revocation]:
        found = await self._link.call("ZRANGE", REVOKED, 0, -1, "WITHSCORES")
        pairs = zip(found[::2], found[1::2], strict=True)
        made = (
            _revocation(member.decode(errors="surrogateescape"), float(at) / 1000)
            for member, at in pairs
        )
        return [each for each in made if each is not None]


def _key(digest: str) -> str:
    return f"{HASH_TAG}:ticket:{digest}"


def _keys(digest: str, subject: str | None) -> list[str | bytes]:
    own = (
        f"{HASH_TAG}:{name}:{subject or ''}".encode(errors="surrogatepass")
        for name in ("tickets", "made")
    )
    return [_key(digest), *own]


def _revocation(member: str, at: float) -> Revocation | None:
    kind, _, value = member.partition(":")
    try:
        return msgspec.convert(
            {"type": "revoke", "kind": kind, "value": value, "at": at}, Revocation
        )
    except (msgspec.ValidationError, UnicodeEncodeError):
        # Of a newer release, while instances are replaced one by one.
        log.warning("a revocation is not understood: %.200r", member)
        return None
