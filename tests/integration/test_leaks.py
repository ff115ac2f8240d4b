"""Nothing secret is told: in logs, errors, headers, metrics, lists, or to who mustn't know whether
something exists.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.client import RawConnection, Response, SseClient, request
from tests.support.redis_servers import RedisServer
from tests.support.service import ServiceProcess, eventually
from tests.support.tokens import OTHER_SECRET, bearer, claims, signed, token, unsigned

SECRET = "hunter2-" * 5
METRICS = "metrics-hunter2"
PASSWORD = "redis-hunter2"


@pytest.fixture(scope="module", params=["console", "json"])
def service(request: pytest.FixtureRequest) -> Iterator[ServiceProcess]:
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        with redis.client() as client:
            client.config_set("requirepass", PASSWORD)
        yield stack.enter_context(
            ServiceProcess(
                REDIS_HOST="127.0.0.1",
                REDIS_PORT=str(redis.port),
                REDIS_PASSWORD=PASSWORD,
                REDIS_DB="0",
                JWT_SECRET=SECRET,
                METRICS_TOKEN=METRICS,
                LOG_LEVEL="debug",
                LOG_FORMAT=request.param,
                HEADER_TIMEOUT="0.3",
            )
        )


def everything_told(service: ServiceProcess) -> tuple[list[Response], list[str]]:
    """All answers of a service to what is wrong in every way, and all secrets that were in the
    questions.
    """
    admin = token("root", SECRET, admin=True, publish=["*"], subscribe=["*"])
    tokens = [
        admin,
        token("alice", SECRET, lifetime=-900),
        token("alice", OTHER_SECRET),
        token("alice", SECRET, aud="other"),
        token("alice", SECRET, subscribe="*"),
        unsigned(claims("alice")),
        signed(claims("alice"), SECRET, kid="x" * 50),
        "garbage.hunter2.garbage",
        "ticket_hunter2hunter2hunter2",
    ]
    made = request(service.port, "POST", "/api/v1/tickets", b'{"channels":["a"]}', bearer(admin))
    ticket = made.json()["ticket"]
    told: list[Response] = []
    with SseClient(service.port, f"/sse/stream/a?token={ticket}", {"User-Agent": "test"}) as stream:
        assert stream.next().type == "msgpush.open"
        told.append(request(service.port, "GET", "/api/v1/connections", headers=bearer(admin)))
    for text in [*tokens, ticket]:
        for path in (
            "/sse/stream/a,b",
            "/api/v1/channels/a/messages",
            "/api/v1/connections",
            "/nowhere",
        ):
            if text != admin or not path.startswith("/sse"):
                told += [
                    request(service.port, "GET", path, headers=bearer(text)),
                    request(service.port, "GET", path, headers={"Cookie": f"msgpush_token={text}"}),
                ]
            told.append(request(service.port, "HEAD", f"{path}?token={text}"))
            told.append(request(service.port, "GET", f"{path}?x=1&token={text}"))
        told.append(request(service.port, "POST", "/api/v1/messages/send", b"{", bearer(text)))
        told.append(request(service.port, "GET", "/metrics", headers=bearer(text)))
        told.append(
            raw(
                service.port,
                f"GET /sse/stream/a?token={text} HTTP/9.9\r\nAuthorization: Bearer {text}\r\n\r\n",
            )
        )
        told.append(raw(service.port, f"GET /sse/stream/a?token={text}"))
        told.append(
            raw(
                service.port,
                f"GET / HTTP/1.1\r\nCookie: msgpush_token={text}\r\nX: {'x' * 40_000}\r\n\r\n",
            )
        )
    told.append(
        request(service.port, "POST", "/api/v1/messages/send", b"x" * 400_000, bearer(admin))
    )
    told.append(request(service.port, "DELETE", "/health"))
    told += [
        request(service.port, "GET", path)
        for path in ("/", "/docs", "/openapi.json", "/health", "/static/page.css")
    ]
    told.append(request(service.port, "GET", "/metrics", headers=bearer(METRICS)))
    return told, [*tokens, ticket]


def raw(port: int, text: str) -> Response:
    with RawConnection(port) as connection:
        connection.send(text.encode())
        head, _, body = connection.read_all().partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return Response(int(first.split(" ")[1]), headers, body)


def test_no_secret_is_in_an_answer_or_in_the_log(service: ServiceProcess) -> None:
    eventually(lambda: request(service.port, "GET", "/health/ready").status == 200)
    told, given = everything_told(service)
    # Of a token every part but its header, which all have.
    secrets = [
        SECRET,
        METRICS,
        PASSWORD,
        *(part for text in given for part in text.split(".")[-2:] if len(part) > 8),
    ]
    texts = [f"{answer.headers} {answer.body.decode(errors='replace')}" for answer in told]
    texts += [str(line) for line in service.log]
    for text in texts:
        for secret in secrets:
            assert secret not in text
    assert {answer.status for answer in told} >= {200, 400, 401, 403, 404, 405, 408, 413, 431}
    for answer in told:
        assert "server" not in answer.headers
        assert "x-powered-by" not in answer.headers
        assert not re.search(r"uvicorn|starlette|python/|msgpush/\d", str(answer.headers).lower())


def test_pages_and_what_they_load_say_how_they_may_be_used(service: ServiceProcess) -> None:
    for path in ("/", "/docs"):
        headers = request(service.port, "GET", path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "same-origin"
    for path in ("/", "/docs", "/openapi.json", "/static/page.css"):
        assert request(service.port, "GET", path).headers["x-content-type-options"] == "nosniff"


def test_what_may_not_be_known_looks_the_same_whether_it_exists_or_not(
    service: ServiceProcess,
) -> None:
    admin = token("root", SECRET, admin=True, publish=["*"], subscribe=["*"])
    nobody = bearer(token("nobody", SECRET))

    def same(*answers: Response) -> None:
        seen = {(each.status, each.body, plain(each)) for each in answers}
        assert len(seen) == 1, seen

    body = b'{"type":"info","service":"a","channels":["kb:1"]}'
    assert request(service.port, "POST", "/api/v1/messages/send", body, bearer(admin)).status == 202
    used, never = (
        request(service.port, "GET", f"/api/v1/channels/kb:{n}/messages", headers=nobody)
        for n in (1, 2)
    )
    same(replaced(used, b"kb:1", b"kb:2"), never)
    with SseClient(service.port, "/sse/stream/a", bearer(admin)) as stream:
        id = re.findall(r'"connection":"(\w+)"', stream.next().data)[0]
        open_now, none = (
            request(service.port, "DELETE", f"/api/v1/connections/{name}", headers=nobody)
            for name in (id, "0" * 16)
        )
        same(open_now, none)
    made = request(
        service.port, "POST", "/api/v1/tickets", b'{"channels":["a"]}', bearer(admin)
    ).json()["ticket"]
    request(service.port, "POST", "/api/v1/revocations", b'{"subject":"root"}', bearer(admin))
    unknown = request(service.port, "GET", "/sse/stream/a?token=ticket_" + "x" * 43)
    assert (
        unknown.status == request(service.port, "GET", f"/sse/stream/a?token={made}").status == 401
    )


def plain(answer: Response) -> str:
    """An answer's headers, but for those that tell two answers apart."""
    return str({**answer.headers, "date": "", "x-request-id": ""})


def replaced(answer: Response, old: bytes, new: bytes) -> Response:
    headers = {
        name: value.replace(old.decode(), new.decode()) for name, value in answer.headers.items()
    }
    return Response(answer.status, headers, answer.body.replace(old, new))
