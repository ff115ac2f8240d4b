"""The publishing contract, in process."""

import random
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette

from msgpush.domain.errors import BusUnavailable
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings
from tests.support.asgi import Answer, AsgiDriver, Exchange

SEND = "/api/v1/messages/send"
BATCH = "/api/v1/messages/batch"
BROADCAST = "/api/v1/messages/broadcast"
NDJSON = {"content-type": "application/x-ndjson; charset=utf-8"}


@pytest.fixture
async def client() -> AsyncIterator[AsgiDriver]:
    async with lifespan(
        app := create_app(Settings(max_message_bytes=2048, max_batch_bytes=20_000))
    ):
        yield AsgiDriver(app)


def message(**fields: Any) -> bytes:
    return msgspec.json.encode({"type": "info", "service": "s", **fields})


async def stored(client: AsgiDriver, channel: str = "service:s") -> list[str]:
    answer = await client.request("GET", f"/api/v1/channels/{channel}/messages?limit=1000")
    return [each["id"] for each in answer.json()["messages"]]


def problem(answer: Answer, status: int) -> dict[str, Any]:
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    told: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail"} <= told.keys()
    assert told["status"] == status
    return told


async def test_a_receipt_names_the_id_the_moment_the_channels_and_the_cursor(
    client: AsgiDriver,
) -> None:
    answer = await client.send(
        message(
            id="m1",
            timestamp="2025-07-30T17:10:00.1234+02:00",
            target={"user_id": "u"},
            channels=["a", "a"],
        )
    )
    assert answer.status == 202
    receipt = answer.json()
    cursor = receipt.pop("cursor")
    assert receipt == {
        "id": "m1",
        "timestamp": "2025-07-30T15:10:00.123Z",
        "channels": ["user:u", "a", "service:s"],
        "duplicate": False,
    }
    history = (await client.request("GET", "/api/v1/channels/a/messages")).json()
    assert history["cursor"] == cursor


async def test_delivered_is_the_message_as_published_completed(client: AsgiDriver) -> None:
    await client.send(
        b'{ "service":"s", "type":"info", "id":"m1", "timestamp":"2025-07-30T15:10:00Z",\n'
        b' "data":{"n":1.50,\n"e":1e400} }'
    )
    answer = await client.request("GET", "/api/v1/channels/service:s/messages")
    assert answer.body.startswith(
        b'{"messages":[{"id":"m1","timestamp":"2025-07-30T15:10:00.000Z","type":"info","service":"s",'
        b'"data":{"n":1.50,"e":1e400},"metadata":{"priority":"normal","ttl":3600,"retry_count":0}}]'
    )


async def test_ids_that_the_server_makes_are_unique_and_sort_by_time(client: AsgiDriver) -> None:
    ids = [(await client.send(message())).json()["id"] for _ in range(200)]
    assert len(set(ids)) == 200
    assert ids == sorted(ids)


async def test_the_same_publish_again_is_answered_alike_and_stored_once(client: AsgiDriver) -> None:
    first = (await client.send(message(id="m1"))).json()
    again = (await client.send(message(id="m1", metadata=None))).json()
    assert again == {**first, "duplicate": True}
    assert await stored(client) == ["m1"]


@pytest.mark.parametrize(
    "other", [{"data": {"x": 1}}, {"channels": ["b"]}, {"metadata": {"ttl": 5}}, {"source": "x"}]
)
async def test_the_same_id_with_other_content_is_a_conflict(
    client: AsgiDriver, other: dict[str, Any]
) -> None:
    await client.send(message(id="m1"))
    problem(await client.send(message(id="m1", **other)), 409)
    assert await stored(client) == ["m1"]


async def test_the_same_id_sent_and_broadcast_is_a_conflict(client: AsgiDriver) -> None:
    await client.send(message(id="m1"))
    problem(await client.send(message(id="m1"), BROADCAST), 409)


@pytest.mark.parametrize("key", ["k1", '"k1"'])
async def test_the_idempotency_key_is_the_id_where_the_body_has_none(
    client: AsgiDriver, key: str
) -> None:
    assert (await client.send(message(), idempotency_key=key)).json()["id"] == "k1"
    assert (await client.send(message(), idempotency_key=key)).json()["duplicate"] is True
    assert (await client.send(message(id="own"), idempotency_key=key)).json()["id"] == "own"
    problem(await client.send(message(), idempotency_key="no spaces please"), 400)
    assert await stored(client) == ["k1", "own"]


