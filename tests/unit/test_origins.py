"""Origins: what is one and the same, and which pages may use the service, by every door alike."""

from collections.abc import AsyncIterator

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from msgpush.adapters.http.origins import Origins, own_origin, read_origin
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings
from tests.support.asgi import AsgiDriver, Exchange
from tests.support.tokens import SECRET, token

APP = "https://app.example.com"
TICKET = b'{"channels":["user:alice"]}'
COOKIE = {"cookie": f"msgpush_token={token('alice')}"}
TOOLS = ("traceparent", "tracestate", "baggage", "sentry-trace", "cache-control", "pragma")


@pytest.mark.parametrize(
    ("scheme", "host", "origin"),
    [
        ("https", "h", "https://h"),
        ("https", "h:443", "https://h"),
        ("https", "H.Example:0443", "https://h.example"),
        ("http", "h:80", "http://h"),
        ("http", "h:443", "http://h:443"),
        ("https", "h:80", "https://h:80"),
        ("https", "h.", "https://h."),
        ("https", "[::1]:443", "https://[::1]"),
        ("https", "[0:0:0:0:0:0:0:1]:8443", "https://[::1]:8443"),
        ("https", "[2001:DB8::1]", "https://[2001:db8::1]"),
        ("https", "a@h", None),
        ("https", "h:", None),
        ("https", "h:65536", None),
        ("https", "", None),
        ("https", "h/x", None),
        ("https", None, None),
    ],
)
def test_the_service_s_own_origin_is_what_a_browser_calls_it(
    scheme: str, host: str | None, origin: str | None
) -> None:
    assert own_origin(scheme, host) == origin
    assert origin is None or read_origin(origin) == origin


@pytest.mark.parametrize(
    ("known", "yes", "no"),
    [
        (
            "https://*.example.com",
            [
                "https://a.example.com",
                "https://a.b.c.example.com",
                "https://a_b-1.example.com",
                "https://a.example.com:443",
            ],
            [
                "https://example.com",
                "https://.example.com",
                "https://a..example.com",
                "https://aexample.com",
                "https://a.example.com.evil.example",
                "https://a.example.com.",
                "https://evil.example/.example.com",
                "https://a@b.example.com",
                "https://a.exampleXcom",
                "http://a.example.com",
                "https://a.example.com:8443",
                "https://*.example.com",
                "https://A.example.com",
                "https://a.example.com\n",
                "https://a.example.com https://b.example.com",
                "null",
                "",
            ],
        ),
        (
            "http://*.example.com:8080",
            ["http://a.example.com:8080"],
            ["http://a.example.com", "http://a.example.com:80800"],
        ),
        (
            "https://h",
            ["https://h", "https://h:443"],
            ["https://h:444", "https://h.", "http://h", "HTTPS://H"],
        ),
        ("http://[::1]:3000", ["http://[::1]:3000"], ["http://[::1]", "http://localhost:3000"]),
    ],
)
def test_known_origins_are_exact_and_patterns_hold_for_names_below_theirs(
    known: str, yes: list[str], no: list[str]
) -> None:
    origins = Origins([known])
    assert [each for each in (*yes, *no) if each in origins] == yes


def settings(*origins: str, key: bool = True, headers: tuple[str, ...] = ()) -> Settings:
    return Settings(jwt_secret=SECRET if key else None, cors_origins=origins, cors_headers=headers)


@pytest.fixture
async def below() -> AsyncIterator[AsgiDriver]:
    """Knows the pages of all names below example.com, and asks for tokens."""
    async with lifespan(
        app := create_app(settings("https://*.example.com", headers=("X-Request-ID",)))
    ):
        yield AsgiDriver(app)


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:80", "http://localhost", 201),
        ("localhost", "http://localhost:80", 201),
        ("LOCALHOST:80", "http://localhost", 201),
        ("[::1]:80", "http://[::1]", 201),
        ("localhost:443", "http://localhost", 403),
        ("localhost:80", "https://localhost", 403),
        ("localhost:80", "http://localhost:8080", 403),
        ("localhost.:80", "http://localhost", 403),
        ("localhost:80", APP, 201),
        ("localhost:80", "https://example.com", 403),
        ("localhost:80", "https://evil.example", 403),
        ("localhost:80", "null", 403),
        ("", "http://", 403),
    ],
)
async def test_a_cookie_counts_for_pages_of_the_own_and_of_known_origins(
    below: AsgiDriver, host: str, origin: str, status: int
) -> None:
    headers = {**COOKIE, "host": host, "origin": origin}
    assert (await below.request("POST", "/api/v1/tickets", TICKET, headers)).status == status


