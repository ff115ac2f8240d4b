"""The demo, as `make demo` runs it: real documents, the real service, restarts of it, a real
browser.
"""

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

from tests.support.browser import Browser, Tab, needs_chromium
from tests.support.client import SseClient, request
from tests.support.eventsource import Event
from tests.support.redis_servers import free_port
from tests.support.service import ThreadedService, eventually

ROOT = Path(__file__).parents[2]
STREAM = "/sse/stream/demo?events=none"
USER = "/api/v1/users/demo"
Message = dict[str, Any]


class Demo:
    """`python -m demo`, and what it prints."""

    def __init__(self, folder: Path, *flags: str, **environ: str) -> None:
        clean = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG")}
        # Not 8089, which another demo on this machine may take between a restart's end and begin.
        if "--port" not in flags:
            flags = (*flags, "--port", str(free_port()))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "demo", "--folder", str(folder), *flags],
            cwd=ROOT,
            env={**clean, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.printed = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.end(signal.SIGINT)

    def end(self, number: signal.Signals) -> None:
        self._process.send_signal(number)
        assert self.wait() == 0

    def wait(self) -> int:
        """The exit status, which must come in time."""
        try:
            return self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join(10)
            assert self._process.stdout is not None
            self._process.stdout.close()

    @property
    def port(self) -> int:
        match = re.search(r"http://127\.0\.0\.1:(\d+)/demo/", self.printed)
        return int(match[1]) if match else 0

    @property
    def services(self) -> list[int]:
        """The service's process ids, the newest last, each once it is ready."""
        return [int(pid) for pid in re.findall(r"The service is process (\d+)", self.printed)]

    @property
    def writers(self) -> list[int]:
        """The process ids of who writes the answer, the newest last, each once it is ready."""
        return [int(pid) for pid in re.findall(r"the answer is process (\d+)", self.printed)]

    def restart_service(self) -> None:
        before = self.services
        os.kill(before[-1], signal.SIGTERM)
        eventually(lambda: len(self.services) > len(before))

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.printed += line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    (folder / "deep").mkdir(parents=True)
    (folder / "whale.txt").write_text("whale sea ship captain\n" * 200)
    (folder / "deep" / "garden.md").write_text("garden rose tulip sea\n" * 30)
    (folder / "empty").write_text("")
    (folder / "picture.bin").write_bytes(b"\x89PNG\xff\xfe")
    (folder / ".hidden").write_text("not read")
    return folder


@pytest.fixture
def demo(folder: Path) -> Iterator[Demo]:
    with Demo(folder, "--pace", "0") as running:
        eventually(lambda: running.port)
        yield running


def message_of(event: Event) -> Message:
    assert event.type == "message", event
    message: Message = msgspec.json.decode(event.data)
    return message


def whole_job(port: int) -> list[Message]:
    """What a page gets that is loaded now, until the job is finished."""
    with SseClient(port, f"{STREAM}&last_event_id=earliest") as stream:
        assert stream.next().type == "msgpush.open"
        messages = [message_of(stream.next())]
        while messages[-1]["data"].get("state") != "finished":
            messages.append(message_of(stream.next()))
        return messages


def newest(messages: list[Message]) -> dict[str, Message]:
    """What a page shows: the newest data about each file; the job's own are under the empty name."""
    return {message["data"].get("file", ""): message["data"] for message in messages}


def test_every_file_is_indexed_or_has_an_error_and_a_reload_shows_the_same(demo: Demo) -> None:
    messages = whole_job(demo.port)
    state = newest(messages)
    assert state.keys() == {"", "whale.txt", "deep/garden.md", "empty", "picture.bin"}, (
        "the hidden one is left out"
    )
    assert (state[""]["files"], state[""]["failed"]) == (4, 1)
    assert state["whale.txt"]["words"] == 800
    assert state["whale.txt"]["terms"] == ["captain", "ship", "whale", "sea"], (
        "what others have too comes last"
    )
    assert state["deep/garden.md"]["words"] == 120
    assert state["empty"]["terms"] == []
    assert state["picture.bin"]["message"] == "it is no UTF-8 text (byte 0 is 0x89)"
    assert whole_job(demo.port) == messages


def test_the_messages_about_a_file_come_in_their_order(demo: Demo) -> None:
    messages = whole_job(demo.port)
    assert [messages[0]["data"]["state"], messages[-1]["data"]["state"]] == ["started", "finished"]
    steps = [
        (message["type"], message["data"].get("progress"))
        for message in messages
        if message["data"].get("file") == "whale.txt"
    ]
    assert steps == [
        ("status", None),
        ("progress", 36),
        ("progress", 54),
        ("progress", 72),
        ("progress", 90),
        ("success", None),
    ]
    ids = [message["id"] for message in messages]
    assert len(ids) == len(set(ids)), "each once"


def test_whatever_cannot_be_read_is_an_error_in_words(tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    os.mkfifo(folder / "a pipe")
    (folder / "a link").symlink_to("nowhere")
    (folder / "large").write_bytes(b"a" * (4 * 1024 * 1024 + 1))
    (folder / "one word").write_text("b" * 300_000)
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9")).write_text("coffee")
    with Demo(folder, "--pace", "0") as demo:
        eventually(lambda: demo.port)
        state = newest(whole_job(demo.port))
    assert state["a pipe"]["message"] == "it is no regular file"
    assert state["a link"]["message"] == "it is a link to nothing"
    assert state["large"]["message"] == "it is larger than 4 MiB"
    assert state["one word"]["terms"] == []
    assert state[r"caf\xe9"]["terms"] == ["coffee"], "a name that is no UTF-8 is no reason to stop"


def test_the_page_is_served_and_needs_nothing_else(demo: Demo) -> None:
    for path, content_type in (
        ("", "text/html"),
        ("demo.js", "text/javascript"),
        ("questions.js", "text/javascript"),
        ("demo.css", "text/css"),
    ):
        answer = request(demo.port, "GET", f"/demo/{path}")
        assert answer.status == 200
        assert answer.headers["content-type"].startswith(content_type)
        assert b"://" not in answer.body
    assert request(demo.port, "GET", "/demo").headers["location"] == "demo/"


def test_a_restart_in_the_middle_is_told_and_the_worker_says_its_state_again(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02d}.txt").write_text(f"word{'abcdefghijklmnopqrst'[number]}\n" * 200)
    (folder / "00.bin").write_bytes(b"\xff")
    with Demo(folder, "--pace", "0.02") as demo:
        eventually(lambda: demo.port)
        with SseClient(demo.port, f"{STREAM}&last_event_id=earliest") as stream:
            assert stream.next().type == "msgpush.open"
            before = [message_of(event) for event in stream.take(9)]
            assert {"00.bin", "00.txt"} <= newest(before).keys()
            os.kill(demo.services[-1], signal.SIGTERM)
            rest = stream.rest()
            assert rest[-1].type == "msgpush.close"
            assert msgspec.json.decode(rest[-1].data) == {"reason": "drain", "reconnect": True}
            last = stream.last_event_id
        eventually(lambda: len(demo.services) == 2)
        with SseClient(demo.port, STREAM, {"Last-Event-ID": last}) as stream:
            opened, gap = stream.take(2)
            assert (opened.type, gap.type) == ("msgpush.open", "msgpush.gap")
            assert msgspec.json.decode(gap.data)["reason"] == "reset"
            after: list[Message] = []
            while len(newest(after)) < 22 or newest(after)[""]["state"] != "finished":
                after.append(message_of(stream.next()))
    state = newest(after)
    assert state.pop("")["failed"] == 1
    assert state.pop("00.bin")["message"].startswith("it is no UTF-8 text")
    assert [file["words"] for file in state.values()] == [200] * 20


def test_a_restart_after_the_job_leads_to_the_same_state(demo: Demo) -> None:
    before = whole_job(demo.port)
    demo.restart_service()
    with SseClient(demo.port, f"{STREAM}&last_event_id=earliest") as stream:
        assert stream.next().type == "msgpush.open"
        after = [message_of(event) for event in stream.take(len(newest(before)))]
    assert newest(after) == newest(before)
    assert not {message["id"] for message in after} & {message["id"] for message in before}


def pending(port: int) -> dict[str, str]:
    """What the worker waits for an answer to, and its keys."""
    messages = request(port, "GET", f"{USER}/pending").json()["messages"]
    return {
        message["data"]["question"]: f"{message['service']}/{message['id']}" for message in messages
    }


def acknowledge(port: int, key: str) -> None:
    body = msgspec.json.encode({"keys": [key]})
    answer = request(port, "POST", f"{USER}/acknowledgements", body)
    assert answer.json() == {"acknowledged": [key], "unknown": []}


def receipts(port: int) -> list[Message]:
    """What the worker has told about answers to its questions."""
    return [message["data"] for message in history(port) if message["type"] == "info"]


IMPORT = "Approve the import of 4 files from the folder “documents”?"
UNREADABLE = "Leave out 1 unreadable file?"
TEXT = "document.querySelector('{}')?.textContent"
INDEX = "Put the index of 3 files to use?"


def test_the_worker_asks_and_tells_everybody_of_the_receipt(demo: Demo) -> None:
    whole_job(demo.port)
    keys = eventually(lambda: found if len(found := pending(demo.port)) == 3 else {})
    assert list(keys) == [IMPORT, UNREADABLE, INDEX]
    acknowledge(demo.port, keys[UNREADABLE])
    (receipt,) = eventually(lambda: receipts(demo.port))
    assert (receipt["question"], receipt["state"]) == (UNREADABLE, "acknowledged")
    assert (receipt["key"], receipt["user_id"]) == (keys[UNREADABLE], "demo")
    assert list(pending(demo.port)) == [IMPORT, INDEX]


def test_a_newer_question_on_a_topic_replaces_the_older_one(folder: Path) -> None:
    for number in range(3):
        (folder / f"{number}.bin").write_bytes(b"\xff")
    with Demo(folder, "--pace", "0") as demo:
        eventually(lambda: demo.port)
        eventually(lambda: len(pending(demo.port)) == 3)
        assert "Leave out 4 unreadable files?" in pending(demo.port)
        assert receipts(demo.port) == [], "of those that were replaced the worker tells nothing"


def test_after_a_restart_what_was_answered_stays_so_and_the_rest_is_asked_again(
    demo: Demo,
) -> None:
    whole_job(demo.port)
    keys = eventually(lambda: found if len(found := pending(demo.port)) == 3 else {})
    acknowledge(demo.port, keys[IMPORT])
    before = eventually(lambda: receipts(demo.port))
    demo.restart_service()
    again = eventually(lambda: found if len(found := pending(demo.port)) == 2 else {})
    assert again.keys() == {UNREADABLE, INDEX}
    assert not {*again.values()} & {*keys.values()}
    assert eventually(lambda: receipts(demo.port)) == before


@needs_chromium
def test_a_question_is_shown_once_in_each_tab_until_it_is_answered_in_one_of_them(
    demo: Demo, tmp_path: Path
) -> None:
    whole_job(demo.port)
    eventually(lambda: len(pending(demo.port)) == 3)
    with Browser(tmp_path / "profile") as browser:
        one, other = (browser.open(f"http://127.0.0.1:{demo.port}/demo/") for _ in range(2))
        for tab in (one, other):
            tab.shows("#badge", "3")
            tab.shows(".question", IMPORT, UNREADABLE, INDEX)
            assert tab.value("document.title").startswith("(3) ")

        one.click("#questions button")
        for tab in (one, other):
            tab.shows(".question", UNREADABLE, INDEX)
            tab.shows("#badge", "2")
            tab.shows("#receipts li > :first-child", IMPORT)
            tab.becomes(f"/Receipt: acknowledged/.test({TEXT.format('#receipts li')})")

        # Another's, of whose answer the worker says nothing.
        ask(demo.port, "more")
        for tab in (one, other):
            tab.shows(".question", "more?", UNREADABLE, INDEX)
        other.click("#questions button")
        for tab in (one, other):
            tab.shows(".question", UNREADABLE, INDEX)
            tab.shows("#badge", "2")
        eventually(lambda: state(demo.port, "more") == "acknowledged")

        one.value("window.old = true; location.reload()")
        one.becomes("window.old === undefined")
        one.shows("#receipts li > :first-child", IMPORT)
        one.shows(".question", UNREADABLE, INDEX)


@pytest.mark.long
@needs_chromium
def test_an_answer_survives_a_reload_another_writer_and_a_restart_of_the_service(
    folder: Path, tmp_path: Path
) -> None:
    with Demo(folder, "--pace", "0.02") as demo, Browser(tmp_path / "profile") as browser:
        eventually(lambda: demo.port)
        tab = browser.open(f"http://127.0.0.1:{demo.port}/demo/")
        tab.becomes(r"/being written, \d\d words/.test(answerState.textContent)")
        os.kill(demo.writers[-1], signal.SIGKILL)
        tab.value("window.old = true; location.reload()")
        eventually(lambda: len(demo.writers) == 2)
        tab.becomes(f"window.old === undefined && {COMPLETE}")
        told = pieces(demo.port)
        text = tab.value("answerText.textContent")
        assert text == "".join(told) != ""

        demo.restart_service()
        tab.becomes(rf"/\(reset\)/.test({TEXT.format('#notices')}) && {COMPLETE}")
        assert tab.value("answerText.textContent") == text
        assert pieces(demo.port) == told, "each is written once, in its place"


COMPLETE = "answerState.textContent.startsWith('complete')"


def pieces(port: int) -> list[str]:
    """The pieces of the only answer, in the channel's order; each must be there once."""
    found = request(port, "GET", "/api/v1/channels/answers/messages?limit=1000").json()
    data = [each["data"] for each in found["messages"] if "number" in each["data"]]
    assert [each["number"] for each in data] == [*range(len(data))]
    return [each["text"] for each in data]


def state(port: int, id: str) -> str:
    """What has become of a question of the tests' own."""
    told: str = request(port, "GET", f"/api/v1/messages/tests/{id}/delivery").json()["state"]
    return told


def ask(port: int, id: str) -> None:
    """Ask the person something that the worker knows nothing of."""
    message = {
        "id": id,
        "type": "info",
        "service": "tests",
        "target": {"user_id": "demo"},
        "data": {"question": f"{id}?", "answer": "Yes"},
        "metadata": {"priority": "urgent", "ack": {"deadline": 1, "deliveries": 20}},
    }
    body = msgspec.json.encode(message)
    assert request(port, "POST", "/api/v1/messages/send", body).status == 202


@needs_chromium
def test_a_browser_shows_every_file_the_reset_and_then_the_same_again(
    demo: Demo, tmp_path: Path
) -> None:
    whole_job(demo.port)
    with Browser(tmp_path / "profile") as browser:
        tab = browser.open(f"http://127.0.0.1:{demo.port}/demo/")
        tab.at_each_load("window.errors = []; onerror = (error) => void errors.push(error)")
        tab.value("void location.reload()")
        tab.becomes("window.errors !== undefined")
        shows_the_whole_job(tab)
        files = tab.texts("#files li")
        assert "whale.txt100 %800 words: captain, ship, whale, sea" in files
        assert "picture.binerrorit is no UTF-8 text (byte 0 is 0x89)" in files

        tab.value("document.querySelector('#files').append(element('li', '', 'stale'))")
        demo.restart_service()
        tab.becomes(rf"/\(drain\).*\(reset\)/.test({TEXT.format('#notices')})")
        shows_the_whole_job(tab)
        assert sorted(tab.texts("#files li")) == sorted(files), "the reset has cleared the page"

        (id,) = eventually(lambda: browsers(demo.port))
        target = f"/api/v1/connections/{id}?reconnect=false"
        assert request(demo.port, "DELETE", target).status == 204
        tab.shows("#state", "closed")
        tab.becomes(rf"/\(reset\).*\(disconnected\)/.test({TEXT.format('#notices')})")
        assert tab.value("errors") == []


def shows_the_whole_job(tab: Tab) -> None:
    """Return once a page shows all files, and what the worker asks."""
    tab.shows("#job", "Done: 3 files of the folder “documents” indexed, 1 could not be read.")
    tab.shows("#percent", "100 %")
    tab.shows(".question", IMPORT, UNREADABLE, INDEX)
    tab.shows("#badge", "3")


def browsers(port: int) -> list[str]:
    """The ids of the streams that pages have open."""
    found = request(port, "GET", "/api/v1/connections?channel=demo").json()["connections"]
    return [
        connection["id"] for connection in found if "Chrome" in (connection["user_agent"] or "")
    ]


def history(port: int) -> list[Message]:
    messages: list[Message] = request(port, "GET", "/api/v1/channels/demo/messages").json()[
        "messages"
    ]
    return messages


def test_once_ends_when_the_job_is_done_whatever_the_environment_says(folder: Path) -> None:
    with Demo(
        folder, "--pace", "0", "--once", HTTP_PROXY="http://127.0.0.1:9", SERVICE_HOST="0.0.0.0"
    ) as demo:
        assert demo.wait() == 0
        assert "The job is done." in demo.printed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_demo_and_its_service(folder: Path, number: signal.Signals) -> None:
    with Demo(folder, "--pace", "1") as demo:
        eventually(lambda: demo.port)
        demo.end(number)
        assert not Path(f"/proc/{demo.services[-1]}").exists()
        assert "Traceback" not in demo.printed


def test_a_port_that_is_taken_ends_the_demo_and_nothing_is_published_to_another(
    folder: Path,
) -> None:
    with (
        ThreadedService() as other,
        Demo(folder, "--port", str(other.port)) as demo,
    ):
        assert demo.wait() == 1
        assert "Address already in use" in demo.printed
        assert "Traceback" not in demo.printed
        assert history(other.port) == []
