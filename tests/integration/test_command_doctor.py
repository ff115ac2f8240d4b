"""`msgpush doctor` finds what is wrong on the way: each fault is a real one, on real sockets."""

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from itertools import chain
from pathlib import Path

import pytest

from msgpush.entrypoints.cli import run
from tests.integration.test_nginx import NGINX, Nginx, free_port
from tests.support.service import ServiceProcess, ThreadedService
from tests.support.tokens import OTHER_SECRET, SECRET, token
from tests.support.web import WebServer, answer

ORIGIN = "https://app.example.com"
needs_nginx = pytest.mark.skipif(NGINX is None and "CI" not in os.environ, reason="needs nginx")
# As nginx is when it is told nothing, and what others tell it who had trouble once.
BUFFERING = [
    ("proxy_http_version 1.1;", "proxy_http_version 1.0;"),
    ("proxy_buffering off;", "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;"),
]


@pytest.fixture(scope="module")
def service() -> Iterator[ThreadedService]:
    with ThreadedService(enable_auth=False) as service:
        yield service


def wrong(capsys: pytest.CaptureFixture[str], *argv: str, **environ: str) -> list[str]:
    """What the doctor finds wrong; its exit status has to agree."""
    status = run(["doctor", "--timeout", "1", *argv], environ)
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert all(re.match("(ok|wrong|not tried) +[a-zA-Z].", line) for line in lines)
    found = [line.removeprefix("wrong").strip() for line in lines if line.startswith("wrong")]
    assert status == (1 if found else 0)
    for line in found:
        assert re.search("[;:] ", line), "it says what to do"
    return found


def url(port: int, path: str = "") -> str:
    return f"http://127.0.0.1:{port}{path}"


class Answers(WebServer):
    """Something that answers, and is no msgpush."""

    def __init__(self, status: int, body: bytes = b"{}", *headers: tuple[str, str]) -> None:
        super().__init__()
        self._status, self._body, self._headers = status, body, headers

    def get(self, exchange: BaseHTTPRequestHandler) -> None:
        answer(exchange, self._body, *self._headers, status=self._status)


