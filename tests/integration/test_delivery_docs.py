"""docs/delivery.md: every block of code in it does what the text says."""

import json
import re
import threading
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import msgspec

from msgpush.domain.marks import DEADLINE, DELIVERIES, Ack
from msgpush.domain.outbox import Status, wait_after
from tests.integration.test_auth_docs import shell
from tests.support.browser import dom, needs_chromium
from tests.support.client import SseClient, request
from tests.support.service import ThreadedService, eventually
from tests.support.tokens import SECRET, bearer, token
from tests.support.web import Page

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "delivery.md").read_text()
BLOCK = re.compile(r"^## ([^\n]+)$|^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

EXAMPLE, ASKING, STATES = "An example", "Asking for it", "What becomes of it"
PAGE, WHO, AGAIN = "In a page", "Who may acknowledge", "When it is tried again"
RECEIPTS, DEAD = "Receipts", "Dead letters"


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
        (EXAMPLE, "bash"): 3,
        (ASKING, "json"): 1,
        (STATES, "bash"): 1,
        (PAGE, "js"): 2,
        (WHO, "bash"): 2,
        (AGAIN, "text"): 1,
        (RECEIPTS, "bash"): 1,
        (RECEIPTS, "json"): 1,
        (DEAD, "bash"): 1,
    }


def run(service: ThreadedService, script: str, **environ: str) -> str:
    """What a block prints, at this service."""
    return shell(script.replace(":8089", f":{service.port}"), **environ)


def state(service: ThreadedService, key: str) -> str:
    found: str = request(service.port, "GET", f"/api/v1/messages/{key}/delivery").json()["state"]
    return found


def next_of(stream: SseClient, type: str) -> dict[str, Any]:
    """The data of the next event of a type."""
    while (event := stream.next()).type != type:
        pass
    found: dict[str, Any] = json.loads(event.data)
    return found


def test_the_example_is_written_and_acknowledged_once_and_for_all() -> None:
    publish, ask, acknowledge = BLOCKS[EXAMPLE, "bash"]
    (listen,) = BLOCKS[EXAMPLE, "console"]
    path = listen.rpartition(":8089")[2].strip()
    with ThreadedService() as service, SseClient(service.port, path) as stream:
        assert '"duplicate":false' in run(service, publish)
        assert next_of(stream, "message")["data"] == {"text": "Your invoice"}
        eventually(lambda: '"state":"written"' in run(service, ask))
        told = run(service, acknowledge)
        assert told.startswith('{"acknowledged":["billing/invoice-7"],"unknown":[]}')
        assert '"state":"acknowledged"' in told
        assert next_of(stream, "msgpush.acknowledged")["keys"] == ["billing/invoice-7"]
    assert told.partition('{"key"')[0] in TEXT, "the answer is the one that is shown"


def test_the_readme_s_lines_lead_to_an_acknowledgement() -> None:
    readme = (DOCS.parent / "README.md").read_text()
    section = readme.partition("## Until the person has it")[2]
    block = section.split("```console\n")[1].split("```")[0]
    with ThreadedService() as service:
        assert '"state":"acknowledged"' in run(service, block)


def test_what_was_published_to_nobody_comes_with_the_next_stream() -> None:
    publish = BLOCKS[EXAMPLE, "bash"][0].replace("invoice-7", "invoice-8")
    with ThreadedService() as service:
        run(service, publish)
        assert state(service, "billing/invoice-8") == "accepted"
        with SseClient(service.port, "/sse/user/alice") as stream:
            assert next_of(stream, "message")["id"] == "invoice-8"


def test_what_is_short_for_what_is_so() -> None:
    given = msgspec.convert(json.loads(BLOCKS[ASKING, "json"][0]), Ack)
    assert given == Ack()
    assert set(json.loads(BLOCKS[ASKING, "json"][0])) == set(Ack.__struct_fields__)


def test_the_waits_are_those_of_the_text() -> None:
    assert [wait_after(DEADLINE, n) / 60 for n in range(1, DELIVERIES + 1)] == [0.5, 1, 2, 4, 8]
    assert "30 s, 1, 2, 4 and 8 minutes; after the fifth wait" in TEXT
    ends = accumulate((wait_after(DEADLINE, n) for n in range(1, DELIVERIES + 1)), initial=0)
    times = [f"{each // 60}:{each % 60:02}" for each in ends]
    assert f"| about (min:s) | {' | '.join(times)} |" in TEXT


