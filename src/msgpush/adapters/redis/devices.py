"""Devices in Redis, where all instances find them.

A user's devices are a hash: under each one's id what it is, and, under `c:`, `r:` and `u:` and
that id, when it was registered first, registered last, and used last. Whose a device is says a key
of its own. A device is a user's where both say so: so it moves, and is removed, by the change of
one key, and what is left over for a moment, where a script is stopped halfway, counts for
nothing."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Self

import msgspec
from msgspec import Struct

from msgpush.adapters.redis.link import HASH_TAG, Script, SharedLink
from msgpush.adapters.redis.target import RedisTarget
from msgpush.domain.devices import MAX_DEVICES, Address, Device, device_id, proves
from msgpush.domain.errors import BusUnavailable, DeviceTaken, Unauthorized

REVOKED: Final = f"{HASH_TAG}:revoked"  # see `credentials`

TRIES = 8  # where others change the same

_NOW = """\
local time = redis.call('TIME')
local now = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
local function drop(key, id) redis.call('HDEL', key, id, 'c:' .. id, 'r:' .. id, 'u:' .. id) end
"""
# KEYS: the user's devices, the device's owner, that owner's devices, revocations. Answers nothing
# where the owner isn't the one that is known, or has another record; 0 where the user's own token
# was revoked that it is registered with; else when it was registered first, and now, and those that
# went for want of room.
REGISTER = (
    _NOW
    + """\
local id, user, owner, before, record, most, issued = unpack(ARGV)
if issued ~= '' then
  local revoked = redis.call('ZSCORE', KEYS[4], 'subject:' .. user)
  if revoked and tonumber(issued) <= tonumber(revoked) then return {0} end
