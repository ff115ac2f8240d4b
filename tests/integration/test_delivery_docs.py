"""docs/delivery.md: its commands do what the text says, and its page in a browser."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from tests.integration.test_browser import CHROMIUM, dom
from tests.support.client import SseClient, request
from tests.support.service import ThreadedService, eventually
from tests.support.tokens import SECRET
from tests.support.web import Page

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "delivery.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall(TEXT)
LISTEN, PUBLISH, ACKNOWLEDGE, STATUS, PENDING, TICKET, RECEIPTS, WITHDRAW, DEAD = (
    text for language, text in BLOCKS if language == "bash"
)
DELIVERY, TERMS, RECEIPT = (json.loads(text) for language, text in BLOCKS if language == "json")
PAGE = "\n".join(text for language, text in BLOCKS if language == "js")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="needs Chromium"
)


def shell(port: int, script: str, **environ: str) -> list[Any]:
    """What the requests of a script are answered; each of them must succeed."""
    script = script.replace(":8089", f":{port}").replace("curl ", "curl -sS --fail-with-body ")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={"PATH": path, "HOME": os.environ.get("HOME", "/"), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    answers, left = [], result.stdout
    while left:
        answer, end = json.JSONDecoder().raw_decode(left)
        answers.append(answer)
        left = left[end:].lstrip()
    return answers


def path_of(command: str) -> str:
    """The path that a command of curl asks for."""
    address = next(word for word in shlex.split(command) if word.startswith("http"))
    return address.removeprefix("http://127.0.0.1:8089")


def publish(port: int, **changed: Any) -> None:
    """Publish the message of the example, with something changed."""
    body = json.loads(shlex.split(PUBLISH)[-1])
    assert (
        request(port, "POST", path_of(PUBLISH), msgspec.json.encode(body | changed)).status == 202
    )


def asking(**terms: Any) -> dict[str, Any]:
    return {"ack": terms}


def state(port: int, id: str) -> Any:
    """What is known of a message of the example's service."""
    return request(port, "GET", f"/api/v1/messages/importer/{id}/delivery").json()


def test_the_commands_publish_acknowledge_and_tell_what_became_of_it() -> None:
    with ThreadedService() as service, SseClient(service.port, path_of(LISTEN)) as stream:
        assert stream.next().type == "msgpush.open"
        shell(service.port, PUBLISH)
        message = msgspec.json.decode(stream.next().data)
        assert message["metadata"]["ack"] == TERMS["metadata"]["ack"]
        (pending,) = shell(service.port, PENDING)
        assert pending["messages"] == [message]
        # What is acknowledged within a quarter of a second isn't known to be written.
        eventually(lambda: state(service.port, message["id"])["written_at"])
        (acknowledged,) = shell(service.port, ACKNOWLEDGE)
        assert acknowledged == {"acknowledged": [DELIVERY["key"]], "unknown": []}
        word = stream.next()
        assert word.type == "msgpush.acknowledged"
        assert msgspec.json.decode(word.data) == {
            "keys": [DELIVERY["key"]],
            "state": "acknowledged",
        }
        (told,) = shell(service.port, STATUS)
        moments = {"accepted_at", "written_at", "acknowledged_at"}
        assert all(told[each] for each in moments)
        assert told | dict.fromkeys(moments) == DELIVERY | dict.fromkeys(moments)


def test_a_receipt_is_what_the_text_shows() -> None:
    with (
        ThreadedService() as service,
        SseClient(service.port, path_of(LISTEN)) as user,
        SseClient(service.port, path_of(RECEIPTS)) as stream,
    ):
        publish(service.port, metadata=asking(receipt=True))
        assert [stream.next().type, *(each.type for each in user.take(2))] == [
            "msgpush.open",
            "msgpush.open",
            "message",
        ]
        eventually(lambda: state(service.port, RECEIPT["key"].split("/")[1])["deliveries"])
        shell(service.port, ACKNOWLEDGE)
        receipt = msgspec.json.decode(stream.next().data)
    assert (receipt["service"], receipt["type"]) == ("msgpush", "status")
    assert receipt["data"] | {"at": ""} == RECEIPT | {"at": ""}


def test_a_message_is_withdrawn_with_the_command_for_that() -> None:
    with ThreadedService() as service:
        publish(service.port)
        shell(service.port, WITHDRAW)
        assert state(service.port, "import-42-done")["state"] == "withdrawn"


def test_dead_letters_are_listed_delivered_again_and_thrown_away() -> None:
    listed, redeliver, remove = DEAD.splitlines()
    id = "import-42-done"
    with ThreadedService() as service:
        publish(service.port, metadata={"ttl": 1, **asking()})
        eventually(lambda: state(service.port, id)["state"] == "dead")
        (letters,) = shell(service.port, listed)
        assert [each["message"]["id"] for each in letters["dead_letters"]] == [id]
        assert letters["dead_letters"][0]["reason"] == "expired"
        shell(service.port, redeliver)
        assert state(service.port, id)["state"] == "accepted"
        eventually(lambda: state(service.port, id)["state"] == "dead")
        shell(service.port, remove)
        assert request(service.port, "GET", path_of(STATUS)).status == 404


def test_a_back_end_s_ticket_acknowledges_for_its_user() -> None:
    with ThreadedService(jwt_secret=SECRET) as service:
        (made,) = shell(service.port, TICKET, JWT_SECRET=SECRET)
        ticket = made["ticket"]
        for user, status in (("customer-7", 200), ("customer-8", 403)):
            path = f"/api/v1/users/{user}/acknowledgements?token={ticket}"
            body = b'{"keys": ["importer/import-42-done"]}'
            assert request(service.port, "POST", path, body).status == status
            stream = f"/sse/user/{user}?token={ticket}"
            assert request(service.port, "HEAD", stream).status == status


