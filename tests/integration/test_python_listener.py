"""The Python listeners against services that restart, hang, cut, close, and aren't there."""

import asyncio
import gc
import itertools
import json
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from msgpush.client import (
    Closed,
    Gap,
    Listener,
    Message,
    Opened,
    Publisher,
    Rejected,
    SyncListener,
    SyncMessage,
)
from tests.support.client import request
from tests.support.moody import (
    Mood,
    Moody,
    Reply,
    Request,
    hangs,
    refuses,
    says,
)
from tests.support.proxy import CuttingProxy
from tests.support.publishing import at, say
from tests.support.service import ServiceProcess, ThreadedService, eventually
from tests.support.tokens import SECRET, token

HTML = b"<!doctype html><html><body>It works!</body></html>"

AnyMessage = dict[str, Any]


@pytest.fixture(scope="module")
def service() -> Iterator[ThreadedService]:
    with ThreadedService() as service:
        yield service


@pytest.fixture
def url(service: ThreadedService) -> str:
    return at(service.port)


_names = (f"channel-{n}" for n in itertools.count())


@pytest.fixture
def channel() -> str:
    """One of the test's own."""
    return next(_names)


@pytest.fixture(scope="module")
def guarded() -> Iterator[ThreadedService]:
    with ThreadedService(jwt_secret=SECRET, jwt_leeway=0) as service:
        yield service


async def hear(listener: Listener, count: int) -> list[int]:
    """The numbers of the next so many messages."""
    heard: list[int] = []
    async with asyncio.timeout(15):
        async for event in listener:
            assert not isinstance(event, Gap), event
            if isinstance(event, Message):
                heard.append(event.data["n"])
                if len(heard) == count:
                    break
    return heard


async def closings(listener: Listener, until: Callable[[Any], bool]) -> list[Closed]:
    """How streams have ended, until there is such an event."""
    closed: list[Closed] = []
    async with asyncio.timeout(15):
        async for event in listener:
            if isinstance(event, Closed):
                closed.append(event)
            if until(event):
                break
    return closed


def is_message(event: Any) -> bool:
    return isinstance(event, Message)


def connections(port: int, channel: str) -> int:
    answer = request(port, "GET", f"/api/v1/connections?channel={channel}").json()
    return len(answer["connections"])


def block(event: str, id: str, data: AnyMessage, retry: int = 20) -> bytes:
    """One of a stream's."""
    lines = [f"retry: {retry}", f"data: {json.dumps(data)}"]
    lines += [f"event: {event}"] if event else []
    lines += [f"id: {id}"] if id else []
    return "\n".join([*lines, "", ""]).encode()


def closing(reason: str, id: str, *, reconnect: bool = False) -> bytes:
    return block("msgpush.close", id, {"reason": reason, "reconnect": reconnect})


OPENED = block("msgpush.open", "c0", {"connection": "x", "channels": ["a"], "heartbeat": 30})


def message(n: int, cursor: str = "", **more: Any) -> bytes:
    known = {"id": f"m{n}", "type": "info", "service": "tests", "timestamp": "", "data": {"n": n}}
    return block("", cursor, known | more)


def streams(*blocks: bytes, hangs: bool = False) -> Mood:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    return lambda _, __: Reply(head + b"".join(blocks), ends=not hangs, hangs=hangs)


async def test_what_cuts_streams_loses_and_doubles_nothing(
    url: str, service: ThreadedService, channel: str
) -> None:
    with CuttingProxy(service.port, random.Random(3), 0.9) as proxy:
        listener = Listener(at(proxy.port), channels=channel, since="earliest")

        def publish() -> None:
            with Publisher(url, service="tests") as publisher:
                for first in range(0, 400, 20):
                    say(publisher, channel, *range(first, first + 20))

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.to_thread(publish))
            heard = tasks.create_task(hear(listener, 400))
        assert heard.result() == [*range(400)]
        assert proxy.cut
        async with listener:
            pass


async def test_a_service_that_restarted_is_a_gap_and_then_goes_on() -> None:
    heard: list[Any] = []

    def restart() -> None:
        services.pop().__exit__()
        services.append(ServiceProcess(SERVICE_PORT=str(port)).__enter__())
        with Publisher(at(port), service="tests") as publisher:
            say(publisher, "a", 1)

    services = [ServiceProcess().__enter__()]
    port = services[0].port
    try:
        async with Listener(at(port), channels="a") as listener, asyncio.timeout(15):
            async for event in listener:
                if isinstance(event, Opened) and not heard:
                    heard.append("opened")
                    await asyncio.to_thread(restart)
                elif isinstance(event, Closed | Gap):
                    heard.append(event.reason)
                elif isinstance(event, Message):
                    heard.append(event.data["n"])
                    break
    finally:
        for each in services:
            each.__exit__()
    assert heard == ["opened", "lost", "reset", 1]


