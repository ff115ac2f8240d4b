"""The streams' contract, in process: with the server's wire extension and without."""

import asyncio
import json
import re
from collections.abc import AsyncIterator

import pytest
from starlette.applications import Starlette

from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings
from tests.support.asgi import AsgiDriver, Exchange
from tests.support.eventsource import Event, EventStreamParser


@pytest.fixture(params=["wire", "send"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[AsgiDriver]:
    async with lifespan(app := create_app(Settings())):
        yield AsgiDriver(app, wire=request.param == "wire")


def app_of(client: AsgiDriver) -> Starlette:
    assert isinstance(client.app, Starlette)
    return client.app


def events(body: bytes) -> list[Event]:
    return EventStreamParser().feed(body)


def message(type: str = "info", data: str = "{}", id: str = "m1", channel: str = "a") -> bytes:
    return f'{{"id":"{id}","type":"{type}","service":"s","channels":["{channel}"],"data":{data}}}'.encode()


async def test_a_stream_opens_with_the_headers_and_the_block_of_the_contract(
    client: AsgiDriver,
) -> None:
    async with client.stream("/sse/user/123") as stream:
        body = await stream.read_until(b"\n\n")
    assert stream.status == 200
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert stream.headers["cache-control"] == "no-store, no-transform"
    assert stream.headers["x-accel-buffering"] == "no"
    form = (
        rb"retry: (\d+)\nevent: msgpush.open\nid: (\S+)\n"
        rb'data: {"connection":"(\w+)","channels":\["broadcast","user:123"\],"resumed":false,"heartbeat":30}\n\n'
    )
    match = re.fullmatch(form, body)
    assert match is not None
    assert 2000 <= int(match[1]) <= 5000


async def test_progress_comes_as_an_event_of_its_name_with_its_data_alone(
    client: AsgiDriver,
) -> None:
    async with client.stream("/sse/stream/a") as stream:
        await client.send(message("progress", '{"progress":1.50}'))
        body = await stream.read_until(b"progress")
    assert events(body)[-1].type == "progress"
    assert events(body)[-1].data == '{"progress":1.50}'


async def test_other_types_come_whole_through_onmessage(client: AsgiDriver) -> None:
    async with client.stream("/sse/stream/a") as stream:
        await client.send(message("status"))
        body = await stream.read_until(b'"m1"')
    assert events(body)[-1].type == "message"
    assert '"id":"m1"' in events(body)[-1].data


@pytest.mark.parametrize(
    ("choice", "type", "name"),
    [
        ("*", "status", "status"),
        ("*", "error", "message.error"),
        ("none", "progress", "message"),
        ("status,info", "info", "info"),
        ("status", "progress", "message"),
    ],
)
async def test_events_chooses_which_types_come_by_name(
    client: AsgiDriver, choice: str, type: str, name: str
) -> None:
    async with client.stream(f"/sse/stream/a?events={choice}") as stream:
        await client.send(message(type, '{"progress":1}'))
        body = await stream.read_until(b'"progress":1')
    assert events(body)[-1].type == name


async def test_types_lets_only_those_through(client: AsgiDriver) -> None:
    async with client.stream("/sse/stream/a?types=status,error&events=none") as stream:
        await client.send(message("info", id="declined"))
        await client.send(message("error", id="wanted"))
        body = await stream.read_until(b"wanted")
    assert b"declined" not in body


async def test_a_broadcast_reaches_every_stream_but_those_that_declined(client: AsgiDriver) -> None:
    async with (
        client.stream("/sse/user/1") as one,
        client.stream("/sse/user/2?broadcast=false") as two,
    ):
        await client.send(
            b'{"id":"everyone","type":"info","service":"s"}', "/api/v1/messages/broadcast"
        )
        await client.send(b'{"id":"only-two","type":"info","service":"s","target":{"user_id":"2"}}')
        await one.read_until(b"everyone")
        assert b"everyone" not in await two.read_until(b"only-two")


async def test_a_message_of_several_of_its_channels_comes_once_live_and_on_replay(
    client: AsgiDriver,
) -> None:
    async with client.stream("/sse/stream/a,b?channel=service:s") as live:
        await client.send(b'{"id":"m1","type":"info","service":"s","channels":["a","b"]}')
        await client.send(b'{"id":"m2","type":"info","service":"s","channels":["b","a"]}')
        body = await live.read_until(b'"m2"')
    async with client.stream("/sse/stream/b,a?channel=service:s&last_event_id=earliest") as replay:
        again = await replay.read_until(b'"m2"')
    for each in (body, again):
        assert (each.count(b'"id":"m1"'), each.count(b'"id":"m2"')) == (1, 1)
    async with client.stream(
        "/sse/stream/b,c", {"Last-Event-ID": events(body)[1].last_event_id}
    ) as resumed:
        assert (await resumed.read_until(b'"m2"')).count(b'"m1"') == 0


@pytest.mark.parametrize("spelling", ["last_event_id", "lastEventId", "lastEventID"])
async def test_the_header_wins_over_the_query_and_an_empty_one_is_none(
    client: AsgiDriver, spelling: str
) -> None:
    await client.send(message(id="m1"))
    async with client.stream(
        f"/sse/stream/a?{spelling}=earliest", {"Last-Event-ID": "latest"}
    ) as stream:
        assert b'"resumed":false' in await stream.read_until(b"\n\n")
    async with client.stream(f"/sse/stream/a?{spelling}=earliest", {"Last-Event-ID": ""}) as stream:
        assert b'"resumed":true' in await stream.read_until(b'"m1"')


@pytest.mark.parametrize("mistake", ["undefined", "null", "NaN", "None"])
@pytest.mark.parametrize("header", [True, False])
async def test_a_cursor_that_only_a_mistake_makes_is_told_as_that(
    client: AsgiDriver, mistake: str, header: bool
) -> None:
    query, headers = ("", {"last-event-id": mistake}) if header else (f"?lastEventId={mistake}", {})
    async with client.stream(f"/sse/stream/a{query}", headers) as stream:
        gap = events(await stream.read_until(b'"reset"'))[-1]
    told = json.loads(gap.data)
    assert (told["after"], told["reason"]) == (mistake, "reset")
    assert f'"{mistake}" is no cursor, but what ' in told["detail"]
    assert "lastEventId of the newest event" in told["detail"]
    history = (await client.request("GET", f"/api/v1/channels/a/messages?after={mistake}")).json()
    assert history["gap"]["detail"] == told["detail"]


@pytest.mark.parametrize(
    "path",
    ["/sse/stream/a,,b", "/sse/stream/a%20b", "/sse/user/" + "%2F" * 80, "/sse/user/a?channel=b*"],
)
async def test_a_name_that_encoding_does_not_make_one_is_not_told_so(
    client: AsgiDriver, path: str
) -> None:
    answer = await client.request("GET", path)
    assert answer.status == 400
    assert "is no channel name" in answer.json()["detail"]
    assert "percent-encoded" not in answer.json()["detail"]


async def test_a_javascript_object_is_no_cursor_and_told_as_that(client: AsgiDriver) -> None:
    for request in (
        client.request("GET", "/sse/stream/a", b"", {"last-event-id": "[object Object]"}),
        client.request("GET", "/api/v1/channels/a/messages?after=[object%20Object]"),
    ):
        answer = await request
        assert answer.status == 400
        assert (
            '"[object Object]" is no cursor, but what a JavaScript object becomes'
            in answer.json()["detail"]
        )


ADDED = ("lastEventId", "lastEventID", "evs_last_event_id")


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("order", [1, -1])
async def test_a_cursor_that_a_client_adds_on_its_reconnect_wins_over_the_url_s_own(
    client: AsgiDriver, added: str, order: int
) -> None:
    await client.send(message(id="m1"))
    async with client.stream("/sse/stream/a?last_event_id=earliest") as stream:
        cursor = events(await stream.read_until(b'"m1"'))[-1].last_event_id
    await client.send(message(id="m2"))
    for own in ("latest", "earliest", "not%20read", "", "x~end"):
        query = "&".join([f"last_event_id={own}", f"{added}={cursor}"][::order])
        async with client.stream(f"/sse/stream/a?{query}") as stream:
            body = await stream.read_until(b'"m2"')
            assert events(body)[0].last_event_id == cursor
            assert b'"m1"' not in body
        async with client.stream(f"/sse/stream/a?{query}", {"Last-Event-ID": "earliest"}) as stream:
            await stream.read_until(b'"m1"')
        over = "&".join([f"last_event_id={own}", f"{added}={cursor}~end"][::order])
        assert (await client.request("GET", f"/sse/stream/a?{over}")).status == 204
        async with client.stream(f"/sse/stream/a?{over}", {"Last-Event-ID": "earliest"}) as stream:
            await stream.read_until(b'"m1"')


@pytest.mark.parametrize(
    ("query", "resumed"),
    [
        ("lastEventId=&last_event_id=earliest", True),
        ("lastEventId=&lastEventID=earliest&last_event_id=latest", True),
        ("lastEventId=latest&lastEventID=earliest&last_event_id=earliest", False),
        ("lastEventId=latest&last_event_id=earliest", False),
        ("last_event_id=earliest&last_event_id=earliest", True),
        ("lastEventId=&lastEventId=earliest&lastEventId=", True),
        ("lastEventId=&lastEventID=&last_event_id=", False),
    ],
)
async def test_spellings_of_the_cursor_rank_and_an_empty_or_repeated_one_does_no_harm(
    client: AsgiDriver, query: str, resumed: bool
) -> None:
    async with client.stream(f"/sse/stream/a?{query}") as stream:
        assert f'"resumed":{str(resumed).lower()}'.encode() in await stream.read_until(b"\n\n")


async def test_what_polyfills_add_to_a_url_is_let_pass_on_streams_alone(client: AsgiDriver) -> None:
    for name in ("r", "t", "evs_preamble", "evs_buffer_size_limit", "_"):
        assert (await client.request("HEAD", f"/sse/stream/a?{name}=0.123")).status == 200
        answer = await client.request("GET", f"/api/v1/channels/a/messages?{name}=0.123")
        assert answer.status == (200 if name == "_" else 400)


async def test_a_cursor_that_is_given_twice_differently_is_named_with_both_values(
    client: AsgiDriver,
) -> None:
    answer = await client.request("GET", "/sse/stream/a?lastEventId=a&lastEventId=b")
    assert (
        answer.json()["detail"]
        == 'the parameter lastEventId is given with different values: "a", "b"'
    )


async def test_a_cursor_that_this_log_did_not_make_is_told_as_reset(client: AsgiDriver) -> None:
    await client.send(message(id="m1"))
    async with client.stream("/sse/stream/a", {"Last-Event-ID": "whatever"}) as stream:
        body = await stream.read_until(b'"m1"')
    opened, gap, first = events(body)
    assert (opened.last_event_id, opened.type) == ("whatever", "msgpush.open")
    assert gap.type == "msgpush.gap"
    assert gap.data == '{"channel":null,"after":"whatever","reason":"reset"}'
    assert gap.last_event_id == "whatever", "a gap has no id"
    assert first.last_event_id != "whatever"


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "HEAD"])
async def test_a_terminal_id_is_answered_with_204_before_anything_else(
    client: AsgiDriver, method: str
) -> None:
    answer = await client.request(
        method, "/sse/stream/bad name", headers={"Last-Event-ID": "1abcdefgh.5-0~end"}
    )
    assert (answer.status, answer.body) == (204, b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_other_verbs_get_405_even_where_the_channel_is_wrong(
    client: AsgiDriver, method: str
) -> None:
    answer = await client.request(method, "/sse/stream/bad name")
    assert answer.status == 405
    assert answer.headers["allow"] == "GET, HEAD"


async def test_head_answers_the_same_headers_and_ends(client: AsgiDriver) -> None:
    answer = await client.request("HEAD", "/sse/user/1")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"


@pytest.mark.parametrize(
    "target",
    [
        "/sse/stream/a b",
        "/sse/stream/a*",
        "/sse/stream/",
        "/sse/stream/a,,b",
        "/sse/stream/a%2Fb",
        "/sse/stream/%ff",
        "/sse/stream/a%0Ab",
        "/sse/user/a%0A",
        "/sse/stream/" + "x" * 201,
        "/sse/user/",
        "/sse/user/a,b",
        "/sse/service/a b",
        "/sse/stream/a?channel=",
        "/sse/stream/a?channel=b*",
        "/sse/stream/" + ",".join(f"c{n}" for n in range(65)),
        "/sse/stream/a?chanel=b",
        "/sse/stream/a?types=",
        "/sse/stream/a?types=news",
        "/sse/stream/a?events=",
        "/sse/stream/a?events=*,status",
        "/sse/stream/a?broadcast=no",
        "/sse/stream/a?broadcast=false&broadcast=false",
        "/sse/stream/a?last_event_id=a b",
        "/sse/stream/a?last_event_id=a&last_event_id=b",
        "/sse/stream/a?lastEventId=a&lastEventId=b",
        "/sse/stream/a?lastEventId=a b&last_event_id=latest",
        "/sse/stream/a?rr=1",
        "/sse/stream/a?tt=1",
        "/sse/stream/a?evs=1",
        "/sse/stream/a?last_event_id=" + "x" * 129,
        "/sse/stream/a?token=%ff",
    ],
)
async def test_a_malformed_stream_is_refused_with_400_and_the_reason(
    client: AsgiDriver, target: str
) -> None:
    answer = await client.request("GET", target)
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]


