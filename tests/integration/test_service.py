"""The service as users run it: real processes, real sockets."""

import contextlib
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import msgspec
import pytest

from msgpush.domain.connection import Connection
from msgpush.entrypoints.protocol import Limits
from tests.support.client import RawConnection, SseClient, request
from tests.support.service import ServiceProcess, ThreadedService, eventually
from tests.support.tokens import SECRET, KeyServer, bearer, token

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
STREAM = b"GET /sse/stream/a HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def service() -> Iterator[ThreadedService]:
    limits = Limits(header_timeout=0.5, body_timeout=0.7, keep_alive=5)
    with ThreadedService(
        limits, heartbeat_interval=0.5, write_timeout=1.0, history_length=200
    ) as running:
        yield running


def publish(port: int, id: str, channel: str = "a", data: object = None) -> None:
    body = {"id": id, "type": "info", "service": "s", "channels": [channel], "data": data or {}}
    answer = request(port, "POST", "/api/v1/messages/send", msgspec.json.encode(body))
    assert answer.status == 202, answer.body


def ids(events: object) -> list[str]:
    assert isinstance(events, list)
    return [msgspec.json.decode(event.data)["id"] for event in events if event.type == "message"]


def test_a_stream_gets_what_is_published_and_resumes_where_it_was_cut(
    service: ThreadedService,
) -> None:
    with SseClient(service.port, "/sse/stream/resume") as stream:
        assert stream.next().type == "msgpush.open"
        publish(service.port, "r1", "resume")
        assert ids([stream.next()]) == ["r1"]
        last = stream.last_event_id
    publish(service.port, "r2", "resume")
    with SseClient(service.port, "/sse/stream/resume", {"Last-Event-ID": last}) as stream:
        opened, message = stream.take(2)
    assert opened.last_event_id == last
    assert ids([message]) == ["r2"]


def test_a_disconnect_is_noticed_within_a_second(service: ThreadedService) -> None:
    for go in ("close", "reset", "half_close"):
        stream = SseClient(service.port, "/sse/stream/gone")
        stream.next()
        eventually(lambda: len(service.push.connections) == 1)
        gone = time.monotonic()
        if go == "reset":
            stream.connection.reset()
        elif go == "half_close":
            stream.connection.half_close()
        else:
            stream.close()
        eventually(lambda: len(service.push.connections) == 0)
        assert time.monotonic() - gone < 1.0
        stream.close()


def test_a_thousand_connects_and_disconnects_leave_nothing_behind(service: ThreadedService) -> None:
    eventually(lambda: len(service.push.connections) == 0)
    tasks, leftovers = service.tasks(), service.push._hub.leftovers()
    for n in range(1000):
        with RawConnection(service.port) as connection:
            # Streams, streams with a request pipelined behind, headers half sent, and nothing at
            # all.
            connection.send((STREAM, STREAM + GET, STREAM[:30], b"")[n % 4])
            if n % 4 == 0:
                connection.read_until(b"\n\n")
    eventually(lambda: len(service.push.connections) == 0)
    eventually(lambda: service.tasks() <= tasks)
    assert service.push._hub.leftovers() == leftovers


def test_a_request_pipelined_behind_a_stream_ends_it(service: ThreadedService) -> None:
    with RawConnection(service.port) as connection:
        connection.send(STREAM)
        connection.read_until(b"msgpush.open")
        connection.send(GET)
        with pytest.raises((ConnectionError, AssertionError)):
            connection.read_until(b"never")


def test_pipelined_short_requests_are_answered_in_order(service: ThreadedService) -> None:
    with RawConnection(service.port) as connection:
        connection.send(GET * 3)
        received = b""
        while received.count(b'"status":"ok"') < 3:
            received += connection.receive()


def test_a_stalled_reader_catches_up_in_order_and_delays_nobody(service: ThreadedService) -> None:
    with (
        SseClient(service.port, "/sse/stream/stall", receive_buffer=4096) as slow,
        SseClient(service.port, "/sse/stream/stall") as quick,
    ):
        quick.next()
        # More than the sockets' buffers hold, less than the log does.
        for n in range(150):
            publish(service.port, f"s{n}", "stall", {"x": "y" * 3000})
            while not ids([event := quick.next()]):
                assert event.type == "msgpush.heartbeat"
            assert ids([event]) == [f"s{n}"]
        got: list[str] = []
        while len(got) < 150:
            got += ids([slow.next()])
    assert got == [f"s{n}" for n in range(150)]


