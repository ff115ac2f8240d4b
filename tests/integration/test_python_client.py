"""The Python client against services that restart, hang, cut, refuse, and aren't there."""

import asyncio
import contextlib
import gc
import itertools
import json
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx2
import pytest

from msgpush.client import (
    AsyncPublisher,
    BufferFull,
    MsgpushError,
    MsgpushHandler,
    OAuth2,
    Publisher,
    Rejected,
    Sent,
    Unsent,
)
from tests.support.moody import (
    Mood,
    Moody,
    Reply,
    Request,
    cuts,
    hangs,
    hangs_too_late,
    never_ends,
    refuses,
    says,
)
from tests.support.proxy import CuttingProxy
from tests.support.publishing import at, history, numbers, say
from tests.support.service import ServiceProcess, ThreadedService, eventually
from tests.support.tokens import SECRET, token

HTML = b"<!doctype html><html><body>It works!</body></html>"
BRIEF: dict[str, Any] = {"timeout": 0.3}
NOBODY = "http://127.0.0.1:9"  # the port of `discard`, which nobody has

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


class Told(list[MsgpushError]):
    """What `on_error` was told."""

    def __call__(self, error: MsgpushError) -> None:
        self.append(error)


# A service that fails, before one message and before a batch: nothing is lost, nothing doubled.


MOODS: dict[str, Mood] = {
    "refuses": refuses,
    "hangs": hangs,
    "hangs when it is done": hangs_too_late,
    "closes before the headers": cuts(0),
    "closes within the headers": cuts(0.2),
    "closes within the body": cuts(0.9),
    "429": says(429, b"{}", Retry_After="0"),
    "503 with a date": says(503, b"{}", Retry_After="Wed Oct 21 07:28:00 2015"),
    "502 of a proxy": says(502, HTML),
    "408": says(408, HTML, Connection="close"),
}


@pytest.mark.parametrize("mood", [refuses, hangs_too_late, cuts(0), cuts(0.9)])
def test_one_message_arrives_once(service: ThreadedService, channel: str, mood: Mood) -> None:
    with (
        Moody(mood, target=service.port) as moody,
        Publisher(moody.url, service="tests", http=BRIEF) as publisher,
    ):
        say(publisher, channel, 1, 2)
        assert len(moody.requests) >= 3
    assert numbers(service.port, channel) == [1, 2]


@pytest.mark.parametrize("mood", MOODS.values(), ids=MOODS)
def test_a_buffer_arrives_once_and_in_its_order(
    service: ThreadedService, channel: str, mood: Mood
) -> None:
    told = Told()
    with (
        Moody(mood, target=service.port) as moody,
        Publisher(
            moody.url, service="tests", buffered=True, on_error=told, http=BRIEF
        ) as publisher,
    ):
        say(publisher, channel, *range(300))
        assert publisher.flush(10)
    assert numbers(service.port, channel) == [*range(300)]
    assert not told


@pytest.mark.parametrize("mood", [hangs_too_late, cuts(0.9), says(503, b"{}")])
async def test_an_async_message_arrives_once(
    service: ThreadedService, channel: str, mood: Mood
) -> None:
    with Moody(mood, target=service.port) as moody:
        async with AsyncPublisher(moody.url, service="tests", http=BRIEF) as publisher:
            await publisher.send("info", {"n": 1}, channels=[channel])
            verdicts = await publisher.batch(
                [{"type": "info", "channels": [channel], "data": {"n": n}} for n in (2, 3)]
            )
    assert all(isinstance(each, Sent) for each in verdicts)
    assert await asyncio.to_thread(numbers, service.port, channel) == [1, 2, 3]


def test_what_cuts_at_random_loses_and_doubles_nothing(
    service: ThreadedService, channel: str
) -> None:
    told = Told()
    with CuttingProxy(service.port, random.Random(7), 0.7) as proxy:
        with Publisher(at(proxy.port), service="tests", buffered=True, on_error=told) as publisher:
            for n in range(600):
                say(publisher, channel, n)
                if n % 40 == 0:
                    publisher._buffer.hurry()
                    publisher.flush(0.05)
            proxy.cutting = False
            assert publisher.flush(10)
        assert proxy.cut
    assert numbers(service.port, channel) == [*range(600)]
    assert not told


