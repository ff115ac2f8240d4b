"""Who comes from elsewhere: through a proxy, under another name, or from another origin's page."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.routing import Mount, Route, WebSocketRoute

from msgpush.entrypoints.app import create_app
from msgpush.entrypoints.settings import Settings
from tests.integration.test_nginx import NGINX, Nginx
from tests.support.client import RawConnection, SseClient, request
from tests.support.service import ServiceProcess
from tests.support.tokens import SECRET, bearer, token

needs_nginx = pytest.mark.skipif(NGINX is None and "CI" not in os.environ, reason="needs nginx")
MESSAGE = b'{"type":"info","service":"s"}'
HEADERS = """\
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header Forwarded "";
"""
ADMIN = bearer(token("ops", admin=True))


@pytest.fixture(scope="module")
def local() -> Iterator[ServiceProcess]:
    with ServiceProcess() as running:
        yield running


def requests_to_every_route() -> list[tuple[str, str]]:
    found = []
    for route in create_app(Settings()).routes:
        if isinstance(route, Mount):
            found.append(("GET", f"{route.path}/page.css"))
            continue
        if isinstance(route, WebSocketRoute):
            continue  # by a request that asks for one: see `refused_everywhere`
        assert isinstance(route, Route)
        path = re.sub(r"\{[^}]*\}", "a", route.path)
        found += [(method, path) for method in sorted(route.methods or {"GET", "HEAD", "POST"})]
    return found


def refused_everywhere(port: int, headers: dict[str, str]) -> None:
    for method, path in requests_to_every_route():
        answer = request(port, method, path, MESSAGE if method == "POST" else None, headers)
        assert answer.status == 403, (method, path, headers)
        if method != "HEAD":
            detail = answer.json()["detail"]
            assert "JWT_SECRET" in detail, "it says what to set"
            assert "ENABLE_AUTH=false" in detail
    upgrade = headers | {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    answer = request(port, "GET", "/ws", headers=upgrade)
    assert answer.status == 403, headers
    assert "JWT_SECRET" in answer.json()["detail"]


@needs_nginx
@pytest.mark.parametrize(
    ("set_headers", "version"),
    [
        ("", "1.0"),  # what a bare proxy_pass does up to 1.29.6
        ("proxy_set_header X-Forwarded-For $remote_addr;", "1.1"),
        ("proxy_set_header X-Real-IP $remote_addr;", "1.1"),
        ("proxy_set_header X-Forwarded-Proto $scheme;", "1.1"),
        ('proxy_set_header Forwarded "for=$remote_addr";', "1.1"),
        ("proxy_set_header Via 1.1;", "1.1"),
    ],
)
def test_local_mode_serves_nothing_that_came_through_nginx(
    local: ServiceProcess, tmp_path: Path, set_headers: str, version: str
) -> None:
    changes = [
        (HEADERS, f"        {set_headers}\n"),
        ("proxy_http_version 1.1;", f"proxy_http_version {version};"),
        ("location = /metrics {", "location = /kept-inside {"),
    ]
    with Nginx(tmp_path, local.port, local.port, changes=changes) as nginx:
        refused_everywhere(nginx.port, {"Host": "localhost"})


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example:8089",
        "127.0.0.1@evil.example",
        "0.0.0.0",
        "10.0.0.1",
        "[::2]",
        "",
    ],
)
def test_local_mode_serves_nothing_under_another_name(local: ServiceProcess, host: str) -> None:
    refused_everywhere(local.port, {"Host": host})


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost.evil.example", "file://"]
)
def test_local_mode_serves_no_page_of_another_origin(local: ServiceProcess, origin: str) -> None:
    refused_everywhere(local.port, {"Origin": origin})
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    assert request(local.port, "OPTIONS", "/api/v1/messages/send", headers=preflight).status == 403


def test_local_mode_serves_this_machine(local: ServiceProcess) -> None:
    curl = shutil.which("curl")
    if curl is None and "CI" not in os.environ:
        pytest.skip("needs curl")
    assert curl is not None
    for host in ("localhost", "127.0.0.1"):
        base = f"http://{host}:{local.port}"
        for arguments in (
            [f"{base}/api/v1/connections"],
            [f"{base}/api/v1/messages/send", "-d", MESSAGE.decode()],
        ):
            result = subprocess.run(
                [curl, "-sSf", "-4", "--noproxy", "*", *arguments], capture_output=True, check=False
            )
            assert result.returncode == 0, result.stderr
    for origin in (f"http://localhost:{local.port}", "http://127.0.0.1:3000", "https://[::1]"):
        assert request(local.port, "GET", "/health", headers={"Origin": origin}).status == 200


# What the server refuses before it is a request


PAGE = b"Origin: https://a.example.com\r\n"
SEND = b"POST /api/v1/messages/send HTTP/1.1\r\nHost: localhost\r\n"
REFUSED = [
    (b"GET /%2f HTTP/1.1\r\nHost: localhost\r\n" + PAGE + b"\r\n", 400),
    (b"GET / HTTP/1.1\r\n" + PAGE + b"X\x00: y\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\n" + PAGE + b"Host: b\r\n\r\n", 400),
    (SEND + PAGE + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n" + PAGE + b"Host:", 408),
    (SEND + b"Content-Length: 5\r\n" + PAGE + b"\r\n1", 408),
    (SEND + b"Content-Length: 400000\r\n" + PAGE + b"\r\n", 413),
    (SEND + b"Transfer-Encoding: chunked\r\n" + PAGE + b"\r\n50000\r\n" + b"x" * 0x50000, 413),
    (
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + PAGE + b"Cookie: " + b"x" * 40_000 + b"\r\n\r\n",
        431,
    ),
    (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: " + b"x" * 40_000 + b"\r\n" + PAGE + b"\r\n",
        431,
    ),
    (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n" + PAGE + b"\r\n", 431),
    (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + PAGE + b"Cookie: " + b"x" * 40_000, 431),
    (SEND + PAGE + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"x" * 40_000, 431),
]


@pytest.fixture(scope="module")
def paged() -> Iterator[ServiceProcess]:
    with ServiceProcess(
        ENABLE_AUTH="false",
        CORS_ORIGINS='["https://*.example.com"]',
        HEADER_TIMEOUT="0.3",
        BODY_TIMEOUT="0.3",
    ) as running:
        yield running


def refusal(port: int, raw: bytes) -> tuple[int, list[str], str]:
    """The status of the answer to these bytes, its headers of CORS, and its `Vary`."""
    with RawConnection(port) as connection:
        connection.send(raw)
        head = connection.read_all().partition(b"\r\n\r\n")[0].decode().lower()
    first, *lines = head.split("\r\n")
    cors = sorted(line for line in lines if line.startswith("access-control-"))
    return int(first.split()[1]), cors, "\n".join(line for line in lines if line.startswith("vary"))


@pytest.mark.parametrize(
    ("raw", "status"), REFUSED, ids=[f"{n}-{status}" for n, (_, status) in enumerate(REFUSED)]
)
def test_pages_can_read_why_their_requests_were_refused_and_pages_of_others_cannot(
    paged: ServiceProcess, raw: bytes, status: int
) -> None:
    assert refusal(paged.port, raw) == (
        status,
        [
            "access-control-allow-credentials: true",
            "access-control-allow-origin: https://a.example.com",
            "access-control-expose-headers: retry-after, ratelimit, ratelimit-policy, www-authenticate, x-request-id",
        ],
        "vary: origin",
    )
    for page in (b"Origin: https://example.com\r\n", b""):
        assert refusal(paged.port, raw.replace(PAGE, page)) == (status, [], "vary: origin")


def test_a_refusal_in_local_mode_can_be_read_by_pages_of_this_machine(
    local: ServiceProcess,
) -> None:
    page = b"Origin: http://localhost:3000\r\n"
    for raw, status in REFUSED[:1] + REFUSED[6:7] + REFUSED[8:9]:
        got, cors, _ = refusal(local.port, raw.replace(PAGE, page))
        assert got == status
        assert "access-control-allow-origin: http://localhost:3000" in cors


# Proxies that are trusted, and those that are not


def remotes(service: ServiceProcess) -> list[str]:
    rows = request(service.port, "GET", "/api/v1/connections", headers=ADMIN).json()["connections"]
    return [row["remote"] for row in rows]


def listen(port: int, **headers: str) -> SseClient:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return SseClient(port, "/sse/user/alice", bearer(token("alice")) | given)


@needs_nginx
def test_a_trusted_proxy_s_word_for_an_address_counts_and_no_client_s(tmp_path: Path) -> None:
    with (
        ServiceProcess(
            JWT_SECRET=SECRET, TRUSTED_PROXIES='["127.0.0.1"]', MAX_CONNECTIONS_PER_ADDRESS="1"
        ) as service,
        # nginx, whose word this is, says that everybody comes from there.
        Nginx(
            tmp_path,
            service.port,
            service.port,
            changes=[("For $remote_addr;", "For 203.0.113.7;")],
        ) as nginx,
        listen(nginx.port) as first,
        listen(nginx.port, X_Forwarded_For="198.51.100.1") as second,
    ):
        assert first.next().type == "msgpush.open"
        assert second.next().type == "msgpush.close", (
            "its own word for where it comes from is worth nothing"
        )
        assert remotes(service) == ["203.0.113.7"]


@pytest.mark.parametrize("proxies", ["[]", '["10.0.0.0/8"]'])
def test_without_trusted_proxies_nobody_s_word_for_an_address_counts(proxies: str) -> None:
    with (
        ServiceProcess(
            JWT_SECRET=SECRET, MAX_CONNECTIONS_PER_ADDRESS="1", TRUSTED_PROXIES=proxies
        ) as service,
        listen(service.port, X_Forwarded_For="203.0.113.7") as first,
        listen(service.port, X_Forwarded_For="203.0.113.8") as second,
    ):
        assert first.next().type == "msgpush.open"
        assert remotes(service)[0].startswith("127.0.0.1:")
        assert second.next().type == "msgpush.close"


@pytest.mark.parametrize("proxies", ['["127.0.0.0/8"]', '["::ffff:127.0.0.1"]'])
def test_a_socket_for_ipv6_knows_peers_of_ipv4_and_their_proxies(proxies: str) -> None:
    with (
        ServiceProcess(
            JWT_SECRET=SECRET, SERVICE_HOST="::", MAX_CONNECTIONS_PER_ADDRESS="1"
        ) as direct,
        ServiceProcess(
            JWT_SECRET=SECRET,
            SERVICE_HOST="::",
            MAX_CONNECTIONS_PER_ADDRESS="1",
            TRUSTED_PROXIES=proxies,
        ) as behind,
        listen(direct.port) as first,
        listen(direct.port) as second,
        listen(behind.port, X_Forwarded_For="::ffff:203.0.113.7, [::ffff:127.0.0.1]:443") as third,
        listen(behind.port, X_Forwarded_For="203.0.113.8") as fourth,
        listen(behind.port, X_Forwarded_For="203.0.113.7:99") as fifth,
    ):
        assert first.next().type == "msgpush.open"
        assert second.next().type == "msgpush.close"
        assert remotes(direct)[0].startswith("127.0.0.1:")
        assert [stream.next().type for stream in (third, fourth)] == ["msgpush.open"] * 2
        assert fifth.next().type == "msgpush.close", "it is the first one's address, with a port"
        assert sorted(remotes(behind)) == ["203.0.113.7", "203.0.113.8"]


def test_local_mode_serves_this_machine_in_the_notation_of_ipv6() -> None:
    with ServiceProcess(SERVICE_HOST="::ffff:127.0.0.1") as service:
        for host in ("[::ffff:127.0.0.1]", "[::ffff:7f00:1]:8089", "127.0.0.1"):
            assert request(service.port, "GET", "/health", headers={"Host": host}).status == 200
        assert (
            request(service.port, "GET", "/health", headers={"Host": "[::ffff:a00:1]"}).status
            == 403
        )


@needs_nginx
def test_behind_a_trusted_proxy_a_page_s_own_origin_is_what_the_browser_calls_it(
    tmp_path: Path,
) -> None:
    with (
        ServiceProcess(JWT_SECRET=SECRET, TRUSTED_PROXIES='["127.0.0.1"]') as service,
        Nginx(
            tmp_path, service.port, service.port, changes=[("Proto $scheme;", "Proto https;")]
        ) as nginx,
    ):
        cookie = {"Cookie": f"msgpush_token={token('alice')}"}
        for origin, status in (
            (f"https://127.0.0.1:{nginx.port}", 201),
            (f"http://127.0.0.1:{nginx.port}", 403),
            ("https://127.0.0.1", 403),
        ):
            body, headers = b'{"channels":["user:alice"]}', {**cookie, "Origin": origin}
            assert request(nginx.port, "POST", "/api/v1/tickets", body, headers).status == status
