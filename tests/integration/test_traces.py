"""Traces, at a receiver of OTLP over HTTP on a real socket; and that without them nothing changes."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import msgspec
import pytest
import websockets.sync.client
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from msgpush.adapters.traces import asked_for
from tests.support.client import Response, SseClient, request
from tests.support.service import ServiceProcess, eventually
from tests.support.tokens import SECRET, bearer, token
from tests.support.web import WebServer, answer

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
MARK = "hunter2"


class Receiver(WebServer):
    """A collector that keeps what it is sent; `slow` lets each request wait."""

    def __init__(self, *, slow: float = 0.0) -> None:
        super().__init__()
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.asked = threading.Event()
        self._slow = slow

    def post(self, exchange: BaseHTTPRequestHandler) -> None:
        body = exchange.rfile.read(int(exchange.headers["Content-Length"]))
        self.headers.append({k.lower(): v for k, v in exchange.headers.items()})
        self.bodies.append(body)
        self.asked.set()
        time.sleep(self._slow)
        answer(exchange, b"")

    @property
    def environ(self) -> dict[str, Any]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.origin, "OTEL_BSP_SCHEDULE_DELAY": "50"}

    def spans(self) -> list[tuple[Any, dict[str, Any]]]:
        """Each span, and the attributes of what has sent it."""
        found = []
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                own = attributes(resource.resource)
                found += [(span, own) for scope in resource.scope_spans for span in scope.spans]
        return found


def attributes(span: Any) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes
    }


def send(service: ServiceProcess, path: str, body: object, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return request(
        service.port, "POST", f"/api/v1/messages/{path}", msgspec.json.encode(body), named
    )


def message(**more: object) -> dict[str, object]:
    return {"type": "info", "service": "s", "channels": ["a", "b"], **more}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def service(receiver: Receiver) -> Iterator[ServiceProcess]:
    more: dict[str, Any] = {"JWT_SECRET": SECRET, "TRACE_MESSAGES": "true", "LOG_LEVEL": "debug"}
    with ServiceProcess(**receiver.environ, **more) as service:
        yield service


EVERYTHING = bearer(token("root", publish=["*"], subscribe=["*"]))


def traced(receiver: Receiver, number: int = 1) -> list[tuple[Any, dict[str, Any]]]:
    return eventually(lambda: found if len(found := receiver.spans()) >= number else [])


def test_a_publish_becomes_a_span_below_its_publishers(
    service: ServiceProcess, receiver: Receiver
) -> None:
    receiver.bodies.clear()
    sent = send(service, "send", message(), traceparent=TRACEPARENT, **EVERYTHING)
    assert sent.status == 202
    ((span, resource),) = traced(receiver)
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("publish", TRACE, PARENT)
    assert span.kind == 4  # a producer
    assert span.end_time_unix_nano > span.start_time_unix_nano
    assert attributes(span) == {
        "messaging.system": "msgpush",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.batch.message_count": 1,
        "msgpush.channels": 3,
        "msgpush.service": "s",
        "msgpush.type": "info",
    }
    assert resource["service.name"] == "msgpush"


def test_readers_are_told_where_a_trace_goes_on(
    service: ServiceProcess, receiver: Receiver
) -> None:
    other = TRACEPARENT.replace("4bf9", "aaaa")
    with SseClient(service.port, "/sse/stream/a", EVERYTHING) as stream:
        stream.next()
        send(service, "send", message(), traceparent=TRACEPARENT, **EVERYTHING)
        send(service, "send", message(), **EVERYTHING)
        own = message(metadata={"traceparent": other})
        send(service, "send", own, traceparent=TRACEPARENT, **EVERYTHING)
        body = {"type": "info", "service": "s"}
        send(service, "broadcast", body, traceparent=TRACEPARENT, **EVERYTHING)
        batch = [message(), own, message(metadata={"priority": "high"})]
        send(service, "batch", batch, traceparent=TRACEPARENT, **EVERYTHING)
        send(service, "send", message(), traceparent="00-0-0-00", **EVERYTHING)
        told = [
            msgspec.json.decode(event.data)["metadata"].get("traceparent")
            for event in stream.take(8)
        ]
    assert told == [
        TRACEPARENT,
        None,
        other,
        TRACEPARENT,
        TRACEPARENT,
        other,
        TRACEPARENT,
        None,
    ]


def test_a_batch_is_a_span_of_what_is_stored_together(
    service: ServiceProcess, receiver: Receiver
) -> None:
    eventually(lambda: receiver.spans() or True)
    receiver.bodies.clear()
    batch = [message(), message(service="t"), message(id="x1"), message(id="x1", type="error")]
    send(service, "batch", batch, traceparent=TRACEPARENT, **EVERYTHING)
    found = [each for each in traced(receiver) if each[0].trace_id.hex() == TRACE]
    ((span, _),) = [
        each for each in found if attributes(each[0])["messaging.batch.message_count"] == 4
    ]
    assert "msgpush.service" not in attributes(span)
    assert attributes(span)["error.type"] == "Conflict"
    assert span.status.code == 2


def test_what_a_websocket_publishes_goes_on_from_what_it_says(
    service: ServiceProcess, receiver: Receiver
) -> None:
    receiver.bodies.clear()
    trace = "c" * 32
    own = message(metadata={"traceparent": f"00-{trace}-{PARENT}-01"})
    url = f"ws://127.0.0.1:{service.port}/ws"
    headers = {**EVERYTHING, "traceparent": TRACEPARENT}
    with websockets.sync.client.connect(url, additional_headers=headers) as socket:
        socket.send(msgspec.json.encode({"publish": own, "ref": 1}).decode())
        while '"ref":1' not in str(socket.recv(10)):
            pass
    eventually(lambda: [s for s, _ in receiver.spans() if s.trace_id.hex() == trace])


def test_a_trace_tells_nothing_secret(service: ServiceProcess, receiver: Receiver) -> None:
    receiver.bodies.clear()
    secret = token(f"{MARK}-subject", publish=["*"], subscribe=["*"])
    body = message(
        data={"text": MARK}, target={"user_id": f"{MARK}-user"}, channels=[f"{MARK}-channel"]
    )
    headers = {**bearer(secret), "cookie": f"msgpush_token={MARK}", "traceparent": TRACEPARENT}
    assert send(service, "send", body, **headers).status == 202
    assert send(service, "send", {**body, "id": "once"}, **headers).status == 202
    changed = {**body, "id": "once", "data": {"text": f"{MARK} changed"}}
    assert send(service, "send", changed, **headers).status == 409
    assert len(traced(receiver, 3)) >= 3
    for told in (*receiver.bodies, *(str(each).encode() for each in receiver.headers)):
        assert MARK.encode() not in told
        for part in secret.split("."):
            assert part.encode() not in told
    assert MARK not in str(service.log)


def test_a_retry_from_another_trace_is_the_same_message(service: ServiceProcess) -> None:
    body = message(id="retried")
    first = send(service, "send", body, traceparent=TRACEPARENT, **EVERYTHING).json()
    other = TRACEPARENT.replace("4bf9", "aaaa")
    again = send(service, "send", body, traceparent=other, **EVERYTHING)
    assert (again.status, again.json()["duplicate"]) == (202, True)
    own = {**body, "metadata": {"traceparent": other}}
    assert send(service, "send", own, **EVERYTHING).json()["duplicate"] is True
    assert again.json()["cursor"] == first["cursor"]


@pytest.mark.parametrize("how", ["away", "slow"])
def test_a_receiver_that_is_away_or_slow_delays_no_publish(how: str) -> None:
    with Receiver(slow=30.0) as receiver:
        environ = dict(receiver.environ)
        if how == "away":
            environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:1"
        with ServiceProcess(**environ, DRAIN_SECONDS="0.1") as service:
            assert send(service, "send", message()).status == 202
            if how == "slow":
                assert receiver.asked.wait(10)
            longest = 0.0
            for _ in range(300):
                began = time.monotonic()
                assert send(service, "send", message()).status == 202
                longest = max(longest, time.monotonic() - began)
            assert longest < 1.0
            service.signal(signal.SIGINT)  # the end doesn't wait for it either
            assert service.wait(8) == 0


def test_readers_are_told_nothing_by_default() -> None:
    with (
        ServiceProcess() as service,
        SseClient(service.port, "/sse/stream/a") as stream,
    ):
        stream.next()
        send(service, "send", message(), traceparent=TRACEPARENT)
        assert "traceparent" not in stream.next().data


WITHOUT = """
import importlib.abc, sys

