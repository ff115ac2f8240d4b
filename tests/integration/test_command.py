"""What surrounds a process: where its output goes, its signals, its limits, and who asks for its
health.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from msgpush.entrypoints.health import ailment
from tests.integration.test_nginx import free_port
from tests.support.client import SseClient, request
from tests.support.redis_servers import RedisServer
from tests.support.service import PATIENCE, ServiceProcess, eventually
from tests.support.tokens import SECRET

COMMAND = [sys.executable, "-m", "msgpush"]
CLEAN = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG")}
MESSAGE = b'{"type":"info","service":"s","channels":["a"]}'


def answers(port: int) -> bool:
    try:
        return request(port, "GET", "/health").status == 200
    except OSError:
        return False


@contextmanager
def serving(redirection: str, **environ: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A service, started by a shell with this redirection, whose stdout and stderr are pipes
    otherwise.
    """
    port = free_port()
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" {redirection}', "bash", *COMMAND, "serve"],
        env={
            **CLEAN,
            "SERVICE_PORT": str(port),
            "LOG_LEVEL": "debug",
            "DRAIN_SECONDS": "0.1",
            **environ,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process, port
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE)
        for file in (process.stdout, process.stderr):
            assert file is not None
            file.close()


def serves_until_it_is_told_to_end(process: subprocess.Popen[bytes], port: int) -> None:
    eventually(lambda: answers(port))
    with SseClient(port, "/sse/stream/a") as stream:
        stream.next()
        for _ in range(3):
            assert request(port, "POST", "/api/v1/messages/send", MESSAGE).status == 202
            assert stream.next().type == "message"
        process.send_signal(signal.SIGTERM)
        assert stream.rest()[-1].type == "msgpush.close"
    assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("redirection", ["0<&- 1>&- 2>&-", ">/dev/full 2>&1"])
def test_a_service_serves_whatever_becomes_of_what_it_writes(redirection: str) -> None:
    with serving(redirection, LOG_FORMAT="console") as (process, port):
        serves_until_it_is_told_to_end(process, port)


@pytest.mark.parametrize("redirection", ["", "2>&1"])
def test_a_service_whose_reader_goes_after_the_first_line_serves_on(redirection: str) -> None:
    with serving(redirection, LOG_FORMAT="console") as (process, port):
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        process.stderr.close()
        serves_until_it_is_told_to_end(process, port)


def test_workers_serve_on_when_nobody_reads_what_they_write() -> None:
    with (
        RedisServer() as redis,
        serving("2>&1", LOG_FORMAT="console", WORKERS="2", REDIS_URL=redis.url) as (process, port),
    ):
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        eventually(lambda: answers(port))
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        eventually(lambda: len(workers.read_text().split()) == 2)
        victim = workers.read_text().split()[0]
        os.kill(int(victim), signal.SIGKILL)
        # The supervisor logs that, and its successor logs its start.
        eventually(lambda: victim not in (now := workers.read_text().split()) and len(now) == 2)
        serves_until_it_is_told_to_end(process, port)