async def test_a_broadcast_has_no_target(client: AsgiDriver) -> None:
    told = problem(await client.send(message(target={"user_id": "u"}), BROADCAST), 422)
    assert told["errors"][0]["pointer"] == "/target"
    assert (await client.send(message(id="b1"), BROADCAST)).json()["channels"] == [
        "service:s",
        "broadcast",
    ]


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"\xff", 400, None),
        (b"[" * 1500, 400, None),
        (b'{"type":"info","service":"s","data":' + b"[" * 1900, 400, None),
        (b'{"type":"nonsense","service":"s"}x', 400, None),
        (b"[]", 422, ""),
        (b"null", 422, ""),
        (b"{}", 422, "/type"),
        (b'{"type":"info"}', 422, "/service"),
        (b'{"type":"news","service":"s"}', 422, "/type"),
        (b'{"type":"info","service":"a b"}', 422, "/service"),
        (b'{"type":"info","service":"s\\n"}', 422, "/service"),
        (b'{"type":"info","service":"s","id":"a b"}', 422, "/id"),
        (b'{"type":"info","service":"s","timestamp":"yesterday"}', 422, "/timestamp"),
        (b'{"type":"info","service":"s","source":"' + b"x" * 129 + b'"}', 422, "/source"),
        (b'{"type":"info","service":"s","target":{"user":"x"}}', 422, "/target/user"),
        (b'{"type":"info","service":"s","target":{"user_id":"a b"}}', 422, "/target/user_id"),
        (b'{"type":"info","service":"s","target":{"user_id":7}}', 422, "/target/user_id"),
        (b'{"type":"info","service":"s","channels":["a","b*"]}', 422, "/channels/1"),
        (
            b'{"type":"info","service":"s","channels":[' + b",".join([b'"c"'] * 33) + b"]}",
            422,
            "/channels",
        ),
        (b'{"type":"info","service":"s","data":[]}', 422, "/data"),
        (b'{"type":"progress","service":"s","data":{}}', 422, "/data/progress"),
        (b'{"type":"progress","service":"s","data":{"progress":101}}', 422, "/data/progress"),
        (b'{"type":"progress","service":"s","data":{"progress":true}}', 422, "/data/progress"),
        (b'{"type":"info","service":"s","metadata":{"ttl":0}}', 422, "/metadata/ttl"),
        (b'{"type":"info","service":"s","metadata":{"priority":"top"}}', 422, "/metadata/priority"),
        (b'{"type":"info","service":"s","metadata":{"tll":5}}', 422, "/metadata/tll"),
        (b'{"type":"info","service":"s","chanels":["a"]}', 422, "/chanels"),
        (b'{"type":"info","service":"s","data":{"x":"' + b"y" * 2048 + b'"}}', 413, None),
    ],
)
async def test_a_wrong_body_is_refused_with_its_place_and_nothing_is_stored(
    client: AsgiDriver, body: bytes, status: int, pointer: str | None
) -> None:
    told = problem(await client.send(body), status)
    assert [error["pointer"] for error in told.get("errors", [])] == (
        [] if pointer is None else [pointer]
    )
    assert await stored(client) == []


@pytest.mark.parametrize("path", [SEND, BROADCAST, BATCH])
@pytest.mark.parametrize("body", [b"", b" \r\n", b"\xef\xbb\xbf"])
async def test_an_empty_body_is_told_as_empty(client: AsgiDriver, path: str, body: bytes) -> None:
    assert problem(await client.request("POST", path, body), 400)["detail"] == "the body is empty"


@pytest.mark.parametrize("path", [SEND, BROADCAST])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" + message() + b"]", 422),
        (b"[]", 422),
        (b"\xef\xbb\xbf [7]", 422),
        (b'{"messages":[' + message() + b"]}", 422),
        (message() + b"\n" + message(), 400),
    ],
)
async def test_many_messages_sent_as_one_are_told_where_to_go(
    client: AsgiDriver, path: str, body: bytes, status: int
) -> None:
    told = problem(await client.request("POST", path, body), status)
    assert (
        "one message is a JSON object; several are sent to /api/v1/messages/batch" in told["detail"]
    )


async def test_one_message_sent_as_many_is_told_what_a_batch_is(client: AsgiDriver) -> None:
    told = problem(await client.request("POST", BATCH, message()), 422)
    assert told["detail"].startswith(
        "this is one message, which is sent to /send; a batch is a JSON array"
    )
    assert "application/x-ndjson" in told["detail"]