def test_an_answer_without_an_end_takes_no_memory(
    service: ThreadedService, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msgpush.client.http.LARGEST_ANSWER", 1 << 20)
    with (
        Moody(never_ends, never_ends, target=service.port) as moody,
        Publisher(moody.url, service="tests") as publisher,
    ):
        say(publisher, channel, 1)

        async def send() -> None:
            async with AsyncPublisher(moody.url, service="tests") as publisher:
                moody.moods.append(never_ends)
                await publisher.send("info", {"n": 2}, channels=[channel])

        asyncio.run(send())
    assert numbers(service.port, channel) == [1, 2]


@pytest.mark.parametrize(
    "mood",
    [says(200, HTML, Content_Type="text/html"), says(302, b"", Location="/login"), says(404, HTML)],
    ids=["a page", "a redirect", "another service"],
)
def test_what_is_no_msgpush_is_told_and_fails_no_job(channel: str, mood: Mood) -> None:
    told = Told()
    with (
        Moody(usual=mood) as moody,
        Publisher(moody.url, service="tests", on_error=told) as publisher,
    ):
        with pytest.raises(Rejected, match="is the URL right"):
            say(publisher, channel, 1)
        with pytest.raises(Rejected):
            publisher.delivery("tests/m1")
        with publisher.task("import") as task:
            for _ in task.track(range(3)):
                pass
        publisher.report("info", {"n": 1})
        assert publisher.flush(10)
    assert told
    assert all(isinstance(each, Rejected) for each in told)


def test_a_service_that_restarts_has_all_of_it(channel: str) -> None:
    told = Told()
    with ServiceProcess() as service:
        port = service.port
        publisher = Publisher(at(port), service="tests", buffered=True, on_error=told)
        say(publisher, channel, *range(5))
        assert publisher.flush(10)
        before = numbers(port, channel)
    with publisher:
        say(publisher, channel, *range(5, 10))
        with publisher.task("import", channels=["job"]) as task:
            task.progress(50)
        with ServiceProcess(SERVICE_PORT=str(port)):
            assert publisher.flush(10)
            assert before + numbers(port, channel) == [*range(10)]
            types = [each["type"] for each in history(port, "job")]
            assert types == ["status", "progress", "success"]
    assert not told


def test_a_service_that_is_stopped_and_goes_on_has_all_of_it(channel: str) -> None:
    told = Told()
    with (
        ServiceProcess() as service,
        Publisher(
            at(service.port), service="tests", buffered=True, on_error=told, http=BRIEF
        ) as publisher,
    ):
        service.signal(signal.SIGSTOP)
        say(publisher, channel, *range(5))
        assert not publisher.flush(0.7), "it has been tried twice"
        service.signal(signal.SIGCONT)
        assert publisher.flush(10)
        assert numbers(service.port, channel) == [*range(5)]
    assert not told


# The buffer's bounds


def test_a_job_is_not_held_up_by_a_service_that_is_away() -> None:
    told = Told()
    publisher = Publisher(NOBODY, service="tests", capacity=5, on_error=told)
    with publisher.task("import") as task:
        for n in range(50):
            task.info(str(n))
    assert any(isinstance(each, BufferFull) for each in told)
    publisher._buffer.close(0)
    [unsent] = [each for each in told if isinstance(each, Unsent)]
    assert len(unsent.keys) == 5


def test_ten_thousand_steps_are_few_requests() -> None:
    with Moody() as moody, Publisher(moody.url, service="tests") as publisher:
        with publisher.task("import", user="1") as task:
            for n in range(10_000):
                task.progress(n / 100)
        assert publisher.flush(10)
        assert len(moody.requests) < 40
        types = [each["type"] for each in moody.messages]
        assert (types[0], types[-2:]) == ("status", ["progress", "success"])
        assert moody.messages[-2]["data"]["progress"] == 99.99


def test_ten_thousand_messages_are_sent_in_few_requests() -> None:
    with Moody() as moody:
        with Publisher(moody.url, service="tests", buffered=True) as publisher:
            for n in range(10_000):
                publisher.send("info", {"n": n})
        assert [each["data"]["n"] for each in moody.messages] == [*range(10_000)]
        assert len(moody.requests) <= 110


def test_progress_of_one_task_for_others_is_not_replaced() -> None:
    with Moody(hangs) as moody:
        with Publisher(moody.url, service="tests", buffered=True, http=BRIEF) as publisher:
            publisher.send("info")
            publisher._buffer.hurry()
            eventually(lambda: moody.requests)
            for percent in range(3):
                publisher.progress("import", percent, user="1")
                publisher.progress("import", percent, user="2")
                publisher.progress("import", percent, id=f"own-{percent}")
                publisher.progress("import", percent, user="3", ack=True)
        said = [
            (
                each["target"]["user_id"] if "target" in each else each["id"],
                each["data"]["progress"],
            )
            for each in moody.stored.values()
            if each["type"] == "progress"
        ]
    assert said == [
        ("own-0", 0),
        ("3", 0),
        ("own-1", 1),
        ("3", 1),
        ("1", 2),
        ("2", 2),
        ("own-2", 2),
        ("3", 2),
    ]


# Batches


def test_a_batch_has_a_verdict_for_each(url: str, channel: str) -> None:
    good: AnyMessage = {"type": "info", "channels": [channel]}
    with Publisher(url, service="tests") as publisher:
        first, wrong, large, again, last = publisher.batch(
            [
                {**good, "id": "a"},
                {**good, "type": "progress", "id": "b", "data": {"progress": "half"}},
                {**good, "id": "c", "data": {"x": "x" * 300_000}},
                {**good, "id": "a"},
                {**good, "id": "d"},
            ]
        )
    assert isinstance(first, Sent)
    assert isinstance(again, Sent)
    assert isinstance(last, Sent)
    assert (first.duplicate, again.duplicate, last.duplicate) == (False, True, False)
    assert isinstance(wrong, Rejected)
    assert (wrong.key, wrong.status) == ("tests/b", 422)
    assert wrong.faults[0].pointer == "/data/progress"
    assert isinstance(large, Rejected)
    assert (large.key, large.status) == ("tests/c", 413)


def test_what_is_over_a_rate_is_sent_when_its_turn_comes() -> None:
    rights = token("job", publish=["*"], subscribe=["*"])
    with (
        ThreadedService(jwt_secret=SECRET, publish_rate=40) as service,
        Publisher(at(service.port), service="tests", token=rights) as publisher,
    ):
        batch = [{"type": "info", "channels": ["readings"]} for _ in range(60)]
        assert all(isinstance(each, Sent) for each in publisher.batch(batch))


# Tokens


class Issuer(Moody):
    """A token endpoint whose tokens the service takes; `life` is how long."""

    life = 600

    def __init__(self, *moods: Mood) -> None:
        super().__init__(*moods, usual=self.issue)
        self.issued = 0

    def issue(self, _: Moody, request: Request) -> Reply:
        assert request.headers["authorization"].startswith("Basic ")
        self.issued += 1
        given = token("job", publish=["*"], lifetime=self.life, jti=str(self.issued))
        body = {"access_token": given, "token_type": "Bearer", "expires_in": self.life}
        return says(200, json.dumps(body).encode(), Content_Type="application/json")(self, request)

    @property
    def source(self) -> OAuth2:
        return OAuth2("importer", "secret", f"{self.url}/token")


@pytest.fixture(scope="module")
def guarded() -> Iterator[ThreadedService]:
    with ThreadedService(jwt_secret=SECRET, jwt_leeway=0) as service:
        yield service


def test_a_token_endpoint_that_is_down_for_a_while_loses_nothing(guarded: ThreadedService) -> None:
    told = Told()
    with (
        Issuer(refuses, says(503, b"{}"), says(200, HTML)) as issuer,
        Publisher(
            at(guarded.port), service="tests", token=issuer.source, on_error=told
        ) as publisher,
    ):
        assert publisher.send("info", user="1").channels
        publisher.report("info", user="1")
        assert publisher.flush(10)
        assert issuer.issued == 1
    assert not told


async def test_a_token_that_was_refused_is_replaced(guarded: ThreadedService) -> None:
    with Issuer() as issuer:
        issuer.life = -5  # it has ended already, which its server doesn't know
        source = issuer.source
        async with AsyncPublisher(at(guarded.port), service="tests", token=source) as publisher:
            await asyncio.to_thread(source)
            source._until = time.monotonic() + 100
            issuer.life = 600
            await publisher.send("info", user="1")
            assert issuer.issued == 2


def test_a_function_s_token_that_was_refused_is_replaced(guarded: ThreadedService) -> None:
    given = iter([token("job", publish=["*"], lifetime=-5), token("job", publish=["*"])])
    with Publisher(at(guarded.port), service="tests", token=lambda: next(given)) as publisher:
        assert publisher.send("info", user="1").channels
    publisher = Publisher(at(guarded.port), service="tests", token="no.such.token")
    with publisher, pytest.raises(Rejected, match="401"):
        publisher.send("info", user="1")


def test_rights_that_are_missing_are_named(guarded: ThreadedService) -> None:
    rights = token("job", publish=["service:tests"])
    with Publisher(at(guarded.port), service="tests", token=rights) as publisher:
        with pytest.raises(Rejected, match="tests/mine: 403") as caught:
            publisher.send("info", user="1", id="mine")
        assert caught.value.status == 403


# Threads and processes


def test_threads_share_a_publisher(url: str, service: ThreadedService, channel: str) -> None:
    begin = threading.Barrier(12)
    with Publisher(url, service="tests") as publisher:

        def work(first: int) -> None:
            begin.wait()
            say(publisher, channel, *range(first, first + 10))

        threads = [threading.Thread(target=work, args=(n * 10,)) for n in range(12)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    gc.collect()  # a connection that nobody has closed would say so now
    assert sorted(numbers(service.port, channel)) == [*range(120)]


def in_child(work: Callable[[], None]) -> int:
    """The exit status of a forked process that does this."""
    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            work()
            status = 0
        os._exit(status)
    return child


def ended(child: int) -> int:
    """Its exit status, which must come in time."""
    found: list[int] = []

    def look() -> bool:
        pid, status = os.waitpid(child, os.WNOHANG)
        found.append(status)
        return pid == child

    eventually(look)
    return os.waitstatus_to_exitcode(found[-1])


def test_a_forked_process_sends_its_own_messages_alone(channel: str) -> None:
    with Moody(hangs) as moody:
        publisher = Publisher(moody.url, service="tests", buffered=True, http=BRIEF)
        say(publisher, channel, 1, 2)
        publisher._buffer.hurry()
        eventually(lambda: moody.requests)
        say(publisher, channel, 3)

        def work() -> None:
            say(publisher, channel, 100)
            assert publisher.flush(5)

        child = in_child(work)
        assert ended(child) == 0
        say(publisher, channel, 4)
        publisher.close()
        assert sorted(each["data"]["n"] for each in moody.stored.values()) == [1, 2, 3, 4, 100]
        stored = [each["data"]["n"] for each in moody.stored.values() if each["data"]["n"] < 100]
        assert stored == [1, 2, 3, 4]
        assert len({each["id"] for each in moody.stored.values()}) == 5


def test_a_forked_process_uses_no_connection_of_its_parent(url: str, channel: str) -> None:
    with Publisher(url, service="tests") as publisher:
        say(publisher, channel, 0)

        def work() -> None:
            for n in range(100, 140):
                sent = publisher.send("info", {"n": n}, id=f"{channel}-{n}", channels=[channel])
                assert not sent.duplicate
                assert channel in sent.channels

        child = in_child(work)
        for n in range(1, 40):
            sent = publisher.send("info", {"n": n}, id=f"{channel}-{n}", user="parent")
            assert "user:parent" in sent.channels
        assert ended(child) == 0


def _report(publisher: Publisher, channel: str) -> None:
    """A process of multiprocessing that closes nothing."""
    say(publisher, channel, 7)


def test_a_process_of_multiprocessing_sends_what_it_has_at_its_end(
    url: str, service: ThreadedService, channel: str
) -> None:
    with Publisher(url, service="tests", buffered=True) as publisher:
        say(publisher, channel, 1)
        assert publisher.flush(10)
        process = multiprocessing.get_context("fork").Process(
            target=_report, args=(publisher, channel)
        )
        process.start()
        process.join(10)
        assert process.exitcode == 0
        assert numbers(service.port, channel) == [1, 7]
        say(publisher, channel, 2)
    assert numbers(service.port, channel) == [1, 7, 2]


def test_a_publisher_that_nobody_has_closed_sends_all_the_same(
    url: str, service: ThreadedService, channel: str
) -> None:
    publisher = Publisher(url, service="tests", buffered=True)
    buffer = publisher._buffer
    say(publisher, channel, *range(5))
    del publisher
    gc.collect()
    eventually(lambda: numbers(service.port, channel) == [*range(5)])
    assert buffer._ending


# The end of a program


def program(text: str, url: str, channel: str, **environ: str) -> subprocess.Popen[str]:
    """A program of its own; `publisher` is there already."""
    begin = f"""
        import os, signal, sys, threading, time
        from msgpush.client import Publisher
        publisher = Publisher({url!r}, service="tests", buffered=True)
        def say(*ns):
            for n in ns:
                publisher.send("info", {{"n": n}}, channels=[{channel!r}])
    """
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(begin) + textwrap.dedent(text)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise OSError('gone')", 1),
        ("raise KeyboardInterrupt", None),
        ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(4)); signal.raise_signal(15)", 4),
        ("threading.Thread(target=say, args=(500,)).start()", 0),
    ],
)
def test_a_program_that_ends_has_said_all(
    url: str, service: ThreadedService, channel: str, end: str, status: int | None
) -> None:
    with program(f"say(*range(500))\n{end}", url, channel) as process:
        _, errors = process.communicate(timeout=20)
    assert process.returncode == status or status is None, errors
    assert numbers(service.port, channel)[:500] == [*range(500)]
    assert "msgpush" not in errors.replace("from msgpush", ""), errors


