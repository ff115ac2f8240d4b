"""Permissions while a stream is open: they end, they are revoked, tickets carry them; and limits of
who holds them.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette

from msgpush.adapters.http.addresses import limited_address
from msgpush.adapters.memory.bus import MemoryBus
from msgpush.adapters.memory.credentials import MemoryCredentials
from msgpush.domain import permissions
from msgpush.domain.connection import NOW, Connection, Subscription
from msgpush.domain.control import Close, Command, Commands, Restored
from msgpush.domain.credentials import Revocation, Revocations, Ticket, digest_of
from msgpush.domain.errors import BusUnavailable, Overloaded, Unauthorized
from msgpush.domain.grant import EVERYTHING, Grant
from msgpush.domain.history import Gap
from msgpush.domain.message import format_ms, parse
from msgpush.domain.places import Places
from msgpush.domain.ports import ClientInfo
from msgpush.domain.position import Cursor, Position
from msgpush.domain.service import Push
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings
from tests.support.asgi import Answer, AsgiDriver, Exchange
from tests.support.driver import Driver
from tests.support.fakes import FakeClock, FakeSink, PlainView
from tests.support.tokens import SECRET, bearer, claims, signed, token

LEEWAY = 30.0
HOUR = 3_600.0


class Service:
    """The facade over the embedded bus, whose clock a test moves."""

    def __init__(self, **settings: Any) -> None:
        self.clock = FakeClock()
        self.credentials = MemoryCredentials(lifetime=HOUR, clock=self.clock.now)
        self.push = Push(
            MemoryBus(clock=self.clock.now),
            clock=self.clock.now,
            monotonic=self.clock.monotonic,
            credentials=self.credentials,
            leeway=LEEWAY,
            max_token_lifetime=HOUR,
            **settings,
        )
        self.number = 0

    def grant(self, subject: str = "bob", lifetime: float = 600, **more: Any) -> Grant:
        now = self.clock.now()
        given: dict[str, Any] = {
            "channels": frozenset({f"user:{subject}"}),
            "expires": now + lifetime,
            "issued_at": now,
        }
        return Grant(subject, **(given | more))

    def open(self, grant: Grant, address: str = "192.0.2.1", id: str = "") -> FakeSink:
        self.number += 1
        sink = FakeSink()
        info = ClientInfo(grant.subject, "sse", address, "test", self.clock.now(), address)
        self.push.admit(info)
        connection = Connection(id or f"c{self.number}", sink, info, grant=grant)
        self.push.subscribe(connection, Subscription(frozenset({"a"}), PlainView()), NOW)
        return sink

    @property
    def connections(self) -> set[str]:
        return set(self.push.connections)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    made = Service()
    async with made.push:
        yield made


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - any turn of the loop may make it true
            await asyncio.sleep(0)


# The end


def test_a_connection_ends_with_its_permissions_grace_included_and_may_come_back() -> None:
    driver = Driver()
    readers = [driver.connect("a") for _ in range(3)]
    for number, reader in enumerate(readers):
        driver.hub.detach(reader.connection)
        reader.connection.ends = driver.clock.now() + 100 * (number + 1)
        driver.hub.attach(reader.connection, reader.subscription, NOW)
    for ended in range(4):
        driver.clock.advance(99)
        driver.hub.beat()
        assert [reader.sink.ended for reader in readers] == [number < ended for number in range(3)]
        driver.clock.advance(1)
        driver.hub.beat()
    assert [reader.sink.lines[-1].startswith("close expired True") for reader in readers] == [
        True
    ] * 3


def test_a_thousand_ends_cost_one_look_a_second_and_nobody_stays_longer() -> None:
    driver = Driver()
    readers = [driver.connect("a", settle=False) for _ in range(100)]
    for number, reader in enumerate(readers):
        driver.hub.detach(reader.connection)
        reader.connection.ends = driver.clock.now() + number / 10
        driver.hub.attach(reader.connection, reader.subscription, NOW)
    for tenth in range(120):
        driver.hub.beat()
        late = [reader for number, reader in enumerate(readers) if number + 10 < tenth]
        assert all(reader.sink.ended for reader in late)
        driver.clock.advance(0.1)
    assert driver.hub.connections == {}


async def test_a_stream_ends_when_its_token_does_not_when_its_leeway_begins(
    service: Service,
) -> None:
    sink, other = service.open(service.grant(lifetime=100)), service.open(EVERYTHING)
    service.clock.advance(100 + LEEWAY - 1)
    service.push._hub.beat()
    assert not sink.ended
    service.clock.advance(1)
    service.push._hub.beat()
    assert sink.lines[-1].startswith("close expired True")
    service.clock.advance(1e9)
    service.push._hub.beat()
    assert not other.ended, "nobody asked that one for a token"


# Revocation


@pytest.mark.parametrize(
    ("revocation", "ended"),
    [
        (("subject", "bob", 0.0), {"old", "new", "none"}),
        (("subject", "bob", -1.0), {"old", "none"}),
        (("subject", "Bob", 0.0), set()),
        (("jti", "t-new", 0.0), {"new"}),
        (("jti", "bob", 0.0), set()),
        (("issued_before", "", 0.0), {"old", "none", "other"}),
        (("issued_before", "", 0.1), {"old", "none", "other", "new"}),
        (("issued_before", "", -1_000.0), {"none"}),
    ],
)
async def test_a_revocation_ends_the_streams_that_it_means_for_good_and_no_others(
    service: Service, revocation: tuple[Any, str, float], ended: set[str]
) -> None:
    now = service.clock.now()
    grants = {
        "old": service.grant(issued_at=now - 10),
        "new": service.grant(issued_at=now, id="t-new"),
        "none": service.grant(issued_at=None),
        "other": service.grant("alice", issued_at=now - 10),
        "anybody": EVERYTHING,
    }
    sinks = {name: service.open(grant, id=name) for name, grant in grants.items()}
    kind, value, at = revocation
    await service.push.revoke(Revocation(kind, value, now + at))
    await until(lambda: service.connections == grants.keys() - ended)
    for name, sink in sinks.items():
        assert sink.ended == (name in ended)
        if sink.ended:
            assert sink.lines[-1].startswith("close revoked False")
    for name, grant in grants.items():
        if name in ended:
            with pytest.raises(Unauthorized, match="revoked"):
                service.push.check(grant)
        else:
            service.push.check(grant)


async def test_a_stream_that_was_about_to_open_when_its_token_was_revoked_is_ended(
    service: Service,
) -> None:
    grant = service.grant()
    service.push.check(grant)
    await service.push.revoke(Revocation("subject", "bob", service.clock.now()))
    await until(lambda: service.push._permissions.revoked(grant))
    assert service.open(grant).lines[-1].startswith("close revoked False")
    assert service.connections == set()


async def test_what_was_revoked_before_the_start_is_known_before_anything_is_served() -> None:
    service = Service()
    await service.credentials.revoke(Revocation("subject", "bob", service.clock.now()))
    grant = service.grant()
    with pytest.raises(BusUnavailable):
        service.push.check(grant)
    async with service.push:
        with pytest.raises(Unauthorized):
            service.push.check(grant)


async def test_while_revocations_cannot_be_loaded_nothing_is_served_and_then_everything_is() -> (
    None
):
    service = Service()
    away = True
    load = service.credentials.revocations

    async def revocations() -> list[Revocation]:
        if away:
            raise BusUnavailable("gone")
        return await load()

    service.credentials.revocations = revocations  # type: ignore[method-assign]
    async with service.push:
        with pytest.raises(BusUnavailable):
            service.push.check(service.grant())
        with pytest.raises(Overloaded):
            service.open(service.grant())
        assert not service.push.ready
        away = False
        await until(lambda: service.push.ready)
        service.push.check(service.grant())
        service.open(service.grant())


async def test_an_instance_that_may_have_missed_commands_asks_what_was_revoked(
    service: Service,
) -> None:
    sink = service.open(service.grant())
    # Kept by another instance, whose command was lost with the log's end.
    await service.credentials.revoke(Revocation("subject", "bob", service.clock.now()))
    service.push._hub.cut("2abcdefgh", service.push._hub.log.head)
    await until(lambda: sink.ended)
    assert sink.lines[-1].startswith("close revoked False")


async def test_what_the_store_has_lost_is_kept_again_by_those_who_know_it(service: Service) -> None:
    now = service.clock.now()
    await service.push.revoke(Revocation("subject", "bob", now))
    service.push._permissions._credentials = lost = MemoryCredentials(
        lifetime=HOUR, clock=service.clock.now
    )
    service.push._hub.cut("2abcdefgh", service.push._hub.log.head)
    await until(lambda: list(lost._revoked))
    assert await lost.revocations() == [Revocation("subject", "bob", now)]


async def test_what_the_store_has_fallen_behind_with_is_kept_again(service: Service) -> None:
    now = service.clock.now()
    await service.push.revoke(Revocation("subject", "bob", now))
    service.push._permissions._credentials = behind = MemoryCredentials(
        lifetime=HOUR, clock=service.clock.now
    )
    await behind.revoke(Revocation("subject", "bob", now - 10))
    service.push._hub.cut("2abcdefgh", service.push._hub.log.head)
    await until(lambda: list(behind._revoked) == [Revocation("subject", "bob", now)])


async def test_an_instance_that_has_begun_before_the_store_was_whole_again_reads_it_again() -> None:
    old, new = Service(), Service()
    new.push = Push(
        old.push._bus,
        clock=old.clock.now,
        monotonic=old.clock.monotonic,
        credentials=old.credentials,
    )
    async with old.push:
        await old.push.revoke(Revocation("subject", "bob", old.clock.now()))
        empty = MemoryCredentials(lifetime=HOUR, clock=old.clock.now)
        for push in (old.push, new.push):
            push._permissions._credentials = empty
        async with new.push:
            new.push.check(old.grant())  # nobody could know
            old.push._hub.cut(old.push._hub.log.epoch, old.push._hub.log.head)
            await until(lambda: new.push._permissions.revoked(old.grant()))


async def test_what_could_not_be_told_is_told_later(service: Service) -> None:
    await service.push.revoke(Revocation("subject", "bob", service.clock.now()))
    service.push._permissions._credentials = MemoryCredentials(
        lifetime=HOUR, clock=service.clock.now
    )
    told: list[Command] = []

    async def command(given: Command) -> None:
        told.append(given)
        if len(told) == 1:
            raise BusUnavailable("gone", 0)

    service.push._permissions._command = command
    service.push._hub.cut("2abcdefgh", service.push._hub.log.head)
    await until(lambda: told == [Restored(), Restored()])


async def test_a_revocation_that_cannot_be_kept_holds_where_it_was_made(service: Service) -> None:
    sink = service.open(service.grant())

    async def full(*_: Revocation) -> None:
        raise BusUnavailable("full")

    service.credentials.revoke = full  # type: ignore[method-assign]
    with pytest.raises(BusUnavailable):
        await service.push.revoke(Revocation("subject", "bob", service.clock.now()))
    assert sink.lines[-1].startswith("close revoked False")
    with pytest.raises(Unauthorized):
        service.push.check(service.grant())


async def test_a_stream_whose_ticket_has_gone_to_another_ends_though_the_command_was_missed(
    service: Service,
) -> None:
    await service.credentials.add_ticket(
        "d", Ticket("bob", ("a",), service.clock.now() + 600, None, None), 60
    )
    grant = service.grant(ticket="d")
    await service.push.claim(grant, "c1")
    sink, other = service.open(grant, id="c1"), service.open(service.grant(), id="c2")
    service.push._hub.cut("2abcdefgh", service.push._hub.log.head)
    await until(lambda: len(sink.gaps) == 1)
    # At another instance, whose command went down with the log's end.
    end = service.clock.now() + 600
    assert await service.credentials.claim("d", "bob", connection="c9", before="c1", until=end)
    service.push._hub.cut("3abcdefgh", service.push._hub.log.head)
    await until(lambda: sink.ended)
    assert sink.lines[-1].startswith("close disconnected False")
    assert not other.ended


async def test_many_who_open_a_stream_with_one_ticket_at_once_make_one_command_each(
    service: Service,
) -> None:
    await service.credentials.add_ticket(
        "d", Ticket("bob", ("a",), service.clock.now() + 600, None, None), 60
    )
    told: list[Command] = []

    async def command(given: Command) -> None:
        told.append(given)
        await asyncio.sleep(0)

    service.push._permissions._command = command
    grant = service.grant(ticket="d")
    await asyncio.gather(*(service.push.claim(grant, f"c{number}") for number in range(100)))
    assert told == [Close(f"c{number}", False) for number in range(99)]
    assert not service.push._permissions._claiming, "nothing stays of it"


async def test_nobody_waits_for_long_for_others_who_use_the_same_ticket(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(permissions, "PATIENCE", 0.01)
    await service.credentials.add_ticket(
        "d", Ticket("bob", ("a",), service.clock.now() + 600, None, None), 60
    )
    goes_on = asyncio.Event()

    async def holder(_: str) -> str:
        await goes_on.wait()
        return ""

    monkeypatch.setattr(service.credentials, "holder", holder)
    first = asyncio.create_task(service.push.claim(service.grant(ticket="d"), "c1"))
    await asyncio.sleep(0)
    with pytest.raises(BusUnavailable, match="the same ticket"):
        await service.push.claim(service.grant(ticket="d"), "c2")
    goes_on.set()
    await first


async def test_thousands_of_streams_are_ended_some_at_a_time(service: Service) -> None:
    sinks = [service.open(service.grant("eve", lifetime=100)) for _ in range(1_200)]
    await service.push.revoke(Revocation("subject", "eve", service.clock.now()))
    assert sum(sink.ended for sink in sinks) == 500
    await until(lambda: all(sink.ended for sink in sinks))
    sinks = [service.open(service.grant("bob", lifetime=100)) for _ in range(1_200)]
    service.clock.advance(100 + LEEWAY)
    for ended in (500, 1_000, 1_200):
        service.push._hub.beat()
        assert sum(sink.ended for sink in sinks) == ended


async def test_a_command_of_a_newer_release_is_passed_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    obeyed: list[Command | None] = []
    commands = Commands(obeyed.append)
    commands.offer(
        b'{"type":"paint","color":"red"}\n' + msgspec.json.encode(Close("c1", True)) + b"\n"
    )
    await asyncio.sleep(0)
    assert obeyed == [Close("c1", True)]
    assert "a command is not understood" in caplog.text


async def test_a_connection_that_was_closed_before_it_had_opened_is_closed_when_it_does(
    service: Service,
) -> None:
    await service.push.command(Close("late", False))
    await until(lambda: service.push._closed)
    assert service.open(EVERYTHING, id="late").lines[-1].startswith("close disconnected False")
    assert not service.open(EVERYTHING, id="late").ended, "once"


async def test_commands_are_obeyed_in_order_and_lost_ones_are_noticed() -> None:
    obeyed: list[Command | None] = []
    commands = Commands(obeyed.append)
    given: list[Command] = [
        Close("c1", True),
        Revocation("subject", "bob\n", 1.5),
        Close("c2", False),
    ]
    frames = [msgspec.json.encode(each) + b"\n" for each in given]
    commands.offer(commands.chunk([*frames[:2], commands.gap(Gap(None, "", "reset")), frames[2]]))
    await asyncio.sleep(0)
    assert obeyed == [*given[:2], None, given[2]]


def test_revocations_that_no_token_can_outlive_are_forgotten() -> None:
    revocations = Revocations(HOUR)
    for number in range(10_000):
        revocations.add(Revocation("jti", f"t{number}", number), number)
    assert len(revocations) < 8_000
    assert revocations.reason(Grant("bob", id="t9999")) is not None
    assert revocations.reason(Grant("bob", id=f"t{10_000 - int(HOUR) + 1}")) is not None


def test_an_earlier_revocation_takes_nothing_from_a_later_one() -> None:
    revocations = Revocations(HOUR)
    for at in (100.0, 50.0):
        revocations.add(Revocation("subject", "bob", at), 100)
    assert revocations.reason(Grant("bob", issued_at=75)) is not None
    assert revocations.reason(Grant("bob", issued_at=101)) is None


# Limits


async def test_a_subject_has_as_many_streams_as_it_may_and_one_more_when_one_has_gone() -> None:
    service = Service(max_connections_per_subject=2)
    async with service.push:
        bob = service.grant()
        service.open(bob, id="b1")
        service.open(bob, id="b2")
        with pytest.raises(Overloaded) as caught:
            service.open(bob)
        assert caught.value.reason == "subject"
        service.open(service.grant("alice"))
        for _ in range(5):
            service.open(EVERYTHING)  # nobody in particular
        service.push.unsubscribe(service.push.connections["b1"])
        service.open(bob, id="b3")
        service.push._hub.close(service.push.connections["b2"], "slow", reconnect=True)
        service.open(bob, id="b4")
        with pytest.raises(Overloaded):
            service.open(bob)


async def test_an_address_has_as_many_streams_as_it_may() -> None:
    service = Service(max_connections_per_address=2)
    async with service.push:
        for subject in ("bob", "alice"):
            service.open(service.grant(subject), "192.0.2.1")
        with pytest.raises(Overloaded) as caught:
            service.open(EVERYTHING, "192.0.2.1")
        assert caught.value.reason == "address"
        service.open(EVERYTHING, "192.0.2.2")
        for _ in range(5):
            service.open(EVERYTHING, "")  # not known


async def test_nothing_is_counted_of_those_who_have_gone(service: Service) -> None:
    for number in range(100):
        service.open(service.grant(f"s{number}"), f"192.0.2.{number}", id=f"c{number}")
    for connection in list(service.push.connections.values()):
        service.push.unsubscribe(connection)
    places = service.push._hub.places
    assert (places.total, places.subjects, places.addresses) == (0, {}, {})


# Over HTTP


@pytest.fixture
async def app() -> AsyncIterator[AsgiDriver]:
    made = create_app(Settings(jwt_secret=SECRET))
    async with lifespan(made):
        yield AsgiDriver(made, wire=True)


ADMIN = bearer(token("root", admin=True))


async def post(app: AsgiDriver, path: str, body: object, headers: dict[str, str]) -> Answer:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return await app.request("POST", f"/api/v1/{path}", raw, headers)


async def ticket(app: AsgiDriver, *channels: str, **more: Any) -> str:
    given = token("bob", subscribe=list(channels), **more)
    answer = await post(app, "tickets", {"channels": list(channels)}, bearer(given))
    assert answer.status == 201
    text: str = answer.json()["ticket"]
    return text


async def test_the_log_says_in_plain_words_which_tokens_are_revoked_and_by_whom(
    app: AsgiDriver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "msgpush.auth")
    admin = bearer(token("ops", admin=True))
    for given in ({"subject": "bob"}, {"jti": "t1"}, {"issued_before": 1_700_000_000}):
        assert (
            await app.request("POST", "/api/v1/revocations", msgspec.json.encode(given), admin)
        ).status == 201
    assert [line for line in caplog.messages if "revoked" in line] == [
        'tokens are revoked by "ops": those of the subject "bob"',
        'tokens are revoked by "ops": the one with the jti "t1"',
        'tokens are revoked by "ops": all that were issued before 2023-11-14T22:13:20.000Z',
    ]


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"subject": "bob"}, 201),
        ({"jti": "t1"}, 201),
        ({"issued_before": 1_700_000_000}, 201),
        ({"issued_before": 1_700_000_000.5}, 201),
        ({"issued_before": "2026-01-01T00:00:00+01:00"}, 201),
        (b"", 400),
        (b"{", 400),
        (b"\xff", 400),
        (b"[" * 9_000, 400),
        ([], 422),
        ({}, 422),
        ({"subject": ""}, 422),
        ({"subject": 7}, 422),
        ({"subject": None}, 422),
        ({"subject": "bob", "jti": "t1"}, 422),
        ({"subjects": "bob"}, 422),
        ({"subject": "bob", "x": 1}, 422),
        ({"issued_before": "yesterday"}, 422),
        ({"issued_before": True}, 422),
        ({"issued_before": -1}, 422),
        ({"issued_before": 4_000_000_000}, 422),
        (b'{"issued_before":1e400}', 422),
        (b'{"issued_before":%b}' % (b"9" * 5_000), 422),
        (b'{"issued_before":1%b}' % (b"0" * 400), 422),
        (b'{"subject":"' + b"x" * 70_000 + b'"}', 413),
    ],
)
async def test_a_revocation_is_read_or_refused_with_the_place(
    app: AsgiDriver, given: object, status: int
) -> None:
    answer = await post(app, "revocations", given, ADMIN)
    assert answer.status == status, answer.body
    if status == 201:
        assert isinstance(given, dict)
        told = answer.json()
        (name,) = given
        assert name in told
        assert told["until"] > told["at"]
    else:
        assert answer.json()["detail"]


@pytest.mark.parametrize(
    ("given", "pointer", "detail"),
    [
        ({"subject": ""}, "/subject", '"" is not allowed: it must be a text, and not empty'),
        ({"jti": 7}, "/jti", "7 is not allowed: it must be a text, and not empty"),
        ({"subject": "bob", "a/b": 1}, "/a~1b", '"a/b" is no field of a revocation'),
        (
            {"subject": "bob", "jti": "t1"},
            "",
            "it must have exactly one of the fields subject, jti and issued_before",
        ),
        (
            {"issued_before": "now"},
            "/issued_before",
            '"now" is not allowed: seconds since 1970, or an RFC 3339 date-time',
        ),
    ],
)
async def test_a_wrong_revocation_is_told_by_its_field_its_value_and_what_is_allowed(
    app: AsgiDriver, given: object, pointer: str, detail: str
) -> None:
    told = (await post(app, "revocations", given, ADMIN)).json()
    assert told["errors"] == [{"pointer": pointer, "detail": detail}]
    assert told["detail"] == (f"{pointer}: {detail}" if pointer else detail)


async def test_a_revoked_token_is_refused_and_its_stream_told_not_to_come_back(
    app: AsgiDriver,
) -> None:
    bob, alice = bearer(token("bob")), bearer(token("alice"))
    async with (
        app.stream("/sse/user/bob", bob) as ended,
        app.stream("/sse/user/alice", alice) as stays,
    ):
        assert (await post(app, "revocations", {"subject": "bob"}, ADMIN)).status == 201
        body = await ended.closed()
        assert b'data: {"reason":"revoked","reconnect":false}\n' in body
        assert b"~end\n" in body
        answer = await app.request("GET", "/sse/user/bob", b"", bob)
        assert (answer.status, "revoked" in answer.json()["detail"]) == (401, True)
        later = bearer(token("bob", iat=claims()["iat"] + 5))
        async with app.stream("/sse/user/bob", later) as again:
            assert again.status == 200
        assert not stays.ended.is_set()


async def test_all_tokens_issued_before_a_moment_may_be_revoked_even_those_that_say_it(
    app: AsgiDriver,
) -> None:
    headers = bearer(token("root", admin=True, iat=claims()["iat"] - 9000))
    moment = claims()["iat"] - 6000
    assert (await post(app, "revocations", {"issued_before": moment}, headers)).status == 201
    assert (await app.request("GET", "/api/v1/connections", b"", headers)).status == 401
    # Made now: those of the module may be older than that moment by the time that this runs.
    later = bearer(token("ops", admin=True))
    assert (await app.request("GET", "/api/v1/connections", b"", later)).status == 200


# Tickets


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"channels": ["a"]}, 201),
        ({"channels": ["a", "a", "user:bob", "broadcast"]}, 201),
        ({"channels": [f"c{number}" for number in range(64)]}, 403),
        ({"channels": ["a", "b"]}, 403),
        ({"channels": ["user:alice"]}, 403),
        ({"channels": ["*"]}, 422),
        ({"channels": []}, 422),
        ({"channels": [f"c{number}" for number in range(65)]}, 422),
        ({"channels": "a"}, 422),
        ({"channels": ["a", 7, "b c"]}, 422),
        ({"channel": ["a"]}, 422),
        ({"channels": ["a"], "x": 1}, 422),
        ({}, 422),
        (7, 422),
        (b"x", 400),
    ],
)
async def test_a_ticket_is_made_for_what_its_token_may_listen_to(
    app: AsgiDriver, given: object, status: int
) -> None:
    answer = await post(app, "tickets", given, bearer(token("bob", subscribe=["a"])))
    assert answer.status == status, answer.body
    assert answer.headers.get("cache-control") == ("no-store" if status == 201 else None)
    if given == {"channels": ["a", 7, "b c"]}:
        assert [each["pointer"] for each in answer.json()["errors"]] == [
            "/channels/1",
            "/channels/2",
        ]


async def test_a_ticket_says_when_its_token_ends(app: AsgiDriver) -> None:
    given = claims("bob")
    answer = await post(app, "tickets", {"channels": ["user:bob"]}, bearer(signed(given)))
    assert answer.json()["expires_at"] == format_ms(given["exp"] * 1000)


async def test_a_ticket_opens_streams_on_any_of_its_channels_and_broadcast_and_no_others(
    app: AsgiDriver,
) -> None:
    text = await ticket(app, "a", "b")
    for target, status in (
        ("/sse/stream/a", 200),
        ("/sse/stream/b,a", 200),
        ("/sse/stream/b?broadcast=false", 200),
        ("/sse/stream/broadcast", 200),
        ("/sse/stream/a,c", 403),
        ("/sse/user/bob", 403),
    ):
        joined = f"{target}{'&' if '?' in target else '?'}token={text}"
        async with app.stream(joined) as exchange:
            assert exchange.status == status, target


async def opened(exchange: Exchange) -> str:
    body = await exchange.read_until(b"msgpush.open")
    await exchange.read_until(b"\n\n")
    connection: str = msgspec.json.decode(body.partition(b"data: ")[2].partition(b"\n")[0])[
        "connection"
    ]
    return connection


async def test_a_ticket_serves_one_stream_at_a_time_and_the_older_one_does_not_come_back(
    app: AsgiDriver,
) -> None:
    text = await ticket(app, "a")
    async with app.stream(f"/sse/stream/a?token={text}") as first:
        await opened(first)
        async with app.stream(f"/sse/stream/a?token={text}") as second:
            assert b'data: {"reason":"disconnected","reconnect":false}\n' in await first.closed()
            await opened(second)
            body = b'{"type":"info","service":"a","channels":["a"],"id":"m1"}'
            await app.request(
                "POST", "/api/v1/messages/send", body, bearer(token("bob", publish=["*"]))
            )
            await second.read_until(b'"id":"m1"')
            assert not second.ended.is_set()


async def test_a_look_at_the_headers_uses_no_ticket_up(app: AsgiDriver) -> None:
    text = await ticket(app, "a")
    async with app.stream(f"/sse/stream/a?token={text}") as first:
        await opened(first)
        for _ in range(3):
            assert (await app.request("HEAD", f"/sse/stream/a?token={text}")).status == 200
        await asyncio.sleep(0.05)
        assert not first.ended.is_set()


async def test_a_ticket_ends_with_the_token_that_it_was_made_with(app: AsgiDriver) -> None:
    text = await ticket(app, "a", jti="t1")
    async with app.stream(f"/sse/stream/a?token={text}") as stream:
        await opened(stream)
        await post(app, "revocations", {"jti": "t1"}, ADMIN)
        assert b'data: {"reason":"revoked","reconnect":false}\n' in await stream.closed()
    answer = await app.request("GET", f"/sse/stream/a?token={text}")
    assert answer.status == 401


async def test_tickets_may_be_made_in_the_open_modes_where_nobody_looks_at_them() -> None:
    made = create_app(Settings(enable_auth=False))
    async with lifespan(made):
        app = AsgiDriver(made)
        answer = await post(app, "tickets", {"channels": ["a"]}, {})
        assert answer.status == 201
        async with app.stream(f"/sse/stream/b?token={answer.json()['ticket']}") as stream:
            assert stream.status == 200


async def test_who_asks_for_too_many_tickets_is_told_to_wait() -> None:
    made = create_app(Settings(jwt_secret=SECRET))
    async with lifespan(made):
        app = AsgiDriver(made)
        bob = bearer(token("bob"))
        statuses = [
            (await post(app, "tickets", {"channels": ["user:bob"]}, bob)).status
            for _ in range(2_000)
        ]
        answer = Answer(201, {}, b"")
        for _ in range(2_000):
            answer = await post(app, "tickets", {"channels": ["user:bob"]}, bob)
            if answer.status != 201:
                break
        assert set(statuses) == {201}
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert (
            await post(app, "tickets", {"channels": ["user:eve"]}, bearer(token("eve")))
        ).status == 201


async def test_streams_that_wait_behind_an_unread_answer_are_counted_when_they_open() -> None:
    made = create_app(Settings(jwt_secret=SECRET, max_connections_per_subject=2))
    async with lifespan(made):
        app, bob = AsgiDriver(made, wire=True), bearer(token("bob"))
        waiting = [await begin(app, "/sse/user/bob", bob) for _ in range(10)]
        assert len(made.state.push.connections) == 0
        for exchange in waiting:
            exchange.full = False
            exchange.room.set()
        for exchange in waiting:
            await exchange.read_until(b"\n\n")
        assert len(made.state.push.connections) == 2
        assert sum(b'"overload"' in exchange.body for exchange in waiting) == 8
        for exchange in waiting:
            await exchange.disconnect()


async def test_at_a_subject_s_limit_a_ticket_s_new_stream_takes_the_place_of_the_older() -> None:
    async for app in limited(max_connections_per_subject=1, max_connections_per_address=1):
        target = f"/sse/stream/a?token={await ticket(app, 'a')}"
        async with app.stream(target) as older, app.stream(target) as newer:
            assert b'"reason":"disconnected","reconnect":false' in await older.closed()
            await newer.read_until(b"msgpush.open")
            other = await app.request("GET", f"/sse/stream/a?token={await ticket(app, 'a')}")
            assert b'"reason":"overload"' in other.body
            assert not newer.ended.is_set()


async def test_a_ticket_serves_one_stream_however_many_were_about_to_open(app: AsgiDriver) -> None:
    text = await ticket(app, "a")
    waiting = [await begin(app, f"/sse/stream/a?token={text}", {}) for _ in range(10)]
    for exchange in waiting:
        exchange.full = False
        exchange.room.set()
    for exchange in waiting:
        await exchange.read_until(b"msgpush.open")
    for exchange in waiting[:-1]:
        assert b'data: {"reason":"disconnected","reconnect":false}\n' in await exchange.closed()
    assert not waiting[-1].ended.is_set()
    await waiting[-1].disconnect()


async def begin(
    app: AsgiDriver, target: str, headers: dict[str, str], *, client: str = "127.0.0.1"
) -> Exchange:
    """A request whose answer nobody reads yet; it has come as far as it can."""
    exchange = Exchange()
    exchange.full = True
    exchange.incoming.put_nowait({"type": "http.request", "body": b"", "more_body": False})
    scope = {**app.scope("GET", target, headers, exchange), "client": (client, 50000)}
    exchange.task = asyncio.ensure_future(app._run(scope, exchange))
    for _ in range(20):
        await asyncio.sleep(0)
    return exchange


def read_on(exchange: Exchange) -> None:
    """The client reads again."""
    exchange.full = False
    exchange.room.set()


# What is refused has ended nothing


@pytest.fixture(params=["wire", "send"])
async def crowded(request: pytest.FixtureRequest) -> AsyncIterator[AsgiDriver]:
    made = create_app(Settings(jwt_secret=SECRET, max_connections=3, max_connections_per_address=2))
    async with lifespan(made):
        yield AsgiDriver(made, wire=request.param == "wire")


async def still_there(app: AsgiDriver, stream: Exchange) -> None:
    push = push_of(app)
    await push.publish(parse(b'{"type":"info","service":"s","channels":["a"],"id":"still-there"}'))
    await stream.read_until(b"still-there")


def push_of(app: AsgiDriver) -> Push:
    assert isinstance(app.app, Starlette)
    push = app.app.state.push
    assert isinstance(push, Push)
    return push


@pytest.mark.parametrize("why", ["address", "draining", "bus", "gone"])
async def test_a_request_that_is_refused_while_it_waits_does_not_end_its_ticket_s_older_stream(
    crowded: AsgiDriver, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push, text = push_of(crowded), await ticket(crowded, "a")
    async with crowded.stream(f"/sse/stream/a?token={text}") as older:
        await opened(older)
        newer = await begin(crowded, f"/sse/stream/a?token={text}", {}, client="192.0.2.9")
        others = []
        if why == "address":
            for _ in range(2):
                others.append(
                    await begin(crowded, "/sse/user/eve", bearer(token("eve")), client="192.0.2.9")
                )
                read_on(others[-1])
                await opened(others[-1])
        elif why == "gone":
            newer.incoming.put_nowait({"type": "http.disconnect"})
        elif why == "draining":
            push.draining = True
        else:
            monkeypatch.setattr(push._bus, "reachable", False)
        read_on(newer)
        body = await newer.closed()
        assert (b'"overload"' in body) == (why != "gone")
        assert b"msgpush.open" not in body
        await still_there(crowded, older)
        metrics = (await crowded.request("GET", "/metrics")).body.decode()
        assert (f'message_push_refused_total{{reason="{why}"}} 1.0' in metrics) == (why != "gone")
        for other in others:
            await other.disconnect()


async def test_a_request_that_is_refused_at_once_does_not_end_its_ticket_s_older_stream(
    crowded: AsgiDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    push, text = push_of(crowded), await ticket(crowded, "a")

    async def away() -> Position:
        raise BusUnavailable("away")

    async with crowded.stream(f"/sse/stream/a?token={text}") as older:
        await opened(older)
        assert (await crowded.request("HEAD", f"/sse/stream/a?token={text}")).status == 200
        assert (await crowded.request("GET", f"/sse/stream/b?token={text}")).status == 403
        assert (await crowded.request("GET", f"/sse/stream/a?token={text}&x=1")).status == 400
        with monkeypatch.context() as patch:
            patch.setattr(push._bus, "end", away)
            elsewhere = str(Cursor(push._bus.epoch, Position(1 << 45, 0)))
            refused = await crowded.request(
                "GET", f"/sse/stream/a?token={text}&last_event_id={elsewhere}"
            )
            assert b'"overload"' in refused.body
        push.draining = True
        assert b'"overload"' in (await crowded.request("GET", f"/sse/stream/a?token={text}")).body
        await still_there(crowded, older)


async def test_a_ticket_that_ends_while_its_request_waits_is_told_and_then_refused(
    app: AsgiDriver,
) -> None:
    text = await ticket(app, "a")
    waiting = await begin(app, f"/sse/stream/a?token={text}", {})
    permissions = push_of(app)._permissions
    assert isinstance(permissions._credentials, MemoryCredentials)
    permissions._credentials._drop(digest_of(text))
    read_on(waiting)
    assert b'{"reason":"expired","reconnect":true}' in await waiting.closed()
    assert (await app.request("GET", f"/sse/stream/a?token={text}")).status == 401


async def test_while_a_ticket_is_claimed_nobody_gets_its_place_and_nobody_gets_one_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = create_app(Settings(jwt_secret=SECRET, max_connections_per_subject=2))
    async with lifespan(made):
        app, push = AsgiDriver(made, wire=True), made.state.push
        credentials, answer = push._permissions._credentials, asyncio.Event()
        real = credentials.claim

        async def slow(*args: Any, **more: Any) -> bool:
            await answer.wait()
            claimed: bool = await real(*args, **more)
            return claimed

        monkeypatch.setattr(credentials, "claim", slow)
        texts = [await ticket(app, "a") for _ in range(4)]
        waiting = [await begin(app, f"/sse/stream/a?token={text}", {}) for text in texts]
        for exchange in waiting:
            read_on(exchange)
        for _ in range(20):
            await asyncio.sleep(0)
        # It needs no claim, and comes too late all the same.
        assert (
            b'"overload"'
            in (await app.request("GET", "/sse/user/bob", b"", bearer(token("bob")))).body
        )
        answer.set()
        assert [
            b'"overload"' in await exchange.read_until(b"event: ") for exchange in waiting[2:]
        ] == [True] * 2
        for exchange in waiting[:2]:
            await opened(exchange)
        assert len(push.connections) == push._hub.places.total == 2
        for exchange in waiting:
            await exchange.disconnect()
        assert push._hub.places.total == 0


async def test_all_streams_of_a_ticket_have_one_place_and_one_at_each_address() -> None:
    places, ticket = Places(), "t"
    at_home, away, other = (
        ClientInfo(who, "sse", "", "", 0.0, where)
        for who, where in (("bob", "home"), ("bob", "away"), ("eve", "home"))
    )
    for info in (at_home, at_home, away):
        places.take(info, ticket)
    places.take(other, None)
    assert (places.total, places.subjects["bob"]) == (2, 1)
    assert places.addresses == {"home": 2, "away": 1}
    places.leave(at_home, ticket)
    places.leave(away, ticket)
    assert (places.total, places.addresses) == (2, {"home": 2})
    places.leave(at_home, ticket)
    places.leave(other, None)
    assert (places.total, places.subjects, places.addresses) == (0, {}, {})


async def test_an_upload_that_goes_on_after_its_token_was_revoked_publishes_no_more(
    app: AsgiDriver,
) -> None:
    exchange, line = Exchange(), b'{"type":"info","service":"a"}\n'
    headers = {**bearer(token("eve", publish=["*"])), "Content-Type": "application/x-ndjson"}
    scope = app.scope("POST", "/api/v1/messages/batch", headers, exchange)
    exchange.task = asyncio.ensure_future(app._run(scope, exchange))
    exchange.incoming.put_nowait({"type": "http.request", "body": line * 3, "more_body": True})
    for _ in range(20):
        await asyncio.sleep(0)
    assert (await post(app, "revocations", {"subject": "eve"}, ADMIN)).status == 201
    exchange.incoming.put_nowait({"type": "http.request", "body": line * 2, "more_body": False})
    results = msgspec.json.decode(await exchange.closed())["results"]
    assert [each["error"]["status"] if "error" in each else 202 for each in results] == [
        202,
        202,
        202,
        401,
        401,
    ]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("messages/send", b'{"type":"info","service":"a"}'),
        ("tickets", b'{"channels":["user:mallory"]}'),
        ("revocations", b'{"subject":"bob"}'),
        ("users/mallory/devices", b'{"fcm":{"token":"t","secret":"0123456789abcdef012345"}}'),
    ],
)
async def test_a_body_that_comes_after_its_token_was_revoked_does_nothing(
    app: AsgiDriver, path: str, body: bytes
) -> None:
    exchange = Exchange()
    headers = bearer(token("mallory", publish=["*"], admin=True))
    exchange.task = asyncio.ensure_future(
        app._run(app.scope("POST", f"/api/v1/{path}", headers, exchange), exchange)
    )
    await asyncio.sleep(0)
    assert (await post(app, "revocations", {"subject": "mallory"}, ADMIN)).status == 201
    exchange.incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})
    await exchange.closed()
    assert exchange.status == 401
    async with app.stream("/sse/user/bob", bearer(token("bob"))) as stream:
        assert stream.status == 200


# Limits over HTTP


async def limited(**settings: Any) -> AsyncIterator[AsgiDriver]:
    made = create_app(Settings(jwt_secret=SECRET, **settings))
    async with lifespan(made):
        yield AsgiDriver(made)


async def test_a_stream_too_many_is_put_off_with_the_reason_and_counted() -> None:
    for setting, reason in (
        ("max_connections", "connections"),
        ("max_connections_per_subject", "subject"),
        ("max_connections_per_address", "address"),
    ):
        async for app in limited(**{setting: 1}):
            bob = bearer(token("bob"))
            async with (
                app.stream("/sse/user/bob", bob) as first,
                app.stream("/sse/user/bob", bob) as second,
            ):
                await opened(first)
                body = await second.closed()
                assert second.status == 200
                comment, retry, *rest = body.decode().splitlines()
                assert comment.startswith(": ")
                assert setting.upper() in comment
                assert 10_000 <= int(retry.removeprefix("retry: ")) <= 30_000
                assert rest[:2] == [
                    "event: msgpush.close",
                    'data: {"reason":"overload","reconnect":true}',
                ]
            metrics = (await app.request("GET", "/metrics")).body.decode()
            assert f'message_push_refused_total{{reason="{reason}"}} 1.0' in metrics


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("unix", "unix"),
        ("x:y", "x:y"),
        ("", ""),
    ],
)
def test_addresses_of_ipv6_count_by_their_network(host: str, counted: str) -> None:
    assert limited_address(host) == counted


async def test_publishing_has_a_rate_for_each_subject_which_the_answers_tell() -> None:
    async for app in limited(publish_rate=0.5):
        body = b'{"type":"info","service":"a"}'
        bob, eve = bearer(token("bob", publish=["*"])), bearer(token("eve", publish=["*"]))
        first = await app.request("POST", "/api/v1/messages/send", body, bob)
        assert first.status == 202
        assert first.headers["ratelimit-policy"] == '"messages";q=1;w=2'
        assert first.headers["ratelimit"] == '"messages";r=0;t=2'
        again = await app.request("POST", "/api/v1/messages/send", body, bob)
        assert (again.status, again.headers["retry-after"]) == (429, "2")
        assert again.headers["ratelimit"] == '"messages";r=0;t=2'
        assert again.headers["ratelimit-policy"] == '"messages";q=1;w=2'
        assert "0.5 a second are allowed, and 1 at once; try again in" in again.json()["detail"]
        assert (await app.request("POST", "/api/v1/messages/broadcast", body, eve)).status == 202
        metrics = (await app.request("GET", "/metrics")).body.decode()
        assert (
            'message_push_messages_failed_total{reason="rate",service="a",type="info"} 1.0'
            in metrics
        )
        assert 'message_push_refused_total{reason="rate"} 1.0' in metrics


async def test_what_is_refused_for_other_reasons_takes_nothing_from_the_rate() -> None:
    async for app in limited(publish_rate=0.01):
        bob = bearer(token("bob", publish=["service:a"]))
        for body, status in (
            (b"{", 400),
            (b'{"type":"x","service":"a"}', 422),
            (b'{"type":"info","service":"b"}', 403),
            (b'{"type":"info","service":"a"}', 202),
            (b'{"type":"info","service":"a"}', 429),
        ):
            assert (await app.request("POST", "/api/v1/messages/send", body, bob)).status == status


async def test_of_a_batch_as_many_are_taken_as_the_rate_allows_in_order() -> None:
    async for app in limited(publish_rate=3):
        bob = bearer(token("bob", publish=["*"]))
        items = [{"type": "info", "service": "a", "id": f"m{number}"} for number in range(6)]
        items[1]["type"] = "x"
        answer = await post(app, "messages/batch", items, bob)
        assert answer.status == 202
        statuses = [
            each["error"]["status"] if "error" in each else 202 for each in answer.json()["results"]
        ]
        assert statuses == [202, 422, 202, 202, 429, 429]
        answer = await post(app, "messages/batch", items, bob)
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert answer.json()["accepted"] == 0


async def test_a_batch_that_comes_too_early_is_told_when_there_is_room_for_one() -> None:
    async for app in limited(publish_rate=0.2):
        bob = bearer(token("bob", publish=["*"]))
        items = [{"type": "info", "service": "a"}]
        assert (await post(app, "messages/batch", items, bob)).status == 202
        answer = await post(app, "messages/batch", items, bob)
        assert (answer.status, answer.headers["retry-after"]) == (429, "5")


async def test_without_a_rate_the_answers_say_nothing_of_one(app: AsgiDriver) -> None:
    answer = await app.send(
        b'{"type":"info","service":"a"}',
        Authorization=bearer(token("b", publish=["*"]))["Authorization"],
    )
    assert answer.status == 202
    assert not any("ratelimit" in name for name in answer.headers)
