"""A real nginx with the configuration in deploy/, before real instances. Skipped where there is
none; CI has one.
"""

import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from tests.support.client import PATIENCE, RawConnection, SseClient, request
from tests.support.eventsource import EventStreamParser
from tests.support.redis_servers import RedisServer
from tests.support.service import ServiceProcess, eventually

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx.conf"
NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
TEMPORARY = ("client_body", "proxy", "fastcgi", "scgi", "uwsgi")

pytestmark = pytest.mark.skipif(NGINX is None and "CI" not in os.environ, reason="needs nginx")


class Nginx:
    """nginx with the shipped configuration, but for ports and directories.

    Args:
        first, second: ports of the two instances.
        tls: whether the lines for TLS are taken in, with a certificate made for the occasion.
        changes: what else is different: lines as they are shipped, and as they are here.
    """

    def __init__(
        self,
        directory: Path,
        first: int,
        second: int,
        *,
        tls: bool = False,
        changes: Sequence[tuple[str, str]] = (),
    ) -> None:
        assert NGINX is not None, "CI installs nginx"
        self.port, self.tls_port = free_port(), free_port()
        self.certificate = directory / "fullchain.pem"
        self._directory = directory
        self._file = directory / "nginx.conf"
        text = CONFIGURATION.read_text()
        if tls:
            self._make_certificate()
            text = text.replace("#listen 8443 ", f"listen 127.0.0.1:{self.tls_port} ").replace(
                "#ssl_", "ssl_"
            )
        places = "".join(f" {name}_temp_path {directory}/{name};" for name in TEMPORARY)
        for shipped, here in (
            ("server msgpush-1:8089 ", f"server 127.0.0.1:{first} "),
            ("server msgpush-2:8089 ", f"server 127.0.0.1:{second} "),
            ("listen 8080;", f"listen 127.0.0.1:{self.port};"),
            ("http {", "http {" + places),
            ("/var/log/nginx/", f"{directory}/log/"),
            ("/etc/nginx/tls/", f"{directory}/"),
            *changes,
        ):
            assert shipped in text
            text = text.replace(shipped, here)
        self._file.write_text(text)
        (directory / "log").mkdir()
        user = (
            "user root root;" if os.geteuid() == 0 else ""
        )  # another couldn't enter the test's directory
        globals = f"daemon off; pid {directory}/nginx.pid; {user}"
        self._process = subprocess.Popen(
            [NGINX, "-e", "log/start", "-p", directory, "-c", self._file, "-g", globals]
        )

    def __enter__(self) -> Self:
        try:
            eventually(self._answers)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)

    def logs(self, name: str = "*") -> str:
        return "".join(file.read_text() for file in (self._directory / "log").glob(name))

    def reload(self, shipped: str, changed: str) -> None:
        """Change the configuration; returns once workers are there that serve the changed one."""
        before = self._workers()
        text = self._file.read_text()
        assert shipped in text
        self._file.write_text(text.replace(shipped, changed))
        self._process.send_signal(signal.SIGHUP)
        eventually(lambda: len(self._workers() - before) > 0)

    def _workers(self) -> set[int]:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return {int(pid) for pid in children.split()}

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.logs()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _make_certificate(self) -> None:
        key = f"-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {self._directory}/privkey.pem"
        name = "-subj /CN=msgpush -addext subjectAltName=IP:127.0.0.1 -days 2"
        command = f"openssl req -x509 {key} {name} -out {self.certificate}"
        subprocess.run(command.split(), check=True, capture_output=True)


class Quitter:
    """What looks like an instance that dies in the midst of each request: it reads the whole, and
    hangs up.
    """

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(PATIENCE)
                received = b""
                while not whole(received) and (more := connection.recv(65536)):
                    received += more
                self.requests.append(received)


@pytest.fixture
def instances() -> Iterator[tuple[ServiceProcess, ServiceProcess]]:
    """Two instances, each with a bus of its own: what one is told, the other doesn't know."""
    with (
        ServiceProcess(ENABLE_AUTH="false", DRAIN_SECONDS="0.5") as first,
        ServiceProcess(ENABLE_AUTH="false", DRAIN_SECONDS="0.5") as second,
    ):
        yield first, second


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceProcess]:
    with ServiceProcess(ENABLE_AUTH="false") as running:
        yield running


