"""Several processes on one port: workers of the real service, and the supervisor that keeps them
running.

In most tests each worker has an embedded bus, which `msgpush serve` refuses for good reason: whose
stream it is shows in its cursors, since every log has a name of its own."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from msgpush.entrypoints.supervisor import RestartDelay, Supervisor, listen_together, worker_command
from tests.support.client import RawConnection, SseClient, request
from tests.support.redis_servers import RedisServer
from tests.support.service import ServiceProcess, eventually

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

PARENT = """
import os, sys
from msgpush.entrypoints.commands.serve import supervise
from msgpush.entrypoints.settings import Settings

class Unchecked(Settings, frozen=True):
    def check(self):
        pass

sys.exit(supervise(Unchecked.from_environ({**os.environ, "WORKERS": "2"}), []))
"""


class Workers(ServiceProcess):
    """Two workers and their supervisor, whose temporary files are in a directory of their own."""

    command = ("-c", PARENT)

    def __init__(self, temporary: Path, **environ: str) -> None:
        super().__init__(open_files=0, TMPDIR=str(temporary), **environ)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        eventually(lambda: all(map(is_gone, self.pids)))

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line["event"] == event]

    @property
    def pids(self) -> list[int]:
        """The workers that have served, in the order of their readiness."""
        return [line["pid"] for line in self.logged("a worker serves")]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of what a scrape finds."""
        text = request(self.port, "GET", "/metrics").body.decode()
        samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]
        assert not any("pid" in sample.labels for sample in samples)
        return sum(
            each.value
            for each in samples
            if each.name == name and labels.items() <= each.labels.items()
        )

    def kill_one(self) -> int:
        """Kill a worker as the system would; returns its process id once the supervisor has
        noticed.
        """
        victim = self.pids[-1]
        os.kill(victim, signal.SIGKILL)
        (ended,) = eventually(lambda: self.logged("a worker has ended"))
        assert (ended["pid"], ended["status"]) == (victim, -signal.SIGKILL)
        return victim


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"  # an orphan, where nobody waits for it


def publish(port: int, id: str) -> None:
    body = {"id": id, "type": "info", "service": "s", "channels": ["a"]}
    assert request(port, "POST", "/api/v1/messages/send", msgspec.json.encode(body)).status == 202


@contextmanager
def streams(port: int, number: int = 40) -> Iterator[dict[str, list[SseClient]]]:
    """Open streams, by the log that they are read from: one for each worker."""
    found: dict[str, list[SseClient]] = {}
    with ExitStack() as opened:
        for _ in range(number):
            stream = opened.enter_context(SseClient(port, "/sse/stream/a"))
            found.setdefault(stream.next().last_event_id.partition(".")[0], []).append(stream)
        yield found


def everyone(found: dict[str, list[SseClient]]) -> list[SseClient]:
    return [stream for each in found.values() for stream in each]


def is_cut(stream: SseClient) -> bool:
    try:
        while stream.connection.receive(0.2):
            pass
        return True
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def test_all_workers_serve_one_port(tmp_path: Path) -> None:
    with Workers(tmp_path) as service, streams(service.port) as found:
        assert len(found) == len(set(service.pids)) == 2
        (ready,) = service.logged("ready")
        assert (ready["workers"], ready["port"]) == (2, service.port)
        assert len({line["pid"] for line in service.logged("Application startup complete.")}) == 2


def test_a_worker_that_is_killed_is_replaced_and_nobody_is_refused_meanwhile(
    tmp_path: Path,
) -> None:
    with Workers(tmp_path, HEADER_TIMEOUT="60") as service, ExitStack() as opened:
        before = len(service.pids)
        victim = service.kill_one()
        waiting: list[RawConnection] = []

        def replaced() -> bool:
            waiting.append(opened.enter_context(RawConnection(service.port)))
            return len(service.pids) > before

        eventually(replaced)
        assert len(waiting) > 10
        for connection in waiting:
            connection.send(GET)
        for connection in waiting:
            assert connection.read_all().startswith(b"HTTP/1.1 200 ")
        assert victim not in service.pids[before:]
        assert not Path(f"/proc/{victim}").exists()
        with streams(service.port) as found:
            assert len(found) == 2
        assert len(service.logged("ready")) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_drains_all_workers_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    with Workers(tmp_path, DRAIN_SECONDS="1") as service, streams(service.port) as found:
        assert list(tmp_path.iterdir())
        service.signal(number)
        for stream in everyone(found):
            assert stream.rest()[-1].data == '{"reason":"drain","reconnect":true}'
        assert service.wait() == 0
        assert all(map(is_gone, service.pids))
        assert not list(tmp_path.iterdir())
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", service.port))