class Without(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ImportError("not here: " + name)

sys.meta_path.insert(0, Without())
import logging
logging.basicConfig()
from msgpush.adapters.traces import traces_of
from msgpush.entrypoints.app import create_app
from msgpush.entrypoints.settings import Settings
create_app(Settings())
assert traces_of({}) is None
assert traces_of({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}) is None
"""


def test_without_the_extra_the_service_runs_and_says_what_is_missing_where_it_is_asked_for() -> (
    None
):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=30, check=True
    )
    (line,) = done.stderr.splitlines()
    assert "OTEL_EXPORTER_OTLP_ENDPOINT asks for traces" in line
    assert "pip install 'msgpush[otel]'" in line


@pytest.mark.parametrize(
    ("environ", "variable"),
    [
        ({}, None),
        ({"OTEL_SERVICE_NAME": "x"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "OTEL_TRACES_EXPORTER"),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, None),
        ({"OTEL_TRACES_EXPORTER": "console, otlp"}, "OTEL_TRACES_EXPORTER"),
        ({"OTEL_TRACES_EXPORTER": "zipkin", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, None),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, None),
    ],
)
def test_the_environment_asks_for_traces_as_opentelemetry_says(
    environ: dict[str, str], variable: str | None
) -> None:
    assert asked_for(environ) == variable


def test_what_opentelemetry_can_not_read_keeps_no_service_from_starting() -> None:
    wrong: dict[str, Any] = {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "many"}
    with ServiceProcess(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", **wrong) as service:
        (line,) = [each for each in service.log if each.get("logger") == "msgpush.traces"]
        assert "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT" in line["event"]


def test_another_protocol_is_told_not_to_be_spoken() -> None:
    environ: dict[str, Any] = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    }
    with ServiceProcess(**environ) as service:
        assert any("another protocol" in str(line.get("event")) for line in service.log)
