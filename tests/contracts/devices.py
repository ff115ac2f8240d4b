"""What every store of devices promises, and the credentials beside it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

import pytest

from msgpush.domain.credentials import Revocation
from msgpush.domain.devices import (
    MAX_DEVICES,
    SKEW,
    Address,
    Apns,
    Fcm,
    WebPush,
    device_id,
    proof_of,
)
from msgpush.domain.errors import DeviceTaken
from msgpush.domain.ports import Credentials, Devices

NAMES = ["alice", "a b/ü:*{x}", "\ud800", "."]


class Opened(NamedTuple):
    """The same devices at one instance or more, the time by their clock, and a way to let it
    pass."""

    instances: list[Devices]
    credentials: Credentials
    now: Callable[[], float]
    wait: Callable[[float], Awaitable[None]]


def web_push(number: int = 0, *, key: bytes = b"p", auth: bytes = b"a") -> WebPush:
    return WebPush(f"https://push.example/{number}", key * 65, auth * 16)


class DevicesContract:
    """Subclass it, and say how devices are opened."""

    def open(self) -> AbstractAsyncContextManager[Opened]:
        raise NotImplementedError

    async def test_a_device_is_found_as_it_was_registered_at_every_instance(self) -> None:
        async with self.open() as opened:
            addresses: list[Address] = [
                web_push(),
                Fcm("token", proof_of(b"secret")),
                Apns("token", "com.example.app", proof_of(b"secret")),
            ]
            for name in NAMES:
                for number, address in enumerate(addresses):
                    own = _of_user(address, name)
                    label = None if number else "desk"
                    device, new = await opened.instances[0].register(name, own, label)
                    assert new
                    assert (device.id, device.user) == (device_id(own), name)
                    assert (device.address, device.label) == (own, label)
                    assert abs(device.created_at / 1000 - opened.now()) < 2
                    await opened.wait(0.002)
            for devices in opened.instances:
                found = await devices.of([*NAMES, "nobody"])
                assert found[-1] == []
                for name, own_devices in zip(NAMES, found, strict=False):
                    expected = [_of_user(each, name) for each in addresses]
                    assert [each.address for each in own_devices] == expected
                    assert [each.label for each in own_devices] == ["desk", None, None]

    async def test_one_that_is_registered_again_stays_the_same(self) -> None:
        async with self.open() as opened:
            first, *_, last = [*opened.instances, *opened.instances]
            device, _ = await first.register("alice", web_push(), "desk")
            await opened.wait(0.01)
            again, new = await last.register("alice", web_push(key=b"q"), None)
            assert not new
            assert (again.id, again.created_at) == (device.id, device.created_at)
            assert again.label == "desk"
            assert again.registered_at > device.registered_at
            renamed, _ = await first.register("alice", web_push(key=b"q"), "home")
            assert renamed.label == "home"
            assert await last.of(["alice"]) == [[renamed]]

    async def test_it_moves_to_another_user_only_with_what_it_alone_knows(self) -> None:
        async with self.open() as opened:
            first, *_, last = [*opened.instances, *opened.instances]
            secret: list[tuple[Address, Address]] = [
                (web_push(), web_push(auth=b"b")),
                (Fcm("t", proof_of(b"secret")), Fcm("t", proof_of(b"guess"))),
                (Apns("t", "a", proof_of(b"secret")), Apns("t", "a", proof_of(b"guess"))),
            ]
            for known, guessed in secret:
                device, _ = await first.register("alice", known, "desk")
                with pytest.raises(DeviceTaken):
                    await last.register("bob", guessed, None)
                assert device in (await last.of(["alice"]))[0]
                assert (await last.of(["bob"])) == [[]]
                moved, new = await last.register("bob", known, None)
                assert new
                assert (moved.id, moved.user, moved.label) == (device.id, "bob", None)
                assert await first.of(["alice", "bob"]) == [[], [moved]]
                await first.remove("bob")
                # It is nobody's now, so anybody may have it.
                taken, _ = await first.register("carol", guessed, None)
                assert await last.of(["carol"]) == [[taken]]
                await last.remove("carol", taken.id)

    async def test_of_many_who_want_one_at_once_one_has_it(self) -> None:
        async with self.open() as opened:
            instances = opened.instances
            users = [f"u{number}" for number in range(10)]
            # None of them knows what another has registered it with.
            await asyncio.gather(
                *(
                    instances[number % len(instances)].register(
                        user, web_push(auth=bytes([number])), None
                    )
                    for number, user in enumerate(users)
                ),
                return_exceptions=True,
            )
            found = await instances[-1].of(users)
            assert sum(len(own) for own in found) == 1

    async def test_of_too_many_the_longest_unused_goes(self) -> None:
        async with self.open() as opened:
            first, *_, last = [*opened.instances, *opened.instances]
            made = []
            for number in range(MAX_DEVICES):
                made.append((await first.register("alice", web_push(number), None))[0])
                await opened.wait(0.002)
            await last.used([made[0]])
            await opened.wait(0.002)
            newest, _ = await last.register("alice", web_push(99), None)
            (own,) = await first.of(["alice"])
            assert len(own) == MAX_DEVICES
            ids = {each.id for each in own}
            assert {made[0].id, newest.id} <= ids
            assert made[1].id not in ids
            # Which is nobody's from then on.
            taken, _ = await first.register("bob", web_push(1, auth=b"z"), None)
            assert await last.of(["bob"]) == [[taken]]

    async def test_who_removes_one_removes_no_other(self) -> None:
        async with self.open() as opened:
            devices = opened.instances[0]
            one, _ = await devices.register("alice", web_push(1), None)
            other, _ = await devices.register("alice", web_push(2), None)
            bobs, _ = await devices.register("bob", web_push(3), None)
            await devices.remove("alice", bobs.id)
            await devices.remove("alice", "no-such-device")
            await devices.remove("nobody", one.id)
            await devices.remove("nobody")
            assert await devices.of(["alice", "bob"]) == [[one, other], [bobs]]
            await devices.remove("alice", one.id)
            assert await devices.of(["alice", "bob"]) == [[other], [bobs]]
            await devices.remove("alice")
            assert await devices.of(["alice", "bob"]) == [[], [bobs]]

    async def test_who_removes_what_no_device_is_called_changes_none(self) -> None:
        async with self.open() as opened:
            devices = opened.instances[0]
            one, _ = await devices.register("alice", web_push(1), None)
            for name in (f"r:{one.id}", f"c:{one.id}", f"u:{one.id}", "", ":"):
                await devices.remove("alice", name)
            assert await devices.of(["alice"]) == [[one]]
            await opened.credentials.revoke(Revocation("subject", "alice", opened.now()))
            assert await devices.of(["alice"]) == [[]]

    async def test_what_is_gone_is_forgotten_unless_it_was_registered_anew(self) -> None:
        async with self.open() as opened:
            devices = opened.instances[0]
            one, _ = await devices.register("alice", web_push(1), "desk")
            other, _ = await devices.register("alice", web_push(2), None)
            anew, _ = await devices.register("alice", web_push(2, key=b"n"), None)
            await devices.used([one])
            await devices.gone([one, other, one])
            assert await devices.of(["alice"]) == [[anew]]
            await devices.used([one])
            assert await devices.of(["alice"]) == [[anew]]

    async def test_a_revocation_takes_the_devices_of_its_subject_along(self) -> None:
        async with self.open() as opened:
            devices, credentials = opened.instances[0], opened.credentials
            for name in NAMES:
                await devices.register(name, web_push(NAMES.index(name)), None)
            await devices.register("alice", web_push(77), None)
            for other in (
                Revocation("jti", "alice", opened.now()),
                Revocation("issued_before", "", opened.now()),
                Revocation("subject", "alic", opened.now()),
            ):
                await credentials.revoke(other)
            assert len((await devices.of(["alice"]))[0]) == 2
            await credentials.revoke(
                Revocation("jti", "x", opened.now()),
                Revocation("subject", "alice", opened.now()),
                Revocation("subject", "nobody", opened.now()),
                Revocation("subject", NAMES[1], opened.now()),
            )
            found = await opened.instances[-1].of(NAMES)
            assert [len(own) for own in found] == [0, 0, 1, 1]
            # What was lost may be put back: it doesn't take what has come since.
            taken, _ = await devices.register("bob", web_push(77, auth=b"z"), None)
            later = Revocation("subject", "bob", opened.now() - SKEW - 10)
            await credentials.revoke(later)
            assert await devices.of(["bob"]) == [[taken]]


def _of_user(address: Address, user: str) -> Address:
    """An address like this one that no other user has."""
    number = NAMES.index(user)
    match address:
        case WebPush():
            return web_push(number)
        case Fcm(token=token, proof=proof):
            return Fcm(f"{token}{number}", proof)
        case Apns(token=token, topic=topic, proof=proof):
            return Apns(f"{token}{number}", topic, proof)
