"""The statistics and the instances, as an operator asks for them."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from starlette.routing import Route

from msgpush.adapters.auth.authenticator import OpenAuthenticator
from msgpush.adapters.http.dispatch import Service
from msgpush.adapters.http.statistics import MOST_POINTS, POINTS, StatisticsApi
from msgpush.adapters.memory.bus import MemoryBus
from msgpush.adapters.memory.statistics import MemoryStatistics
from msgpush.domain.connection import NOW as FROM_NOW
from msgpush.domain.connection import Connection, Subscription
from msgpush.domain.counts import FIELDS, HOUR, KEPT, Counts
from msgpush.domain.instances import InstanceReport, Pulse
from msgpush.domain.ports import ClientInfo, RegistryState
from msgpush.domain.service import Push
from msgpush.domain.statistics import Recording
from msgpush.domain.tally import Tally
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings
from tests.support.asgi import Answer, AsgiDriver
from tests.support.fakes import FakeClock, FakeSink, PlainView, make

PATH = "/api/v1/stats/messages"
CLOCK = FakeClock(1_800_000_000.0 + 30)  # 08:00:30 of 2027-01-15
NOW = 30_000_000  # its minute
ROWS = {
    NOW - 61: [("a", "info", (1, 0, 2, 0, 0, 0))],
    NOW - 2: [("a", "info", (3, 0, 5, 1, 0, 0)), ("b", "info", (10, 0, 0, 0, 1, 2))],
    NOW: [("a", "error", (7, 0, 9, 0, 0, 0)), ("", "", (0, 4, 0, 0, 0, 0))],
}


def made() -> dict[int, Counts]:
    minutes = {}
    for minute, rows in ROWS.items():
        minutes[minute] = Counts()
        for row in rows:
            minutes[minute].count(*row)
        minutes[minute].latency[1] = 10
    return minutes


async def ask(query: str) -> Answer:
    statistics = MemoryStatistics(CLOCK.now)
    await statistics.add("n", 1, made())
    api = StatisticsApi(statistics, OpenAuthenticator(), CLOCK.now)
    app = Service([Route(PATH, api.messages)], [], _none, hot={}, on_error=_ignore)
    return await AsgiDriver(app).request("GET", PATH + query)


@asynccontextmanager
async def _none(_: object) -> AsyncIterator[None]:
    yield


def _ignore(_: object) -> None:
    """Nothing is counted."""


async def told(query: str) -> Any:
    answer = await ask(query)
    assert answer.status == 200, answer.body
    return answer.json()


async def test_without_anything_said_it_is_the_last_hour_by_minutes() -> None:
    answer = await told("")
    assert answer["from"] == "2027-01-15T07:00:00.000Z"
    assert answer["to"] == "2027-01-15T08:01:00.000Z", "whole steps"
    assert answer["step"] == 60
    (totals,) = answer["series"]
    assert totals["key"] is None
    assert totals["published"] == [*[0] * 58, 13, 0, 7]
    assert totals["failed"] == [*[0] * 60, 4]
    assert totals["delivered"] == [*[0] * 58, 5, 0, 9]
    assert (totals["acknowledged"][58], totals["dead"][58], totals["pushed"][58]) == (1, 1, 2)
    assert answer["latency_ms"] == {
        "p50": [*[None] * 58, 1.75, None, 1.75],
        "p99": [*[None] * 58, 2.49, None, 2.49],
    }


async def test_services_and_types_are_told_apart_and_add_up() -> None:
    services = await told("?by=service&from=1799999700")
    assert [each["key"] for each in services["series"]] == ["a", "b", ""]
    assert services["series"][0]["published"] == [0, 0, 0, 3, 0, 7]
    types = await told("?by=type&from=1799999700")
    assert {each["key"]: sum(each["published"]) for each in types["series"]} == {
        "info": 13,
        "error": 7,
        "": 0,
    }
    (totals,) = (await told("?from=1799999700"))["series"]
    for field in ("published", "failed", "delivered", "acknowledged", "dead", "pushed"):
        for answer in (services, types):
            columns = zip(*(each[field] for each in answer["series"]), strict=True)
            assert [sum(each) for each in columns] == totals[field]


async def test_where_nothing_was_there_are_no_series_but_the_totals() -> None:
    query = "?from=1799996400&to=1799996460"
    assert (await told(f"{query}&by=service"))["series"] == []
    (totals,) = (await told(query))["series"]
    assert totals["published"] == [0]


async def test_hours_are_the_sums_of_their_minutes() -> None:
    answer = await told("?step=3600&from=1799996400&to=1800000001")
    assert (answer["from"], answer["to"]) == (
        "2027-01-15T07:00:00.000Z",
        "2027-01-15T09:00:00.000Z",
    )
    assert answer["series"][0]["published"] == [13, 7]


async def test_others_have_their_turn_while_much_is_told() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await told(f"?step=60&from={1_800_000_000 - 86_400}")
    task.cancel()
    assert turns > 86_400 / 60 / 20


@pytest.mark.parametrize(
    ("seconds", "step"), [(60, 60), (POINTS * 60, 60), (POINTS * 60 + 1, 3600), (30 * 86_400, 3600)]
)
async def test_the_step_is_the_finer_that_gives_few_points(seconds: int, step: int) -> None:
    assert (await told(f"?from={1_800_000_030 - seconds}"))["step"] == step


async def test_what_minutes_are_not_kept_of_is_told_by_hours() -> None:
    query = f"?from={1_800_000_000 - 3 * 86_400}&to={1_800_000_000 - 3 * 86_400 + 60}"
    assert (await told(query))["step"] == 3600


@pytest.mark.parametrize("moment", ["2027-01-15T09:00:00+01:00", "2027-01-15T08:00:00Z", "1.8e9"])
async def test_moments_are_rfc_3339_of_any_offset_or_seconds(moment: str) -> None:
    moment = moment.replace("1.8e9", "1800000000.0")
    answer = await told(f"?from={quote(moment, safe='')}")
    assert answer["from"] == "2027-01-15T08:00:00.000Z"


@pytest.mark.parametrize(
    ("query", "parts"),
    [
        ("?from=yesterday", ["the parameter from is 'yesterday'", "RFC 3339", "seconds"]),
        ("?to=-1", ["the parameter to is", "RFC 3339"]),
        ("?to=2027-01-15T08:00:00+01:00", ["the parameter to is", "%2B"]),
        ("?to=999999999999", ["the parameter to is"]),
        ("?from=253402297140&to=253402300799", ["the parameter to is"]),
        ("?from=9999-12-31T23:00:00Z&to=9999-12-31T23:59:59Z", ["the parameter to is"]),
        ("?from=", ["the parameter from is ''"]),
        ("?step=10", ["the parameter step is '10'", "60 or 3600"]),
        ("?by=channel", ["the parameter by is 'channel'", "service or type"]),
        ("?by=type&by=type", ["more than once"]),
        ("?form=1", ["no parameter 'form'"]),
        ("?from=1800000000&to=1800000000", ["from is 2027-01-15T08:00:00.000Z", "before to"]),
        (
            "?from=1799800000&step=60",
            ["the parameter from is 2027-01-13T00:26:40.000Z", "kept for a day", "take step=3600"],
        ),
        ("?from=1700000000", ["hours are kept for a month: take a moment from 2026-12-15T09:00"]),
        (
            f"?step=60&from=1799996400&to={1_800_000_000 + 60 * MOST_POINTS}",
            ["step is 60", "1,560 points", "1,500", "take step=3600"],
        ),
        (f"?to={1_800_000_000 + 3600 * MOST_POINTS}&from=1800000000", []),
        (
            f"?to={1_800_000_000 + 3600 * MOST_POINTS + 1}&from=1800000000",
            ["a step has 3600 seconds", "1,501 points", "take less time"],
        ),
    ],
)
async def test_a_wrong_question_is_refused_with_what_is_allowed(
    query: str, parts: list[str]
) -> None:
    answer = await ask(query)
    assert answer.status == (400 if parts else 200)
    for part in parts:
        assert part.replace("'", '"') in answer.json()["detail"]


async def test_a_day_of_minutes_and_a_month_of_hours_can_be_asked_for() -> None:
    minutes = await told(f"?step=60&from={1_800_000_030 - 86_400}")
    assert len(minutes["series"][0]["published"]) == 1441
    hours = await told(f"?from={1_800_000_030 - 30 * 86_400}")
    assert len(hours["series"][0]["published"]) == 721
    assert KEPT[HOUR] >= 30 * 86_400


async def test_the_service_counts_what_it_published_delivered_and_refused() -> None:
    app = create_app(Settings())
    async with lifespan(app):
        client = AsgiDriver(app)
        async with client.stream("/sse/stream/a") as one, client.stream("/sse/stream/a") as two:
            for _ in range(3):
                await client.send(b'{"type":"info","service":"s","channels":["a"]}')
            await client.send(b'{"type":"info","service":"s","channels":["a"],"id":"last"}')
            await client.send(b'{"type":"info","service":"s","channels":["a"],"id":"last"}')
            await client.send(b'{"type":"unheard","service":"s"}')
            for stream in (one, two):
                await stream.read_until(b'"last"')
        (recording,) = (each for each in app.state.resources if isinstance(each, Recording))
        await recording.flush()
        (totals,) = (await client.request("GET", PATH)).json()["series"]
        assert {
            name: sum(numbers) for name, numbers in totals.items() if isinstance(numbers, list)
        } == {
            "published": 4,
            "failed": 1,
            "delivered": 8,
            "acknowledged": 0,
            "dead": 0,
            "pushed": 0,
        }
        (instance,) = (await client.request("GET", "/api/v1/instances")).json()["instances"]
        assert (instance["published"], instance["failed"], instance["delivered"]) == (4, 1, 8)
        assert (instance["ready"], instance["reason"], instance["bus"]) == (True, None, "memory")
        assert instance["registry"] is None
        assert instance["limit"] == 10_000
        shown = _shown("Instances")["instances"][0]
        assert list(shown) == list(instance)
        for name in ("streams", "transports", "latency_ms"):
            assert list(shown[name]) == list(instance[name])


# What an instance tells of itself


async def test_an_instance_tells_of_its_streams_its_readiness_and_its_latency() -> None:
    clock, tally = FakeClock(), Tally()
    registered = RegistryState("etcd", "registered", "2027-01-15T08:00:00.000Z")
    async with Push(MemoryBus(), observer=tally) as push:
        pulse = Pulse(tally)
        report = InstanceReport(
            push,
            tally,
            pulse,
            node="n1",
            version="1",
            bus="memory",
            limit=5,
            registration=lambda: registered,
            clock=clock.now,
        )
        told = report()
        assert (told.node, told.version, told.limit) == ("n1", "1", 5)
        assert (told.started_at, told.at) == ("2027-01-15T08:00:00.000Z",) * 2
        assert (told.latency_ms.p50, told.latency_ms.p99, told.loop_lag_ms) == (None, None, 0.0)
        assert told.registry == registered
        info = ClientInfo(None, "ws", "", "", 0.0)
        connection = Connection("c1", FakeSink(), info)
        push.subscribe(connection, Subscription(frozenset({"a"}), PlainView()), FROM_NOW)
        tally.accepted([make("m1", "a")])
        tally.latency.observe(0.002)
        pulse.beat(0.02)
        clock.advance(5)
        told = report()
        assert told.streams.live == 1
        assert told.transports == {"sse": 0, "ws": 1}
        assert (told.published, told.loop_lag_ms) == (1, 20.0)
        assert told.latency_ms.p50 == 1.75
        assert (told.started_at, told.at) == (
            "2027-01-15T08:00:00.000Z",
            "2027-01-15T08:00:05.000Z",
        )
        for _ in range(101):
            pulse.beat(-0.01)
        told = report()
        assert told.latency_ms.p50 is None, "that was more than ten seconds ago"
        assert told.loop_lag_ms == 0.0
        await push.drain(0)
        told = report()
        assert (told.ready, told.reason, told.draining) == (False, "draining", True)


async def test_one_that_is_not_registered_and_does_not_run_says_so() -> None:
    tally = Tally()
    report = InstanceReport(
        Push(MemoryBus()),
        tally,
        Pulse(tally),
        node="n",
        version="1",
        bus="memory",
        limit=1,
        registration=lambda: None,
    )
    assert report().registry is None
    assert report().reason == "delivery has stopped", "it has not begun"


async def test_the_example_in_the_docs_is_an_answer() -> None:
    shown = _shown("Statistics")
    real = await told("?from=1799999880&to=1800000060&by=service")
    assert list(shown) == list(real)
    for answer in (shown, real):
        steps = (_seconds(answer["to"]) - _seconds(answer["from"])) / answer["step"]
        assert steps == 3
        for each in answer["series"]:
            assert list(each) == ["key", *FIELDS]
            assert {len(each[field]) for field in FIELDS} == {steps}
        assert {len(answer["latency_ms"][name]) for name in ("p50", "p99")} == {steps}


def _shown(heading: str) -> Any:
    """The answer that a section of the docs shows."""
    text = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    section = text.partition(f"## {heading}")[2].partition("\n## ")[0]
    example = re.search(r"```json\n(.*?)```", section, re.DOTALL)
    assert example is not None
    return msgspec.json.decode(example[1])


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