async def test_lines_under_another_type_are_told_how_they_are_sent(client: AsgiDriver) -> None:
    body = message(id="m1") + b"\n" + message(id="m2")
    told = problem(
        await client.request("POST", BATCH, body, {"content-type": "application/json"}), 400
    )
    assert "NDJSON, which is sent with Content-Type: application/x-ndjson" in told["detail"]
    assert await stored(client) == []


WRONG: list[Any] = [
    None,
    True,
    False,
    "a\nb\x7f\u202e'",
    "",
    ("a",),
    ["a", None],
    {"a": [True]},
    1.5,
    -7,
    [],
]


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize(
    "field",
    [
        "type",
        "service",
        "id",
        "source",
        "timestamp",
        "target",
        "channels",
        "data",
        "metadata",
        "x'y\n",
    ],
)
async def test_answers_speak_json_whatever_they_are_about(
    client: AsgiDriver, field: str, value: Any
) -> None:
    inner = {
        "target": {"user_id": value, f"a{field}": value},
        "channels": [value],
        "data": {"progress": value},
        "metadata": {"ttl": value, "priority": value},
    }
    for wrong in (value, inner.get(field, [value])):
        body = message(**{"type": "progress", "data": {"progress": 1}, field: wrong})
        answer = await client.send(body)
        for fault in answer.json().get("errors", []):
            assert fault["detail"].isprintable()
            for python in (
                "None",
                "True",
                "False",
                "('",
                "['",
                "{'",
                "',",
                " 'a",
                "str",
                "int",
                "float",
                "bool ",
            ):
                assert python not in fault["detail"].replace("string", "").replace("boolean", ""), (
                    fault
                )


async def test_a_compressed_body_is_refused(client: AsgiDriver) -> None:
    problem(await client.send(message(), content_encoding="gzip"), 415)


@pytest.mark.parametrize("path", [SEND, BATCH, BROADCAST])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_publishing_is_posting(client: AsgiDriver, path: str, method: str) -> None:
    answer = await client.request(method, path)
    problem(answer, 405)
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("form", ["array", "object", "ndjson"])
async def test_a_batch_keeps_its_order_and_each_item_stands_alone(
    client: AsgiDriver, form: str
) -> None:
    items = [
        message(id="m1"),
        message(id="m2", type="news"),
        message(id="m3"),
        message(id="m1", data={"x": 1}),
    ]
    array = b"[" + b",".join(items) + b"]"
    body = {"array": array, "object": b'{"messages":' + array + b"}", "ndjson": b"\n".join(items)}[
        form
    ]
    answer = await client.request("POST", BATCH, body, NDJSON if form == "ndjson" else {})
    assert answer.status == 202
    told = answer.json()
    assert (told["accepted"], told["rejected"]) == (2, 2)
    assert [each.get("id", each.get("error", {}).get("status")) for each in told["results"]] == [
        "m1",
        422,
        "m3",
        409,
    ]
    assert told["results"][1]["error"]["errors"][0]["pointer"] == "/type"
    assert await stored(client) == ["m1", "m3"]


@pytest.mark.parametrize("form", ["array", "object", "ndjson"])
@pytest.mark.parametrize(
    ("faulty", "status", "pointer"),
    [
        (b'{"type":"info","service":"s","source":"cut \\ud83d"}', 422, "/source"),
        (b'{"type":"info","service":"s","data":{"a":["\\ud83d"]}}', 422, "/data/a/0"),
        (b'{"type":"info","service":"s","data":{"\\ud83d":1}}', 422, "/data"),
        (
            b'{"type":"info","service":"s","data":{"a":' + b"[" * 1_000 + b"]" * 1_000 + b"}}",
            400,
            None,
        ),
    ],
)
async def test_an_items_fault_never_touches_its_neighbours(
    form: str, faulty: bytes, status: int, pointer: str
) -> None:
    async with lifespan(app := create_app(Settings())):
        client = AsgiDriver(app)
        items = [message(id="m1"), faulty, message(id="m2"), faulty]
        array = b"[" + b",".join(items) + b"]"
        body = {
            "array": array,
            "object": b'{"messages":' + array + b"}",
            "ndjson": b"\n".join(items),
        }[form]
        answer = await client.request("POST", BATCH, body, NDJSON if form == "ndjson" else {})
        assert answer.status == 202
        told = answer.json()
        assert [
            each.get("id", each.get("error", {}).get("status")) for each in told["results"]
        ] == [
            "m1",
            status,
            "m2",
            status,
        ]
        alone = problem(await client.send(faulty), status)
        assert told["results"][1]["error"] == alone
        assert [each["pointer"] for each in alone.get("errors", [])] == (
            [pointer] if pointer else []
        )
        assert await stored(client) == ["m1", "m2"]


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-ndjson",
        "application/ndjson",
        "Application/NDJSON; charset=utf-8",
        "application/jsonl",
        "application/x-jsonl;charset=utf-8",
        "application/jsonlines",
        "application/x-jsonlines ; a=b",
    ],
)
async def test_ndjson_has_several_names(client: AsgiDriver, content_type: str) -> None:
    body = message(id="m1") + b"\n" + message(id="m2") + b"\n"
    assert (await client.request("POST", BATCH, body, {"content-type": content_type})).json()[
        "accepted"
    ] == 2