def piped(
    arguments: Sequence[str], reader: str, environ: Mapping[str, str] | None = None
) -> tuple[list[int], str]:
    """The statuses of a command and its reader, and what there was on stderr."""
    script = f'"$@" | {reader}; echo "${{PIPESTATUS[@]}}" >&3'
    with tempfile.TemporaryFile("w+") as statuses:
        result = subprocess.run(
            ["bash", "-c", f"exec 3>&{statuses.fileno()}; {script}", "bash", *COMMAND, *arguments],
            env={**CLEAN, **(environ or {})},
            pass_fds=[statuses.fileno()],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        statuses.seek(0)
        return [int(word) for word in statuses.read().split()], result.stderr


@pytest.mark.parametrize(
    ("command", "unbuffered"),
    [("--help", ""), ("serve --help", "1"), ("token issue --sub me", "")],
)
def test_a_command_ends_quietly_when_its_reader_has_had_enough(
    command: str, unbuffered: str
) -> None:
    environ = {"JWT_SECRET": SECRET, "PYTHONUNBUFFERED": unbuffered}
    # The reader has gone before there is anything to read.
    assert piped(command.split(), "exec 0<&-", environ) == ([0, 0], "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "command", ["token issue --sub me", "token --help", "serve --help", "--version"]
)
def test_what_could_not_be_written_is_no_success(command: str, unbuffered: str) -> None:
    result = subprocess.run(
        ["bash", "-c", '"$@" > /dev/full', "bash", *COMMAND, *command.split()],
        env={**CLEAN, "JWT_SECRET": SECRET, "PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == "msgpush: the output can't be written: No space left on device\n"


# Signals


def test_sighup_drains_as_sigterm_does_and_a_second_one_changes_nothing() -> None:
    with (
        ServiceProcess(DRAIN_SECONDS="1") as process,
        SseClient(process.port, "/sse/stream/a"),
        SseClient(process.port, "/sse/stream/a") as stream,
    ):
        stream.next()
        process.signal(signal.SIGHUP)
        eventually(lambda: request(process.port, "GET", "/health/ready").status == 503)
        process.signal(signal.SIGHUP)  # a terminal that is closed may send several
        assert stream.rest()[-1].data == '{"reason":"drain","reconnect":true}'
        assert process.wait() == 0


def test_a_signal_after_sighup_ends_at_once() -> None:
    with (
        ServiceProcess(DRAIN_SECONDS="60") as process,
        SseClient(process.port, "/sse/stream/a"),
        SseClient(process.port, "/sse/stream/a"),
    ):
        process.signal(signal.SIGHUP)
        eventually(lambda: request(process.port, "GET", "/health/ready").status == 503)
        process.signal(signal.SIGTERM)
        assert process.wait(3) != 0


def test_nohup_keeps_a_service_when_its_terminal_goes() -> None:
    port = free_port()
    process = subprocess.Popen(
        ["nohup", *COMMAND, "serve"],
        env={**CLEAN, "SERVICE_PORT": str(port), "DRAIN_SECONDS": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: answers(port))
        process.send_signal(signal.SIGHUP)
        with SseClient(port, "/sse/stream/a") as stream:
            stream.next()
            assert request(port, "GET", "/health/ready").status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(PATIENCE)


# Limits


@pytest.mark.parametrize(
    ("open_files", "flags"),
    [(64, []), (128, ["--workers=2", "--redis-host=127.0.0.1"])],
    ids=["one", "workers"],
)
def test_a_limit_of_open_files_that_leaves_no_stream_stops_the_start_with_one_line(
    open_files: int, flags: list[str]
) -> None:
    process = ServiceProcess(*flags, open_files=open_files)
    assert process.wait() == 1
    process.__exit__()
    (line,) = process.log
    assert (line["level"], line["open_files"]) == ("error", open_files)
    assert "ulimit -n" in line["event"]
    assert "LimitNOFILE" in line["event"]


def test_the_least_limit_of_open_files_serves_one_stream() -> None:
    with (
        ServiceProcess(open_files=129) as process,
        SseClient(process.port, "/sse/stream/a") as stream,
    ):
        assert stream.next().type == "msgpush.open"
        with SseClient(process.port, "/sse/stream/a") as second:
            assert second.next().data == '{"reason":"overload","reconnect":true}'


# Health


def test_health_is_asked_where_the_environment_has_the_service_listen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/push.sock"
        for flags, given, hosts in (
            ([], {}, ["", "127.0.0.1", "0.0.0.0", "localhost"]),
            (
                ["--service-host=::", "--enable-auth=false", "--root-path=/push"],
                {},
                ["::", "::1", "0.0.0.0"],
            ),
            (["--service-uds", path], {"SERVICE_UDS": path}, ["0.0.0.0"]),
        ):
            with ServiceProcess(*flags) as service:
                port = str(service.port)
                for host in hosts:
                    assert ailment({"SERVICE_HOST": host, "SERVICE_PORT": port, **given}) is None, (
                        flags,
                        host,
                    )
            assert "doesn't answer" in str(ailment({"SERVICE_PORT": port, **given}))


def test_health_passes_over_what_kubernetes_sets_and_tells_nonsense_in_a_line() -> None:
    assert "127.0.0.1 port 8089: " in (
        ailment({"SERVICE_PORT": "tcp://10.0.0.1:80"}) or "127.0.0.1 port 8089: a service is there"
    )
    for port in ("x", "99999", "-1", "\u0661", "tcp://x", "1\n2"):
        told = str(ailment({"SERVICE_PORT": port}))
        assert told == f"SERVICE_PORT is {port!a}: it must be a whole number from 0 to 65535"
        assert "doesn't answer at /none" in str(
            ailment({"SERVICE_PORT": port, "SERVICE_UDS": "/none"})
        )
    for host in ("x" * 300, "a b", "a\nb", "[::1"):
        assert len(str(ailment({"SERVICE_HOST": host, "SERVICE_PORT": "1"})).splitlines()) == 1


def test_health_costs_little_and_says_what_is_wrong() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "msgpush.entrypoints.health"]
    result = subprocess.run(
        command,
        env={**CLEAN, "SERVICE_PORT": "1"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 1
    assert "msgpush doesn't answer at 127.0.0.1 port 1: " in result.stderr
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert not imported & {"starlette", "uvicorn", "msgspec", "structlog", "redis"}