def test_a_program_that_is_terminated_ends_at_once(channel: str) -> None:
    text = "say(1); print('said', flush=True); time.sleep(60)"
    with program(text, NOBODY, channel) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "said\n"
        process.terminate()
        process.communicate(timeout=10)
    assert process.returncode == -signal.SIGTERM


def test_a_program_that_ends_without_a_service_says_what_was_left(channel: str) -> None:
    text = """
        from msgpush.client import buffer
        buffer.LAST_SECONDS = 0.5
        say(*range(10))
        publisher.send("info", id="last-one")
    """
    began = time.monotonic()
    with program(text, NOBODY, channel) as process:
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert time.monotonic() - began >= 0.5
    assert "and 6 more: not accepted by the service in time" in errors
    assert "Traceback" not in errors


def test_a_program_that_ends_while_the_service_hangs_says_what_was_left(channel: str) -> None:
    with Moody(usual=hangs) as moody:
        text = "from msgpush.client import buffer; buffer.LAST_SECONDS = 0.3; say(*range(10))"
        with program(text, moody.url, channel) as process:
            _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "not accepted by the service in time" in errors
    assert "Traceback" not in errors


# The async publisher


async def test_a_coroutine_s_token_is_had_for_tasks_and_buffers(guarded: ThreadedService) -> None:
    async def give() -> str:
        await asyncio.sleep(0)
        return token("job", publish=["*"])

    def plain() -> Awaitable[str]:
        return give()

    for source in (give, plain):
        told = Told()
        publisher = AsyncPublisher(
            at(guarded.port), service="tests", token=source, buffered=True, on_error=told
        )
        async with publisher.task("import", user="1"):
            pass
        assert await publisher.flush(10)
        await publisher.send("info", user="1")
        await publisher.close()
        assert not told