def test_a_signal_that_the_workers_get_too_still_drains(tmp_path: Path) -> None:
    # So systemd ends a service: each of its processes at once.
    with Workers(tmp_path, DRAIN_SECONDS="1") as service, streams(service.port) as found:
        for pid in (*service.pids, service.pid):
            os.kill(pid, signal.SIGTERM)
        for stream in everyone(found):
            assert stream.rest()[-1].data == '{"reason":"drain","reconnect":true}'
        assert service.wait() == 0


def test_a_second_signal_ends_all_at_once(tmp_path: Path) -> None:
    with Workers(tmp_path, DRAIN_SECONDS="60") as service, streams(service.port):
        service.signal(signal.SIGTERM)
        eventually(lambda: len(service.logged("draining")) == 2)
        service.signal(signal.SIGTERM)
        assert service.wait(3) == 128 + signal.SIGTERM
        assert all(map(is_gone, service.pids))
        assert not list(tmp_path.iterdir())


def test_workers_whose_supervisor_was_killed_drain_and_leave_nothing(tmp_path: Path) -> None:
    with Workers(tmp_path, DRAIN_SECONDS="1") as service, streams(service.port) as found:
        service.signal(signal.SIGKILL)
        for stream in everyone(found):
            assert stream.rest()[-1].data == '{"reason":"drain","reconnect":true}'
        eventually(lambda: all(map(is_gone, service.pids)))
        eventually(lambda: not list(tmp_path.iterdir()))


def test_metrics_are_those_of_all_workers_and_survive_one(tmp_path: Path) -> None:
    with Workers(tmp_path) as service, streams(service.port) as found:
        for n in range(20):
            publish(service.port, f"m{n}")
        sent = {"service": "s", "type": "info"}
        # Each tells the others once a second.
        eventually(lambda: service.metric("message_push_messages_sent_total", **sent) == 20)
        for _ in range(10):
            assert service.metric("message_push_messages_sent_total", **sent) == 20
        eventually(lambda: service.metric("message_push_connections_total", transport="sse") == 40)
        assert service.metric("message_push_up") == 1

        service.kill_one()
        eventually(lambda: len(service.pids) == 3)
        (left,) = [group for group in found.values() if not is_cut(group[0])]
        assert 0 < len(left) < 40
        for _ in range(10):
            assert service.metric("message_push_messages_sent_total") == 20
        eventually(lambda: service.metric("message_push_connections_total") == len(left))
        for n in range(20):
            publish(service.port, f"n{n}")
        eventually(lambda: service.metric("message_push_messages_sent_total") == 40)
        assert service.metric("message_push_up") == 1


def test_workers_do_not_join_a_port_that_is_served_already(tmp_path: Path) -> None:
    with Workers(tmp_path) as service:
        other = Workers(tmp_path, SERVICE_PORT=str(service.port))
        assert other.wait() == 1
        other.__exit__()
        (line,) = other.log
        assert line["event"].startswith(f"can't listen on 127.0.0.1 port {service.port}: ")


