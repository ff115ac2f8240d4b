"""A registration: what is told when, and what is done about registries that fail."""

import asyncio
import contextlib
import http.client
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from msgpush import __version__
from msgpush.adapters.registry.addresses import is_for_others, own_address
from msgpush.adapters.registry.etcd import Etcd
from msgpush.adapters.registry.gateway import Gateway
from msgpush.adapters.registry.ports import Instance, Refused, Registry, Unavailable
from msgpush.adapters.registry.registration import Registration, Registrations, Report
from msgpush.adapters.registry.reports import ReportFile, of_registries, summary
from msgpush.adapters.registry.requests import ANSWER_BYTES, Server
from msgpush.domain.ports import RegistryState
from msgpush.entrypoints.settings import Settings
from tests.contracts.registry import eventually, instance
from tests.support.redis_servers import Certificates, free_port
from tests.support.registries import GatewayServer

TTL = 0.3  # seconds; a renewal is due each tenth of one


class MemoryRegistry:
    """A registry within the test.

    Attributes:
        told: what it was asked for, in order.
        failing: raised whatever is asked, if it isn't None.
        answering: while it is clear, nothing is answered.
    """

    kind = "memory"
    url = "http://registry"

    def __init__(self) -> None:
        self.told: list[str] = []
        self.known: set[str] = set()
        self.failing: Exception | None = None
        self.answering = asyncio.Event()
        self.answering.set()

    async def announce(self, instance: Instance) -> None:
        await self._take("announce")
        self.known.add(instance.id)

    async def renew(self, instance: Instance) -> bool:
        await self._take("renew")
        return instance.id in self.known

    async def withdraw(self, instance: Instance) -> None:
        await self._take("withdraw")
        self.known.discard(instance.id)

    async def _take(self, what: str) -> None:
        self.told.append(what)
        await self.answering.wait()
        if self.failing is not None:
            raise self.failing


async def here() -> Instance | None:
    return instance()


async def nowhere() -> Instance | None:
    return None


class Service:
    """What is registered, which may be ready or not."""

    ready = True

    def registration(
        self,
        registry: Registry,
        locate: Callable[[], Awaitable[Instance | None]] = here,
        refused_retry: float = 30.0,
    ) -> Registration:
        return Registration(
            registry,
            locate,
            lambda: self.ready,
            ttl=TTL,
            clock=lambda: 1000.0,
            chance=lambda: 1.0,
            refused_retry=refused_retry,
        )


@contextlib.asynccontextmanager
async def running(registration: Registration) -> AsyncIterator[Registration]:
    registration.begin()
    try:
        yield registration
    finally:
        await registration.end()


async def test_nothing_is_announced_before_the_service_is_ready() -> None:
    service, registry = Service(), MemoryRegistry()
    service.ready = False
    async with running(service.registration(registry)) as registration:
        await asyncio.sleep(0.3)
        assert registry.told == []
        assert registration.report.state == "trying"
        assert registration.report.error == "the service isn't ready"
        service.ready = True
        await eventually(lambda: registration.report.state == "registered")
        assert registration.report.error is None
    assert registry.told[0] == "announce"
    assert registry.told[-1] == "withdraw"
    assert set(registry.told[1:-1]) <= {"renew"}
    assert registration.report.state == "withdrawn"


async def test_a_service_that_is_no_longer_ready_is_withdrawn_and_announced_again() -> None:
    service, registry = Service(), MemoryRegistry()
    async with running(service.registration(registry)):
        await eventually(lambda: registry.known)
        service.ready = False
        await eventually(lambda: not registry.known)
        service.ready = True
        await eventually(lambda: registry.known)


async def test_one_that_has_forgotten_is_told_anew_at_the_next_renewal() -> None:
    service, registry = Service(), MemoryRegistry()
    async with running(service.registration(registry)):
        await eventually(lambda: registry.known)
        registry.known.clear()
        began = time.monotonic()
        await eventually(lambda: registry.known)
        assert time.monotonic() - began < TTL


async def test_failures_are_counted_and_tried_again_no_less_often_than_it_is_renewed() -> None:
    service, registry = Service(), MemoryRegistry()
    registry.failing = Unavailable("it is down")
    async with running(service.registration(registry)) as registration:
        await eventually(lambda: registration.report.failures >= 5, 2)
        assert registration.report.state == "trying"
        assert registration.report.error == "it is down"
        registry.failing = None
        await eventually(lambda: registration.report.state == "registered", 1)