def test_the_table_of_times_is_what_the_rule_gives() -> None:
    from msgpush.domain.marks import DEADLINE, DELIVERIES
    from msgpush.domain.outbox import wait_after

    told = re.search(r"^\| about \| (.*) \|$", TEXT, re.MULTILINE)
    assert told is not None
    times = [0]
    for number in range(1, DELIVERIES + 1):
        times.append(times[-1] + wait_after(DEADLINE, number))
    assert told[1].split(" | ") == [f"{each // 60}:{each % 60:02}" for each in times]


def test_the_picture_names_every_state_that_the_table_does() -> None:
    picture = ElementTree.parse(ROOT / "docs" / "delivery.svg")
    named = {each.text for each in picture.findall(".//{*}text") if each.get("class") == "name"}
    table = TEXT.partition("| state | means |")[2].partition("\n\n")[0]
    assert named == set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))


# The page: what its user does is made up, the rest is the text's


OWN = """
const base = "BASE";
const say = (text) => document.body.append(`${text}. `);
const hide = (key) => say(`hid ${key}`);
const badge = (number) => say(`badge ${number}`);
const show = (message, key) => {
  say(`showed ${key ?? message.id}`);
  if (message.data.text === "click") acknowledge(key);
  if (message.data.text === "leave") {
    window.fetch = () => new Promise(() => {}); // no answer comes before the page goes
    acknowledge(key);
    dispatchEvent(new Event("pagehide"));
  }
};
"""


def shown(page: str) -> list[str]:
    return re.findall(r"(?:showed|hid|badge) [^.]+", unescape(page.partition("</script>")[2]))


def browse(
    tmp_path: Path,
    act: Callable[[ThreadedService, str], None],
    before: Callable[[int], None] = lambda port: None,
) -> str:
    """What the page has become when its stream was ended for good, or it was left.

    Args:
        act: what happens then, given the page's connection.
        before: what happens before the page is opened, given the service's port.
    """
    with Page() as page, ThreadedService(cors_origins=(page.origin,)) as service:
        own = OWN.replace("BASE", f"http://127.0.0.1:{service.port}")
        page.script = f"{{{own}{PAGE}}}"  # a block: its `show` isn't the page's

        before(service.port)

        def run() -> None:
            (first,) = eventually(lambda: list(service.push.connections), 30)
            act(service, first)

        actor = threading.Thread(target=run)
        actor.start()
        try:
            return dom(page.origin + "/", tmp_path)
        finally:
            actor.join()


def close(service: ThreadedService, id: str, *, reconnect: bool = False) -> None:
    path = f"/api/v1/connections/{id}?reconnect={str(reconnect).lower()}"
    assert request(service.port, "DELETE", path).status == 204


def acknowledge(port: int, id: str) -> None:
    """Acknowledge a message, as another device of its user does."""
    body = msgspec.json.encode({"keys": [f"importer/{id}"]})
    (key,) = request(port, "POST", path_of(ACKNOWLEDGE), body).json()["acknowledged"]
    assert key == f"importer/{id}"


@needs_browser
def test_the_page_shows_each_once_acknowledges_and_hides_what_another_device_has(
    tmp_path: Path,
) -> None:
    def act(service: ThreadedService, first: str) -> None:
        port = service.port
        publish(port, id="plain", metadata={})
        publish(port, id="again", metadata=asking(deadline=1, deliveries=20))
        eventually(lambda: state(port, "again")["deliveries"] >= 2)
        publish(port, id="clicked", data={"text": "click"}, metadata=asking())
        eventually(lambda: state(port, "clicked")["state"] == "acknowledged")
        acknowledge(port, "again")
        publish(port, id="last", metadata=asking())
        eventually(lambda: state(port, "last")["state"] == "written")
        close(service, first)

    assert shown(browse(tmp_path, act)) == [
        "showed plain",
        "showed importer/again",
        "badge 1",
        "showed importer/clicked",
        "hid importer/clicked",
        "badge 1",
        "badge 1",
        "badge 1",
        "hid importer/again",
        "badge 0",
        "showed importer/last",
        "badge 1",
    ]


@needs_browser
def test_a_page_that_comes_back_hides_what_was_acknowledged_meanwhile(tmp_path: Path) -> None:
    def act(service: ThreadedService, first: str) -> None:
        port = service.port
        for id in ("one", "two"):
            publish(port, id=id, metadata=asking())
        eventually(lambda: state(port, "two")["state"] == "written")
        close(service, first, reconnect=True)
        eventually(lambda: not service.push.connections)
        acknowledge(port, "one")
        (second,) = eventually(lambda: list(service.push.connections), 30)
        close(service, second)

    told = shown(browse(tmp_path, act))
    assert told[:4] == ["showed importer/one", "badge 1", "showed importer/two", "badge 2"]
    assert told[4:] == ["hid importer/one", "badge 1"]


@needs_browser
def test_a_page_that_is_left_before_it_was_answered_acknowledges_all_the_same(
    tmp_path: Path,
) -> None:
    def act(service: ThreadedService, first: str) -> None:
        publish(service.port, id="left", data={"text": "leave"}, metadata=asking())
        eventually(lambda: state(service.port, "left")["state"] == "acknowledged")
        close(service, first)

    assert "hid importer/left" in shown(browse(tmp_path, act))


@needs_browser
def test_a_page_that_loads_is_brought_what_is_pending_without_asking(tmp_path: Path) -> None:
    def act(service: ThreadedService, first: str) -> None:
        eventually(lambda: state(service.port, "before")["state"] == "written")
        close(service, first)

    def before(port: int) -> None:
        publish(port, id="before", metadata=asking())

    assert shown(browse(tmp_path, act, before)) == ["showed importer/before", "badge 1"]