class Changing:
    """A proxy that passes bytes on, and changes those of the answers.

    Args:
        old, new: a pattern, and what stands in its place.
    """

    def __init__(self, target: int, old: bytes, new: bytes) -> None:
        self._target, self._old, self._new = target, old, new
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> "Changing":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                for source, sink in ((client, server), (server, client)):
                    way = (source, sink, source is server)
                    threading.Thread(target=self._pump, args=way, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, changed: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(re.sub(self._old, self._new, data) if changed else data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def test_where_all_is_well_nothing_is_found(
    service: ThreadedService, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wrong(capsys, url(service.port), "--user", "1", "--websocket") == []
    assert wrong(capsys, MSGPUSH_URL=url(service.port)) == []


# Proxies


@needs_nginx
def test_the_shipped_nginx_is_well(
    service: ThreadedService, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with Nginx(tmp_path, service.port, service.port) as nginx:
        assert wrong(capsys, url(nginx.port), "--websocket") == []


@needs_nginx
def test_an_nginx_that_buffers_is_found(
    service: ThreadedService, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with Nginx(tmp_path, service.port, service.port, changes=BUFFERING) as nginx:
        (found,) = wrong(capsys, url(nginx.port))
    assert "arrive in 1 s, while other answers come at once: a proxy collects" in found
    assert "proxy_buffering off" in found


@needs_nginx
def test_an_nginx_that_compresses_streams_is_found(
    service: ThreadedService, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    gzip = "gzip on; gzip_types text/event-stream; gzip_min_length 1; gzip_proxied any;"
    with Nginx(tmp_path, service.port, service.port, changes=[("gzip off;", gzip)]) as nginx:
        (found,) = wrong(capsys, url(nginx.port))
    assert "compress" in found


@needs_nginx
def test_instances_that_share_no_bus_are_found(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with (
        ServiceProcess(ENABLE_AUTH="false") as first,
        ServiceProcess(ENABLE_AUTH="false") as second,
        Nginx(tmp_path, first.port, second.port) as nginx,
    ):
        # In turn: health, the stream, the message.
        found = [wrong(capsys, url(nginx.port)) for _ in range(2)]
    assert any("several instances without a common Redis" in each for each in chain(*found))


@needs_nginx
def test_an_nginx_that_passes_no_websocket_on_is_found(
    service: ThreadedService, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    changes = [("proxy_set_header Upgrade $http_upgrade;\n", "\n")]
    with Nginx(tmp_path, service.port, service.port, changes=changes) as nginx:
        (found,) = wrong(capsys, url(nginx.port), "--websocket")
    assert "pass on the headers Upgrade and Connection" in found


@needs_nginx
def test_an_nginx_whose_service_is_away_is_found(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    port = free_port()
    with Nginx(tmp_path, port, port) as nginx:
        (found,) = wrong(capsys, url(nginx.port))
    assert "a proxy answers for it, with 502: it doesn't reach the service" in found


# Prefixes


@needs_nginx
def test_a_prefix_that_is_missing_or_too_much_is_found(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = "location /push/ { proxy_pass http://msgpush; proxy_buffering off; } location / { return 404; } location /other {"
    for number, (prefix, given, expected) in enumerate(
        [
            ("/push", "", "/push, and not at {url}: use that URL"),
            ("/push", "/push", ""),
            ("/push", "/push/sub", "/push, and not at {url}/push/sub: use that URL"),
            ("", "/push", "doesn't know the prefix /push; set ROOT_PATH=/push"),
        ]
    ):
        directory = tmp_path / str(number)
        directory.mkdir()
        with (
            ServiceProcess(ENABLE_AUTH="false", ROOT_PATH=prefix) as service,
            Nginx(
                directory, service.port, service.port, changes=[("location / {", place)]
            ) as nginx,
        ):
            found = wrong(capsys, url(nginx.port, given))
            assert len(found) == (1 if expected else 0)
            assert expected.format(url=url(nginx.port)) in "".join(found)


def test_a_path_that_is_too_much_is_found_without_a_proxy(
    service: ThreadedService, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = wrong(capsys, url(service.port, "/api/v1"))
    assert found.startswith(f"msgpush is at {url(service.port)}, and not at")


# No msgpush


def test_what_is_no_msgpush_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    for status, body, headers, expected in [
        (200, b"<html>", [], "is no msgpush (200, "),
        (200, b'{"status":"ok"}', [], "is no msgpush (200, "),
        (404, b"", [], "is no msgpush (404, "),
        (401, b"", [], "something before it answers 401"),
        (503, b"", [], "a proxy answers for it, with 503"),
        (
            301,
            b"",
            [("Location", "https://x.example/health")],
            "redirects to https://x.example; use",
        ),
        (503, b'{"status":"unavailable","reason":"no bus"}', [], "unavailable: no bus"),
    ]:
        with Answers(status, body, *headers) as server:
            (found,) = wrong(capsys, server.origin)
            assert expected in found


def test_what_cannot_be_reached_is_found(
    service: ThreadedService, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = wrong(capsys, url(free_port()))
    assert "nothing listens there" in found
    (found,) = wrong(capsys, "http://nobody.invalid")
    assert "the name nobody.invalid is not known" in found
    (found,) = wrong(capsys, url(service.port).replace("http:", "https:"))
    assert "it speaks no TLS there; use http://" in found
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (found,) = wrong(capsys, url(silent.getsockname()[1]))
        assert "no answer in 1 s" in found


@needs_nginx
def test_a_service_for_this_machine_alone_says_so_behind_a_proxy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with ServiceProcess() as service, Nginx(tmp_path, service.port, service.port) as nginx:
        (found,) = wrong(capsys, url(nginx.port))
    assert "msgpush refuses: 403, the request came through a proxy" in found
    assert "ENABLE_AUTH" in found


def test_a_password_in_the_url_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = wrong(capsys, f"http://user:hunter2@127.0.0.1:{free_port()}")
    assert "hunter2" not in found


# Clocks


@pytest.mark.parametrize(("seconds", "direction"), [(120, "ahead of"), (-60, "behind")])
def test_a_clock_that_is_wrong_is_found(
    seconds: int, direction: str, service: ThreadedService, capsys: pytest.CaptureFixture[str]
) -> None:
    date = formatdate(time.time() + seconds, usegmt=True).encode()
    with Changing(service.port, rb"(?i)(\r\ndate: )[^\r]+", rb"\g<1>" + date) as proxy:
        (found,) = wrong(capsys, url(proxy.port))
    assert re.match(rf"its clock is \d+ s {direction} this machine's, by header Date: ", found)
    assert "NTP" in found


def test_a_message_stamped_by_a_wrong_clock_is_found(
    service: ThreadedService, capsys: pytest.CaptureFixture[str]
) -> None:
    with Changing(service.port, rb'("timestamp":")2', rb"\g<1>1") as proxy:
        (found,) = wrong(capsys, url(proxy.port))
    assert "behind this machine's, by a message's timestamp" in found


# Pages of other origins


def test_pages_that_may_not_use_it_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    for settings in ({"enable_auth": False}, {}, {"jwt_secret": SECRET}):
        environ = {"MSGPUSH_TOKEN": token("me")}
        with ThreadedService(**settings) as service:
            (found,) = wrong(capsys, url(service.port), "--origin", ORIGIN, **environ)
            assert f"pages of {ORIGIN} may not use it" in found
            assert f"""CORS_ORIGINS='["{ORIGIN}"]'""" in found
            own = url(service.port)
            assert wrong(capsys, own, "--origin", own, **environ) == []
        with ThreadedService(**settings, cors_origins=(ORIGIN,)) as service:
            assert wrong(capsys, url(service.port), "--origin", ORIGIN, **environ) == []


def test_a_proxy_that_adds_an_origin_of_its_own_is_found(
    capsys: pytest.CaptureFixture[str],
) -> None:
    header = rb"(?i)(\r\naccess-control-allow-origin: [^\r]+)"
    with (
        ThreadedService(enable_auth=False, cors_origins=(ORIGIN,)) as service,
        Changing(service.port, header, rb"\g<1>\g<1>") as proxy,
    ):
        (found,) = wrong(capsys, url(proxy.port), "--origin", ORIGIN)
    assert "is there twice" in found


# Tokens


@pytest.fixture(scope="module")
def guarded() -> Iterator[ThreadedService]:
    with ThreadedService(jwt_secret=SECRET) as service:
        yield service


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("", "there is no token"),
        ("s3cret", "the token is refused: the token is no signed JSON Web Token"),
        (token("me", OTHER_SECRET), "the token is refused: the token's signature is wrong"),
        (token("me", lifetime=-900), "the token is refused: the token has expired"),
    ],
    ids=["none", "nonsense", "signature", "expired"],
)
def test_a_token_that_is_refused_is_found(
    shown: str, expected: str, guarded: ThreadedService, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = wrong(capsys, url(guarded.port), "--channel", "orders", MSGPUSH_TOKEN=shown)
    assert expected in found
    assert not shown or shown not in found


def test_a_token_without_the_channel_is_found(
    guarded: ThreadedService, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = {"MSGPUSH_TOKEN": token("me", subscribe=["invoices"])}
    (found,) = wrong(capsys, url(guarded.port), "--channel", "orders", **environ)
    assert '"orders"' in found
    assert "msgpush.subscribe has orders" in found
    (found,) = wrong(capsys, url(guarded.port), "--user", "other", **environ)
    assert "user:other" in found
    assert wrong(capsys, url(guarded.port), "--user", "me", **environ) == []
    assert wrong(capsys, url(guarded.port), **environ) == []


def test_with_a_token_for_it_a_message_s_way_is_tried(
    guarded: ThreadedService, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["msgpush-doctor.*"]
    for publish, tried in ([*own, "service:msgpush-doctor"], True), ([], False):
        bearer = token("doctor", subscribe=own, publish=publish)
        assert run(["doctor", url(guarded.port)], {"MSGPUSH_TOKEN": bearer}) == 0
        out = capsys.readouterr().out
        assert ("a message arrives" in out) == tried
        assert ("not tried" in out) != tried