end
if (redis.call('GET', KEYS[2]) or '') ~= owner then return {} end
if (redis.call('HGET', KEYS[3], id) or '') ~= before then return {} end
local made = before ~= '' and owner == user and redis.call('HGET', KEYS[1], 'c:' .. id) or now
redis.call('HSET', KEYS[1], id, record, 'c:' .. id, made, 'r:' .. id, now, 'u:' .. id, now)
redis.call('SET', KEYS[2], user)
if owner ~= user and owner ~= '' then drop(KEYS[3], id) end
local answer, others = {made, now}, {}
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if not string.find(field, ':', 1, true) and field ~= id then others[#others + 1] = field end
end
while #others >= tonumber(most) do
  local oldest, least = 1, math.huge
  for i, other in ipairs(others) do
    local used = tonumber(redis.call('HGET', KEYS[1], 'u:' .. other) or 0)
    if used < least then oldest, least = i, used end
  end
  drop(KEYS[1], others[oldest])
  answer[#answer + 1] = table.remove(others, oldest)
end
return answer
"""
)
# KEYS: the user's devices. A record that is given is to be the same. Answers those that went.
REMOVE = (
    _NOW
    + """\
local gone = {}
for i = 1, #ARGV, 2 do
  local record = redis.call('HGET', KEYS[1], ARGV[i])
  if record and (ARGV[i + 1] == '' or ARGV[i + 1] == record) then
    drop(KEYS[1], ARGV[i])
    gone[#gone + 1] = ARGV[i]
  end
end
return gone
"""
)
USED = (
    _NOW
    + """\
for _, id in ipairs(ARGV) do
  if redis.call('HEXISTS', KEYS[1], id) == 1 then redis.call('HSET', KEYS[1], 'u:' .. id, now) end
end
"""
)
# KEYS: a user's devices, then owners of devices that were the user's.
DISOWN = """\
local user = ARGV[1]
for i = 2, #KEYS do
  if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 0 and redis.call('GET', KEYS[i]) == user then
    redis.call('DEL', KEYS[i])
  end
end
"""
_DISOWN: Final = Script(DISOWN)


class _Record(Struct, frozen=True, array_like=True):
    address: Address
    label: str | None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Record).decode


class RedisDevices:
    """Devices that instances share. An async context manager."""

    def __init__(self, target: RedisTarget) -> None:
        self._link = SharedLink(target, "msgpush-devices")
        self._register, self._remove, self._used = Script(REGISTER), Script(REMOVE), Script(USED)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._link.close()

    async def register(
        self, user: str, address: Address, label: str | None, *, issued_at: float | None = None
    ) -> tuple[Device, bool]:
        id, name = device_id(address), _text(user)
        issued = "" if issued_at is None else int(issued_at * 1000)
        for _ in range(TRIES):
            owner = await self._link.call("GET", owner_key(id)) or b""
            of = devices_key(owner) if owner else devices_key(name)
            before = await self._link.call("HGET", of, id) or b""
            known = _read(before) if before else None
            if before and owner != name and not (known and proves(known.address, address)):
                raise DeviceTaken  # or what it alone knows can't be read here
            own = known if owner == name else None
            kept = label if own is None or label is not None else own.label
            record = _encode(_Record(address, kept))
            answer = await self._link.script(
                self._register,
                [devices_key(name), owner_key(id), of, REVOKED],
                [id, name, owner, before, record, MAX_DEVICES, issued],
            )
            if answer == [0]:
                raise Unauthorized("the token is refused: its subject's tokens have been revoked")
            if answer:
                made, now, *surplus = answer
                await disown(self._link, name, [each.decode() for each in surplus])
                device = Device(id, user, address, kept, int(made), int(now), int(now))
                return device, own is None
        raise BusUnavailable("the device is registered by too many at a time")

    async def of(self, users: Sequence[str]) -> list[list[Device]]:
        names = [_text(user) for user in users]
        if not names:
            return []
        found = await self._link.calls([("HGETALL", devices_key(name)) for name in names])
        devices = [
            _devices(user, dict(zip(pairs[::2], pairs[1::2], strict=True)))
            for user, pairs in zip(users, found, strict=True)
        ]
        keys = [owner_key(each.id) for own in devices for each in own]
        owners = iter(await self._link.call("MGET", *keys) if keys else [])
        return [
            [device for device in own if next(owners) == name]
            for name, own in zip(names, devices, strict=True)
        ]

    async def remove(self, user: str, device: str | None = None) -> None:
        if device is None:
            fields = await self._link.call("HKEYS", devices_key(_text(user)))
            ids = [each.decode() for each in fields if b":" not in each]
        else:
            # Whoever names `r:` and an id would else keep that device from being revoked.
            ids = [] if ":" in device else [device]
        await self._forget(user, [(id, b"") for id in ids])

    async def used(self, devices: Sequence[Device]) -> None:
        for user, own in _by_user(devices).items():
            key = devices_key(_text(user))
            await self._link.script(self._used, [key], [each.id for each in own])

    async def gone(self, devices: Sequence[Device]) -> None:
        for user, own in _by_user(devices).items():
            same = [(each.id, _encode(_Record(each.address, each.label))) for each in own]
            await self._forget(user, same)

    async def _forget(self, user: str, devices: Sequence[tuple[str, bytes]]) -> None:
        if devices:
            name = _text(user)
            args = [each for pair in devices for each in pair]
            gone = await self._link.script(self._remove, [devices_key(name)], args)
            await disown(self._link, name, [each.decode() for each in gone])


def devices_key(name: bytes) -> bytes:
    """The devices of a user."""
    return f"{HASH_TAG}:devices:".encode() + name


def owner_key(id: str) -> str:
    """Whose a device is."""
    return f"{HASH_TAG}:device:{id}"


async def disown(link: SharedLink, name: bytes, ids: Sequence[str]) -> None:
    """Forget whose some devices were, that are the user's no longer; what isn't forgotten is only
    left over."""
    if ids:
        keys: list[str | bytes] = [devices_key(name), *(owner_key(id) for id in ids)]
        with contextlib.suppress(BusUnavailable):
            await link.script(_DISOWN, keys, [name, *ids])


def _text(user: str) -> bytes:
    return user.encode(errors="surrogatepass")


def _read(record: bytes) -> _Record | None:
    try:
        return _decode(record)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None  # of a release to come, or touched by somebody


def _devices(user: str, fields: Mapping[bytes, bytes]) -> list[Device]:
    found = []
    for field, value in fields.items():
        if b":" not in field and (record := _read(value)) is not None:
            made, registered, used = (int(fields.get(each + field, b"0")) for each in _MOMENTS)
            found.append(
                Device(field.decode(), user, record.address, record.label, made, registered, used)
            )
    return sorted(found, key=lambda each: (each.created_at, each.id))


_MOMENTS = (b"c:", b"r:", b"u:")


def _by_user(devices: Iterable[Device]) -> dict[str, list[Device]]:
    found: dict[str, list[Any]] = {}
    for device in devices:
        found.setdefault(device.user, []).append(device)
    return found
