"""docs/websocket.md: every block of code in it does what the text says, and its tables have the names
that the code has.
"""

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from websockets.sync.client import connect

from msgpush.adapters.http.subscribing import CURSORS
from msgpush.adapters.websocket import commands, frames
from msgpush.adapters.websocket.endpoint import OPERATIONS, SUBPROTOCOL
from msgpush.domain.channel import MAX_LISTENED
from msgpush.entrypoints.settings import Settings
from tests.integration.test_auth_docs import shell
from tests.support.browser import Browser, Tab, needs_chromium
from tests.support.client import PATIENCE, request
from tests.support.proxy import CuttingProxy
from tests.support.service import ServiceProcess, ThreadedService, eventually
from tests.support.tokens import SECRET, bearer, token
from tests.support.web import Page

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "websocket.md").read_text()
BLOCK = re.compile(r"^## ([^\n]+)$|^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

EXAMPLE, PAGE, RENEWAL = "An example", "In a page", "A token that ends"
CONNECTING, GET, SAY, END = "Connecting", "What you get", "What you say", "The end"
BEFORE = "What was before I came"


def blocks() -> dict[tuple[str, str], list[str]]:
    """The blocks of code, by the heading that they stand under and their language."""
    found: dict[tuple[str, str], list[str]] = {}
    heading = ""
    for match in BLOCK.finditer(TEXT):
        if match[1]:
            heading = match[1]
        else:
            found.setdefault((heading, match[2]), []).append(match[3])
    return found


BLOCKS = blocks()


def test_no_block_is_missing_here() -> None:
    assert {place: len(each) for place, each in BLOCKS.items()} == {
        (EXAMPLE, "console"): 1,
        (EXAMPLE, "json"): 3,
        (PAGE, "js"): 1,
        (RENEWAL, "js"): 1,
        (BEFORE, "console"): 1,
    }


# Names


def table(heading: str) -> list[list[str]]:
    """The rows of the table under a heading, each as its cells."""
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def quoted(text: str) -> list[str]:
    """What stands in backticks, outside of blocks."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`]+)`", prose)


def test_the_frames_are_those_of_the_code() -> None:
    shown = [each for row in table(GET) for each in quoted(row[0])]
    source = Path(frames.__file__).read_text()
    events = set(re.findall(r'"event": "([\w.]+)"', " ".join(shown)))
    assert events == set(re.findall(r'_event\(b"([\w.]+)"', source))
    (opening,) = (each for each in shown if "msgpush.open" in each)
    fields = frames._Opening.__struct_fields__
    assert re.findall(r'"(\w+)"', opening.partition('"data"')[2]) == [*fields]
    (closing,) = (each for each in shown if "msgpush.close" in each)
    fields = frames._Closing.__struct_fields__
    assert re.findall(r'"(\w+)"', closing.partition('"data"')[2]) == [*fields]


def test_the_commands_are_those_of_the_code() -> None:
    shown = [re.match(r'\{"(\w+)":', quoted(row[0])[0]) for row in table(SAY)]
    assert [each and each[1] for each in shown] == [*commands.COMMANDS]
    assert f"At most {commands.UNDER_WAY} publishes and acknowledgements" in TEXT
    assert f"a string of at most {commands.MAX_REF} characters" in TEXT


def test_the_codes_are_those_of_the_code() -> None:
    found: dict[str, set[int]] = {}
    for numbers, reasons, _ in table(END):
        for reason in quoted(reasons):
            if reason in frames.CODES:
                found.setdefault(reason, set()).add(int(numbers))
    expected = {reason: {code} for reason, code in frames.CODES.items()}
    expected["disconnected"].add(frames.AGAIN)
    assert found == expected
    codes = {int(each) for row in table(END) for each in row[0].split(", ")}
    # Those of the server, which says no more than that.
    assert codes == {*frames.CODES.values(), 1002, 1007, 1008, 1009}


def test_the_parameters_are_those_of_the_code() -> None:
    shown = {each.partition("=")[0] for row in table(CONNECTING) for each in quoted(row[0])}
    (operation,) = OPERATIONS
    given = {each["name"] for each in operation.parameters if each["in"] == "query"}
    assert shown == given - {*CURSORS} | {"last_event_id"}
    assert f"{MAX_LISTENED} at most, and `broadcast`" in TEXT
    assert f"The subprotocol is `{SUBPROTOCOL}`" in TEXT
    assert f"`HEARTBEAT_INTERVAL` ({Settings().heartbeat_interval:g} s)" in TEXT


# The example


class Command:
    """The command of the example, which somebody types into."""

    def __init__(self, line: str, port: int) -> None:
        program, *arguments = shlex.split(line.replace(":8089", f":{port}"))
        assert program == ".venv/bin/websockets"
        self._process = subprocess.Popen(
            [Path(sys.executable).parent / "websockets", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        assert "Connection closed: 1000" in self._process.communicate(timeout=PATIENCE)[0]
        assert self._process.returncode == 0

    def type(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def shown(self) -> str:
        """The next frame that it shows."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.search(r"< (\{.*\})", line):
                return found[1]
        raise AssertionError("it has ended")


def test_the_example_does_what_the_text_says() -> None:
    (listen,), (subscribe, publish, message) = BLOCKS[EXAMPLE, "console"], BLOCKS[EXAMPLE, "json"]
    answers = [each for each in quoted(TEXT) if each.startswith('{"ref":1,')]
    unsubscribe = '{"unsubscribe": ["user:alice"]}'
    assert unsubscribe in quoted(TEXT)
    with ThreadedService() as service, Command(listen, service.port) as command:
        opened = json.loads(command.shown())
        assert opened["event"] == "msgpush.open"
        assert "imports" in opened["data"]["channels"]
        command.type(subscribe)
        assert [command.shown()] == answers
        command.type(publish)
        receipt, came = json.loads(command.shown()), json.loads(command.shown())
        body = json.dumps(json.loads(publish)["publish"]).encode()
        by_http = request(service.port, "POST", "/api/v1/messages/send", body).json()
        assert receipt.keys() == {"ref", "ok"}
        assert receipt["ok"].keys() == by_http.keys()
        like(came, json.loads(message))
        assert came["data"]["data"] == {"text": "Hello"}
        like(json.loads(command.shown()), json.loads(message))
        command.type(unsubscribe + "\n")
        assert "user:alice" not in json.loads(command.shown())["ok"]["channels"]
        assert request(service.port, "POST", "/api/v1/messages/send", body).status == 202
        command.type('{"ping": 1}\n')
        assert command.shown() == '{"ok":{}}'


def like(found: dict[str, Any], shown: dict[str, Any]) -> None:
    """What is found has all that is shown, in the same form."""
    for name, value in shown.items():
        if isinstance(value, dict):
            like(found[name], value)
        elif name == "id":
            assert form(found[name]).startswith(form(value))
        else:
            assert found[name] == value


def form(id: str) -> str:
    """An id, of which it is only seen where it has letters and digits."""
    return re.sub("[0-9a-z]+", "x", id)


def test_the_readme_s_command_connects_and_its_commands_are_understood() -> None:
    section = (ROOT / "README.md").read_text().partition("## Channels that change")[2]
    section = section.partition("\n## ")[0]
    line = section.split("```console\n")[1].split("```")[0]
    named = {re.findall(r"\w+", each)[0] for each in quoted(section) if each.startswith("{")}
    assert named == {*commands.COMMANDS} - {"ping"}
    with ThreadedService() as service, Command(line, service.port) as command:
        assert "imports" in json.loads(command.shown())["data"]["channels"]


def test_what_was_before_is_read_after_subscribing() -> None:
    (block,) = BLOCKS[BEFORE, "console"]
    with (
        ThreadedService() as service,
        connect(f"ws://127.0.0.1:{service.port}/ws?channel=imports") as websocket,
    ):
        websocket.recv(PATIENCE)
        say(service.port, "both", "imports")
        history = json.loads(shell(block.replace(":8089", f":{service.port}")))
        came = json.loads(websocket.recv(PATIENCE))
        assert [each["id"] for each in history["messages"]] == [came["data"]["id"]]
        assert history["cursor"] == came["id"]


# In a page, of another origin of this machine


# What a page is, around the script: its waits are short, and what it opens is counted.
AROUND = """
const base = "ws://127.0.0.1:PORT";
let waiting = 0, gate = Promise.resolve(), connecting = () => {}, frames = 0;
const wait = window.setTimeout;
window.setTimeout = (then, milliseconds) => {
  waiting += 1;
  wait(() => { waiting -= 1; then(); }, milliseconds / 50);
};
const sockets = [], Real = window.WebSocket;
window.WebSocket = class extends Real {
  constructor(...given) {
    super(...given);
    sockets.push(this);
    this.addEventListener("message", () => (frames += 1));
    connecting();
  }
};
async function freshToken() {
  await gate;
  return TOKEN;
}
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@contextmanager
def listening(browser: Browser, port: int, page: Page, token: str = '""') -> Iterator[Tab]:
    """A page that runs the script of the text."""
    around = AROUND.replace("PORT", str(port)).replace("TOKEN", token)
    (script,) = BLOCKS[PAGE, "js"]
    page.script = around + script
    tab = browser.open(page.origin)
    tab.becomes("sockets.length > 0")
    try:
        yield tab
    finally:
        tab.value("stream.close()")


def say(port: int, text: str, channel: str, **headers: str) -> None:
    message = {"type": "info", "service": "a", "channels": [channel], "data": {"text": text}}
    body = json.dumps(message).encode()
    assert request(port, "POST", "/api/v1/messages/send", body, headers).status == 202


def shown(tab: Tab) -> list[str]:
    return re.findall(r"got (\w+)\. ", tab.value("document.body.textContent"))


def shows(tab: Tab, text: str) -> None:
    """Return once the page shows this."""
    tab.becomes(f"document.body.textContent.includes('got {text}. ')")


def channels(service: ThreadedService) -> set[str]:
    """What the only client listens to."""
    return {name for each in service.push.connections.values() for name in each.channels}


def listens(service: ThreadedService, *wanted: str) -> None:
    """Return once the only client listens to these, and to broadcasts."""
    eventually(lambda: channels(service) == {*wanted, "broadcast"})


def end(service: ThreadedService, reconnect: bool, **headers: str) -> None:
    """End the only connection."""
    (id,) = service.push.connections
    path = f"/api/v1/connections/{id}?reconnect={str(reconnect).lower()}"
    assert request(service.port, "DELETE", path, headers=headers).status == 204


@needs_chromium
def test_the_page_is_cut_again_and_again_and_shows_everything_once(browser: Browser) -> None:
    with (
        ThreadedService() as service,
        CuttingProxy(service.port, Random(2), share=1) as proxy,
        Page() as page,
        listening(browser, proxy.port, page) as tab,
    ):
        shows_first(service, tab)
        texts = [f"t{n}" for n in range(60)]
        for n, text in enumerate(texts):
            say(service.port, text, ("imports", "kb:42")[n % 2])
            if n > 5:
                shows(tab, texts[n - 5])
        shows(tab, texts[-1])
        assert [each for each in shown(tab) if each in texts] == texts
        assert proxy.cut > 10


def shows_first(service: ThreadedService, tab: Tab) -> None:
    """Return once the page has had its first cursor, and has both channels of the text."""
    listens(service, "imports", "kb:42")
    say(service.port, "first", "kb:42")
    shows(tab, "first")


@needs_chromium
def test_the_page_s_channels_change_while_it_is_open_and_while_it_is_cut(browser: Browser) -> None:
    with ThreadedService() as service, Page() as page, ExitStack() as stack:
        tab = stack.enter_context(listening(browser, service.port, page))
        listens(service, "imports", "kb:42")
        tab.value('stream.subscribe("kb:1", "kb:2")')
        tab.value('stream.unsubscribe("kb:42")')
        listens(service, "imports", "kb:1", "kb:2")
        for channel, text in (("kb:42", "left"), ("kb:1", "joined")):
            say(service.port, text, channel)
        shows(tab, "joined")

        tab.value("let go; gate = new Promise((resolve) => (go = resolve)); 0")
        end(service, reconnect=True)
        eventually(lambda: not service.push.connections)
        tab.value('stream.subscribe("kb:3"); stream.unsubscribe("kb:2")')
        for channel, text in (("kb:2", "left"), ("kb:3", "away"), ("imports", "still")):
            say(service.port, text, channel)
        # And once more when it knows its token, and isn't open yet.
        tab.value('connecting = () => { stream.subscribe("kb:4"); stream.unsubscribe("kb:3"); }')
        tab.value("go()")
        listens(service, "imports", "kb:1", "kb:4")
        say(service.port, "last", "kb:4")
        shows(tab, "last")
        assert shown(tab) == ["joined", "away", "still", "last"]


@needs_chromium
def test_a_channel_that_is_refused_does_not_end_the_page_s_stream(browser: Browser) -> None:
    given = token("alice", subscribe=["imports", "kb:*"])
    ops = bearer(token("ops", admin=True, publish=["*"]))
    with (
        Page() as page,
        ThreadedService(jwt_secret=SECRET, cors_origins=(page.origin,)) as service,
        listening(browser, service.port, page, f'"{given}"') as tab,
    ):
        listens(service, "imports", "kb:42")
        frames = tab.value("frames")
        tab.value('stream.subscribe("secret")')
        tab.becomes(f"frames > {frames}")
        end(service, True, **ops)
        tab.becomes("sockets.length === 2")
        listens(service, "imports", "kb:42")
        say(service.port, "after", "imports", **ops)
        shows(tab, "after")


@needs_chromium
def test_a_page_that_is_told_never_to_come_back_does_not(browser: Browser) -> None:
    with (
        ThreadedService() as service,
        Page() as page,
        listening(browser, service.port, page) as tab,
    ):
        listens(service, "imports", "kb:42")
        end(service, reconnect=False)
        tab.becomes("sockets[0].readyState === WebSocket.CLOSED")
        assert tab.value("[waiting, sockets.length]") == [0, 1]


@needs_chromium
def test_a_page_without_a_token_is_told_so_and_stops(browser: Browser) -> None:
    with (
        Page() as page,
        ThreadedService(jwt_secret=SECRET, cors_origins=(page.origin,)) as service,
        listening(browser, service.port, page) as tab,
    ):
        tab.becomes("sockets[0].readyState === WebSocket.CLOSED")
        assert tab.value("[waiting, sockets.length]") == [0, 1]


@needs_chromium
def test_a_page_whose_token_has_expired_comes_back_with_the_next(browser: Browser) -> None:
    given = [token("alice", subscribe=["*"], lifetime=each) for each in (2, 600)]
    ops = bearer(token("ops", admin=True, publish=["*"]))
    with (
        Page() as page,
        ThreadedService(jwt_secret=SECRET, jwt_leeway=0.0, cors_origins=(page.origin,)) as service,
        listening(browser, service.port, page, f"{given}[Math.min(sockets.length, 1)]") as tab,
    ):
        listens(service, "imports", "kb:42")
        tab.becomes("sockets.length === 2")
        say(service.port, "after", "kb:42", **ops)
        shows(tab, "after")


@needs_chromium
def test_a_page_stays_as_long_as_heartbeats_come(browser: Browser) -> None:
    with (
        ThreadedService(heartbeat_interval=0.1) as service,
        Page() as page,
        listening(browser, service.port, page) as tab,
    ):
        # The watch looks every two and a half, and nothing is published.
        tab.becomes("frames > 12")
        assert tab.value("sockets.length") == 1


@needs_chromium
def test_a_page_that_hears_nothing_any_more_connects_anew(browser: Browser) -> None:
    with (
        ServiceProcess(HEARTBEAT_INTERVAL="0.2") as service,
        Page() as page,
        listening(browser, service.port, page) as tab,
    ):
        tab.becomes("frames > 0")
        service.signal(signal.SIGSTOP)
        try:
            tab.becomes("sockets.length > 1")
        finally:
            service.signal(signal.SIGCONT)
        tab.becomes("sockets.at(-1).readyState === WebSocket.OPEN")
        say(service.port, "after", "imports")
        shows(tab, "after")


@needs_chromium
def test_a_token_is_renewed_on_the_open_connection(browser: Browser) -> None:
    (block,) = BLOCKS[RENEWAL, "js"]
    first, second = token("alice", lifetime=2), token("alice", lifetime=600)
    with (
        Page() as page,
        ThreadedService(
            jwt_secret=SECRET, jwt_leeway=0.0, cors_origins=(page.origin,), heartbeat_interval=0.1
        ) as service,
    ):
        page.script = f"""
        const freshToken = async () => "{second}", told = [];
        const socket = new WebSocket("ws://127.0.0.1:{service.port}/ws?token={first}");
        socket.onmessage = ({{ data }}) => told.push(JSON.parse(data));
        socket.onopen = async () => {{
        {block}
        }};
        """
        tab = browser.open(page.origin)
        tab.becomes("told.some((each) => each.ok)")
        ok = tab.value("told.find((each) => each.ok).ok")
        assert ok == {"channels": ["broadcast"], "left": []}
        tab.becomes("told.length > 22")  # a tenth of a second each, at least
        assert tab.value("socket.readyState") == 1
        tab.value("socket.close()")