def test_a_reader_that_never_reads_is_told_if_it_can_be_and_cut(service: ThreadedService) -> None:
    with SseClient(service.port, "/sse/stream/never", receive_buffer=4096) as stalled:
        stalled.next()
        for n in range(300):
            publish(service.port, f"n{n}", "never", {"x": "y" * 5000})
        eventually(lambda: not any("never" in c.channels for c in connections(service)))


def connections(service: ThreadedService) -> list[Connection]:
    return list(service.push.connections.values())


def test_a_reader_that_the_log_has_left_behind_is_told(service: ThreadedService) -> None:
    publish(service.port, "t0", "trim")
    with SseClient(service.port, "/sse/stream/trim?last_event_id=earliest") as stream:
        stream.take(2)
        last = stream.last_event_id
    items = [
        {"type": "info", "service": "s", "channels": ["trim"], "id": f"t{n}"} for n in range(1, 500)
    ]
    answer = request(service.port, "POST", "/api/v1/messages/batch", msgspec.json.encode(items))
    assert answer.json()["accepted"] == 499
    # The ring still has them all; the history alone would not.
    with SseClient(service.port, "/sse/stream/trim", {"Last-Event-ID": last}) as stream:
        assert stream.take(2)[1].type == "message"
    history = request(
        service.port, "GET", f"/api/v1/channels/trim/messages?after={last}&limit=1000"
    ).json()
    assert history["gap"] == {"channel": "trim", "after": last, "reason": "trimmed"}


def test_heartbeats_come_while_nothing_else_does(service: ThreadedService) -> None:
    with SseClient(service.port, "/sse/stream/idle") as stream:
        opened, first, second = stream.take(3)
    assert [opened.type, first.type, second.type] == [
        "msgpush.open",
        "msgpush.heartbeat",
        "msgpush.heartbeat",
    ]
    assert first.data == "{}"


def test_a_body_that_is_too_large_is_refused_and_the_answer_can_be_read(
    service: ThreadedService,
) -> None:
    with RawConnection(service.port) as connection:
        connection.send(
            b"POST /api/v1/messages/send HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000000\r\n\r\n"
        )
        for _ in range(40):
            connection.send(b"x" * 100_000)
        answer = connection.read_all()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in answer


def test_a_chunked_body_without_an_end_is_refused_when_it_is_too_large(
    service: ThreadedService,
) -> None:
    with RawConnection(service.port) as connection:
        connection.send(
            b"POST /api/v1/messages/send HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(6):
            connection.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        assert connection.read_all().startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 8_000 + b"\r\n", 431),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"this is not HTTP\r\n\r\n", 400),
        (b"GET /api%2Fv1/connections HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX\x00: y\r\n\r\n", 400),
        (b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (
            b"POST /api/v1/messages/send HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            b"POST /api/v1/messages/send HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            400,
        ),
        (
            b"POST /api/v1/messages/send HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: nonsense\r\n\r\n0\r\n\r\n",
            400,
        ),
    ],
)
def test_a_request_that_cannot_be_one_is_refused_and_the_connection_closed(
    service: ThreadedService, head: bytes, status: int
) -> None:
    with RawConnection(service.port) as connection:
        connection.send(head)
        answer = connection.read_all()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"application/problem+json" in answer


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (b"/sse/user/acme%2Fann%20lee", ": /sse/user/acme%252Fann%2520lee"),
        (b"http://localhost/push/sse/stream/a%2fb?x=%20", ": /push/sse/stream/a%252fb"),
        (b"/sse/user/%2F" + b"x" * 300, ": /sse/user/%252F" + "x" * 185 + "..."),
        (b"/sse%2Fuser/ann", ""),
        (b"/x%2Fy/sse/user/ann%2F", ""),
        (b"/api/v1/x%2Fy", ""),
        (b"/sse/user/\xc3\xa9%2F", ""),
    ],
)
def test_a_path_with_an_encoded_slash_is_refused_with_the_one_to_use(
    service: ThreadedService, target: bytes, told: str
) -> None:
    with RawConnection(service.port) as connection:
        connection.send(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % target)
        head, _, body = connection.read_all().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert msgspec.json.decode(body)["detail"].partition("(%252F)")[2] == told