def test_the_picture_and_the_table_have_all_states() -> None:
    states = set(get_args(Status.__annotations__["state"]))
    picture = ElementTree.parse(DOCS / "delivery-states.svg")
    drawn = {each.text for each in picture.iter() if each.get("class") == "state"}
    assert drawn == states
    assert set(re.findall(r"^\| `(\w+)` \| [a-z]", TEXT.split("## In a page")[0], re.M)) >= states


def test_a_message_can_be_looked_at_and_taken_back() -> None:
    (block,) = BLOCKS[STATES, "bash"]
    with ThreadedService() as service:
        told = run(service, block)
        assert '"state":"accepted"' in told
        assert '"total":1' in told
        assert state(service, "billing/offer-1") == "withdrawn"


def test_a_page_s_ticket_and_a_back_end_s_token_acknowledge() -> None:
    ticket, issue = BLOCKS[WHO, "bash"]
    app = shell(issue, JWT_SECRET=SECRET).strip()
    with ThreadedService(jwt_secret=SECRET) as service:
        for text in (token("alice"), app):
            made = json.loads(run(service, ticket, TOKEN=text))["ticket"]
            for headers in (bearer(made), bearer(text)):
                path = "/api/v1/users/alice/acknowledgements"
                answer = request(service.port, "POST", path, b'{"keys": ["a/1"]}', headers)
                assert answer.status == 200
        listener = token("dashboard", subscribe=["user:*"], admin=True)
        assert '"status":403' in run(service, ticket, TOKEN=listener)


def test_a_receipt_comes_as_it_is_shown() -> None:
    (block,), (shown,) = BLOCKS[RECEIPTS, "bash"], BLOCKS[RECEIPTS, "json"]
    with ThreadedService() as service:
        told = run(service, block)
    (receipt,) = json.loads(told[told.rindex('{"messages"') :])["messages"]
    assert (receipt["service"], receipt["type"]) == ("msgpush", "status")
    assert receipt["data"] | {"at": None} == json.loads(shown) | {"at": None}


def test_a_dead_letter_is_listed_and_delivered_again() -> None:
    (block,) = BLOCKS[DEAD, "bash"]
    with ThreadedService() as service:
        assert '"reason":"expired"' in run(service, block)
        assert state(service, "billing/offer-3") == "accepted"


# In a browser, from a page of another origin


ADMIN = token("ops", admin=True, publish=["*"])
# It acknowledges what says so. One of its words is lost, and of another nothing is answered.
AROUND = """
const clearBadge = (key) => document.body.append(`cleared ${key}. `);
const real = window.fetch, failed = new Set();
window.fetch = async (url, init) => {
  if (init === undefined) return real(url);
  const [key] = JSON.parse(init.body).keys;
  if (key === "a/leaving" || (key === "a/lost" && !failed.has(key))) {
    failed.add(key);
    return new Response("", { status: 503 });
  }
  return real(url, init);
};
"""
AFTER = """
stream.addEventListener("message", (event) => {
  const { service, id, data } = JSON.parse(event.data), key = `${service}/${id}`;
  if (data.text === "bye") dispatchEvent(new Event("pagehide"));
  if (data.read && !read.has(key)) acknowledge(key);
});
"""


def say(service: ThreadedService, text: str, *, read: bool, ack: dict[str, Any] | None) -> None:
    message = {
        "id": text,
        "type": "progress",
        "service": "a",
        "target": {"user_id": "alice"},
        "data": {"text": text, "progress": 1, "read": read},
        "metadata": {"ack": ack},
    }
    body = msgspec.json.encode(message)
    answer = request(service.port, "POST", "/api/v1/messages/send", body, bearer(ADMIN))
    assert answer.status == 202


def delivery(service: ThreadedService, id: str) -> dict[str, Any]:
    path = f"/api/v1/messages/a/{id}/delivery"
    found: dict[str, Any] = request(service.port, "GET", path, headers=bearer(ADMIN)).json()
    return found


def acknowledge_elsewhere(service: ThreadedService, id: str) -> None:
    path, body = "/api/v1/users/alice/acknowledgements", msgspec.json.encode({"keys": [f"a/{id}"]})
    answer = request(service.port, "POST", path, body, bearer(token("alice")))
    assert answer.json() == {"acknowledged": [f"a/{id}"], "unknown": []}


