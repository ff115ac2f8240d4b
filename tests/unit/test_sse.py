"""Server-Sent Events: what is written is read back equal, by a parser written from the standard."""

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from msgpush.adapters.sse.stream import EventSink, EventView, closing
from msgpush.domain.connection import NOW, Connection, Subscription
from msgpush.domain.history import Gap
from msgpush.domain.message import TYPES, Draft, Entry, draft, parse
from msgpush.domain.position import Position
from tests.support.driver import Driver
from tests.support.eventsource import Event, EventStreamParser
from tests.support.fakes import make

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def entry_of(body: bytes) -> Entry:
    made = draft(parse(body), 1, "made", 60)
    return Entry(
        Position(1, 2), Position(1, 1), made.channels, made.type, made.service, 10**15, made.body
    )


@given(
    data=st.dictionaries(st.text(), json_values, max_size=5),
    type=st.sampled_from([each for each in TYPES if each != "progress"]),
    source=st.text(max_size=128),
    events=st.sets(st.sampled_from(TYPES)),
    escaped=st.booleans(),
)
def test_any_message_is_read_back_equal(
    data: dict[str, object], type: str, source: str, events: set[str], escaped: bool
) -> None:
    message = {"type": type, "service": "s", "source": source, "data": data}
    body = msgspec.json.encode(message)
    if escaped:
        # The same JSON with line ends between its tokens, as JSON allows.
        body = msgspec.json.format(body, indent=2).replace(b"\n", b"\r\n")
    entry = entry_of(body)
    view = EventView(frozenset(events))
    (event,) = EventStreamParser().feed(view.chunk([view.message(entry, "1abcdefgh.1-2")]))
    assert event.last_event_id == "1abcdefgh.1-2"
    read = msgspec.json.decode(event.data)
    if type in events:
        assert (event.type, read) == ("message.error" if type == "error" else type, data)
    else:
        assert event.type == "message"
        assert (read["data"], read["source"]) == (data, source)


def test_digits_arrive_as_they_were_sent() -> None:
    entry = entry_of(
        b'{"type":"info","service":"s","data":{"a":1.50,"b":1e400,"c":123456789012345678901234567890}}'
    )
    (event,) = EventStreamParser().feed(
        EventView(frozenset(["info"])).message(entry, "1abcdefgh.1-2")
    )
    assert event.data == '{"a":1.50,"b":1e400,"c":123456789012345678901234567890}'


def test_a_chunk_is_framed_for_the_wire() -> None:
    assert EventView(frozenset(), chunked=True).chunk([b"data: x\n\n", b"data: y\n\n"]) == (
        b"12\r\ndata: x\n\ndata: y\n\n\r\n"
    )


def test_the_blocks_of_the_server_are_events_that_onmessage_never_sees() -> None:
    view = EventView(frozenset())
    stream = (
        view.opening("c1", frozenset(["a"]), "1x.0-0", resumed=True, heartbeat=0.5)
        + view.gap(Gap("a", "1x.0-0", "trimmed"))
        + view.heartbeat("1x.1-0")
        + closing("drain", True)
    )
    types = [event.type for event in EventStreamParser().feed(stream)]
    assert types == ["msgpush.open", "msgpush.gap", "msgpush.heartbeat", "msgpush.close"]


@pytest.mark.parametrize("trimmed", [False, True])
def test_a_stream_cut_at_every_byte_and_resumed_gives_exactly_what_was_published(
    trimmed: bool,
) -> None:
    driver = Driver(history_length=6 if trimmed else 1000, ring_length=4, heartbeat=30)
    view = EventView(frozenset(["progress"]))
    start = driver.say(message(0), message(1))[0]
    for n in range(2, 12):
        driver.say(message(n))
    reader = driver.connect("a", "b", after=start, view=view)
    driver.say(message(12), message(13))
    driver.say(message(14))
    driver.clock.advance(40)
    driver.hub.beat()
    driver.say(message(15))
    stream = open_block(start) + b"".join(reader.sink.chunks[1:])
    whole = EventStreamParser().feed(stream)
    assert "msgpush.heartbeat" in [event.type for event in whole]
    assert ("msgpush.gap" in [event.type for event in whole]) == trimmed
    for cut in range(len(stream) + 1):
        parser = EventStreamParser()
        before = parser.feed(stream[:cut])
        again = driver.connect("a", "b", after=parser.last_event_id or start, view=view)
        after = EventStreamParser().feed(b"".join(again.sink.chunks[1:]))
        driver.hub.detach(again.connection)
        got = numbers(before) + numbers(after)
        told = any(event.type == "msgpush.gap" for event in before + after)
        if trimmed:
            assert told or got == list(range(1, 16)), cut
            assert got == sorted(set(got)), cut
        else:
            assert (got, told) == (list(range(1, 16)), False), cut


class SlowServer:
    """A server whose client reads a little at a time: each `read` takes 16 KiB."""

    def __init__(self) -> None:
        self.body = b""
        self._asked = asyncio.Semaphore(0)

    async def send(self, message: Message) -> None:
        body = message["body"]
        for start in range(0, max(1, len(body)), 16 * 1024):
            await self._asked.acquire()
            self.body += body[start : start + 16 * 1024]

    async def read(self) -> None:
        before = len(self.body)
        self._asked.release()
        async with asyncio.timeout(5):
            while len(self.body) == before:  # noqa: ASYNC110 - any turn of the loop may make it true
                await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_a_client_over_plain_asgi_that_reads_slowly_but_on_and_on_is_not_cut_as_slow() -> (
    None
):
    server, driver = SlowServer(), Driver()
    sink = EventSink(server.send)
    sink.writer = asyncio.create_task(sink.write())
    connection = Connection("c1", sink)
    driver.hub.attach(connection, Subscription(frozenset("a"), EventView(frozenset())), NOW)
    texts = [f"m{number}" for number in range(200)]
    driver.say(*(make(text, "a", data={"x": "y" * 2000}) for text in texts))
    while not connection.live or sink.backlog:
        await server.read()
        driver.clock.advance(20)  # of the 30 that it may take nothing
        driver.hub.beat()
        driver.settle()
        assert connection.attached
    events = [event for event in EventStreamParser().feed(server.body) if event.type == "message"]
    assert [msgspec.json.decode(event.data)["id"] for event in events] == texts
    driver.hub.close(connection, "drain", reconnect=True)
    for _ in range(2):
        server._asked.release()
    await sink.writer


def message(n: int) -> Draft:
    """The n-th message: of one channel, the other, or both; of a type that comes by name, or not."""
    channels = (["a"], ["b"], ["a", "b"])[n % 3]
    return make(
        f"m{n}", *channels, type="progress" if n % 2 else "info", data={"n": n, "progress": n}
    )


def numbers(events: list[Event]) -> list[int]:
    """The numbers of the messages among the events."""
    found = []
    for event in events:
        if event.type == "progress":
            found.append(int(msgspec.json.decode(event.data)["n"]))
        elif event.type == "message":
            found.append(int(msgspec.json.decode(event.data)["data"]["n"]))
    return found


def open_block(cursor: str) -> bytes:
    return EventView(frozenset()).opening(
        "c1", frozenset(["a", "b"]), cursor, resumed=True, heartbeat=30
    )