def test_the_command_serves_with_several_workers_on_redis() -> None:
    with (
        RedisServer() as redis,
        ServiceProcess("--workers", "2", REDIS_URL=redis.url, DRAIN_SECONDS="1") as service,
        ExitStack() as opened,
    ):
        # Each worker reaches the bus by itself, and a request may go to either.
        eventually(
            lambda: all(
                request(service.port, "GET", "/health/ready").status == 200 for _ in range(20)
            )
        )
        found = [opened.enter_context(SseClient(service.port, "/sse/stream/a")) for _ in range(40)]
        assert {stream.next().type for stream in found} == {"msgpush.open"}
        eventually(
            lambda: (
                len(request(service.port, "GET", "/api/v1/connections/stats").json()["by_node"])
                == 2
            )
        )
        ids = [f"m{n}" for n in range(10)]
        for id in ids:
            publish(service.port, id)
        for stream in found:
            assert [msgspec.json.decode(event.data)["id"] for event in stream.take(10)] == ids
        service.signal(signal.SIGTERM)
        for stream in found:
            assert stream.rest()[-1].data == '{"reason":"drain","reconnect":true}'
        assert service.wait() == 0


# The supervisor, with workers that are no service


def supervised(program: str, number: int = 2, **more: Any) -> Supervisor:
    listeners = listen_together("127.0.0.1", 0, number)
    assert len({listener.getsockname() for listener in listeners}) == 1
    return Supervisor(
        [sys.executable, "-c", program], listeners, environ=os.environ, patience=0.2, **more
    )


@pytest.mark.parametrize("status", [1, 2])
def test_workers_none_of_which_can_start_end_the_supervisor_with_their_status(status: int) -> None:
    ended: list[int] = []
    assert supervised(f"raise SystemExit({status})", on_exit=ended.append).run() == status
    assert sorted(set(ended)) == [1, 2]


SERVES = """
import os, time
from msgpush.entrypoints.supervisor import Worker
worker = Worker.from_environ(os.environ)
worker.serves()
"""


def test_a_worker_that_will_not_end_is_ended() -> None:
    ready = threading.Event()

    def stop() -> None:
        ready.set()
        os.kill(os.getpid(), signal.SIGTERM)

    stubborn = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + SERVES + "time.sleep(60)"
    )
    assert supervised(stubborn, on_ready=stop).run() == 0
    assert ready.is_set()


def test_a_worker_that_once_served_is_started_anew_whatever_its_status() -> None:
    ended: list[int] = []

    def on_exit(number: int) -> None:
        ended.append(number)
        if len(ended) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    assert supervised(SERVES + "raise SystemExit(2)", 1, on_exit=on_exit).run() == 0
    assert ended == [1, 1]


def test_a_service_is_ready_once_all_of_its_workers_are_or_have_been() -> None:
    seen: list[bool] = []
    telling = """
import os, signal, time
from msgpush.entrypoints.supervisor import Worker
worker = Worker.from_environ(os.environ)
began = time.monotonic()
late = 3 if worker.number == 2 else 0  # seconds
worker.watch(5)
worker.serves(lambda: time.monotonic() - began >= late)
time.sleep(60)
"""

    def look() -> None:
        seen.append(supervisor.welcoming)
        if supervisor.welcoming:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            asyncio.get_running_loop().call_later(0.1, look)

    supervisor = supervised(telling, on_ready=look)
    supervisor.run()
    assert seen[-1]
    assert len(seen) > 10  # of which the first worker was ready most of the time


def test_waits_grow_while_a_worker_dies_of_its_start() -> None:
    delay = RestartDelay()
    assert [delay.after(lived) for lived in (0.25, 0.25, 3.0, 5.0, 0.5, 9.0)] == [
        0.75,
        1.75,
        1.0,
        3.0,
        9.5,
        1.0,
    ]
    assert [delay.after(lived) for lived in (3600.0, 0.25, 3600.0)] == [0.0, 1.75, 0.0]


def test_a_worker_does_not_import_what_lies_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uvicorn.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    command = worker_command(["--help"])
    assert subprocess.run(command, check=True, capture_output=True).stdout.startswith(
        b"usage: msgpush serve"
    )


def test_the_sockets_share_a_port_with_nobody_else() -> None:
    with ExitStack() as opened:
        taken = [opened.enter_context(each) for each in listen_together("127.0.0.1", 0, 3)]
        port = taken[0].getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            listen_together("127.0.0.1", port, 2)