def test_eight_megabytes_of_headers_are_refused_and_the_answer_can_be_read(
    service: ThreadedService,
) -> None:
    with RawConnection(service.port) as connection:
        connection.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
        for _ in range(80):
            connection.send(b"x" * 100_000)
        assert connection.read_all().startswith(b"HTTP/1.1 431 ")


def test_headers_that_take_too_long_are_answered_with_408(service: ThreadedService) -> None:
    with RawConnection(service.port) as connection:
        connection.send(b"GET /health HTTP/1.1\r\nHost:")
        assert connection.read_all().startswith(b"HTTP/1.1 408 ")


def test_a_connection_that_never_sends_is_closed(service: ThreadedService) -> None:
    with RawConnection(service.port) as connection:
        assert connection.read_all() == b""


def test_a_body_that_takes_too_long_is_answered_with_408_and_nothing_is_stored(
    service: ThreadedService,
) -> None:
    with RawConnection(service.port) as connection:
        connection.send(
            b"POST /api/v1/messages/send HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n"
            b'{"type":"info","service":"s","channels":["slow"]}'
        )
        assert connection.read_all().startswith(b"HTTP/1.1 408 ")
    assert request(service.port, "GET", "/api/v1/channels/slow/messages").json()["messages"] == []


def test_an_upload_that_is_cut_stores_nothing_of_a_single_message_and_whole_lines_of_a_batch(
    service: ThreadedService,
) -> None:
    line = b'{"type":"info","service":"s","channels":["cut"],"id":"%b"}\n'
    whole = line % b"one" + line % b"two" + line % b"three"
    for cut in (len(whole) - 1, len(line % b"one") + 7, 10):
        with RawConnection(service.port) as connection:
            connection.send(
                b"POST /api/v1/messages/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"
                b"Content-Length: %d\r\n\r\n" % len(whole)
            )
            connection.send(whole[:cut])
            connection.half_close()
            connection.read_all()
    stored = request(service.port, "GET", "/api/v1/channels/cut/messages").json()["messages"]
    assert [each["id"] for each in stored] == ["one", "two"]


