"""The API's description: complete, consistent, and true of what the service answers."""

import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
from starlette.routing import Mount, Route, WebSocketRoute

from msgpush.adapters.openapi import openapi
from msgpush.domain.message import TYPES
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings
from tests.support.asgi import AsgiDriver

DOCUMENT: dict[str, Any] = msgspec.json.decode(openapi())
OPERATIONS = [
    (method, path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
STREAMS = ("/sse/stream/{channel}", "/sse/user/{user_id}", "/sse/service/{service_name}")
RECEIVED = '{"type":"info","service":"s"}'


@pytest.fixture
async def client() -> AsyncIterator[AsgiDriver]:
    async with lifespan(app := create_app(Settings())):
        yield AsgiDriver(app)


def resolve(value: Any) -> Any:
    """What a reference, if it is one, stands for."""
    if "$ref" not in value:
        return value
    found: Any = DOCUMENT
    for step in value["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    return found


def walk(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for each in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        yield from walk(each)


def template_of(target: str) -> str:
    path = target.partition("?")[0]
    if path in DOCUMENT["paths"]:
        return path
    (template,) = (
        each for each in DOCUMENT["paths"] if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", each), path)
    )
    return str(template)


def parameters(path: str, method: str) -> dict[tuple[str, str], Any]:
    return {
        (each["in"], each["name"]): each
        for each in DOCUMENT["paths"][path][method].get("parameters", ())
    }


def test_every_route_is_described_and_every_description_has_its_route() -> None:
    routed = set()
    for route in create_app(Settings()).routes:
        if isinstance(route, Mount):
            routed.add(("get", f"{route.path}/{{path}}"))
            continue
        assert isinstance(route, Route | WebSocketRoute)
        path = re.sub(r":\w+\}", "}", route.path)
        methods = (route.methods if isinstance(route, Route) else None) or {"GET", "HEAD"}
        routed |= {
            (method.lower(), path)
            for method in methods
            if method != "HEAD" or path.startswith("/sse/")
        }
    assert {(method, path) for method, path, _ in OPERATIONS} == routed


def test_it_says_its_version_and_where_it_is_served_from() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert DOCUMENT["info"]["version"] == "1"
    assert [server["url"] for server in DOCUMENT["servers"]] == ["."], (
        "beside the document, under any prefix"
    )


def test_every_reference_resolves_and_nothing_is_there_that_nobody_refers_to() -> None:
    references = {each["$ref"] for each in walk(DOCUMENT) if "$ref" in each}
    schemes = {
        name for _, _, each in OPERATIONS for way in each.get("security", ()) for name in way
    }
    references |= {f"#/components/securitySchemes/{name}" for name in schemes}
    kept = {
        f"#/components/{kind}/{name}"
        for kind, all in DOCUMENT["components"].items()
        for name in all
    }
    assert references == kept


def test_every_operation_has_a_name_of_its_own_and_a_tag_that_is_described() -> None:
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(names) == len(set(names))
    assert {tag for _, _, each in OPERATIONS for tag in each["tags"]} == {
        tag["name"] for tag in DOCUMENT["tags"]
    }


@pytest.mark.parametrize(("method", "path"), [(method, path) for method, path, _ in OPERATIONS])
def test_every_parameter_of_a_path_is_described_once_and_required(method: str, path: str) -> None:
    given = DOCUMENT["paths"][path][method].get("parameters", [])
    assert len(parameters(path, method)) == len(given)
    assert [each["name"] for each in given if each["in"] == "path"] == re.findall(
        r"\{(\w+)\}", path
    )
    needed = {each["name"] for each in given if each["in"] == "path"}
    needed |= {"service"} if path == "/api/v1/dead-letters" else set()
    assert {each["name"] for each in given if each.get("required", False)} == needed


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("method", ["get", "head"])
def test_a_stream_describes_every_spelling_of_every_parameter(path: str, method: str) -> None:
    described = {key for key in parameters(path, method) if key[0] != "path"}
    queries = [
        "last_event_id",
        "lastEventId",
        "lastEventID",
        "channel",
        "types",
        "priority",
        "passive",
        "events",
        "broadcast",
        "token",
    ]
    assert described == {("header", "Last-Event-ID"), *(("query", name) for name in queries)}


async def test_a_websocket_takes_the_parameters_that_are_described_and_no_other(
    client: AsgiDriver,
) -> None:
    values = {
        "channel": "a",
        "user": "u",
        "service": "s",
        "types": "info",
        "priority": "high",
        "passive": "true",
        "broadcast": "false",
        "last_event_id": "latest",
        "lastEventId": "latest",
        "lastEventID": "latest",
        "token": "t",
    }
    described = set(parameters("/ws", "get"))
    assert described == {("header", "Last-Event-ID"), *(("query", name) for name in values)}
    for name, value in values.items():
        async with client.socket(f"/ws?{name}={value}", {"Last-Event-ID": ""}) as socket:
            await socket.event("msgpush.open")
    for name in ("other", "events"):
        async with client.socket(f"/ws?{name}=none") as socket:
            assert await socket.closed() == 4400


@pytest.mark.parametrize(
    ("path", "values"),
    [
        (
            "/sse/stream/a",
            {
                "channel": "b",
                "types": "info",
                "priority": "high",
                "passive": "true",
                "events": "none",
                "broadcast": "true",
                "token": "t",
            },
        ),
        (
            "/api/v1/channels/a/messages",
            {"after": "earliest", "limit": "1", "last": "1"},
        ),
        (
            "/api/v1/users/u/pending",
            {"limit": "1", "next": "1.5-0.a/b", "token": "t"},
        ),
        (
            "/api/v1/connections",
            {
                "user": "u",
                "service": "s",
                "channel": "c",
                "subject": "x",
                "node": "n",
                "limit": "1",
                "next": "c",
            },
        ),
        (
            "/api/v1/stats/messages",
            {
                "from": str(int(time.time()) - 60),
                "to": str(int(time.time())),
                "step": "60",
                "by": "type",
            },
        ),
    ],
)
async def test_the_service_takes_the_parameters_that_are_described_and_no_other(
    client: AsgiDriver, path: str, values: dict[str, str]
) -> None:
    method = "HEAD" if path.startswith("/sse/") else "GET"
    described = {
        name for place, name in parameters(template_of(path), method.lower()) if place == "query"
    }
    assert described - {"last_event_id", "lastEventId", "lastEventID"} == set(values)
    for name, value in values.items():
        assert (await client.request(method, f"{path}?{name}={value}")).status == 200
    assert (await client.request(method, f"{path}?other=1")).status == 400


def test_what_a_message_may_ask_for_is_described() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    for name in ("Metadata", "Ack"):
        for field, schema in schemas[name]["properties"].items():
            assert schema["description"], field
        assert "\n" not in schemas[name]["description"]


def test_every_problem_is_told_as_one() -> None:
    for _, path, operation in OPERATIONS:
        for status, response in operation["responses"].items():
            told = resolve(response)["content"] if status >= "400" else {}
            if path.startswith("/admin/") and "text/html" in told:
                continue  # a browser has gone there
            if status >= "400" and not (path.startswith("/health") and status == "503"):
                assert list(resolve(response)["content"]) == ["application/problem+json"]


def test_patterns_are_written_as_json_schema_reads_them_and_hold_for_the_examples() -> None:
    patterns = [each["pattern"] for each in walk(DOCUMENT) if isinstance(each.get("pattern"), str)]
    assert patterns
    for pattern in patterns:
        assert re.fullmatch(r"\^([^\\]|\\[s*]|\\x[0-9a-f]{2})*\$", pattern), "no \\A, no \\Z"
        re.compile(pattern)
    events = parameters(STREAMS[0], "get")["query", "events"]["schema"]["pattern"]
    for value, allowed in (
        ("*", True),
        ("none", True),
        ("info,error", True),
        ("none,info", False),
        ("", False),
    ):
        assert bool(re.search(events, value)) == allowed
    assert all(re.search(events, ",".join(types)) for types in (TYPES, TYPES[:1]))


def test_data_is_an_object_and_nothing_else() -> None:
    data = DOCUMENT["components"]["schemas"]["Message"]["properties"]["data"]
    assert set(data["type"]) == {"object", "null"}, "null counts as absent"


async def test_the_service_accepts_every_example_and_delivers_messages_as_in_the_example(
    client: AsgiDriver,
) -> None:
    for path in ("send", "broadcast", "batch"):
        for media_type, content in DOCUMENT["paths"][f"/api/v1/messages/{path}"]["post"][
            "requestBody"
        ]["content"].items():
            example = content["example"]
            body = example.encode() if isinstance(example, str) else msgspec.json.encode(example)
            headers = {"content-type": media_type}
            answer = await client.request("POST", f"/api/v1/messages/{path}", body, headers)
            assert answer.status == 202
            assert answer.json().get("rejected", 0) == 0
    schema = DOCUMENT["components"]["schemas"]["Delivered"]
    (example,) = schema["examples"]
    assert (await client.send(msgspec.json.encode(example))).status == 202
    history = (await client.request("GET", "/api/v1/channels/imports/messages")).json()
    assert example in history["messages"]
    for message in history["messages"]:
        assert set(schema["allOf"][1]["required"]) <= set(message)


@pytest.mark.parametrize(
    ("request_line", "body", "headers", "status"),
    [
        ("GET /health", "", {}, 200),
        ("GET /health/live", "", {}, 200),
        ("GET /health/ready", "", {}, 200),
        ("GET /metrics", "", {}, 200),
        ("GET /openapi.json", "", {}, 200),
        ("GET /docs", "", {}, 200),
        ("GET /", "", {}, 200),
        ("GET /", "", {"x-forwarded-for": "192.0.2.1"}, 403),
        ("POST /api/v1/messages/send", RECEIVED, {}, 202),
        ("POST /api/v1/messages/send", "{", {}, 400),
        ("POST /api/v1/messages/send", RECEIVED, {"via": "1.1 proxy"}, 403),
        ("POST /api/v1/messages/send", "x" * 300_000, {}, 413),
        ("POST /api/v1/messages/send", RECEIVED, {"content-encoding": "gzip"}, 415),
        ("POST /api/v1/messages/send", "{}", {}, 422),
        ("POST /api/v1/messages/broadcast", RECEIVED, {}, 202),
        ("POST /api/v1/messages/batch", f"[{RECEIVED}, {{}}]", {}, 202),
        ("POST /api/v1/messages/batch", "[", {}, 400),
        ("POST /api/v1/messages/batch", "[" + "0," * 10_000 + "0]", {}, 413),
        ("POST /api/v1/messages/batch", "[]", {}, 422),
        ("POST /api/v1/messages/batch", "3", {}, 422),
        ("HEAD /sse/stream/a,b", "", {}, 200),
        ("HEAD /sse/user/u", "", {"last-event-id": "x.1-0~end"}, 204),
        ("HEAD /sse/service/s?x=1", "", {}, 400),
        ("GET /api/v1/channels/a/messages", "", {}, 200),
        ("GET /api/v1/channels/*/messages", "", {}, 400),
        ("GET /api/v1/connections", "", {}, 200),
        ("GET /api/v1/connections?limit=0", "", {}, 400),
        ("GET /api/v1/connections/stats", "", {}, 200),
        ("DELETE /api/v1/connections/x", "", {}, 404),
        ("GET /api/v1/instances", "", {}, 200),
        ("GET /api/v1/instances?x=1", "", {}, 400),
        ("GET /api/v1/stats/messages", "", {}, 200),
        ("GET /api/v1/stats/messages?by=service&step=3600", "", {}, 200),
        ("GET /api/v1/stats/messages?by=x", "", {}, 400),
        ("GET /static/nothing", "", {}, 404),
        ("GET /ws", "", {}, 426),
        ("GET /ws", "", {"via": "1.1 proxy"}, 403),
    ],
)
async def test_an_answer_is_as_described(
    client: AsgiDriver, request_line: str, body: str, headers: dict[str, str], status: int
) -> None:
    method, target = request_line.split(" ")
    path = template_of(target)
    answer = await client.request(method, target, body.encode(), headers)
    assert answer.status == status
    response = resolve(DOCUMENT["paths"][path][method.lower()]["responses"][str(status)])
    if "content" not in response:
        assert answer.body == b""
        return
    media_type, _, _ = answer.headers["content-type"].partition(";")
    assert media_type in response["content"]
    schema = response["content"][media_type].get("schema", {})
    if media_type.endswith("json") and path != "/openapi.json":
        assert any(fits(answer.json(), each) for each in schema.get("anyOf", [schema]))


def fits(value: Any, schema: Any) -> bool:
    """Whether an object has what a schema requires, and nothing that it doesn't name."""
    schema = resolve(schema)
    parts = [resolve(part) for part in schema.get("allOf", [schema])]
    properties = {name for part in parts for name in part.get("properties", ())}
    required = {name for part in parts for name in part.get("required", ())}
    return required <= set(value) <= properties