async def test_a_byte_order_mark_is_passed_over(client: AsgiDriver) -> None:
    bom = b"\xef\xbb\xbf"
    one, other = message(id="m1"), message(id="m2")
    assert (await client.send(bom + one)).status == 202
    assert (await client.send(bom + message(id="b1"), BROADCAST)).status == 202
    for body, headers in (
        (bom + b"[" + other + b"]", {}),
        (bom + b' {"messages":[' + other + b"]}", {}),
        (bom + other + b"\n" + bom + other, NDJSON),
    ):
        assert (await client.request("POST", BATCH, body, headers)).json()["rejected"] == 0
    assert (
        await client.request("POST", "/api/v1/tickets", bom + b'{"channels":["a"]}')
    ).status == 201
    revoked = await client.request("POST", "/api/v1/revocations", bom + b'{"subject":"ann"}')
    assert revoked.status == 201
    assert await stored(client) == ["m1", "b1", "m2"]
    assert problem(await client.request("POST", BATCH, bom + b"\n", NDJSON), 422)["results"] == []


@pytest.mark.parametrize("endpoint", ["tickets", "revocations"])
async def test_half_of_a_surrogate_pair_has_a_pointer_in_every_body(
    client: AsgiDriver, endpoint: str
) -> None:
    told = problem(
        await client.request("POST", f"/api/v1/{endpoint}", b'{"subject":"a\\ud83d"}'), 422
    )
    assert told["errors"][0]["pointer"] == "/subject"
    assert "half of a surrogate pair" in told["detail"]


@pytest.mark.parametrize("body", [b"[]", b'{"messages":[]}', b'[{"type":"news"}]'])
async def test_a_batch_of_which_nothing_is_valid_is_a_problem(
    client: AsgiDriver, body: bytes
) -> None:
    told = problem(await client.request("POST", BATCH, body), 422)
    assert told["accepted"] == 0
    assert len(told["results"]) == told["rejected"]


async def test_an_empty_ndjson_batch_is_a_problem(client: AsgiDriver) -> None:
    assert problem(await client.request("POST", BATCH, b"\n \n", NDJSON), 422)["results"] == []


@pytest.mark.parametrize(
    "body", [b"", b"[", b'[{"type":"info","service":"s"},', b"\xff", b"[1] 2", b'{"messages":[']
)
async def test_a_malformed_array_stores_nothing(client: AsgiDriver, body: bytes) -> None:
    problem(await client.request("POST", BATCH, body), 400)
    assert await stored(client) == []


@pytest.mark.parametrize("body", [b"7", b'"x"', b'{"message":[]}', b'{"messages":7}'])
async def test_a_batch_of_another_form_is_refused(client: AsgiDriver, body: bytes) -> None:
    problem(await client.request("POST", BATCH, body), 422)


async def test_a_batch_that_is_too_large_is_refused_whole(client: AsgiDriver) -> None:
    problem(await client.request("POST", BATCH, b"[" + b",".join([message()] * 800) + b"]"), 413)
    assert await stored(client) == []


async def test_a_batch_with_too_many_items_is_refused_whole() -> None:
    async with lifespan(app := create_app(Settings())):
        client = AsgiDriver(app)
        problem(await client.request("POST", BATCH, b"[" + b",".join([b"{}"] * 10_001) + b"]"), 413)