@pytest.fixture(scope="module")
def nginx(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """nginx before one instance, under two names."""
    with Nginx(tmp_path_factory.mktemp("nginx"), service.port, service.port, tls=True) as running:
        yield running


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def whole(received: bytes) -> bool:
    head, end, body = received.partition(b"\r\n\r\n")
    length = next(
        (
            int(line[15:])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        ),
        0,
    )
    return bool(end) and len(body) >= length


def publish(port: int, id: str, channel: str = "a", data: object = None) -> int:
    body = {"id": id, "type": "info", "service": "s", "channels": [channel], "data": data or {}}
    return request(port, "POST", "/api/v1/messages/send", msgspec.json.encode(body)).status


def stored(port: int, channel: str) -> list[str]:
    ids: list[str] = []
    after = ""
    while True:
        answer = request(
            port, "GET", f"/api/v1/channels/{channel}/messages?limit=1000&after={after}"
        )
        assert answer.status == 200
        history = answer.json()
        if not history["messages"]:
            return ids
        ids += [each["id"] for each in history["messages"]]
        after = history["cursor"]


def streams(service: ServiceProcess) -> int:
    open_now: int = request(service.port, "GET", "/health").json()["connections"]
    return open_now


def id_of(event: Any) -> object:
    return msgspec.json.decode(event.data)["id"]


def test_a_message_comes_at_once_through_a_stream_that_stays_open(nginx: Nginx) -> None:
    with SseClient(nginx.port, "/sse/stream/live") as stream:
        assert stream.next().type == "msgpush.open"
        for id in ("l1", "l2"):
            assert publish(nginx.port, id, "live") == 202
            assert id_of(stream.next()) == id


def test_a_stream_comes_with_its_headers_and_uncompressed(nginx: Nginx) -> None:
    with SseClient(nginx.port, "/sse/stream/a", {"Accept-Encoding": "gzip, br"}) as stream:
        assert stream.status == 200
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.headers["cache-control"] == "no-store, no-transform"
        assert stream.headers["x-accel-buffering"] == "no"
        assert "content-encoding" not in stream.headers
        assert stream.next().type == "msgpush.open"


def test_a_stream_resumes_where_it_was_cut(nginx: Nginx) -> None:
    with SseClient(nginx.port, "/sse/stream/resume") as stream:
        stream.next()
        publish(nginx.port, "r1", "resume")
        assert id_of(stream.next()) == "r1"
        last = stream.last_event_id
    publish(nginx.port, "r2", "resume")
    for target, headers in (
        ("/sse/stream/resume", {"Last-Event-ID": last}),
        (f"/sse/stream/resume?last_event_id={last}", {}),
    ):
        with SseClient(nginx.port, target, headers) as stream:
            opened, message = stream.take(2)
        assert opened.last_event_id == last
        assert id_of(message) == "r2"


def test_a_client_that_goes_is_noticed(nginx: Nginx, service: ServiceProcess) -> None:
    eventually(lambda: streams(service) == 0)
    with SseClient(nginx.port, "/sse/stream/gone") as stream:
        stream.next()
        assert streams(service) == 1
    eventually(lambda: streams(service) == 0)


def test_a_reader_that_does_not_read_is_behind_at_msgpush_and_fills_no_file(nginx: Nginx) -> None:
    with SseClient(nginx.port, "/sse/stream/slow", receive_buffer=4096) as stream:
        stream.next()
        for n in range(200):
            assert publish(nginx.port, f"s{n}", "slow", {"x": "x" * 100_000}) == 202
        reader = "/api/v1/connections?channel=slow"
        eventually(
            lambda: request(nginx.port, "GET", reader).json()["connections"][0]["state"] == "behind"
        )


def test_an_upload_of_17_megabytes_is_published_line_by_line_as_it_arrives(nginx: Nginx) -> None:
    line = msgspec.json.encode(
        {"type": "info", "service": "s", "channels": ["up"], "data": {"x": "x" * 250_000}}
    )
    lines = [line[:-1] + b',"id":"u%d"}\n' % n for n in range(70)]
    assert sum(map(len, lines)) > 17_000_000
    with RawConnection(nginx.port) as connection:
        connection.send(
            b"POST /api/v1/messages/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"
            b"Content-Length: %d\r\n\r\n" % sum(map(len, lines))
        )
        connection.send(b"".join(lines[:3]) + lines[3][:1000])
        eventually(lambda: stored(nginx.port, "up") == ["u0", "u1", "u2"])
        connection.send(lines[3][1000:] + b"".join(lines[4:]))
        assert connection.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 202 ")
    assert len(stored(nginx.port, "up")) == 70


def test_a_message_that_is_too_large_is_refused_by_msgpush_itself(nginx: Nginx) -> None:
    answer = request(nginx.port, "POST", "/api/v1/messages/send", b"x" * 500_000)
    assert (answer.status, answer.headers["content-type"]) == (413, "application/problem+json")


def test_the_metrics_of_one_instance_at_random_are_not_shown(nginx: Nginx) -> None:
    assert request(nginx.port, "GET", "/metrics").status == 404
    assert request(nginx.port, "GET", "/health/ready").status == 200


def test_ten_streams_share_one_http_2_connection(nginx: Nginx) -> None:
    received = bytearray()
    options = f"--silent --show-error --no-buffer --include --http2 --parallel --cacert {nginx.certificate}"
    targets = [f"https://127.0.0.1:{nginx.tls_port}/sse/stream/h2?_={n}" for n in range(10)]
    curl = subprocess.Popen(["curl", *options.split(), *targets], stdout=subprocess.PIPE, bufsize=0)
    assert curl.stdout is not None

    def read() -> None:
        assert curl.stdout is not None
        while more := curl.stdout.read(65536):
            received.extend(more)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        eventually(lambda: received.count(b"event: msgpush.open\n") == 10)
        assert received.count(b"HTTP/2 200") == 10
        assert connections_to(nginx.tls_port) == 1
        publish(nginx.port, "h1", "h2")
        eventually(lambda: received.count(b'"id":"h1"') == 10)
    finally:
        curl.terminate()
        curl.wait(PATIENCE)
        reader.join(PATIENCE)
        curl.stdout.close()


def connections_to(port: int) -> int:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


def test_what_a_client_says_of_where_it_comes_from_is_replaced(tmp_path: Path) -> None:
    claims = {
        "X-Forwarded-For": "10.1.2.3",
        "X-Forwarded-Proto": "gopher",
        "Forwarded": "for=10.1.2.3",
    }
    with Quitter() as quitter, Nginx(tmp_path, quitter.port, quitter.port) as nginx:
        request(nginx.port, "GET", "/health", headers={**claims, "Connection": "keep-alive"})
    head = quitter.requests[0].decode().lower()
    assert head.startswith("get /health http/1.1\r\n")
    assert "\r\nx-forwarded-for: 127.0.0.1\r\n" in head
    assert "\r\nx-forwarded-proto: http\r\n" in head
    assert f"\r\nhost: 127.0.0.1:{nginx.port}\r\n" in head
    assert "\r\nforwarded:" not in head
    assert "\r\nconnection:" not in head


def test_a_publish_that_an_instance_died_of_is_not_sent_to_another_and_a_read_is(
    tmp_path: Path,
) -> None:
    with (
        ServiceProcess(ENABLE_AUTH="false") as service,
        Quitter() as quitter,
        Nginx(tmp_path, quitter.port, service.port) as nginx,
    ):
        statuses = {f"d{n}": publish(nginx.port, f"d{n}") for n in range(4)}
        lost = [id for id, status in statuses.items() if status == 502]
        assert len(lost) == len(quitter.requests) > 0
        assert stored(service.port, "a") == [id for id, status in statuses.items() if status == 202]

        reads = len(quitter.requests)
        eventually(
            lambda: (
                request(nginx.port, "GET", "/health").status == 200
                and len(quitter.requests) > reads
            )
        )
        eventually(lambda: publish(nginx.port, lost[0]) == 202)  # its publisher may retry
        assert stored(service.port, "a").count(lost[0]) == 1


def test_what_an_instance_does_not_accept_goes_to_the_other(
    instances: tuple[ServiceProcess, ServiceProcess], tmp_path: Path
) -> None:
    killed, other = instances
    with Nginx(tmp_path, killed.port, other.port) as nginx:
        killed.signal(signal.SIGKILL)
        killed.wait()
        ids = [f"k{n}" for n in range(4)]
        assert [publish(nginx.port, id) for id in ids] == [202] * 4
        assert stored(other.port, "a") == ids
        for _ in range(4):
            with SseClient(nginx.port, "/sse/stream/a?last_event_id=earliest") as stream:
                assert [id_of(event) for event in stream.take(5)[1:]] == ids


def test_a_drain_is_told_and_the_next_stream_is_at_the_other(
    instances: tuple[ServiceProcess, ServiceProcess], tmp_path: Path
) -> None:
    with Nginx(tmp_path, instances[0].port, instances[1].port) as nginx, ExitStack() as opened:
        clients = [opened.enter_context(SseClient(nginx.port, "/sse/stream/a")) for _ in range(4)]
        for client in clients:
            client.next()
        assert [streams(instance) for instance in instances] == [2, 2]
        instances[0].signal(signal.SIGTERM)
        assert instances[0].wait() == 0
        eventually(lambda: streams(instances[1]) == 2)
        publish(instances[1].port, "still")
        events = [client.next() for client in clients]
        assert sorted(event.type for event in events) == [
            "message",
            "message",
            "msgpush.close",
            "msgpush.close",
        ]
        for _ in range(4):
            assert (
                opened.enter_context(SseClient(nginx.port, "/sse/stream/a")).next().type
                == "msgpush.open"
            )
        assert streams(instances[1]) == 6


def test_a_stream_that_finds_no_instance_is_told_to_come_back(
    instances: tuple[ServiceProcess, ServiceProcess], tmp_path: Path
) -> None:
    with Nginx(tmp_path, instances[0].port, instances[1].port) as nginx:
        for instance in instances:
            instance.signal(signal.SIGKILL)
            instance.wait()
        assert publish(nginx.port, "nobody") == 502
        answer = request(nginx.port, "GET", "/sse/stream/a")
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store, no-transform"
        parser = EventStreamParser()
        (event,) = parser.feed(answer.body)
        assert (event.type, event.data) == (
            "msgpush.close",
            '{"reason":"overload","reconnect":true}',
        )
        assert parser.retry is not None
        assert 10_000 <= parser.retry <= 30_000


def test_a_token_in_the_query_is_in_no_log_whatever_becomes_of_the_stream(
    instances: tuple[ServiceProcess, ServiceProcess], tmp_path: Path
) -> None:
    target = "/sse/stream/logged?token=a-secret"
    with Nginx(tmp_path, instances[0].port, instances[1].port) as nginx:
        for instance in (None, *instances):
            if instance is not None:
                instance.signal(signal.SIGKILL)
                instance.wait()
            for _ in range(3):
                with SseClient(
                    nginx.port, target, {"Referer": f"http://127.0.0.1{target}"}
                ) as stream:
                    stream.next()
        eventually(
            lambda: nginx.logs("access.log").count('"GET /sse/stream/logged HTTP/1.1" 200') == 9
        )
        assert " 502" in nginx.logs("access.log"), "what the error log doesn't tell"
        assert "a-secret" not in nginx.logs()


def test_an_instance_that_is_marked_down_keeps_its_streams_over_the_reload_and_gets_no_new_ones(
    instances: tuple[ServiceProcess, ServiceProcess], tmp_path: Path
) -> None:
    down, other = instances
    with Nginx(tmp_path, down.port, other.port) as nginx, ExitStack() as opened:
        clients = [opened.enter_context(SseClient(nginx.port, "/sse/stream/a")) for _ in range(2)]
        for client in clients:
            client.next()
        assert (streams(down), streams(other)) == (1, 1)
        nginx.reload(f"127.0.0.1:{down.port} ", f"127.0.0.1:{down.port} down ")

        def new_ones_are_at_the_other() -> bool:
            # A worker of before the reload accepts for a moment more.
            with ExitStack() as tried:
                for _ in range(4):
                    tried.enter_context(SseClient(nginx.port, "/sse/stream/a")).next()
                return (streams(down), streams(other)) == (1, 5)

        eventually(new_ones_are_at_the_other)
        for instance in instances:
            publish(instance.port, "still")
        assert [id_of(client.next()) for client in clients] == ["still", "still"]


class Publisher:
    """Publishes one message after the other, each until it is accepted, while it is open."""

    def __init__(self, port: int) -> None:
        self.ids: list[str] = []
        self._port, self._stop = port, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        while not self._stop.is_set():
            id = f"p{len(self.ids)}"
            eventually(lambda id=id: publish(self._port, id) == 202)  # type: ignore[misc]
            self.ids.append(id)


class Reader:
    """Reads as an EventSource does, but doesn't wait before it comes back: what came of messages,
    and of gaps.
    """

    def __init__(self, port: int) -> None:
        self.ids: list[object] = []
        self.gaps: list[str] = []
        self.streams = 0
        self._port, self._last, self._stop = port, "earliest", threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.streams += 1
            with SseClient(self._port, "/sse/stream/a", {"Last-Event-ID": self._last}) as stream:
                self._read(stream)
                self._last = stream.last_event_id or self._last

    def _read(self, stream: SseClient) -> None:
        while not self._stop.is_set() and (event := stream.next()).type != "msgpush.close":
            if event.type == "message":
                self.ids.append(id_of(event))
            elif event.type == "msgpush.gap":
                self.gaps.append(event.data)


def test_instances_that_are_restarted_one_after_the_other_lose_nothing(tmp_path: Path) -> None:
    with ExitStack() as running:
        redis = running.enter_context(RedisServer())

        def start(port: int = 0) -> ServiceProcess:
            return running.enter_context(
                ServiceProcess(
                    ENABLE_AUTH="false",
                    REDIS_URL=redis.url,
                    SERVICE_PORT=str(port),
                    DRAIN_SECONDS="0.5",
                    HEARTBEAT_INTERVAL="0.2",  # so that the reader notices when it is to stop
                )
            )

        instances = [start(), start()]
        nginx = running.enter_context(Nginx(tmp_path, instances[0].port, instances[1].port))
        with Reader(nginx.port) as reader:
            with Publisher(nginx.port) as publisher:
                for n in (0, 1):
                    enough = len(publisher.ids) + 10
                    eventually(lambda enough=enough: len(publisher.ids) >= enough)  # type: ignore[misc]
                    instances[n].signal(signal.SIGTERM)
                    assert instances[n].wait() == 0
                    instances[n] = start(instances[n].port)
            eventually(lambda: len(reader.ids) >= len(publisher.ids))
    assert reader.ids == publisher.ids
    assert reader.gaps == []
    assert reader.streams > 2


def test_under_a_prefix_it_is_the_same_whether_nginx_strips_it_or_not(tmp_path: Path) -> None:
    passing = "proxy_buffering off; proxy_http_version 1.1;"
    places = (
        f"location /push/ {{ proxy_pass http://msgpush; {passing} }} "
        f"location /stripped/push/ {{ proxy_pass http://msgpush/; {passing} }} "
    )
    with (
        ServiceProcess(ENABLE_AUTH="false", ROOT_PATH="/push") as service,
        Nginx(
            tmp_path,
            service.port,
            service.port,
            changes=[("location / {", places + "location / {")],
        ) as nginx,
    ):
        for prefix in ("/push", "/stripped/push"):
            # The channel of a user whose name has a slash and a space: percent-encoded, and once
            # more for the path.
            with SseClient(nginx.port, f"{prefix}/sse/user/acme%252Fann%2520lee") as stream:
                assert '"user:acme%2Fann%20lee"' in stream.next().data
                body = {"type": "info", "service": "s", "target": {"user_id": "acme%2Fann%20lee"}}
                assert (
                    request(
                        nginx.port,
                        "POST",
                        f"{prefix}/api/v1/messages/send",
                        msgspec.json.encode(body),
                    ).status
                    == 202
                )
                assert stream.next().type == "message"
            assert request(nginx.port, "GET", f"{prefix}/static/index.js").status == 200


# WebSockets


def websocket(port: int, query: str = "") -> ClientConnection:
    """A WebSocket through a proxy; it has to be entered."""
    return connect(f"ws://127.0.0.1:{port}/ws?{query}")


def told(websocket: ClientConnection) -> Any:
    return msgspec.json.decode(websocket.recv(PATIENCE))


def test_a_websocket_is_passed_on_and_goes_on_where_it_was_cut(nginx: Nginx) -> None:
    with websocket(nginx.port, "channel=ws") as first:
        assert told(first)["event"] == "msgpush.open"
        first.send('{"subscribe": ["ws2"], "ref": 1}')
        assert told(first) == {"ref": 1, "ok": {"channels": ["broadcast", "ws", "ws2"]}}
        assert publish(nginx.port, "w1", "ws2", {"x": "x" * 100_000}) == 202
        message = told(first)
        assert message["data"]["id"] == "w1"
    publish(nginx.port, "w2", "ws2")
    with websocket(nginx.port, f"channel=ws2&last_event_id={message['id']}") as second:
        assert [told(second)["event"], told(second)["data"]["id"]] == ["msgpush.open", "w2"]
    log = '"GET /ws HTTP/1.1" 101'
    eventually(lambda: nginx.logs("access.log").count(log) == 2)


def test_what_asks_for_no_websocket_is_told_so(nginx: Nginx) -> None:
    answer = request(nginx.port, "GET", "/ws")
    assert (answer.status, answer.headers["content-type"]) == (426, "application/problem+json")


def test_heartbeats_keep_an_idle_websocket_open(tmp_path: Path) -> None:
    shortened = [("proxy_read_timeout 90s;  # as for streams", "proxy_read_timeout 1s;")]
    with (
        ServiceProcess(ENABLE_AUTH="false", HEARTBEAT_INTERVAL="0.3") as lively,
        ServiceProcess(ENABLE_AUTH="false", HEARTBEAT_INTERVAL="60") as silent,
    ):
        for service in (lively, silent):
            folder = tmp_path / str(service.port)
            folder.mkdir()
            with (
                Nginx(folder, service.port, service.port, changes=shortened) as nginx,
                websocket(nginx.port) as opened,
            ):
                assert told(opened)["event"] == "msgpush.open"
                if service is lively:
                    events = {told(opened)["event"] for _ in range(8)}
                    assert events == {"msgpush.heartbeat"}
                else:
                    with pytest.raises(ConnectionClosed):
                        told(opened)


def test_a_page_of_its_own_origin_may_open_a_websocket_where_the_proxy_is_trusted(
    tmp_path: Path,
) -> None:
    for trusted in ('["127.0.0.1"]', "[]"):
        folder = tmp_path / str(len(trusted))
        folder.mkdir()
        with (
            ServiceProcess(ENABLE_AUTH="false", TRUSTED_PROXIES=trusted) as service,
            Nginx(folder, service.port, service.port, tls=True) as nginx,
        ):
            plain, encrypted = (f"127.0.0.1:{port}" for port in (nginx.port, nginx.tls_port))
            assert may_open(f"ws://{plain}/ws", f"http://{plain}")
            context = ssl.create_default_context(cafile=str(nginx.certificate))
            url = f"wss://{encrypted}/ws"
            assert may_open(url, f"https://{encrypted}", ssl=context) is (trusted != "[]")
            assert may_open(url, None, ssl=context)
            for other in ("https://evil.example", f"https://127.0.0.1:{nginx.port}", "null"):
                assert not may_open(url, other, ssl=context)


def may_open(url: str, origin: str | None, **options: Any) -> bool:
    """Whether a page of an origin gets a WebSocket; None: no page asks."""
    try:
        with connect(url, origin=Origin(origin) if origin else None, **options) as opened:
            return bool(told(opened)["event"] == "msgpush.open")
    except InvalidStatus as refused:
        assert refused.response.status_code == 403
        assert b"CORS_ORIGINS" in refused.response.body
        return False


def test_a_websocket_s_token_is_in_no_log_whatever_becomes_of_it(
    instances: tuple[ServiceProcess, ServiceProcess], tmp_path: Path
) -> None:
    with Nginx(tmp_path, instances[0].port, instances[1].port) as nginx:
        with websocket(nginx.port, "token=a-secret") as opened:
            told(opened)
        for instance in instances:
            instance.signal(signal.SIGKILL)
            instance.wait()
        with pytest.raises(InvalidStatus):
            websocket(nginx.port, "token=a-secret").__enter__()
        eventually(lambda: nginx.logs("access.log").count('"GET /ws HTTP/1.1"') == 2)
        assert "a-secret" not in nginx.logs()