async def test_local_mode_lets_pages_of_patterns_in_and_they_read_the_answers() -> None:
    async with lifespan(app := create_app(settings("https://*.example.com", key=False))):
        client = AsgiDriver(app)
        for origin, status in ((APP, 200), ("https://example.com", 403)):
            answer = await client.request("GET", "/health", headers={"origin": origin})
            assert answer.status == status
            assert answer.headers.get("access-control-allow-origin") == (
                origin if status == 200 else None
            )
            assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:3000", "http://127.0.0.1:5173", "https://[::1]", "http://localhost"],
)
async def test_local_mode_lets_pages_of_this_machine_read_what_they_get(origin: str) -> None:
    async with lifespan(app := create_app(settings(key=False))):
        client = AsgiDriver(app)
        preflight = {"origin": origin, "access-control-request-method": "POST"}
        for method, path, headers, status in (
            ("GET", "/health", {}, 200),
            ("POST", "/api/v1/messages/send", {}, 400),
            ("GET", "/nothing", {}, 404),
            ("OPTIONS", "/api/v1/messages/send", preflight, 200),
            ("GET", "/health", {"host": "evil.example"}, 403),
        ):
            answer = await client.request(method, path, b"", {"origin": origin, **headers})
            assert answer.status == status
            assert answer.headers["access-control-allow-origin"] == origin


async def test_an_open_service_and_one_with_a_key_let_no_page_of_this_machine_read() -> None:
    for given in (Settings(enable_auth=False), settings(APP)):
        async with lifespan(app := create_app(given)):
            answer = await AsgiDriver(app).request(
                "GET", "/health", headers={"origin": "http://localhost:3000"}
            )
            assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
@pytest.mark.parametrize(
    "asked", [", ".join(TOOLS), *TOOLS, "x-request-id", "X-Request-Id,BAGGAGE", "", " , ,"]
)
async def test_a_preflight_allows_what_tools_add_and_what_cors_headers_names(
    below: AsgiDriver, method: str, asked: str
) -> None:
    headers = {
        "origin": APP,
        "access-control-request-method": method,
        "access-control-request-headers": asked,
        "access-control-request-private-network": "true",
    }
    answer = await below.request("OPTIONS", "/api/v1/messages/send", headers=headers)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == APP
    allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
    assert {name for name in asked.lower().replace(" ", "").split(",") if name} <= set(allowed)
    assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize(
    ("origin", "method", "headers", "named"),
    [
        (
            APP,
            "GET",
            "x-one, baggage, x-two",
            ['"x-one"', '"x-two"', "CORS_HEADERS", "X-Request-ID"],
        ),
        (APP, "PUT", "", ['"PUT"', "DELETE"]),
        ("https://example.com", "GET", "", ['"https://example.com"', "CORS_ORIGINS"]),
    ],
)
async def test_a_refused_preflight_names_what_is_not_allowed_and_what_is(
    below: AsgiDriver, origin: str, method: str, headers: str, named: list[str]
) -> None:
    given = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": headers,
    }
    answer = await below.request("OPTIONS", "/api/v1/messages/send", headers=given)
    assert answer.status == 400
    detail = answer.json()["detail"]
    assert [word for word in named if word not in detail] == []
    assert 'baggage"' not in detail


async def test_an_answer_says_that_it_depends_on_the_origin_also_where_none_was_sent(
    below: AsgiDriver,
) -> None:
    for headers in ({}, {"origin": "https://evil.example"}, {"origin": APP}):
        for path in ("/health", "/nothing", "/api/v1/connections"):
            assert (await below.request("GET", path, headers=headers)).headers["vary"] == "Origin"


async def test_pages_can_read_that_the_server_has_made_a_mistake() -> None:
    async def crash(_: Request) -> Response:
        raise RuntimeError

    app = create_app(settings("https://*.example.com"))
    app.router.routes.insert(0, Route("/crash", crash))
    async with lifespan(app):
        client = AsgiDriver(app)
        for origin, named in ((APP, APP), ("https://example.com", None)):
            exchange = Exchange()
            scope = client.scope("GET", "/crash", {"origin": origin}, exchange)
            with pytest.raises(RuntimeError):  # for the server's log
                await app(scope, exchange.receive, exchange.send)
            assert exchange.status == 500
            assert exchange.headers.get("access-control-allow-origin") == named
            assert exchange.headers["vary"] == "Origin"
