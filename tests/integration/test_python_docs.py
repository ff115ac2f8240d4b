"""docs/clients.md: its Python does what the text says."""

import ast
import asyncio
import inspect
import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from msgpush.client import Gap, Publisher
from tests.support.client import request
from tests.support.service import ThreadedService, eventually

TEXT = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
PYTHON = TEXT[TEXT.index("## Python") : TEXT.index("## JavaScript")]
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PYTHON, re.MULTILINE | re.DOTALL)
(
    TASK,
    MORE,
    SEND,
    BUFFERED,
    ASYNC,
    TOKENS,
    LOG,
    ACKNOWLEDGED,
    LISTEN,
    SYNC,
) = BLOCKS

Message = dict[str, Any]


class Enough(Exception):
    """A block that would go on for ever has done what it should."""


@pytest.fixture
def service() -> Iterator[ThreadedService]:
    with ThreadedService() as service:
        yield service


@pytest.fixture
def publisher(service: ThreadedService) -> Iterator[Publisher]:
    with Publisher(f"http://127.0.0.1:{service.port}", service="importer") as publisher:
        yield publisher


def run(block: str, service: ThreadedService, **names: Any) -> None:
    """Run a block as a program of its own, against this service."""
    text = block.replace("http://127.0.0.1:8089", f"http://127.0.0.1:{service.port}")
    code = compile(text, "docs/clients.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, {"Publisher": Publisher, **names})
    if inspect.isawaitable(result):

        async def wait() -> None:
            await result

        asyncio.run(wait())


def history(service: ThreadedService, channel: str) -> list[Message]:
    answer = request(service.port, "GET", f"/api/v1/channels/{channel}/messages?last=1000")
    messages: list[Message] = msgspec.json.decode(answer.body)["messages"]
    return messages


def told(service: ThreadedService, channel: str = "user:123") -> list[tuple[str, Any]]:
    """The types of a channel's messages, each with what tells them apart."""
    names = ("state", "progress", "message", "documents")
    return [
        (each["type"], next((each["data"][name] for name in names if name in each["data"]), None))
        for each in history(service, channel)
    ]


def test_a_job_in_three_lines(service: ThreadedService) -> None:
    read: list[str] = []
    run(TASK, service, documents=["a", "b"], read=read.append)
    assert read == ["a", "b"]
    messages = history(service, "user:123")
    assert told(service) == [("status", "started"), ("progress", 100.0), ("success", None)]
    assert len({each["data"]["task_id"] for each in messages}) == 1


def test_a_job_that_fails_says_so(service: ThreadedService) -> None:
    def read(document: str) -> None:
        raise OSError(f"{document} is gone")

    with pytest.raises(OSError, match="b is gone"):
        run(TASK, service, documents=["b"], read=read)
    last = history(service, "user:123")[-1]
    assert (last["type"], last["data"]["message"]) == ("error", "b is gone")
    assert last["data"]["error"] == "OSError"


def test_a_job_says_more(service: ThreadedService, publisher: Publisher) -> None:
    run(MORE, service, publisher=publisher)
    publisher.flush()
    assert told(service, "imports") == [
        ("status", "started"),
        ("progress", 65),
        ("warning", "3 pages have no text"),
        ("success", 20),
    ]


def test_publishing(
    service: ThreadedService, publisher: Publisher, capsys: pytest.CaptureFixture[str]
) -> None:
    run(SEND, service, publisher=publisher)
    run(SEND, service, publisher=publisher)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["False", "True"]
    assert told(service) == [("success", 20)]
    assert len(history(service, "broadcast")) == len(history(service, "exports")) == 2


def test_publishing_much(service: ThreadedService) -> None:
    run(BUFFERED, service)
    readings = [each["data"]["reading"] for each in history(service, "readings")]
    assert readings == [*range(9_000, 10_000)], "the newest 1,000 are kept"


def test_publishing_in_asyncio(service: ThreadedService) -> None:
    async def documents() -> AsyncIterator[str]:
        yield "a"

    async def read(document: str) -> None:
        assert document == "a"

    run(ASYNC, service, stream_of_documents=documents, read_later=read)
    assert [kind for kind, _ in told(service)] == ["status", "status", "status", "success"]
    assert history(service, "imports")[0]["data"] == {"hello": "world"}


def test_tokens(service: ThreadedService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSGPUSH_TOKEN", "text")
    run(TOKENS, service, os=os, read_token=lambda: "text", secret="s")


def test_a_job_s_log(service: ThreadedService, publisher: Publisher) -> None:
    run(LOG, service, publisher=publisher)
    publisher.flush()
    assert ("warning", "page 7 has no text") in told(service)


def test_a_message_that_waits(
    service: ThreadedService, publisher: Publisher, capsys: pytest.CaptureFixture[str]
) -> None:
    run(ACKNOWLEDGED, service, publisher=publisher)
    assert capsys.readouterr().out == "accepted\n"
    assert request(service.port, "GET", "/api/v1/users/123/pending").json()["total"] == 0


def test_listening(
    service: ThreadedService, publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    heard: list[tuple[str, int]] = []

    def handle(type: str, data: dict[str, int]) -> None:
        heard.append((type, data["number"]))
        if len(heard) == 3:
            raise Enough

    def start_over(reason: str) -> None:
        raise AssertionError(Gap(reason))

    wanted = {"user": "7", "channels": ["imports"], "ack": True}
    sent = publisher.send("info", {"number": 0}, channels=["imports"])
    (tmp_path / "imports.cursor").write_text(sent.cursor)
    first = publisher.send("info", {"number": 1}, **wanted)  # type: ignore[arg-type]
    for number in (2, 3):
        publisher.send("info", {"number": number}, channels=["imports"])
    with pytest.raises(Enough):
        run(LISTEN, service, handle=handle, start_over=start_over)
    assert heard == [("info", 1), ("info", 2), ("info", 3)]
    assert publisher.delivery(first.key).state == "acknowledged"
    heard.clear()
    publisher.send("info", {"number": 4}, channels=["imports"])
    publisher.send("info", {"number": 5}, channels=["imports"])
    with pytest.raises(Enough):
        run(LISTEN, service, handle=handle, start_over=start_over)
    assert heard == [("info", 3), ("info", 4), ("info", 5)], "the third was not done with"
    eventually(lambda: not service.push.connections)


def test_listening_without_an_event_loop(service: ThreadedService, publisher: Publisher) -> None:
    heard: list[str] = []

    def handle(type: str, data: dict[str, int]) -> None:
        heard.append(type)
        raise Enough

    publisher.send("status", {"state": "started"}, user="123")
    with pytest.raises(Enough):
        run(SYNC, service, handle=handle)
    assert heard == ["status"]
    eventually(lambda: not service.push.connections)