async def test_a_full_buffer_holds_up_no_loop_and_no_thread() -> None:
    with Moody(refuses, refuses) as moody:
        publisher = AsyncPublisher(moody.url, service="tests", buffered=True, capacity=20)

        async def send(n: int) -> None:
            await publisher.send("info", {"n": n})

        sending = [asyncio.create_task(send(n)) for n in range(100)]
        await asyncio.sleep(0)
        assert await asyncio.to_thread(int, "7") == 7
        sending[50].cancel()
        await asyncio.wait(sending)
        assert await publisher.flush(10)
        stored = [each["data"]["n"] for each in moody.stored.values()]
        assert stored == [n for n in range(100) if n != 50]
        await publisher.close()


async def test_a_full_buffer_raises_if_that_is_wanted_and_a_job_goes_on() -> None:
    told = Told()
    publisher = AsyncPublisher(
        NOBODY, service="tests", buffered=True, capacity=2, when_full="raise", on_error=told
    )
    await publisher.send("info")
    async with publisher.task("import") as task:
        task.info("hello")
    with pytest.raises(BufferFull):
        await publisher.send("info")
    assert [type(each) for each in told] == [BufferFull, BufferFull]
    await asyncio.to_thread(publisher._buffer.close, 0)
    await publisher.close()


async def test_a_send_that_waits_for_room_can_be_given_up() -> None:
    publisher = AsyncPublisher(
        NOBODY, service="tests", buffered=True, capacity=1, on_error=lambda _: None
    )
    await publisher.send("info")
    for give_up in (publisher.send("info"), publisher.flush()):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(give_up, 0.05)
    assert not await publisher.flush(0.05)
    await asyncio.to_thread(publisher._buffer.close, 0)
    await publisher.close()