async def test_a_service_that_hangs_is_noticed_and_gone_on_with() -> None:
    with ServiceProcess(HEARTBEAT_INTERVAL="1") as service:
        port, closed = service.port, list[Closed]()
        async with Listener(at(port), channels="a") as listener, asyncio.timeout(20):
            async for event in listener:
                if isinstance(event, Opened) and not closed:
                    service.signal(signal.SIGSTOP)
                elif isinstance(event, Closed):
                    closed.append(event)
                    service.signal(signal.SIGCONT)
                    publisher = Publisher(at(port), service="tests")
                    await asyncio.to_thread(say, publisher, "a", 1)
                    publisher.close()
                elif isinstance(event, Message):
                    break
        assert closed[0].detail == "nothing was heard for 2.5 s"


async def test_a_proxy_that_buffers_is_told_of_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msgpush.client.listener.FIRST_SILENCE", 0.2)
    with Moody(streams(hangs=True), usual=streams(OPENED, message(1, "c1"), hangs=True)) as moody:
        async with Listener(moody.url, channels="a") as listener:
            [closed] = await closings(listener, is_message)
    assert closed.detail == "nothing was heard for 0.2 s"


async def test_a_server_that_does_not_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msgpush.client.listener.OPENS_IN", 0.2)
    usual = streams(OPENED, message(1, "c1"), hangs=True)
    with Moody(hangs, refuses, says(503, HTML, Retry_After="0"), usual=usual) as moody:
        async with Listener(moody.url, channels="a") as listener:
            closed = await closings(listener, is_message)
        assert len(moody.requests) == 4
    details = [each.detail for each in closed]
    assert details == ["there was no answer in 0.2 s"], "of an outage the first is told"


@pytest.mark.parametrize("reason", ["overload", "drain", "slow", "expired", "disconnected"])
async def test_a_stream_that_is_closed_in_the_open_is_followed_by_another(reason: str) -> None:
    over = closing(reason, "c2", reconnect=True)
    moods = [streams(OPENED, message(1, "c1"), over), streams(OPENED, message(2, "c3"), hangs=True)]
    with Moody(*moods) as moody:
        async with Listener(moody.url, channels="a") as listener:
            assert await hear(listener, 2) == [1, 2]
    resumed = [each.headers.get("last-event-id") for each in moody.requests]
    assert resumed[0] is None
    assert resumed[1] in ("c1", "c2")


@pytest.mark.parametrize(
    "mood",
    [
        streams(OPENED, closing("revoked", "c0~end")),
        says(204),
    ],
    ids=["in the open", "204"],
)
async def test_a_stream_that_is_closed_for_good_ends_the_listener(mood: Mood) -> None:
    with Moody(usual=mood) as moody:
        async with Listener(moody.url, channels="a") as listener:
            closed = await closings(listener, lambda _: False)
        assert [each.reconnect for each in closed] == [False]
        heard = [each for each in SyncListener(moody.url, channels="a") if isinstance(each, Closed)]
        assert heard == closed
        assert len(moody.requests) == 2


@pytest.mark.parametrize(
    ("mood", "text"),
    [
        (says(302, b"", Location="/login"), "302"),
        (says(404, HTML), "404"),
        (says(401, b"{}"), "401"),
        (streams(b"data: hello\n\n"), "200"),
    ],
)
async def test_what_is_no_msgpush_ends_a_listener(mood: Mood, text: str) -> None:
    with Moody(usual=mood) as moody:
        async with Listener(moody.url, channels="a") as listener:
            with pytest.raises(Rejected, match=text):
                await hear(listener, 1)
        with pytest.raises(Rejected, match=text):
            next(iter(SyncListener(moody.url, channels="a")))
    assert len(moody.requests) == 2


async def test_a_page_of_a_proxy_in_place_of_a_stream_passes() -> None:
    page = says(200, HTML, Content_Type="text/html")
    with Moody(page, usual=streams(OPENED, message(1, "c1"), hangs=True)) as moody:
        async with Listener(moody.url, channels="a") as listener:
            [closed] = await closings(listener, is_message)
    assert "text/event-stream" in closed.detail