def test_expect_100_continue_is_answered(service: ThreadedService) -> None:
    body = b'{"type":"info","service":"s"}'
    with RawConnection(service.port) as connection:
        connection.send(
            b"POST /api/v1/messages/send HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )
        connection.read_until(b"100 Continue\r\n\r\n")
        connection.send(body)
        connection.read_until(b"HTTP/1.1 202 ")


def test_a_client_that_half_closes_after_its_request_gets_its_answer(
    service: ThreadedService,
) -> None:
    with RawConnection(service.port) as connection:
        connection.send(GET)
        connection.half_close()
        assert b'"status":"ok"' in connection.read_all()


def test_a_stream_whose_client_half_closed_at_once_ends(service: ThreadedService) -> None:
    eventually(lambda: not service.push.connections)
    tasks = service.tasks()
    with RawConnection(service.port) as connection:
        connection.send(STREAM)
        connection.half_close()
        with contextlib.suppress(ConnectionError):
            connection.read_all()
    eventually(lambda: not service.push.connections)
    eventually(lambda: service.tasks() <= tasks)


def test_a_request_that_was_answered_before_its_body_came_is_not_answered_twice(
    service: ThreadedService,
) -> None:
    with RawConnection(service.port) as connection:
        connection.send(
            b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\nxxx"
        )
        received = connection.read_all()
    assert received.startswith(b"HTTP/1.1 404 ")
    assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(("protocol", "status"), [(b"h2c", b"200"), (b"websocket", b"404")])
def test_an_upgrade_to_anything_but_a_websocket_is_answered_as_a_plain_request(
    service: ThreadedService, protocol: bytes, status: bytes
) -> None:
    with RawConnection(service.port) as connection:
        connection.send(
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: %b\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            % protocol
        )
        assert connection.read_all().startswith(b"HTTP/1.1 %b " % status)


def test_a_stream_says_that_its_connection_ends_with_it_so_that_no_proxy_takes_it_for_the_next(
    service: ThreadedService,
) -> None:
    with RawConnection(service.port) as connection:
        connection.send(b"GET /sse/stream/a HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head, _, body = connection.read_until(b'"heartbeat"').partition(b"\r\n\r\n")
        assert b"\r\nconnection: close" in head
        id = re.search(rb'"connection":"(\w+)"', body)
        assert id is not None
        closing = f"/api/v1/connections/{id[1].decode()}"
        assert request(service.port, "DELETE", closing).status == 204
        assert connection.read_all().endswith(b"\r\n0\r\n\r\n"), "whole, and then closed"


def test_http_1_0_gets_a_stream_without_chunks_where_the_service_is_open() -> None:
    with (
        ThreadedService(enable_auth=False) as open_service,
        RawConnection(open_service.port) as connection,
    ):
        connection.send(b"GET /sse/stream/old HTTP/1.0\r\n\r\n")
        received = connection.read_until(b"msgpush.open")
        publish(open_service.port, "o1", "old")
        if b'"heartbeat"' not in received:
            received += connection.read_until(b'"heartbeat"')
        received += connection.read_until(b'"o1"')
        assert b"transfer-encoding" not in received
        body = received.partition(b"\r\n\r\n")[2]
        assert re.match(rb"retry: \d+\nevent: msgpush.open\n", body)


def test_no_answer_names_the_server(service: ThreadedService) -> None:
    assert "server" not in request(service.port, "GET", "/health").headers


def test_sigterm_drains_200_streams_and_exits_with_0() -> None:
    with ServiceProcess(DRAIN_SECONDS="2") as process:
        streams = [SseClient(process.port, "/sse/stream/a") for _ in range(200)]
        try:
            for stream in streams:
                stream.next()
            publish(process.port, "before")
            process.signal(signal.SIGTERM)
            began = time.monotonic()
            with SseClient(process.port, "/sse/stream/a") as late:
                # The listening socket stays open: a stream that comes now is told to come back
                # later.
                eventually_close = late.rest()[-1]
            assert "reconnect" in eventually_close.data
            for stream in streams:
                *_, message, close = stream.rest()
                assert ids([message]) == ["before"]
                assert close.type == "msgpush.close"
                assert close.data == '{"reason":"drain","reconnect":true}'
            assert process.wait() == 0
            assert time.monotonic() - began < 2 + 2
        finally:
            for stream in streams:
                stream.close()


def test_a_drain_is_spread_over_its_time_and_readiness_fails_meanwhile() -> None:
    with ServiceProcess(DRAIN_SECONDS="2") as process:
        streams = [SseClient(process.port, "/sse/stream/a") for _ in range(20)]
        try:
            assert request(process.port, "GET", "/health/ready").status == 200
            process.signal(signal.SIGTERM)
            assert eventually(lambda: request(process.port, "GET", "/health/ready").status == 503)
            assert request(process.port, "GET", "/health/live").status == 200
            publish(process.port, "during")
            ends = []
            for stream in streams:
                stream.rest()
                ends.append(time.monotonic())
            assert ends[-1] - ends[0] > 0.5
            assert process.wait() == 0
        finally:
            for stream in streams:
                stream.close()


def test_sigterm_cuts_a_blocked_socket_and_exits_in_time() -> None:
    with (
        ServiceProcess(DRAIN_SECONDS="1") as process,
        SseClient(process.port, "/sse/stream/a", receive_buffer=4096),
    ):
        for n in range(100):
            publish(process.port, f"b{n}", "a", {"x": "y" * 5000})
        began = time.monotonic()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert time.monotonic() - began < 1 + 2


def test_sigterm_waits_for_no_key_server() -> None:
    with KeyServer() as keys:
        keys.endless = True
        with ServiceProcess(JWKS_URL=keys.url, JWT_AUDIENCE="push", DRAIN_SECONDS="0") as process:
            eventually(lambda: keys.fetches)
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
        keys.endless = False


def test_what_others_have_set_stops_no_start_and_a_key_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "jwt").write_text(f"{SECRET}\n")
    with ServiceProcess(
        *("--service-port", "0"),
        JWT_SECRET_FILE=str(tmp_path / "jwt"),
        SERVICE_PORT="tcp://10.0.0.2:8089",
        REDIS_PORT="tcp://10.0.0.1:6379",
        LOG_LENGTH="none",
    ) as process:
        assert (
            request(process.port, "HEAD", "/sse/user/alice", headers=bearer(token("alice"))).status
            == 200
        )
        assert request(process.port, "HEAD", "/sse/user/alice").status == 401
        warnings = [line["event"] for line in process.log if line["level"] == "warning"]
    assert warnings == [
        "set, but not used here and so not read: LOG_LENGTH (used only with REDIS_HOST or REDIS_URL)",
    ]


def test_a_second_signal_ends_at_once() -> None:
    with (
        ServiceProcess(DRAIN_SECONDS="60") as process,
        SseClient(process.port, "/sse/stream/a"),
        SseClient(process.port, "/sse/stream/a"),
    ):
        process.signal(signal.SIGTERM)
        eventually(lambda: request(process.port, "GET", "/health/ready").status == 503)
        process.signal(signal.SIGTERM)
        assert process.wait(3) != 0


def test_a_port_that_is_taken_is_told_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = ServiceProcess(SERVICE_PORT=str(taken.getsockname()[1]))
        assert process.wait() == 1
        process.__exit__()
        assert len(process.log) == 1
        assert "can't listen" in process.log[0]["event"]


def test_a_wrong_setting_stops_the_start_with_one_line() -> None:
    process = ServiceProcess("--service-prot", "1")
    assert process.wait() == 2
    process.__exit__()
    assert len(process.log) == 1
    assert "--service-prot" in process.log[0]["event"]


def test_fewer_open_files_than_streams_lower_the_limit_with_a_warning() -> None:
    with ServiceProcess(open_files=140) as process:
        warning = next(line for line in process.log if "MAX_CONNECTIONS" in line["event"])
        assert (warning["level"], warning["max_connections"]) == ("warning", 12)
        streams = [SseClient(process.port, "/sse/stream/a") for _ in range(13)]
        try:
            assert streams[11].next().type == "msgpush.open"
            assert streams[12].rest()[-1].data == '{"reason":"overload","reconnect":true}'
        finally:
            for stream in streams:
                stream.close()


@pytest.mark.parametrize("root", ["/push", "/sse/user", "/api/v1/channels"])
def test_under_a_prefix_everything_works_as_without_whether_the_proxy_strips_it_or_not(
    root: str,
) -> None:
    with ServiceProcess(ROOT_PATH=root) as process:
        port = process.port
        for prefix in ("", root):
            channel = "under" + prefix.replace("/", ".")
            with SseClient(port, f"{prefix}/sse/stream/{channel}") as stream:
                assert stream.next().type == "msgpush.open"
                body = {"type": "info", "service": "s", "channels": [channel], "id": channel}
                sent = request(
                    port, "POST", f"{prefix}/api/v1/messages/send", msgspec.json.encode(body)
                )
                assert sent.status == 202
                assert ids([stream.next()]) == [channel]
            history = request(port, "GET", f"{prefix}/api/v1/channels/{channel}/messages")
            assert len(msgspec.json.decode(history.body)["messages"]) == 1
            for name in ("x/sse/user/a", "x/sse/stream/a", f"x{root}/sse/user/y"):
                refused = request(port, "GET", f"{prefix}/sse/user/{name}")
                assert refused.status == 400
                told = msgspec.json.decode(refused.body)["detail"]
                assert told.startswith(f'"user:{name}" is no channel name'), (
                    "all of the name, and no more"
                )
            for path in ("/", "/docs"):
                page = request(port, "GET", prefix + path)
                assert page.status == 200
                for source in re.findall(r'(?:src|href)="([^"]+)"', page.body.decode()):
                    assert request(port, "GET", urljoin(prefix + path, source)).status == 200
            description = msgspec.json.decode(request(port, "GET", f"{prefix}/openapi.json").body)
            server = urljoin(f"{prefix}/openapi.json", description["servers"][0]["url"])
            assert request(port, "GET", urljoin(server, "health/live")).status == 200
            assert request(port, "GET", f"{prefix}/metrics").status == 200
            assert request(port, "GET", f"{prefix}/static/nothing").status == 404
        entered = request(port, "GET", root)
        assert (entered.status, urljoin(root, entered.headers["location"])) == (308, root + "/")
