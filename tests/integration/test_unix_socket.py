"""`SERVICE_UDS`: the service on a unix socket, alone and behind a real nginx."""

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_nginx import NGINX, Nginx
from tests.integration.test_workers import Workers
from tests.support.client import RawConnection, SseClient, request
from tests.support.service import ServiceProcess, eventually
from tests.support.tokens import SECRET, bearer, token

MESSAGE = b'{"type":"info","service":"s","channels":["a"],"id":"m1"}'
ADMIN = bearer(token("ops", admin=True))
ALICE = bearer(token("alice", subscribe=["a"], publish=["*"]))


@pytest.fixture
def path() -> Iterator[str]:
    """The path of a socket; short, which those of the tests' own directories may not be."""
    with tempfile.TemporaryDirectory() as directory:
        yield f"{directory}/push.sock"


def remotes(port: int | str) -> list[str]:
    rows = request(port, "GET", "/api/v1/connections", headers=ADMIN).json()["connections"]
    return [row["remote"] for row in rows]


def test_all_of_the_service_is_on_the_socket_and_nothing_on_a_port(path: str) -> None:
    # The image sets the other two, which mean nothing beside it.
    with ServiceProcess(SERVICE_UDS=path, SERVICE_HOST="0.0.0.0", SERVICE_PORT="8089") as service:
        (ready,) = [line for line in service.log if line["event"] == "ready"]
        assert ready["uds"] == path
        assert "port" not in ready
        with SseClient(path, "/sse/stream/a") as stream:
            assert stream.next().type == "msgpush.open"
            assert request(path, "POST", "/api/v1/messages/send", MESSAGE).status == 202
            assert '"id":"m1"' in stream.next().data
            rows = request(path, "GET", "/api/v1/connections").json()["connections"]
            assert [row["remote"] for row in rows] == [""]
            tables = ("/proc/net/tcp", "/proc/net/tcp6")
            links = {os.readlink(entry) for entry in Path(f"/proc/{service.pid}/fd").iterdir()}
            inodes = {
                line.split()[9]
                for table in tables
                for line in Path(table).read_text().splitlines()[1:]
            }
            assert not any(f"socket:[{inode}]" in links for inode in inodes)
        with RawConnection(path) as connection:
            connection.send(b"GET /%2f HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.read_all().startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(("given", "mode"), [("", 0o660), ("0600", 0o600)])
def test_the_socket_has_its_mode_whatever_the_umask_and_is_gone_at_the_end(
    path: str, given: str, mode: int
) -> None:
    before = os.umask(0o077)
    try:
        with ServiceProcess(
            SERVICE_UDS=path, SERVICE_UDS_MODE=given, DRAIN_SECONDS="0.5"
        ) as service:
            assert stat.S_IMODE(os.stat(path).st_mode) == mode
            with SseClient(path, "/sse/stream/a") as stream:
                stream.next()
                service.signal(signal.SIGTERM)
                assert stream.rest()[-1].data == '{"reason":"drain","reconnect":true}'
            assert service.wait() == 0
    finally:
        os.umask(before)
    assert not os.path.lexists(path)


def test_a_socket_that_a_killed_process_has_left_is_replaced(path: str) -> None:
    with ServiceProcess(SERVICE_UDS=path) as killed:
        killed.signal(signal.SIGKILL)
        killed.wait()
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    with ServiceProcess(SERVICE_UDS=path):
        assert request(path, "GET", "/health").status == 200


def refused(path: str) -> str:
    """The one line with which the service doesn't start."""
    process = ServiceProcess(SERVICE_UDS=path)
    try:
        assert process.wait() == 1
    finally:
        process.__exit__()
    (line,) = process.log
    assert f"can't listen on {path}: " in line["event"]
    return str(line["event"])


def test_a_socket_that_is_served_is_left_alone(path: str) -> None:
    with ServiceProcess(SERVICE_UDS=path) as first:
        assert "another process serves it" in refused(path)
        assert request(path, "GET", "/health").status == 200
        # Nor does the first one remove what has taken its socket's place.
        os.unlink(path)
        Path(path).write_text("mine")
        first.signal(signal.SIGTERM)
        assert first.wait() == 0
    assert Path(path).read_text() == "mine"


def test_what_is_no_socket_is_left_alone(path: str) -> None:
    Path(path).write_text("mine")
    assert "no socket" in refused(path)
    assert Path(path).read_text() == "mine"
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as elsewhere:
        elsewhere.bind(f"{path}2")
        os.symlink(f"{path}2", path)
        assert "no socket" in refused(path)
        assert os.path.islink(path)
    os.unlink(path)
    os.mkdir(path)
    assert "no socket" in refused(path)


def test_a_socket_that_serves_something_else_than_streams_is_left_alone(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(path)
        refused(path)
    assert stat.S_ISSOCK(os.stat(path).st_mode)


def test_a_directory_that_is_not_there_is_told() -> None:
    assert "No such file or directory" in refused("/nowhere/push.sock")


def test_local_mode_on_a_socket_serves_no_proxy_and_no_other_name(path: str) -> None:
    with ServiceProcess(SERVICE_UDS=path, TRUSTED_PROXIES='["unix"]'):
        assert request(path, "GET", "/health", headers={"Host": "localhost"}).status == 200
        for headers in (
            {"X-Forwarded-For": "127.0.0.1"},
            {"Host": "push.example.com"},
            {"Origin": "https://evil.example"},
        ):
            assert (
                request(path, "GET", "/health", headers={"Host": "localhost", **headers}).status
                == 403
            )


def test_nobody_s_word_counts_on_a_socket_unless_its_proxy_is_trusted(path: str) -> None:
    told = {
        **ALICE,
        "X-Forwarded-For": "203.0.113.7, ::ffff:198.51.100.1",
        "X-Forwarded-Proto": "https",
    }
    for trusted, remote in (
        ("[]", ""),
        ('["127.0.0.0/8", "::/0"]', ""),
        ('["unix"]', "198.51.100.1"),
    ):
        with ServiceProcess(
            SERVICE_UDS=path, JWT_SECRET=SECRET, TRUSTED_PROXIES=trusted
        ) as service:
            with SseClient(path, "/sse/stream/a", told) as stream:
                stream.next()
                assert remotes(path) == [remote]
            assert any("TRUSTED_PROXIES" in line["event"] for line in service.log) == (
                "unix" not in trusted
            )


def test_a_socket_s_proxy_is_not_trusted_on_a_port() -> None:
    with (
        ServiceProcess(JWT_SECRET=SECRET, TRUSTED_PROXIES='["unix"]') as service,
        SseClient(
            service.port, "/sse/stream/a", {**ALICE, "X-Forwarded-For": "203.0.113.7"}
        ) as stream,
    ):
        stream.next()
        assert remotes(service.port)[0].startswith("127.0.0.1:")


def test_several_workers_serve_one_socket(path: str, tmp_path: Path) -> None:
    with Workers(tmp_path, SERVICE_UDS=path, ENABLE_AUTH="false", DRAIN_SECONDS="0.5") as service:
        eventually(lambda: len(service.pids) == 2)
        victim = service.pids[0]
        os.kill(victim, signal.SIGKILL)
        for _ in range(20):
            assert request(path, "GET", "/health").status == 200
        service.signal(signal.SIGTERM)
        assert service.wait() == 0
    assert not os.path.lexists(path)


def test_the_greeting_on_a_socket_can_be_pasted(path: str) -> None:
    service = subprocess.Popen(
        [*GREETER, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    try:
        assert service.stdout is not None
        lines = []
        while "Ctrl-C" not in (line := service.stdout.readline()):
            assert service.poll() is None
            lines.append(line.strip())
        (publish,) = [line for line in lines if "/messages/send" in line]
        assert f"curl --unix-socket {path} http://localhost/api/v1/messages/send" in publish
        assert f"curl --unix-socket {path} -N http://localhost/sse/stream/demo" in lines
        result = subprocess.run(
            ["bash", "-c", publish], capture_output=True, text=True, check=True, timeout=20
        )
        assert '"duplicate":false' in result.stdout
    finally:
        service.terminate()
        service.communicate(timeout=20)


GREETER = [sys.executable, "-m", "msgpush", "serve", "--service-uds"]


@pytest.mark.skipif(NGINX is None and "CI" not in os.environ, reason="needs nginx")
def test_behind_nginx_streams_publishes_addresses_and_cookies_are_as_on_a_port(
    path: str, tmp_path: Path
) -> None:
    changes = [
        ("server 127.0.0.1:1 ", f"server unix:{path} "),
        ("server 127.0.0.1:2 ", f"server unix:{path} "),
    ]
    with (
        ServiceProcess(
            SERVICE_UDS=path,
            JWT_SECRET=SECRET,
            TRUSTED_PROXIES='["unix"]',
            MAX_CONNECTIONS_PER_ADDRESS="1",
        ) as service,
        Nginx(tmp_path, 1, 2, changes=[*changes, ("Proto $scheme;", "Proto https;")]) as nginx,
        SseClient(nginx.port, "/sse/stream/a", ALICE) as stream,
        SseClient(
            nginx.port, "/sse/stream/a", {**ALICE, "X-Forwarded-For": "198.51.100.1"}
        ) as second,
    ):
        assert stream.next().type == "msgpush.open"
        assert second.next().type == "msgpush.close", (
            "its own word for where it comes from is worth nothing"
        )
        assert remotes(nginx.port) == ["127.0.0.1"]
        assert request(nginx.port, "POST", "/api/v1/messages/send", MESSAGE, ALICE).status == 202
        assert '"id":"m1"' in stream.next().data
        cookie = {"Cookie": f"msgpush_token={token('alice')}"}
        for origin, status in (
            (f"https://127.0.0.1:{nginx.port}", 201),
            (f"http://127.0.0.1:{nginx.port}", 403),
        ):
            headers = {**cookie, "Origin": origin}
            answer = request(
                nginx.port, "POST", "/api/v1/tickets", b'{"channels":["user:alice"]}', headers
            )
            assert answer.status == status
        service.signal(signal.SIGTERM)
        assert stream.rest()[-1].data == '{"reason":"drain","reconnect":true}'
        assert service.wait() == 0


@pytest.mark.skipif(NGINX is None and "CI" not in os.environ, reason="needs nginx")
def test_local_mode_on_a_socket_serves_nothing_that_came_through_nginx(
    path: str, tmp_path: Path
) -> None:
    changes = [
        ("server 127.0.0.1:1 ", f"server unix:{path} "),
        ("server 127.0.0.1:2 ", f"server unix:{path} "),
    ]
    with ServiceProcess(SERVICE_UDS=path), Nginx(tmp_path, 1, 2, changes=changes) as nginx:
        for target in ("/health", "/sse/stream/a", "/"):
            assert request(nginx.port, "GET", target, headers={"Host": "localhost"}).status == 403
