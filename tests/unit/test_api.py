"""The rest of the HTTP API, in process: connections, histories, health, metrics, the open modes,
CORS.
"""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from msgpush.adapters.http.origins import is_local_host
from msgpush.domain.control import Close
from msgpush.domain.errors import BusUnavailable
from msgpush.domain.tally import MAX_SERVICES
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings
from tests.support.asgi import Answer, AsgiDriver, Exchange
from tests.support.eventsource import EventStreamParser
from tests.support.tokens import SECRET, bearer, token

OPEN = {
    "host": "push.example.com",
    "x-forwarded-for": "203.0.113.7",
    "origin": "https://evil.example",
}


@pytest.fixture
async def client() -> AsyncIterator[AsgiDriver]:
    async with lifespan(app := create_app(Settings())):
        yield AsgiDriver(app)


def app_of(client: AsgiDriver) -> Starlette:
    assert isinstance(client.app, Starlette)
    return client.app


async def connections(client: AsgiDriver, query: str = "") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (
        await client.request("GET", f"/api/v1/connections{query}")
    ).json()["connections"]
    return rows


async def metric(client: AsgiDriver, name: str, **labels: str) -> float:
    text = (await client.request("GET", "/metrics")).body.decode()
    samples = [
        sample for family in text_string_to_metric_families(text) for sample in family.samples
    ]
    return sum(
        each.value
        for each in samples
        if each.name == name and labels.items() <= each.labels.items()
    )


# Connections


async def test_a_connection_is_listed_with_all_that_the_contract_names(client: AsgiDriver) -> None:
    async with client.stream("/sse/user/u1?channel=a", {"User-Agent": "tests/1"}) as stream:
        await stream.read_until(b"\n\n")
        await client.send(b'{"type":"info","service":"s","channels":["a"],"id":"m1"}')
        await stream.read_until(b'"m1"')
        (row,) = await connections(client)
    assert row.pop("connected_at").endswith("Z")
    assert row.pop("bytes_sent") > 0
    assert len(row.pop("id")) == 16
    assert row.pop("node")
    assert row == {
        "subject": None,
        "transport": "sse",
        "channels": ["a", "broadcast", "user:u1"],
        "remote": "127.0.0.1:50000",
        "user_agent": "tests/1",
        "messages_sent": 1,
        "state": "live",
        "lag": 0,
    }


async def test_the_list_is_filtered_and_paged(client: AsgiDriver) -> None:
    async with (
        client.stream("/sse/user/u1"),
        client.stream("/sse/user/u2?channel=a"),
        client.stream("/sse/service/s1?channel=a"),
    ):
        assert len(await connections(client)) == 3
        assert [row["channels"][-1] for row in await connections(client, "?user=u2")] == ["user:u2"]
        assert len(await connections(client, "?service=s1")) == 1
        assert len(await connections(client, "?channel=a")) == 2
        assert len(await connections(client, "?channel=a&user=u1")) == 0
        assert len(await connections(client, "?subject=nobody")) == 0
        seen, query = [], "?limit=2"
        while query:
            page = (await client.request("GET", f"/api/v1/connections{query}")).json()
            seen += [row["id"] for row in page["connections"]]
            query = page["next"] and f"?limit=2&next={page['next']}"
        assert sorted(set(seen)) == seen
        assert len(seen) == 3


@pytest.mark.parametrize(
    "query", ["?limit=0", "?limit=1001", "?limit=x", "?limit=-1", "?usr=u", "?subject=a&subject=b"]
)
async def test_a_wrong_question_about_connections_is_refused(
    client: AsgiDriver, query: str
) -> None:
    assert (await client.request("GET", f"/api/v1/connections{query}")).status == 400


async def test_the_totals_and_the_peak_are_told(client: AsgiDriver) -> None:
    async with client.stream("/sse/user/u1"), client.stream("/sse/stream/a"):
        pass
    async with client.stream("/sse/user/u1"):
        told = (await client.request("GET", "/api/v1/connections/stats")).json()
    assert (told["total"], told["peak"]) == (1, 2)
    assert told["by_state"] == {"live": 1}
    assert told["by_transport"] == {"sse": 1}
    assert told["by_channel_kind"] == {"broadcast": 1, "user": 1}