async def test_who_cuts_each_stream_after_its_opening_is_not_hurried() -> None:
    opened = 0
    with Moody(usual=streams(OPENED)) as moody:
        async with Listener(moody.url, channels="a") as listener, asyncio.timeout(20):
            began = time.monotonic()
            async for event in listener:
                opened += isinstance(event, Opened)
                if opened == 5:
                    break
            assert time.monotonic() - began > 0.7, "each wait is longer than the one before"


async def test_a_listener_s_token_is_renewed(guarded: ThreadedService) -> None:
    lifetimes = iter([-5, 3, 600])

    async def give() -> str:
        return token("123", lifetime=next(lifetimes))

    async with Listener(at(guarded.port), user="123", token=give) as listener, asyncio.timeout(15):
        events: list[Any] = []
        async for event in listener:
            events.append(event)
            if sum(isinstance(each, Opened) for each in events) == 2:
                break
    assert [each.reason for each in events if isinstance(each, Closed)] == ["lost", "expired"]


async def test_what_a_token_may_not_hear_is_told(guarded: ThreadedService) -> None:
    url, mine = at(guarded.port), token("123")
    async with Listener(url, user="456", token=mine) as listener:
        with pytest.raises(Rejected, match="403"):
            await hear(listener, 1)
    with pytest.raises(Rejected, match="403"):
        next(iter(SyncListener(url, user="456", token=mine)))


def test_a_gap_is_told(url: str, channel: str) -> None:
    for event in SyncListener(url, channels=channel, since="1-of-another-log"):
        if isinstance(event, Gap):
            assert (event.reason, event.channel) == ("reset", None)
            break


# Acknowledgements


async def test_a_message_that_comes_again_is_dropped(url: str) -> None:
    heard: list[int] = []
    with Publisher(url, service="tests") as publisher:

        def publish() -> None:
            publisher.send("info", {"n": 1}, user="again", id="one", ack={"deadline": 1})

        def await_the_next_delivery() -> None:
            eventually(lambda: publisher.delivery("tests/one").deliveries == 2)
            publisher.send("info", {"n": 2}, user="again")

        async with Listener(url, user="again") as listener, asyncio.timeout(15):
            async for event in listener:
                if isinstance(event, Opened):
                    await asyncio.to_thread(publish)
                if not isinstance(event, Message):
                    continue
                heard.append(event.data["n"])
                if heard[-1] == 2:
                    break
                assert event.wants_acknowledgement
                await asyncio.to_thread(await_the_next_delivery)
                assert await event.acknowledge()
        assert heard == [1, 2]
        assert publisher.delivery("tests/one").state == "acknowledged"


def acknowledging(n: int, attempt: int) -> bytes:
    metadata = {"ack": {"deadline": 1}, "retry_count": attempt}
    return message(n, f"c{n}-{attempt}", target={"user_id": "a b"}, metadata=metadata)


def test_one_that_was_acknowledged_is_acknowledged_again() -> None:
    opened = [
        streams(OPENED, acknowledging(1, 0)),
        streams(acknowledging(1, 1), message(2, "c2"), hangs=True),
    ]
    acknowledged = says(200, b'{"acknowledged": ["tests/m1"], "unknown": []}')

    def by_method(moody: Moody, request: Request) -> Reply:
        mood = acknowledged if request.method == "POST" else opened.pop(0)
        return mood(moody, request)

    def said() -> list[Request]:
        return [each for each in moody.requests if each.method == "POST"]

    heard: list[int] = []
    with Moody(usual=by_method) as moody:
        for event in SyncListener(moody.url, user="a b"):
            if isinstance(event, SyncMessage):
                heard.append(event.data["n"])
                if event.wants_acknowledgement:
                    assert event.acknowledge()
                else:
                    eventually(lambda: len(said()) == 2)
                    break
        assert {each.path for each in said()} == {"/api/v1/users/a%20b/acknowledgements"}
    assert heard == [1, 2]


async def test_what_was_received_is_acknowledged_after_the_loop_too(url: str) -> None:
    with Publisher(url, service="tests") as publisher:
        await asyncio.to_thread(
            lambda: publisher.send("info", {"n": 1}, user="later", id="later", ack=True)
        )
        received: list[Message] = []
        async with Listener(url, user="later", since="earliest") as listener:
            async for event in listener:
                if isinstance(event, Message):
                    received.append(event)
                    break
        assert await received[0].acknowledge()
        delivery = await asyncio.to_thread(publisher.delivery, "tests/later")
        assert delivery.state == "acknowledged"
    gc.collect()  # a connection that nobody has closed would say so now


