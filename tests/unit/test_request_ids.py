"""Request ids: every answer has one, and so has each line of the log that belongs to a request."""

from collections.abc import AsyncIterator

import pytest

from msgpush.adapters.http.request_ids import RULE
from msgpush.adapters.logs import REQUEST_ID, with_request
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings
from tests.support.asgi import AsgiDriver
from tests.support.tokens import SECRET

ORIGIN = "https://app.example.com"


@pytest.fixture
async def client() -> AsyncIterator[AsgiDriver]:
    settings = Settings(jwt_secret=SECRET, cors_origins=(ORIGIN,))
    async with lifespan(app := create_app(settings)):
        yield AsgiDriver(app)


REQUESTS = [
    ("GET", "/health/live", 200),
    ("GET", "/metrics", 200),
    ("GET", "/nothing", 404),
    ("PUT", "/health", 405),
    ("POST", "/api/v1/messages/send", 401),
    ("GET", "/sse/stream/a", 401),
    ("GET", "/api/v1/connections", 401),
    ("GET", "/ws", 426),
    ("GET", "/", 200),
]


@pytest.mark.parametrize(("method", "path", "status"), REQUESTS)
async def test_every_answer_tells_its_requests_id(
    client: AsgiDriver, method: str, path: str, status: int
) -> None:
    answer = await client.request(method, path, headers={"x-request-id": "from.the-proxy_1~"})
    assert (answer.status, answer.headers["x-request-id"]) == (status, "from.the-proxy_1~")
    made = (await client.request(method, path)).headers["x-request-id"]
    again = (await client.request(method, path)).headers["x-request-id"]
    assert made != again
    import re

    assert re.fullmatch(RULE, made)


@pytest.mark.parametrize("unsafe", ["", "a b", "x" * 129, "a\tb", 'a"b', "a;b", "\xe9"])
async def test_an_id_that_is_not_safe_to_repeat_is_replaced(
    client: AsgiDriver, unsafe: str
) -> None:
    answer = await client.request("GET", "/health/live", headers={"x-request-id": unsafe})
    assert answer.headers["x-request-id"] not in ("", unsafe)


async def test_the_longest_id_is_taken(client: AsgiDriver) -> None:
    answer = await client.request("GET", "/health/live", headers={"x-request-id": "x" * 128})
    assert answer.headers["x-request-id"] == "x" * 128


async def test_pages_of_other_origins_may_send_and_read_it(client: AsgiDriver) -> None:
    answer = await client.request("GET", "/health/live", headers={"origin": ORIGIN})
    assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
    asked = {
        "origin": ORIGIN,
        "access-control-request-method": "GET",
        "access-control-request-headers": "x-request-id",
    }
    preflight = await client.request("OPTIONS", "/health/live", headers=asked)
    assert preflight.status == 200
    assert "x-request-id" in preflight.headers


def test_a_line_of_a_request_has_its_id_and_no_other_line_has_one() -> None:
    assert with_request(None, "", {"event": "x"}) == {"event": "x"}
    reset = REQUEST_ID.set("r1")
    try:
        assert with_request(None, "", {"event": "x"})["request_id"] == "r1"
    finally:
        REQUEST_ID.reset(reset)
