"""The devices of a single process, in its memory."""

import time
from collections.abc import Callable, Sequence

import msgspec

from msgpush.domain.devices import MAX_DEVICES, SKEW, Address, Device, device_id, proves
from msgpush.domain.errors import DeviceTaken


class MemoryDevices:
    """Devices in memory, gone at exit as the bus beside it.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._by_user: dict[str, dict[str, Device]] = {}  # each user's, the newest last
        self._owner: dict[str, str] = {}  # by device

    async def register(
        self, user: str, address: Address, label: str | None, *, issued_at: float | None = None
    ) -> tuple[Device, bool]:
        # A single process has heard of every revocation: `issued_at` tells it nothing new.
        id, now = device_id(address), int(self._clock() * 1000)
        owner = self._owner.get(id)
        known = None if owner is None else self._by_user[owner][id]
        own = known if owner == user else None
        if known is not None and own is None:
            if not proves(known.address, address):
                raise DeviceTaken
            self._drop(known)
        device = Device(
            id,
            user,
            address,
            label if own is None or label is not None else own.label,
            now if own is None else own.created_at,
            now,
            now,
        )
        mine = self._by_user.setdefault(user, {})
        mine[id] = device
        self._owner[id] = user
        if len(mine) > MAX_DEVICES:
            self._drop(min((each for each in mine.values() if each.id != id), key=_last_use))
        return device, own is None

    async def of(self, users: Sequence[str]) -> list[list[Device]]:
        return [list(self._by_user.get(user, {}).values()) for user in users]

    async def remove(self, user: str, device: str | None = None) -> None:
        for each in list(self._by_user.get(user, {}).values()):
            if device in (None, each.id):
                self._drop(each)

    async def used(self, devices: Sequence[Device]) -> None:
        now = int(self._clock() * 1000)
        for device in devices:
            if (known := self._known(device)) is not None:
                self._by_user[device.user][device.id] = msgspec.structs.replace(known, used_at=now)

    async def gone(self, devices: Sequence[Device]) -> None:
        for device in devices:
            known = self._known(device)
            if known is not None and known.address == device.address:
                self._drop(known)

    def revoke(self, user: str, at: float) -> None:
        """Forget the devices that a user has registered until a moment, in seconds since 1970."""
        for device in list(self._by_user.get(user, {}).values()):
            if device.registered_at <= (at + SKEW) * 1000:
                self._drop(device)

    def _known(self, device: Device) -> Device | None:
        return self._by_user.get(device.user, {}).get(device.id)

    def _drop(self, device: Device) -> None:
        own = self._by_user[device.user]
        del own[device.id], self._owner[device.id]
        if not own:
            del self._by_user[device.user]


def _last_use(device: Device) -> tuple[int, int]:
    return device.used_at, device.created_at