def test_a_listener_that_was_ended_can_still_acknowledge_what_waits() -> None:
    over = closing("revoked", "c9~end")
    streamed = streams(OPENED, acknowledging(1, 0), over)
    said = says(200, b'{"acknowledged": ["tests/m1"], "unknown": []}')
    with Moody(streamed, said) as moody:
        listener = SyncListener(moody.url, user="a b")
        messages = (event for event in listener if isinstance(event, SyncMessage))
        assert [event.acknowledge() for event in messages] == [True]


async def test_an_answer_to_an_acknowledgement_that_is_none_is_told() -> None:
    with Moody(streams(OPENED, acknowledging(1, 0), hangs=True), says(200, HTML)) as moody:
        async with Listener(moody.url, user="a b") as listener:
            async for event in listener:
                if isinstance(event, Message):
                    with pytest.raises(Rejected, match="is the URL right"):
                        await event.acknowledge()
                    break


# Cursor files


async def test_a_restarted_listener_goes_on_where_it_was(
    url: str, service: ThreadedService, channel: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.cursor"
    with Publisher(url, service="tests") as publisher:
        async with Listener(url, channels=channel, cursor_file=path) as listener:
            async for event in listener:
                if isinstance(event, Opened):
                    await asyncio.to_thread(say, publisher, channel, 1, 2, 3)
                if isinstance(event, Message) and event.data["n"] == 3:
                    break
        await asyncio.to_thread(say, publisher, channel, 4)
    async with Listener(url, channels=channel, cursor_file=path) as listener:
        assert await hear(listener, 2) == [3, 4], "the third was not done with"


def test_a_listener_that_ends_for_good_keeps_its_last_place(tmp_path: Path) -> None:
    over = closing("revoked", "c9~end")
    with Moody(usual=streams(OPENED, message(1, "c1"), message(2, "c2"), over)) as moody:
        path = tmp_path / "sync.cursor"
        for _ in SyncListener(moody.url, channels="a", cursor_file=path):
            pass
        assert path.read_text() == "c2\n"

        async def hear_all() -> None:
            listener = Listener(moody.url, channels="a", cursor_file=tmp_path / "async.cursor")
            async for _ in listener:
                await asyncio.sleep(0)

        asyncio.run(hear_all())
        assert (tmp_path / "async.cursor").read_text() == "c2\n"


LISTENING = """
    from msgpush.client import SyncListener, SyncMessage
    for event in SyncListener(sys.argv[1], channels=sys.argv[2], cursor_file=sys.argv[3], since="earliest"):
        if isinstance(event, SyncMessage):
            print(event.data["n"], flush=True)
            sys.stdin.readline()
"""


def listening(url: str, channel: str, path: Path, text: str = LISTENING) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            "import sys\n" + textwrap.dedent(text),
            url,
            channel,
            str(path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_listener_that_was_killed_hears_again_what_it_was_at(
    url: str, channel: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.cursor"
    with Publisher(url, service="tests") as publisher:
        sent = [publisher.send("info", {"n": n}, channels=[channel]) for n in range(3)]
    with listening(url, channel, path) as first:
        assert first.stdout is not None
        assert first.stdin is not None
        for n in (0, 1):
            assert first.stdout.readline() == f"{n}\n"
            first.stdin.write("\n")
            first.stdin.flush()
        assert first.stdout.readline() == "2\n"
        eventually(lambda: path.exists() and path.read_text().strip() == sent[1].cursor)
        first.kill()
    with listening(url, channel, path) as second:
        assert second.stdout is not None
        assert second.stdout.readline() == "2\n"
        second.kill()


def test_ctrl_c_ends_a_listener(
    url: str, service: ThreadedService, channel: str, tmp_path: Path
) -> None:
    with listening(url, channel, tmp_path / "a.cursor") as process:
        eventually(lambda: connections(service.port, channel))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    assert "KeyboardInterrupt" in errors
    assert "Exception ignored" not in errors
    eventually(lambda: not connections(service.port, channel))


# How a loop is left


async def test_a_loop_that_was_left_closes_its_connection_and_the_next_goes_on(
    url: str, service: ThreadedService, channel: str
) -> None:
    listener = Listener(url, channels=channel, since="earliest")
    with Publisher(url, service="tests") as publisher:
        await asyncio.to_thread(say, publisher, channel, *range(20))
        assert await hear(listener, 3) == [0, 1, 2]
        assert await hear(listener, 3) == [3, 4, 5]
        await asyncio.to_thread(eventually, lambda: not connections(service.port, channel))
        await asyncio.to_thread(say, publisher, channel, *range(20, 30))
    assert await hear(listener, 24) == [*range(6, 30)]
    await asyncio.to_thread(eventually, lambda: not connections(service.port, channel))


def test_a_loop_that_was_left_closes_its_connection_and_another_event_loop_goes_on(
    url: str, service: ThreadedService, channel: str
) -> None:
    listener = Listener(url, channels=channel, since="earliest")
    with Publisher(url, service="tests") as publisher:
        say(publisher, channel, *range(6))

    async def three() -> list[int]:
        async with listener:
            return await hear(listener, 3)

    assert asyncio.run(three()) == [0, 1, 2]
    assert asyncio.run(three()) == [3, 4, 5]
    eventually(lambda: not connections(service.port, channel))


def test_a_sync_loop_that_was_left_closes_its_connection_and_the_next_goes_on(
    url: str, service: ThreadedService, channel: str
) -> None:
    listener = SyncListener(url, channels=channel, since="earliest")
    with Publisher(url, service="tests") as publisher:
        say(publisher, channel, *range(20))
    heard: list[int] = []
    for upto in (3, 6, 20):
        for event in listener:
            if isinstance(event, SyncMessage):
                heard.append(event.data["n"])
                if len(heard) == upto:
                    break
        eventually(lambda: not connections(service.port, channel))
    assert heard == [*range(20)]


async def test_an_error_in_the_loop_or_its_cancellation_closes_the_connection(
    url: str, service: ThreadedService, channel: str
) -> None:
    async def fail() -> None:
        async for event in Listener(url, channels=channel):
            if isinstance(event, Opened):
                raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await fail()
    await asyncio.to_thread(eventually, lambda: not connections(service.port, channel))
    hearing = asyncio.create_task(hear(Listener(url, channels=channel), 1))
    await asyncio.to_thread(eventually, lambda: connections(service.port, channel))
    hearing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hearing
    del hearing
    await asyncio.to_thread(eventually, lambda: not connections(service.port, channel))


async def test_who_asks_late_has_no_more_than_a_thousand_ahead(channel: str) -> None:
    with (
        ThreadedService(history_length=5000) as service,
        Publisher(at(service.port), service="tests") as publisher,
    ):
        batch = [{"type": "info", "channels": [channel], "data": {"n": n}} for n in range(3000)]
        await asyncio.to_thread(publisher.batch, batch)
        listener = Listener(at(service.port), channels=channel, since="earliest")
        assert await hear(listener, 1) == [0]

        def ahead() -> int:
            return len(listener._inbox._received)

        async with listener:
            heard: list[int] = []
            async for event in listener:
                if isinstance(event, Message):
                    heard.append(event.data["n"])
                    if len(heard) == 1:
                        await asyncio.to_thread(eventually, lambda: ahead() == 1000)
                    assert ahead() <= 1000
                    if len(heard) == 2999:
                        break
        assert heard == [*range(1, 3000)]


def test_a_sync_listener_has_no_more_than_a_thousand_ahead_either(channel: str) -> None:
    with (
        ThreadedService(history_length=5000) as service,
        Publisher(at(service.port), service="tests") as publisher,
    ):
        publisher.batch(
            [{"type": "info", "channels": [channel], "data": {"n": n}} for n in range(3000)]
        )
        heard: list[int] = []
        for event in SyncListener(at(service.port), channels=channel, since="earliest"):
            if isinstance(event, SyncMessage):
                heard.append(event.data["n"])
                if len(heard) == 3000:
                    break
        assert heard == [*range(3000)]


async def test_a_sync_listener_within_an_event_loop(url: str, channel: str) -> None:
    with Publisher(url, service="tests") as publisher:
        say(publisher, channel, 1)
    for event in SyncListener(url, channels=channel, since="earliest"):
        if isinstance(event, SyncMessage):
            assert event.data["n"] == 1
            break


async def test_a_newer_loop_ends_an_older_one(url: str, channel: str) -> None:
    listener = Listener(url, channels=channel)
    older = asyncio.create_task(closings(listener, lambda _: False))
    await asyncio.sleep(0)
    with Publisher(url, service="tests") as publisher:
        newer = asyncio.create_task(hear(listener, 1))
        assert await older == []
        while not newer.done():
            await asyncio.to_thread(say, publisher, channel, 1)
    assert newer.result() == [1]