async def test_refused_credentials_are_tried_again_slowly() -> None:
    service, registry = Service(), MemoryRegistry()
    registry.failing = Refused("check the token")
    async with running(service.registration(registry, refused_retry=0.5)) as registration:
        await eventually(lambda: registration.report.failures == 1)
        await asyncio.sleep(0.3)
        assert registration.report.failures == 1
        registry.failing = None
        await eventually(lambda: registration.report.state == "registered", 1)


async def test_an_error_of_ours_ends_no_registration(caplog: pytest.LogCaptureFixture) -> None:
    service, registry = Service(), MemoryRegistry()
    registry.failing = ZeroDivisionError()
    async with running(service.registration(registry)) as registration:
        await eventually(lambda: registration.report.failures >= 2)
        registry.failing = None
        await eventually(lambda: registration.report.state == "registered")
    assert "ZeroDivisionError" in caplog.text


async def test_an_outage_is_logged_once_however_its_words_change(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = MemoryRegistry()
    async with running(Service().registration(registry, refused_retry=0.1)) as registration:
        for errors in ((Unavailable, "down 1", "down 2"), (Refused, "no 1", "no 2")):
            kind, *texts = errors
            for text in texts:
                registry.failing = kind(text)
                await eventually(lambda text=text: registration.report.error == text)  # type: ignore[misc]
        told = [each.getMessage() for each in caplog.records if "not registered" in each.message]
        assert ["down 1" in told[0], "no 1" in told[1]] == [True, True]
        assert len(told) == 2


async def test_an_error_of_ours_at_the_end_does_not_keep_the_drain_from_coming(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = MemoryRegistry()
    registrations = Registrations(Service().registration(registry))
    registrations.begin()
    await eventually(lambda: registry.known)
    registry.failing = ZeroDivisionError()
    await registrations.end()
    assert "ZeroDivisionError" in caplog.text


async def test_without_an_address_nothing_is_announced_and_the_setting_is_named() -> None:
    registry = MemoryRegistry()
    async with running(Service().registration(registry, nowhere)) as registration:
        await eventually(lambda: registration.report.failures)
        assert "set ADVERTISE_ADDRESS" in str(registration.report.error)
    assert registry.told == []


async def test_the_withdrawal_comes_after_what_was_under_way() -> None:
    registry = MemoryRegistry()
    registry.answering.clear()
    registration = Service().registration(registry)
    registration.begin()
    await eventually(lambda: registry.told == ["announce"])
    ending = asyncio.create_task(registration.end())
    await asyncio.sleep(0.1)
    assert registry.told == ["announce"]
    registry.answering.set()
    assert await ending
    assert registry.told == ["announce", "withdraw"]
    assert not registry.known


async def test_the_end_waits_two_seconds_at_most_and_for_all_registries_at_once() -> None:
    registries = [MemoryRegistry() for _ in range(3)]
    registrations = Registrations(*(Service().registration(each) for each in registries))
    registrations.begin()
    for each in registries:
        await eventually(lambda each=each: each.known)  # type: ignore[misc]
        each.answering.clear()
    began = time.monotonic()
    await registrations.end()
    assert 1.5 < time.monotonic() - began < 2.5
    assert {each.state for each in registrations.reports} == {"withdrawn"}
    assert {each.error for each in registrations.reports} == {"it doesn't answer in time"}


async def test_who_was_never_announced_ends_at_once() -> None:
    service, registry = Service(), MemoryRegistry()
    service.ready = False
    registrations = Registrations(service.registration(registry), grace=60)
    registrations.begin()
    await asyncio.sleep(0.05)
    async with asyncio.timeout(1):
        await registrations.end()
    assert registry.told == []


@pytest.mark.parametrize("error", [Unavailable("it is down"), Refused("check the token")])
async def test_who_was_never_known_waits_for_no_proxy(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    registry = MemoryRegistry()
    registry.failing = error
    registrations = Registrations(Service().registration(registry), grace=60)
    registrations.begin()
    await eventually(lambda: registrations.reports[0].failures)
    async with asyncio.timeout(1):
        await registrations.end()
    # What was answered too late may have been done all the same.
    assert ("withdraw" in registry.told) == isinstance(error, Unavailable)
    assert "can't withdraw" not in caplog.text


async def test_after_a_withdrawal_the_grace_is_waited_for() -> None:
    registry = MemoryRegistry()
    registrations = Registrations(Service().registration(registry), grace=0.2)
    registrations.begin()
    await eventually(lambda: registry.known)
    began = time.monotonic()
    await registrations.end()
    assert time.monotonic() - began >= 0.2


async def test_nothing_is_announced_once_the_end_is_near() -> None:
    service, registry = Service(), MemoryRegistry()
    service.ready = False
    registration = service.registration(registry)
    registration.begin()
    await asyncio.sleep(0.05)
    registration.hold()
    service.ready = True
    await asyncio.sleep(0.4)
    assert registry.told == []
    assert not await registration.end()


# What is told of it


def test_a_summary_is_of_the_registration_that_stands_worst() -> None:
    good = Report("etcd", "registered", 1000.0)
    bad = Report("consul", "trying", 1001.5, "it is down", 3)
    assert summary([]) is None
    assert summary([good]) == RegistryState("etcd", "registered", "1970-01-01T00:16:40.000Z")
    assert summary([good, bad]) == RegistryState(
        "etcd,consul", "trying", "1970-01-01T00:16:41.500Z", "it is down"
    )


def test_reports_reach_others_by_a_file(tmp_path: Path) -> None:
    file = ReportFile(str(tmp_path))
    assert file.read() == []
    reports = [Report("etcd", "trying", 1000.0, "ü", 7)]
    file.write(reports)
    assert ReportFile(str(tmp_path)).read() == reports
    (tmp_path / "registry").write_text("{")
    assert file.read() == []
    file.remove()
    assert not list(tmp_path.iterdir())
    file.remove()
    ReportFile(str(tmp_path / "gone")).write(reports)


def test_metrics_are_there_for_the_registries_that_are_set() -> None:
    assert not any(of_registries([]).values())
    reports = [Report("etcd", "registered", 1.0), Report("gateway", "trying", 1.0, "x", 3)]
    assert of_registries(reports) == {
        "message_push_registered": {("etcd",): 1, ("gateway",): 0},
        "message_push_registry_failures_total": {("etcd",): 0, ("gateway",): 3},
    }


# Requests


@contextlib.contextmanager
def answering(*parts: bytes, pause: float = 0.0) -> Iterator[str]:
    """A server that answers each request with these bytes; gives its URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    for part in parts:
                        connection.sendall(part)
                        time.sleep(pause)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9\r\n", "can't be read"),
        (b"", "can't be read|reset"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n" + b"x" * 200_000, "larger than"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://x/\r\nContent-Length: 0\r\n\r\n", "redirect 302"),
    ],
)
async def test_an_answer_that_is_no_use_is_told(answer: bytes, reason: str) -> None:
    assert ANSWER_BYTES < 200_000
    with answering(answer) as url, pytest.raises(Unavailable, match=reason):
        await Server(url).ask("GET", "/")


async def test_who_waits_no_longer_leaves_no_thread_behind() -> None:
    # An answer that trickles would keep a timeout of the socket's own from ever passing.
    trickle = (b"HTTP/1.1 200 OK\r\n\r\n", *(b"x" for _ in range(100)))
    with answering(*trickle, pause=0.1) as url:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await Server(url).ask("GET", "/")
        await eventually(
            lambda: not any(each.name == "msgpush registry" for each in threading.enumerate()), 2
        )


async def test_who_waits_no_longer_has_nothing_sent_later(monkeypatch: pytest.MonkeyPatch) -> None:
    # An announcement that comes after the withdrawal would be taken for the newer word.
    connects, go_on = http.client.HTTPConnection.connect, threading.Event()

    def connect(self: http.client.HTTPConnection) -> None:
        go_on.wait(10)
        connects(self)

    monkeypatch.setattr(http.client.HTTPConnection, "connect", connect)
    with GatewayServer() as gateway:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await Gateway(gateway.url).announce(instance())
        go_on.set()
        await eventually(
            lambda: not any(each.name == "msgpush registry" for each in threading.enumerate()), 2
        )
        assert not gateway.requests


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://[::1]", ("::1", 80)),
        ("https://[2001:db8::5]/api", ("2001:db8::5", 443)),
        ("http://[::1]:8500", ("::1", 8500)),
    ],
)
async def test_an_ipv6_address_needs_no_port(
    url: str, place: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def connect(self: http.client.HTTPConnection) -> None:
        asked.append((self.host, self.port))
        raise ConnectionRefusedError

    monkeypatch.setattr(http.client.HTTPConnection, "connect", connect)
    with pytest.raises(Unavailable):
        await Server(url).ask("GET", "/")
    assert asked == [place]


async def test_a_name_that_nobody_can_look_up_is_no_error_of_ours() -> None:
    with pytest.raises(Unavailable, match="host's name"):
        await Server("http://a..b").ask("GET", "/")


async def test_a_member_of_etcd_that_is_silent_leaves_the_others_their_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("msgpush.adapters.registry.etcd.SECONDS", 1.0)
    lease = b'{"ID":"7","TTL":"3"}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(lease), lease)
    with socket.create_server(("127.0.0.1", 0)) as silent, answering(answer) as url:
        etcd = Etcd([f"http://127.0.0.1:{silent.getsockname()[1]}", url])
        async with asyncio.timeout(0.9):  # half a second for each
            await etcd.announce(instance())
        assert etcd.url == url


@contextlib.contextmanager
def with_tls(own: Certificates) -> Iterator[str]:
    """A server with a certificate that its own authority alone has signed; gives its URL."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.certificate, own.key)
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        connection, _ = listener.accept()
        with (
            connection,
            contextlib.suppress(OSError),
            context.wrap_socket(connection, server_side=True) as secured,
        ):
            secured.recv(65536)
            secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        thread.join(10)
        listener.close()


async def test_a_certificate_of_nobody_known_is_refused(tmp_path: Path) -> None:
    with (
        with_tls(Certificates(tmp_path)) as url,
        pytest.raises(Unavailable, match="certificate isn't good"),
    ):
        await Server(url).ask("GET", "/")


async def test_an_authority_of_your_own_is_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Certificates(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(own.authority))
    with with_tls(own) as url:
        assert (await Server(url).ask("GET", "/")).status == 200


async def test_proxies_of_the_environment_get_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with GatewayServer("a-token") as gateway:
        await Gateway(gateway.url, "a-token").announce(instance())
        assert gateway.records()


async def test_a_token_that_a_gateway_repeats_is_not_told() -> None:
    with GatewayServer("the-right-one") as gateway:
        with pytest.raises(Refused) as caught:
            await Gateway(gateway.url, "wrong-one").announce(instance())
        assert "not for Bearer ..." in str(caught.value)
        with pytest.raises(Refused, match="set GATEWAY_TOKEN"):
            await Gateway(gateway.url).announce(instance())


async def test_a_path_of_the_url_comes_first_and_ids_are_encoded() -> None:
    with GatewayServer() as gateway:
        with contextlib.suppress(Unavailable):
            await Gateway(f"{gateway.url}/api/").announce(instance("a/b c"))
        assert gateway.requests[-1][1:] == ("PUT", "/api/services/msgpush/instances/a%2Fb%20c")


# The document

DOCUMENT = Path(__file__).parents[2] / "docs" / "registration.md"


def test_the_document_shows_what_is_sent() -> None:
    (shown,) = re.findall(r"```http\n.*?\n\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    one = instance(
        "push-1-3fa2c1",
        address="10.0.0.7",
        version=__version__,
        ttl=Settings().registry_ttl,
        metadata={"bus": "redis", "workers": "1"},
    )
    assert json.loads(shown) == one.record()


# Addresses


def test_an_address_of_the_loopback_is_none_for_others() -> None:
    assert not any(map(is_for_others, ("127.0.0.1", "::1", "0.0.0.0", "::", "169.254.1.1")))
    assert all(map(is_for_others, ("10.0.0.1", "192.0.2.1", "fd00::1")))
    found = own_address("http://127.0.0.1:8500", [socket.AF_INET])
    assert found is None or is_for_others(found)
    assert own_address("http://no.such.host.invalid", []) is None
