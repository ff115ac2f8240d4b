"""The demo, as `make demo` runs it: real documents, the real service, a restart in the middle."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest

from tests.support.client import SseClient, request
from tests.support.service import eventually

ROOT = Path(__file__).parents[2]
STREAM = "/sse/stream/demo?events=none&last_event_id=earliest"


class Demo:
    """`python -m demo`, and what it prints."""

    def __init__(self, folder: Path) -> None:
        environ = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "demo", "--folder", str(folder), "--pace", "0"],
            cwd=ROOT,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.printed = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        assert self._process.wait(20) == 0
        self._reader.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def port(self) -> int:
        match = re.search(r"http://127\.0\.0\.1:(\d+)/demo/", self.printed)
        return int(match[1]) if match else 0

    @property
    def services(self) -> list[int]:
        """The service's process ids, the newest last."""
        return [int(pid) for pid in re.findall(r"runs as process (\d+)", self.printed)]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.printed += line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "whale.txt").write_text("whale sea ship captain\n" * 100)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "garden.md").write_text("garden rose tulip sea\n" * 30)
    (tmp_path / "picture.bin").write_bytes(b"\x89PNG\xff\xfe")
    (tmp_path / ".hidden").write_text("not read")
    return tmp_path


@pytest.fixture
def demo(folder: Path) -> Iterator[Demo]:
    with Demo(folder) as running:
        eventually(lambda: running.port)
        yield running


def until_finished(port: int) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What a page shows once the job is done: the newest message about each file; and the types in their order."""
    state: dict[str, dict[str, Any]] = {}
    types = []
    with SseClient(port, STREAM) as stream:
        while True:
            event = stream.next()
            types.append(event.type)
            if event.type != "message":
                continue
            message = msgspec.json.decode(event.data)
            state[message["data"].get("file", "")] = message
            types[-1] = message["type"]
            if message["data"].get("state") == "finished":
                return state, types


def test_every_file_ends_indexed_or_with_an_error_and_a_reload_shows_the_same(demo: Demo) -> None:
    state, types = until_finished(demo.port)
    assert state["whale.txt"]["type"] == "success"
    assert state["whale.txt"]["data"]["words"] == 400
    assert set(state["whale.txt"]["data"]["terms"]) == {"whale", "ship", "captain", "sea"}
    assert state["whale.txt"]["data"]["terms"][-1] == "sea", "what every document has says least"
    assert state["deep/garden.md"]["type"] == "success"
    assert state["picture.bin"]["type"] == "error"
    assert ".hidden" not in state
    assert types.count("progress") >= 4
    assert until_finished(demo.port)[0] == state


def test_the_page_is_served_and_needs_nothing_else(demo: Demo) -> None:
    for path, content_type in (("", "text/html"), ("demo.js", "text/javascript"), ("demo.css", "text/css")):
        answer = request(demo.port, "GET", f"/demo/{path}")
        assert answer.status == 200
        assert answer.headers["content-type"].startswith(content_type)
    assert request(demo.port, "GET", "/demo").headers["location"] == "demo/"


def test_after_a_restart_the_page_is_told_and_the_worker_says_its_state_again(demo: Demo) -> None:
    before, _ = until_finished(demo.port)
    with SseClient(demo.port, STREAM) as stream:
        stream.take(3)
        last = stream.last_event_id
    os.kill(demo.services[-1], signal.SIGTERM)
    eventually(lambda: len(demo.services) == 2)
    eventually(lambda: answers(demo.port))
    with SseClient(demo.port, "/sse/stream/demo?events=none", {"Last-Event-ID": last}) as stream:
        opened, gap = stream.take(2)
        assert (opened.type, gap.type) == ("msgpush.open", "msgpush.gap")
        assert msgspec.json.decode(gap.data)["reason"] == "reset"
        after: dict[str, dict[str, Any]] = {}
        while len(after) < len(before):
            event = stream.next()
            if event.type == "message":
                message = msgspec.json.decode(event.data)
                after[message["data"].get("file", "")] = message
    assert {name: each["data"] for name, each in after.items()} == {name: each["data"] for name, each in before.items()}


def answers(port: int) -> bool:
    try:
        return request(port, "GET", "/health").status == 200
    except OSError:
        return False