def end(service: ThreadedService, stream: str, *, reconnect: bool) -> None:
    path = f"/api/v1/connections/{stream}?reconnect={str(reconnect).lower()}"
    assert request(service.port, "DELETE", path, headers=bearer(ADMIN)).status == 204


def until_acknowledged(service: ThreadedService, id: str) -> None:
    eventually(lambda: delivery(service, id)["state"] == "acknowledged", 30)


def act(service: ThreadedService) -> None:
    """What happens around the page, from its stream's beginning to its end."""
    (stream,) = eventually(lambda: list(service.push.connections), 30)
    say(service, "read", read=True, ack={})
    until_acknowledged(service, "read")
    say(service, "elsewhere", read=False, ack={})
    eventually(lambda: delivery(service, "elsewhere")["state"] == "written")
    acknowledge_elsewhere(service, "elsewhere")
    say(service, "twice", read=False, ack={"deadline": 1})
    eventually(lambda: delivery(service, "twice")["deliveries"] == 2)
    acknowledge_elsewhere(service, "twice")
    say(service, "lost", read=True, ack={"deadline": 1})
    until_acknowledged(service, "lost")
    say(service, "leaving", read=True, ack={})
    eventually(lambda: delivery(service, "leaving")["state"] == "written")
    body = b'{"id": "bye", "type": "info", "service": "a", "target": {"user_id": "alice"}, "data": {"text": "bye"}}'
    request(service.port, "POST", "/api/v1/messages/send", body, bearer(ADMIN))
    until_acknowledged(service, "leaving")
    end(service, stream, reconnect=False)


def shown_by_the_page(tmp_path: Path, act: Callable[[ThreadedService], None]) -> str:
    """What the page shows when its stream has ended for good, while somebody acts around it."""
    with Page() as page, ThreadedService(jwt_secret=SECRET, cors_origins=(page.origin,)) as service:
        body = b'{"channels": ["user:alice"], "acknowledge": true}'
        made = request(service.port, "POST", "/api/v1/tickets", body, bearer(token("alice")))
        base, ticket = f"http://127.0.0.1:{service.port}", made.json()["ticket"]
        given = f'const base = "{base}", ticket = "{ticket}";'
        page.script = "\n".join((given, AROUND, *BLOCKS[PAGE, "js"], AFTER))
        actor = threading.Thread(target=act, args=(service,))
        actor.start()
        try:
            return dom(page.origin + "/", tmp_path).partition("</script>")[2]
        finally:
            actor.join()


@needs_chromium
def test_a_page_drops_repeats_clears_badges_and_says_again_what_was_lost(tmp_path: Path) -> None:
    shown = shown_by_the_page(tmp_path, act)
    texts = ["read", "elsewhere", "twice", "lost", "leaving", "bye"]
    assert re.findall(r"got (\w+)\. ", shown) == texts, "each once, and whole"
    cleared = re.findall(r"cleared a/(\w+)\. ", shown)
    assert cleared == [each for each in texts if each != "bye"]


def act_while_it_is_away(service: ThreadedService) -> None:
    """Other devices acknowledge what the page shows, and what it hasn't got yet."""
    (first,) = eventually(lambda: list(service.push.connections), 30)
    for text in ("seen", "still"):
        say(service, text, read=False, ack={})
    eventually(lambda: delivery(service, "still")["state"] == "written")
    end(service, first, reconnect=True)
    eventually(lambda: not service.push.connections)
    say(service, "missed", read=False, ack={})
    for id in ("seen", "missed"):
        acknowledge_elsewhere(service, id)
    (second,) = eventually(lambda: list(service.push.connections), 30)
    say(service, "after", read=True, ack={})
    until_acknowledged(service, "after")
    end(service, second, reconnect=False)


@needs_chromium
def test_a_page_that_comes_back_clears_what_was_acknowledged_meanwhile(tmp_path: Path) -> None:
    shown = shown_by_the_page(tmp_path, act_while_it_is_away)
    assert re.findall(r"got (\w+)\. ", shown) == ["seen", "still", "missed", "after"]
    assert set(re.findall(r"cleared a/(\w+)\. ", shown)) == {"seen", "missed", "after"}