async def test_a_reader_that_is_behind_is_listed_with_its_lag(client: AsgiDriver) -> None:
    async with client.stream("/sse/stream/a") as stream:
        await stream.read_until(b"\n\n")
        stream.full = True
        body = b"[" + b",".join(
            [b'{"type":"info","service":"s","channels":["a"],"source":"%b"}' % (b"x" * 100)] * 900
        )
        await client.request("POST", "/api/v1/messages/batch", body + b"]")
        await client.request("POST", "/api/v1/messages/batch", body + b"]")
        (row,) = await connections(client)
        assert row["state"] == "behind"
        assert row["lag"] >= 0
        stream.full = False
        stream.room.set()


# Histories


async def test_a_history_is_read_in_pages(client: AsgiDriver) -> None:
    for n in range(5):
        await client.send(b'{"type":"info","service":"s","channels":["a"],"id":"m%d"}' % n)
    first = (await client.request("GET", "/api/v1/channels/a/messages?limit=2")).json()
    rest = (
        await client.request("GET", f"/api/v1/channels/a/messages?after={first['cursor']}")
    ).json()
    assert [each["id"] for each in first["messages"] + rest["messages"]] == [
        "m0",
        "m1",
        "m2",
        "m3",
        "m4",
    ]
    assert (first["gap"], rest["gap"]) == (None, None)
    end = (
        await client.request("GET", f"/api/v1/channels/a/messages?after={rest['cursor']}")
    ).json()
    assert (end["messages"], end["gap"]) == ([], None)


async def test_a_historys_cursor_begins_a_stream_without_a_seam(client: AsgiDriver) -> None:
    await client.send(b'{"type":"info","service":"s","channels":["a"],"id":"m0"}')
    cursor = (await client.request("GET", "/api/v1/channels/a/messages")).json()["cursor"]
    await client.send(b'{"type":"info","service":"s","channels":["a"],"id":"m1"}')
    async with client.stream(f"/sse/stream/a?last_event_id={cursor}") as stream:
        assert b'"m0"' not in await stream.read_until(b'"m1"')


async def test_a_history_after_a_foreign_cursor_says_reset(client: AsgiDriver) -> None:
    await client.send(b'{"type":"info","service":"s","channels":["a"],"id":"m0"}')
    told = (await client.request("GET", "/api/v1/channels/a/messages?after=foreign")).json()
    assert told["gap"] == {"channel": None, "after": "foreign", "reason": "reset"}
    assert [each["id"] for each in told["messages"]] == ["m0"]


async def test_a_history_is_given_in_answers_of_a_bounded_size(client: AsgiDriver) -> None:
    body = b'{"type":"info","service":"s","channels":["a"],"data":{"x":"%b"}}' % (b"y" * 200_000)
    for _ in range(50):
        assert (await client.send(body)).status == 202
    found, after, sizes = 0, "", []
    while True:
        answer = await client.request(
            "GET", f"/api/v1/channels/a/messages?limit=1000&after={after}"
        )
        messages = answer.json()["messages"]
        if not messages:
            break
        found, after = found + len(messages), answer.json()["cursor"]
        sizes.append(len(answer.body))
        assert answer.json()["gap"] is None
    assert found == 50
    assert max(sizes) < 5_000_000


async def test_a_history_after_latest_is_empty_and_continues_from_now(client: AsgiDriver) -> None:
    await client.send(b'{"type":"info","service":"s","channels":["a"],"id":"m0"}')
    told = (await client.request("GET", "/api/v1/channels/a/messages?after=latest")).json()
    assert (told["messages"], told["gap"]) == ([], None)


@pytest.mark.parametrize(
    "target",
    [
        "a%20b/messages",
        "a%0Ab/messages",
        "a*/messages",
        "a/messages?limit=0",
        "a/messages?after=a b",
        "a/messages?befor=x",
    ],
)
async def test_a_wrong_question_about_a_history_is_refused(client: AsgiDriver, target: str) -> None:
    answer = await client.request("GET", f"/api/v1/channels/{target}")
    assert (answer.status, answer.headers["content-type"]) == (400, "application/problem+json")


# Operations


