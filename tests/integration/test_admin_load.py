"""The operator's page under load: how long its frames take, and what it costs the service.

It prints what it has measured, and asserts no speed: `pytest tests/integration/test_admin_load.py`.
"""

import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.admin import AdminPage
from tests.support.browser import Browser, needs_chromium
from tests.support.client import request
from tests.support.service import ServiceProcess, eventually

pytestmark = [needs_chromium, pytest.mark.long]

STREAMS, RATE, SECONDS = 10_000, 1_000, 10.0
TICK = 0.01  # seconds: a batch of ten
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

# Frames are those of the page; a long task is what keeps it from the next one for more than 50 ms.
_WATCH = """
window.frames_ = []; window.long_ = [];
new PerformanceObserver((list) => list.getEntries().forEach((e) => long_.push(e.duration)))
  .observe({ type: "longtask" });
(function next(before) {
  requestAnimationFrame((now) => { frames_.push(now - before); next(now); });
})(performance.now()); 0
"""


def test_the_page_stays_quick_and_cheap_beside_ten_thousand_streams(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        ServiceProcess(MAX_CONNECTIONS=str(STREAMS + 100)) as service,
        streams(service.port),
        publishing(service.port) as published,
        Browser(tmp_path) as browser,
    ):
        page = AdminPage(browser, f"http://127.0.0.1:{service.port}")
        alone = [cpu(service.pid)]
        costs, told = {}, {}
        for name, place in (
            ("overview", "#/overview"),
            ("live tail", "#/channels?channel=everybody"),
        ):
            page.go(place)
            page.tab.tell("Page.bringToFront")
            page.tab.becomes("document.querySelectorAll('.plot canvas, .option').length > 3")
            page.tab.value(_WATCH)
            page.tab.tell("Performance.enable", timeDomain="threadTicks")
            worked = busy(page)
            before = page.tab.value("performance.memory.usedJSHeapSize")
            costs[name] = cpu(service.pid)
            worked = busy(page) - worked
            frames = sorted(page.tab.value("frames_"))
            long = page.tab.value("long_")
            if name == "live tail":
                rate = page.tab.value(
                    "parseInt(document.querySelector('.tools .tabular').textContent.replaceAll(',', ''))"
                )
                assert rate > RATE / 2, "it is all that is published"
            grown = page.tab.value("performance.memory.usedJSHeapSize") - before
            told[name] = (
                f"{len(frames) / SECONDS:.0f} frames/s, p50 {frames[len(frames) // 2]:.1f} ms,"
                f" p99 {frames[len(frames) * 99 // 100]:.1f} ms, longest {frames[-1]:.1f} ms,"
                f" long tasks {len(long)}{f' (longest {max(long):.0f} ms)' if long else ''},"
                f" the page's thread busy {worked / SECONDS:.0%}, heap {grown / 1e6:+.1f} MB"
            )
            assert page.noted == {"violations": [], "errors": []}
            page.tab.tell("Page.navigate", url="about:blank")
            alone.append(cpu(service.pid))
        assert published[0] > 0
    lines = [
        f"{STREAMS:,} streams, {RATE:,} messages/s, {SECONDS:.0f} s each; load"
        f" {os.getloadavg()[0]:.0f}",
        "service alone: " + ", ".join(f"{share:.1%}" for share in alone) + " of a core",
    ]
    for (name, cost), before, after in zip(costs.items(), alone, alone[1:], strict=False):
        lines.append(f"{name}: service {cost - (before + after) / 2:+.1%} of a core; {told[name]}")
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")


def busy(page: AdminPage) -> float:
    """Seconds of CPU time that the page's own thread has used for its tasks."""
    metrics = page.tab.tell("Performance.getMetrics")["metrics"]
    return next(float(each["value"]) for each in metrics if each["name"] == "TaskDuration")


def cpu(pid: int) -> float:
    """The share of a core that a process uses, over some seconds."""
    began, before = time.monotonic(), _ticks(pid)
    time.sleep(SECONDS)  # it is what is measured
    return (_ticks(pid) - before) / TICKS_PER_SECOND / (time.monotonic() - began)


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])


@contextmanager
def streams(port: int) -> Iterator[None]:
    """Streams of so many users, which are read."""
    opened = []
    over = threading.Event()
    selector = selectors.EpollSelector()

    def read() -> None:
        while not over.is_set():
            for key, _ in selector.select(0.1):
                assert isinstance(key.fileobj, socket.socket)
                if not key.fileobj.recv(65_536):
                    selector.unregister(key.fileobj)

    reader = threading.Thread(target=read, name="reader")
    reader.start()
    try:
        for n in range(STREAMS):
            stream = socket.create_connection(("127.0.0.1", port))
            stream.sendall(f"GET /sse/user/u{n} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            selector.register(stream, selectors.EVENT_READ)
            opened.append(stream)
        stats = "/api/v1/connections/stats"
        eventually(lambda: request(port, "GET", stats).json()["total"] == STREAMS, 60)
        yield
    finally:
        over.set()
        reader.join()
        for stream in opened:
            stream.close()
        selector.close()


@contextmanager
def publishing(port: int) -> Iterator[list[int]]:
    """So many messages a second, each to one user and to the channel that the page shows."""
    over = threading.Event()
    published = [0]

    def run() -> None:
        due = time.monotonic()
        while not over.wait(max(0.0, due - time.monotonic())):
            due += TICK
            batch = []
            for _ in range(int(RATE * TICK)):
                n = published[0] = published[0] + 1
                batch.append(
                    {
                        "type": "progress",
                        "service": f"service-{n % 20}",
                        "target": {"user_id": f"u{n * 7919 % STREAMS}"},
                        "channels": ["everybody"],
                        "data": {"task_id": f"task_{n % 500}", "progress": n % 100},
                    }
                )
            body = json.dumps(batch).encode()
            assert request(port, "POST", "/api/v1/messages/batch", body).status == 202

    thread = threading.Thread(target=run, name="publisher")
    thread.start()
    try:
        yield published
    finally:
        over.set()
        thread.join()