async def test_64_channels_besides_broadcast_are_allowed_and_parameters_that_begin_with_an_underscore(
    client: AsgiDriver,
) -> None:
    names = ",".join(f"c{n}" for n in range(64))
    async with client.stream(f"/sse/stream/{names}?_=1&channel=c1") as stream:
        assert b'"c63"' in await stream.read_until(b"\n\n")


async def test_a_stream_that_cannot_be_served_is_told_to_come_back_later(
    client: AsgiDriver,
) -> None:
    app_of(client).state.push.draining = True
    answer = await client.request("GET", "/sse/stream/a")
    (event,) = events(answer.body)
    assert (answer.status, answer.headers["content-type"]) == (
        200,
        "text/event-stream; charset=utf-8",
    )
    assert (event.type, event.data) == ("msgpush.close", '{"reason":"overload","reconnect":true}')
    parser = EventStreamParser()
    parser.feed(answer.body)
    assert parser.retry is not None
    assert 10_000 <= parser.retry <= 30_000


@pytest.mark.parametrize("reconnect", [True, False])
async def test_a_connection_is_closed_by_its_id(client: AsgiDriver, reconnect: bool) -> None:
    async with client.stream("/sse/stream/a") as stream:
        await stream.read_until(b"\n\n")
        (row,) = (await client.request("GET", "/api/v1/connections?channel=a")).json()[
            "connections"
        ]
        target = f"/api/v1/connections/{row['id']}" + ("" if reconnect else "?reconnect=false")
        assert (await client.request("DELETE", target)).status == 204
        body = await stream.closed()
        assert (await client.request("DELETE", target)).status == 404
    opened, close = events(body)
    assert close.type == "msgpush.close"
    assert close.data == f'{{"reason":"disconnected","reconnect":{str(reconnect).lower()}}}'
    assert close.last_event_id == opened.last_event_id + ("" if reconnect else "~end")