async def test_a_send_that_was_cancelled_leaves_the_publisher_as_it_was() -> None:
    with Moody(hangs) as moody:
        async with AsyncPublisher(moody.url, service="tests") as publisher:
            sending = asyncio.ensure_future(publisher.send("info", id="a"))
            await asyncio.to_thread(eventually, lambda: moody.requests)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            await publisher.send("info", id="b")
        assert [*moody.stored] == ["tests/b"]


def test_a_loop_that_has_ended_loses_nothing(
    url: str, service: ThreadedService, channel: str
) -> None:
    publisher = AsyncPublisher(url, service="tests", buffered=True)

    async def work(first: int) -> None:
        for n in range(first, first + 5):
            await publisher.send("info", {"n": n}, channels=[channel])

    asyncio.run(work(0))
    eventually(lambda: numbers(service.port, channel) == [*range(5)])
    asyncio.run(work(5))
    asyncio.run(publisher.close())
    assert numbers(service.port, channel) == [*range(10)]


def test_a_publisher_goes_on_in_another_loop(
    url: str, service: ThreadedService, channel: str
) -> None:
    alone = httpx2.Limits(max_keepalive_connections=0)  # nothing stays open in a loop that ends
    publisher = AsyncPublisher(url, service="tests", http={"limits": alone})

    async def work(n: int) -> None:
        await publisher.send("info", {"n": n}, channels=[channel])

    asyncio.run(work(1))
    asyncio.run(work(2))
    asyncio.run(publisher.close())
    assert numbers(service.port, channel) == [1, 2]


def test_a_loop_that_has_ended_has_no_token(guarded: ThreadedService) -> None:
    told = Told()

    async def give() -> str:
        raise OSError("not yet")

    async def work() -> AsyncPublisher:
        publisher = AsyncPublisher(
            at(guarded.port), service="tests", token=give, buffered=True, on_error=told
        )
        await publisher.send("info", id="a")
        return publisher

    publisher = asyncio.run(work())
    publisher._buffer.close(0.3)
    [error] = told
    assert isinstance(error, Unsent)
    assert error.keys == ("tests/a",)


def test_a_job_s_log_over_a_service_that_is_away_makes_no_storm(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("tests.storm")
    publisher = Publisher(
        NOBODY, service="tests", capacity=3, when_full="raise", on_error=logger.error
    )
    handler = MsgpushHandler(publisher)
    logger.addHandler(handler)
    for n in range(10):
        logger.warning("page %d", n)
    publisher._buffer.close(0)
    logger.removeHandler(handler)
    assert len([each for each in caplog.messages if "the buffer is full" in each]) == 7
