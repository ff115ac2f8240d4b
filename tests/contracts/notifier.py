"""What every Notifier must keep, against a provider's service on a real socket, with TLS."""

import asyncio
import email.utils
import logging
import ssl
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import ClassVar

import pytest

from msgpush.adapters.notify.exchange import Exchange
from msgpush.domain.devices import Address
from msgpush.domain.notification import Answer, Notice
from msgpush.domain.ports import Notifier
from tests.support.certificates import Authority
from tests.support.push_services import PushService, Says

NOTICE = Notice(
    user="alice",
    key="importer/import-42-done",
    title="Import",
    text="It is done",
    own_text=True,
    collapse="import-42",
    ttl=600,
    message=b'{"data":{"message":"It is done"}}',
)


class NotifierContract:
    """Subclass it, and say how a notifier is opened, and what its provider says."""

    http2: ClassVar[bool]
    gone: ClassVar[Sequence[Says]]
    never: ClassVar[Sequence[Says]]

    @pytest.fixture
    def authority(self) -> Authority:
        return Authority()

    def exchange(self, authority: Authority, service: PushService, **more: float) -> Exchange:
        return Exchange(
            trusted=[("localhost", service.port)],
            http2=self.http2,
            concurrency=int(more.get("concurrency", 50)),
            tls=authority.trust(),
            seconds=more.get("seconds", 1.0),
            silence=more.get("silence", 0.5),
        )

    def open(
        self, exchange: Exchange, service: PushService
    ) -> tuple[AbstractAsyncContextManager[Notifier], Address]:
        """A notifier whose provider is this service, and the address of a device."""
        raise NotImplementedError

    def service(self, authority: Authority, tls: ssl.SSLContext | None = None) -> PushService:
        """The provider's service."""
        return PushService(authority, tls=tls)

    def sent(self, service: PushService) -> int:
        """The notices that have come there."""
        return len(service.asked)

    async def test_what_is_sent_is_taken_over_one_connection(self, authority: Authority) -> None:
        async with self.service(authority) as service:
            opened, address = self.open(self.exchange(authority, service), service)
            async with opened as notifier:
                for _ in range(20):
                    assert (await notifier.send(address, NOTICE)).outcome == "sent"
        assert self.sent(service) == 20
        assert service.opened == 1
        assert {each.http for each in service.asked} == {"2" if self.http2 else "1.1"}

    async def test_no_more_are_under_way_than_may_be(self, authority: Authority) -> None:
        async with self.service(authority) as service:
            exchange = self.exchange(authority, service, concurrency=8, seconds=10, silence=10)
            opened, address = self.open(exchange, service)
            async with opened as notifier:
                await notifier.send(address, NOTICE)
                service.usual = lambda _: Says(200, after=0.02)
                answers = await asyncio.gather(
                    *(notifier.send(address, NOTICE) for _ in range(100))
                )
        assert {each.outcome for each in answers} == {"sent"}
        assert service.most == 8
        assert service.opened <= 8

    async def test_a_device_that_is_gone_is_said_to_be(self, authority: Authority) -> None:
        for says in self.gone:
            assert await self.outcome(authority, says) == ("gone", None), says

    async def test_what_is_never_taken_is_not_to_be_repeated(self, authority: Authority) -> None:
        for says in (*self.never, Says(400), Says(413), Says(422)):
            assert await self.outcome(authority, says) == ("failed", None), says

    @pytest.mark.parametrize("status", [429, 500, 502, 503])
    async def test_when_to_ask_again_is_said_in_seconds_as_a_date_or_not_at_all(
        self, authority: Authority, status: int
    ) -> None:
        assert await self.outcome(authority, Says(status)) == ("later", None)
        seconds = Says(status, headers={"Retry-After": "120"})
        assert await self.outcome(authority, seconds) == ("later", 120)
        for nonsense in ("soon", "-3", "", "9" * 400 + "x", "Mon, 99 Foo 2026"):
            says = Says(status, headers={"Retry-After": nonsense})
            assert await self.outcome(authority, says) == ("later", None), nonsense
        date = email.utils.formatdate(time.time() + 100, usegmt=True)
        outcome, after = await self.outcome(authority, Says(status, headers={"Retry-After": date}))
        assert outcome == "later"
        assert after is not None
        assert 90 < after <= 100

    async def test_no_redirect_is_followed(self, authority: Authority) -> None:
        async with self.service(authority) as inside, self.service(authority) as service:
            opened, address = self.open(self.exchange(authority, service), service)
            async with opened as notifier:
                for status in (301, 302, 303, 307, 308):
                    service.script.append(Says(status, headers={"Location": inside.origin}))
                    assert (await notifier.send(address, NOTICE)).outcome == "failed"
            assert inside.opened == 0

    @pytest.mark.parametrize("behaviour", ["nothing", "close", "half"])
    async def test_no_answer_is_asked_for_again_and_the_next_one_has_one(
        self, authority: Authority, behaviour: str
    ) -> None:
        async with self.service(authority) as service:
            opened, address = self.open(self.exchange(authority, service), service)
            async with opened as notifier:
                await notifier.send(address, NOTICE)
                service.script.append(behaviour)  # type: ignore[arg-type]
                began = time.monotonic()
                assert (await notifier.send(address, NOTICE)).outcome == "later"
                assert time.monotonic() - began < 3
                assert (await notifier.send(address, NOTICE)).outcome == "sent"

    async def test_an_answer_that_trickles_is_given_up(self, authority: Authority) -> None:
        async with self.service(authority) as service:
            opened, address = self.open(self.exchange(authority, service), service)
            async with opened as notifier:
                await notifier.send(address, NOTICE)
                service.script.append(Says(200, b"{" * 1_000, byte=0.1))
                began = time.monotonic()
                assert (await notifier.send(address, NOTICE)).outcome == "later"
                assert 0.8 < time.monotonic() - began < 3
                assert (await notifier.send(address, NOTICE)).outcome == "sent"

    async def test_of_an_endless_answer_no_more_is_read_than_counts(
        self, authority: Authority
    ) -> None:
        async with self.service(authority) as service:
            opened, address = self.open(self.exchange(authority, service), service)
            async with opened as notifier:
                await notifier.send(address, NOTICE)
                service.script.append("endless")
                assert (await notifier.send(address, NOTICE)).outcome == "failed"
                assert (await notifier.send(address, NOTICE)).outcome == "sent"

    async def test_connections_that_were_closed_meanwhile_are_made_anew(
        self, authority: Authority
    ) -> None:
        async with self.service(authority) as service:
            service.closes = True
            opened, address = self.open(
                self.exchange(authority, service, seconds=5, silence=5), service
            )
            async with opened as notifier:
                for _ in range(5):
                    assert (await notifier.send(address, NOTICE)).outcome == "sent"
                    await asyncio.sleep(0.02)
                service.closes = False
                assert (await notifier.send(address, NOTICE)).outcome == "sent"
                service.drop()
                await asyncio.sleep(0.02)
                assert (await notifier.send(address, NOTICE)).outcome == "sent"
            assert self.sent(service) == 7  # and none of them twice

    async def test_a_certificate_that_is_wrong_gets_nothing(self, authority: Authority) -> None:
        wrong = {
            "of another authority": Authority().issue("localhost"),
            "of another name": authority.issue("push.example"),
            "that has run out": authority.issue("localhost", expired=True),
        }
        for what, tls in wrong.items():
            async with self.service(authority, tls) as service:
                opened, address = self.open(self.exchange(authority, service), service)
                async with opened as notifier:
                    answer = await notifier.send(address, NOTICE)
            assert answer.outcome == "later", what
            assert "certificate" in answer.reason
            assert not service.asked

    async def test_nobody_there_is_asked_again(self, authority: Authority) -> None:
        async with self.service(authority) as service:
            opened, address = self.open(self.exchange(authority, service), service)
        async with opened as notifier:
            assert (await notifier.send(address, NOTICE)).outcome == "later"

    async def test_who_stops_waiting_takes_nobody_else_along(self, authority: Authority) -> None:
        async with self.service(authority) as service:
            exchange = self.exchange(authority, service, seconds=10, silence=10, concurrency=10)
            opened, address = self.open(exchange, service)
            async with opened as notifier:
                await notifier.send(address, NOTICE)
                service.usual = lambda _: Says(200, after=0.05)
                sending = [asyncio.create_task(notifier.send(address, NOTICE)) for _ in range(40)]
                await asyncio.sleep(0.02)
                for task in sending[::2]:
                    task.cancel()
                done = await asyncio.gather(*sending, return_exceptions=True)
                assert {each.outcome for each in done[1::2] if isinstance(each, Answer)} == {"sent"}

    async def test_no_log_has_where_it_went_or_what_it_was_let_in_with(
        self, authority: Authority, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        async with self.service(authority) as service:
            opened, address = self.open(self.exchange(authority, service), service)
            async with opened as notifier:
                for says in (Says(201), Says(400, b"bad"), Says(503), "close", "half"):
                    service.script.append(says)
                    await notifier.send(address, NOTICE)
        told = caplog.text.lower()
        for secret in self.secrets(address):
            assert secret.lower() not in told
        assert "bearer" not in told
        assert "vapid t=" not in told
        assert NOTICE.title.lower() not in told

    def secrets(self, address: Address) -> Sequence[str]:
        """What names the device."""
        raise NotImplementedError

    async def outcome(self, authority: Authority, says: Says) -> tuple[str, float | None]:
        async with self.service(authority) as service:
            opened, address = self.open(self.exchange(authority, service), service)
            async with opened as notifier:
                await notifier.send(address, NOTICE)
                service.script.append(says)
                answer = await notifier.send(address, NOTICE)
        return answer.outcome, answer.retry_after