async def test_a_drain_gives_what_was_published_and_then_says_so(client: AsgiDriver) -> None:
    async with client.stream("/sse/stream/a") as stream:
        await stream.read_until(b"\n\n")
        await client.send(message(id="m1"))
        await app_of(client).state.push.drain(0.1)
        body = await stream.closed()
    assert [event.type for event in events(body)] == ["msgpush.open", "message", "msgpush.close"]
    assert events(body)[-1].data == '{"reason":"drain","reconnect":true}'


async def test_a_stalled_reader_catches_up_in_order_and_delays_nobody(client: AsgiDriver) -> None:
    async with client.stream("/sse/stream/a") as slow, client.stream("/sse/stream/a") as quick:
        await slow.read_until(b"\n\n")
        stall(slow, True)
        for n in range(300):
            await client.send(message(id=f"m{n}", data='{"x":"%s"}' % ("y" * 1000)))
        await quick.read_until(b'"m299"')
        assert b'"m299"' not in slow.body
        stall(slow, False)
        body = await slow.read_until(b'"m299"')
    got = [
        event.data.partition('"id":"')[2].partition('"')[0]
        for event in events(body)
        if event.type == "message"
    ]
    assert got == [f"m{n}" for n in range(300)]


@pytest.mark.parametrize("wire", [True, False])
async def test_a_reader_that_takes_nothing_is_cut_after_the_write_timeout(wire: bool) -> None:
    async with lifespan(app := create_app(Settings(write_timeout=0.2))):
        client = AsgiDriver(app, wire=wire)
        async with (
            client.stream("/sse/stream/a") as stalled,
            client.stream("/sse/stream/b") as idle,
        ):
            await stalled.read_until(b"\n\n")
            stall(stalled, True)
            for n in range(200):
                await client.send(message(id=f"m{n}", data='{"x":"%s"}' % ("y" * 1000)))
            async with asyncio.timeout(5):
                while len(app.state.push.connections) > 1:  # noqa: ASYNC110 - the service's own clock decides
                    await asyncio.sleep(0.01)
                assert stalled.task is not None
                await asyncio.wait([stalled.task])
            assert not idle.ended.is_set()


async def test_streams_that_end_leave_no_task_and_no_connection(client: AsgiDriver) -> None:
    before = asyncio.all_tasks()
    push = app_of(client).state.push
    leftovers = push._hub.leftovers()
    for _ in range(20):
        async with client.stream("/sse/stream/a") as stream:
            await stream.read_until(b"\n\n")
    assert push._hub.leftovers() == leftovers
    assert asyncio.all_tasks() == before


def stall(stream: Exchange, full: bool) -> None:
    """Fill the client's socket, or drain it."""
    stream.full = full
    if full:
        stream.wire.full = True
    else:
        stream.wire.drain()
        stream.room.set()