async def test_health_tells_that_all_is_well(client: AsgiDriver) -> None:
    for path in ("/health", "/health/live", "/health/ready"):
        answer = await client.request("GET", path)
        assert (answer.status, answer.json()["status"]) == (200, "ok")


async def test_a_bus_that_is_away_fails_health_and_readiness_but_not_liveness(
    client: AsgiDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away() -> None:
        raise BusUnavailable("the bus is away")

    monkeypatch.setattr(app_of(client).state.push._bus, "end", away)
    answer = await client.request("GET", "/health")
    assert (answer.status, answer.json()) == (
        503,
        {"status": "unavailable", "reason": "the bus is away"},
    )
    assert (await client.request("GET", "/health/live")).status == 200
    stream = await client.request(
        "GET", "/sse/stream/a?last_event_id=" + cursor_of_tomorrow(client)
    )
    assert b'"overload"' in stream.body


def cursor_of_tomorrow(client: AsgiDriver) -> str:
    return f"1{app_of(client).state.push._bus.epoch}.9999999999999-0"


async def test_a_delivery_that_has_died_fails_liveness(client: AsgiDriver) -> None:
    delivery = app_of(client).state.push._delivery
    delivery._running[0].cancel()
    async with client.stream("/sse/stream/a"):
        pass
    assert (await client.request("GET", "/health/live")).status == 503


async def test_metrics_count_what_was_accepted_and_what_was_refused(client: AsgiDriver) -> None:
    async with client.stream("/sse/stream/a") as stream:
        await client.send(b'{"type":"info","service":"s","channels":["a"],"id":"m1"}')
        await client.send(b'{"type":"info","service":"s","channels":["a"],"id":"m1"}')
        await client.send(b'{"type":"info","service":"s","channels":["b"],"id":"m1"}')
        await client.send(b"{")
        await stream.read_until(b'"m1"')
        assert await metric(client, "message_push_connections_total", transport="sse") == 1
    assert await metric(client, "message_push_messages_sent_total", service="s", type="info") == 1
    assert await metric(client, "message_push_messages_failed_total", reason="conflict") == 1
    assert await metric(client, "message_push_messages_failed_total", reason="malformed") == 1
    assert await metric(client, "message_push_message_duration_seconds_count", service="s") == 1
    assert await metric(client, "message_push_bus_length") == 2
    assert await metric(client, "message_push_up") == 1


async def test_what_instances_tell_each_other_counts_as_no_message(client: AsgiDriver) -> None:
    async with client.stream("/sse/stream/a") as stream:
        await app_of(client).state.push.command(Close("elsewhere", True))
        await client.send(b'{"type":"info","service":"s","channels":["a"],"id":"m1"}')
        await stream.read_until(b'"m1"')
    for name in ("messages_sent_total", "message_duration_seconds_count"):
        assert await metric(client, f"message_push_{name}") == 1


async def test_clients_cannot_make_metrics_without_end(client: AsgiDriver) -> None:
    for n in range(MAX_SERVICES + 20):
        await client.send(b'{"type":"info","service":"s%d"}' % n)
    assert await metric(client, "message_push_messages_sent_total") == MAX_SERVICES + 20
    assert await metric(client, "message_push_messages_sent_total", service="other") == 20


async def test_an_unknown_path_is_a_problem(client: AsgiDriver) -> None:
    answer = await client.request("GET", "/nothing/here")
    assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")


async def test_a_mistake_of_the_server_is_told_without_its_details(
    client: AsgiDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(app_of(client).state.push._bus, "append", broken)
    exchange = Exchange()
    exchange.incoming.put_nowait(
        {"type": "http.request", "body": b'{"type":"info","service":"s"}', "more_body": False}
    )
    scope = client.scope("POST", "/api/v1/messages/send", None, exchange)
    with pytest.raises(RuntimeError):  # for the server's log
        await client.app(scope, exchange.receive, exchange.send)
    assert exchange.status == 500
    assert b"problem" in exchange.headers["content-type"].encode()
    assert b"secret" not in exchange.body


# The open modes


@pytest.mark.parametrize(
    ("headers", "served"),
    [
        ({}, True),
        ({"host": "127.0.0.1:8089"}, True),
        ({"host": "127.9.9.9"}, True),
        ({"host": "[::1]:8089"}, True),
        ({"host": "LOCALHOST"}, True),
        ({"origin": "http://localhost:3000"}, True),
        ({"origin": "https://127.0.0.1"}, True),
        ({"host": "push.example.com"}, False),
        ({"host": "localhost.example.com"}, False),
        ({"host": "10.0.0.1"}, False),
        ({"host": "user@localhost"}, False),
        ({"host": "[127.0.0.1]"}, False),
        ({"host": ""}, False),
        ({"forwarded": "for=203.0.113.7"}, False),
        ({"x-forwarded-for": "127.0.0.1"}, False),
        ({"x-forwarded-proto": "https"}, False),
        ({"x-real-ip": "127.0.0.1"}, False),
        ({"via": "1.1 proxy"}, False),
        ({"origin": "https://evil.example"}, False),
        ({"origin": "http://localhost.evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "file://localhost"}, False),
    ],
)
async def test_local_mode_serves_this_machine_alone(
    client: AsgiDriver, headers: dict[str, str], served: bool
) -> None:
    for method, path in (
        ("GET", "/health"),
        ("POST", "/api/v1/messages/send"),
        ("GET", "/nothing"),
        ("GET", "/metrics"),
    ):
        answer = await client.request(method, path, b"{}", headers)
        assert (answer.status != 403) == served, (method, path)
        if not served:
            assert "ENABLE_AUTH=false" in answer.json()["detail"]


async def test_local_mode_lets_pages_of_cors_origins_in() -> None:
    async with lifespan(app := create_app(Settings(cors_origins=("https://app.example.com",)))):
        client = AsgiDriver(app)
        assert (
            await client.request("GET", "/health", headers={"origin": "https://app.example.com"})
        ).status == 200
        assert (
            await client.request(
                "GET", "/health", headers={"origin": "https://app.example.com.evil"}
            )
        ).status == 403


async def test_the_open_mode_serves_everybody() -> None:
    async with lifespan(app := create_app(Settings(enable_auth=False))):
        client = AsgiDriver(app)
        assert (await client.request("GET", "/health", headers=OPEN)).status == 200
        assert (await client.send(b'{"type":"info","service":"s"}', **OPEN)).status == 202


@pytest.mark.parametrize(
    "host", ["localhost\n", "127.0.0.1:", "127.0.0.1:123456", "::1", "[localhost]", "127.1"]
)
def test_what_only_looks_like_this_machine_is_not(host: str) -> None:
    assert not is_local_host(host)


# CORS


APP = "https://app.example.com"


@pytest.fixture
async def shared() -> AsyncIterator[AsgiDriver]:
    settings = Settings(jwt_secret=SECRET, cors_origins=(APP, "http://localhost:3000"))
    async with lifespan(app := create_app(settings)):
        yield AsgiDriver(app, wire=True)


async def preflight(client: AsgiDriver, origin: str, method: str, *headers: str) -> Answer:
    given = {"origin": origin, "access-control-request-method": method}
    if headers:
        given["access-control-request-headers"] = ",".join(headers)
    return await client.request("OPTIONS", "/sse/stream/a", headers=given)


@pytest.mark.parametrize("origin", [APP, "http://localhost:3000"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_a_preflight_of_a_known_origin_is_let_through_and_may_be_kept(
    shared: AsgiDriver, origin: str, method: str
) -> None:
    answer = await preflight(
        shared, origin, method, "last-event-id", " Authorization", "content-type"
    )
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert answer.headers["access-control-max-age"] == "600"
    assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize(
    ("origin", "method", "header"),
    [
        ("https://evil.example", "GET", "authorization"),
        ("https://app.example.com.evil.example", "GET", "authorization"),
        ("http://app.example.com", "GET", "authorization"),
        ("https://app.example.com:8443", "GET", "authorization"),
        ("HTTPS://APP.EXAMPLE.COM", "GET", "authorization"),
        ("null", "GET", "authorization"),
        ("*", "GET", "authorization"),
        (APP, "PUT", "authorization"),
        (APP, "GET", "x-other"),
    ],
)
async def test_any_other_preflight_is_refused_as_every_error_is(
    shared: AsgiDriver, origin: str, method: str, header: str
) -> None:
    answer = await preflight(shared, origin, method, header)
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"].startswith("Disallowed CORS ")
    assert answer.headers.get("access-control-allow-origin") == (APP if origin == APP else None)


async def test_a_known_origin_reads_answers_and_refusals_alike_and_no_other_does(
    shared: AsgiDriver,
) -> None:
    alice = bearer(token("alice"))
    for headers, status in ((alice, 200), (bearer("x"), 401), ({}, 401)):
        for origin, named in ((APP, APP), ("https://evil.example", None), (None, None), (APP, APP)):
            given = headers if origin is None else {"origin": origin, **headers}
            async with shared.stream("/sse/user/alice", given) as stream:
                assert stream.status == status
                assert stream.headers.get("access-control-allow-origin") == named
                assert "*" not in "".join(
                    value
                    for name, value in stream.headers.items()
                    if name.startswith("access-control")
                )
                if named is not None:
                    assert stream.headers["access-control-allow-credentials"] == "true"
                    assert "WWW-Authenticate" in stream.headers["access-control-expose-headers"]
                    assert "Retry-After" in stream.headers["access-control-expose-headers"]


async def test_without_cors_origins_no_other_origin_is_named() -> None:
    async with lifespan(app := create_app(Settings(jwt_secret=SECRET))):
        closed = AsgiDriver(app)
        answer = await preflight(closed, APP, "GET")
        assert answer.status == 405
        answer = await closed.request("GET", "/health", headers={"origin": APP})
        assert not any(name.startswith("access-control") for name in answer.headers)


async def test_the_limit_of_streams_is_told_as_overload() -> None:
    async with lifespan(app := create_app(Settings(max_connections=1))):
        client = AsgiDriver(app)
        async with client.stream("/sse/stream/a"):
            (event,) = EventStreamParser().feed((await client.request("GET", "/sse/stream/a")).body)
            assert event.data == '{"reason":"overload","reconnect":true}'
        async with client.stream("/sse/stream/a") as stream:
            assert b"msgpush.open" in await stream.read_until(b"\n\n")


# The newest of a history


async def test_the_newest_messages_of_a_channel_come_oldest_first_with_a_cursor_after_them(
    client: AsgiDriver,
) -> None:
    for n in range(5):
        await client.send(b'{"id":"m%d","type":"info","service":"s","channels":["a"]}' % n)
    answer = await client.request("GET", "/api/v1/channels/a/messages?last=2")
    assert [each["id"] for each in answer.json()["messages"]] == ["m3", "m4"]
    assert answer.json()["gap"] is None
    await client.send(b'{"id":"m5","type":"info","service":"s","channels":["a"]}')
    target = f"/api/v1/channels/a/messages?after={answer.json()['cursor']}"
    rest = await client.request("GET", target)
    assert [each["id"] for each in rest.json()["messages"]] == ["m5"]
    whole = await client.request("GET", "/api/v1/channels/a/messages?last=1000")
    assert len(whole.json()["messages"]) == 6
    nothing = await client.request("GET", "/api/v1/channels/none/messages?last=10")
    assert nothing.json()["messages"] == []


@pytest.mark.parametrize(
    "query", ["last=0", "last=1001", "last=x", "last=5&after=earliest", "last=5&limit=5"]
)
async def test_last_stands_alone_and_is_a_number_from_one_to_a_thousand(
    client: AsgiDriver, query: str
) -> None:
    answer = await client.request("GET", f"/api/v1/channels/a/messages?{query}")
    assert answer.status == 400


async def test_an_answer_with_the_newest_messages_ends_after_four_mib(client: AsgiDriver) -> None:
    for n in range(30):
        body = b'{"id":"m%d","type":"info","service":"s","channels":["a"],"data":{"x":"%b"}}'
        await client.send(body % (n, b"x" * 200_000))
    answer = await client.request("GET", "/api/v1/channels/a/messages?last=30")
    ids = [each["id"] for each in answer.json()["messages"]]
    assert 20 <= len(ids) < 30
    assert ids == [f"m{n}" for n in range(30 - len(ids), 30)]