async def test_an_item_that_is_too_large_is_told_as_send_would(client: AsgiDriver) -> None:
    body = b"[" + message(id="m1") + b"," + message(data={"x": "y" * 2048}) + b"]"
    told = (await client.request("POST", BATCH, body)).json()
    assert [each.get("id", each.get("error", {}).get("status")) for each in told["results"]] == [
        "m1",
        413,
    ]


async def test_ndjson_keeps_the_lines_before_one_that_is_too_long(client: AsgiDriver) -> None:
    body = (
        message(id="m1")
        + b"\n"
        + message(id="m2", data={"x": "y" * 3000})
        + b"\n"
        + message(id="m3")
    )
    told = problem(await client.request("POST", BATCH, body, NDJSON), 413)
    assert told["accepted"] == 1
    assert await stored(client) == ["m1"]


async def test_ndjson_keeps_the_lines_before_the_limit_of_items() -> None:
    async with lifespan(app := create_app(Settings())):
        client = AsgiDriver(app)
        body = b"\n".join([message()] * 10_001)
        told = problem(await client.request("POST", BATCH, body, NDJSON), 413)
        assert told["accepted"] == 10_000


async def test_ndjson_cut_anywhere_stores_exactly_the_lines_whose_end_has_come(
    client: AsgiDriver,
) -> None:
    lines = [message(id=f"m{n}") for n in range(4)]
    body = b"\n".join(lines) + b"\n"
    for cut in range(0, len(body), 3):
        async with lifespan(app := create_app(Settings())):
            driver, exchange = AsgiDriver(app), Exchange()
            exchange.incoming.put_nowait(
                {"type": "http.request", "body": body[:cut], "more_body": True}
            )
            exchange.incoming.put_nowait({"type": "http.disconnect"})
            await app(
                driver.scope("POST", BATCH, NDJSON, exchange), exchange.receive, exchange.send
            )
            assert await stored(driver) == [f"m{n}" for n in range(body[:cut].count(b"\n"))]


async def test_a_batch_names_no_idempotency_key(client: AsgiDriver) -> None:
    problem(await client.request("POST", BATCH, b"[]", {"idempotency-key": "k"}), 400)


async def test_a_bus_that_is_away_is_told_with_retry_after(
    client: AsgiDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(client.app, Starlette)
    bus = client.app.state.push._bus

    async def away(drafts: list[Any]) -> list[BusUnavailable]:
        return [BusUnavailable("the bus is away")] * len(drafts)

    monkeypatch.setattr(bus, "append", away)
    answer = await client.send(message())
    problem(answer, 503)
    assert int(answer.headers["retry-after"]) >= 1
    batch = await client.request("POST", BATCH, b"[" + message() + b"]")
    assert problem(batch, 503)["results"][0]["error"]["status"] == 503
    assert int(batch.headers["retry-after"]) >= 1


async def test_ten_thousand_mutated_bodies_never_make_a_5xx(client: AsgiDriver) -> None:
    seeds = [
        message(id="m1", channels=["a", "b"], data={"x": [1, 2.5, "é"]}, metadata={"ttl": 5}),
        message(
            type="progress",
            data={"progress": 5},
            target={"user_id": "u"},
            timestamp="2025-07-30T15:10:00Z",
        ),
        b"[" + message() + b"," + message(channels=["c"]) + b"]",
    ]
    pieces = [
        b"null",
        b"{}",
        b"[]",
        b'"',
        b"\\u0000",
        b"\xff",
        b"1e999",
        b"\n",
        b":",
        b",",
        b"\\",
        b"NaN",
        b"true",
    ]
    chance = random.Random(7)
    statuses = set()
    for n in range(10_000):
        body = bytearray(seeds[n % 3])
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(body))
            match chance.randrange(4):
                case 0:
                    body[place] = chance.randrange(256)
                case 1:
                    del body[place : place + chance.randint(1, 9)]
                case 2:
                    body[place:place] = chance.choice(pieces)
                case _:
                    body[place : place + 1] = chance.choice(pieces)
            body = body or bytearray(b" ")
        path = (SEND, BROADCAST, BATCH)[chance.randrange(3)]
        answer = await client.request("POST", path, bytes(body), NDJSON if n % 7 == 0 else {})
        statuses.add(answer.status)
        assert answer.status in (202, 400, 409, 413, 422), (path, bytes(body), answer.body)
    assert {202, 400, 422} <= statuses
