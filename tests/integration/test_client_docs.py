"""docs/clients.md: its scripts do what the text says, in a browser."""

import re
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.browser import Browser, dom, needs_chromium
from tests.support.client import request
from tests.support.service import ThreadedService, eventually
from tests.support.tokens import SECRET, bearer, token
from tests.support.web import Page, WebServer, answer

TEXT = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
(
    BASIC,
    CHANGING,
    ACKNOWLEDGING,
    TABS,
    LISTEN,
    RENEW,
    FETCH,
) = re.findall(r"^```js\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
(SCRIPT,) = re.findall(r"^```html\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
CALL = 'listen("/sse/user/alice", renewCookie, show);'
ADMIN = bearer(token("ops", admin=True, publish=["*"]))
SHORT = 2  # seconds that the first token is good for

pytestmark = needs_chromium


class BackEnd(Page):
    """A page, and the back end that knows its user: the first token is a short one."""

    def __init__(self) -> None:
        super().__init__()
        self.issued = 0

    def get(self, exchange: BaseHTTPRequestHandler) -> None:
        if exchange.path == "/token":
            answer(exchange, self._next_token().encode())
        else:
            super().get(exchange)

    def post(self, exchange: BaseHTTPRequestHandler) -> None:
        assert exchange.path == "/session/push-cookie"
        cookie = f"msgpush_token={self._next_token()}; Path=/; HttpOnly; SameSite=Lax"
        answer(exchange, b"", ("Set-Cookie", cookie))

    def _next_token(self) -> str:
        self.issued += 1
        return token("alice", lifetime=SHORT if self.issued == 1 else 3600)


def say(service: ThreadedService, text: str) -> None:
    message: dict[str, Any] = {
        "type": "progress",
        "service": "a",
        "target": {"user_id": "alice"},
        "data": {"progress": 1, "text": text},
    }
    answer = request(
        service.port, "POST", "/api/v1/messages/send", msgspec.json.encode(message), ADMIN
    )
    assert answer.status == 202


@pytest.mark.parametrize("credential", ["cookie", "ticket"])
def test_a_page_renews_its_credential_and_misses_and_doubles_nothing(
    tmp_path: Path, credential: str
) -> None:
    def act() -> None:
        (first,) = eventually(lambda: list(service.push.connections), 30)
        say(service, "before")
        eventually(lambda: first not in service.push.connections, 30)
        say(service, "between")
        (second,) = eventually(lambda: list(service.push.connections), 30)
        say(service, "after")
        closed = request(
            service.port, "DELETE", f"/api/v1/connections/{second}?reconnect=false", headers=ADMIN
        )
        assert closed.status == 204

    with (
        BackEnd() as page,
        ThreadedService(jwt_secret=SECRET, jwt_leeway=0.0, cors_origins=(page.origin,)) as service,
    ):
        assert CALL in RENEW
        fresh = 'const freshToken = async () => (await fetch("/token")).text();'
        renew = RENEW.replace(CALL, CALL.replace("renewCookie", f"renew{credential.capitalize()}"))
        page.script = f'const base = "http://127.0.0.1:{service.port}";\n{fresh}\n{LISTEN}\n{renew}'
        actor = threading.Thread(target=act)
        actor.start()
        try:
            shown = dom(page.origin + "/", tmp_path).partition("</script>")[2]
        finally:
            actor.join()
    assert re.findall(r"got (\w+)\. ", shown) == ["before", "between", "after"]
    assert page.issued == 2


class Host(WebServer):
    """A page that has the client from the service, and the back end that knows its user."""

    def __init__(self) -> None:
        super().__init__()
        self.page = ""

    def get(self, exchange: BaseHTTPRequestHandler) -> None:
        if exchange.path == "/token":
            answer(exchange, token("123", subscribe=["kb:*"]).encode())
        else:
            answer(exchange, self.page.encode(), ("Content-Type", "text/html"))


HELP = """
const told = [];
const freshToken = async () => (await fetch("/token")).text();
const updateProgress = (percent) => told.push(`${percent} %`);
const show = ({ data }) => told.push(data.text);
const showUntilRead = async ({ data }) => told.push(`${data.text} is read`);
"""


def publish(service: ThreadedService, **message: Any) -> None:
    body = msgspec.json.encode({"service": "a", **message})
    answered = request(service.port, "POST", "/api/v1/messages/send", body, ADMIN)
    assert answered.status == 202


def test_a_page_with_the_client_hears_changes_its_channels_and_acknowledges(tmp_path: Path) -> None:
    with (
        Host() as host,
        ThreadedService(jwt_secret=SECRET, cors_origins=(host.origin,)) as service,
        Browser(tmp_path) as browser,
    ):
        url = f"http://127.0.0.1:{service.port}"
        script = "\n".join([HELP, BASIC, CHANGING.splitlines()[0], ACKNOWLEDGING])
        host.page = SCRIPT + f'<script>{script}\npush.on("kb", show);</script>'
        host.page = host.page.replace("https://push.example.com", url)
        tab = browser.open(f"{host.origin}/")
        eventually(
            lambda: [
                each for each in service.push.connections.values() if "kb:42" in each.channels
            ],
            30,
        )
        user = {"user_id": "123"}
        publish(service, type="progress", target=user, data={"progress": 65})
        publish(service, type="success", target=user, data={"text": "done"})
        publish(service, type="success", channels=["kb:42"], data={"text": "42"})
        wanted = {"ack": True}
        publish(
            service, type="success", target=user, data={"text": "bill"}, metadata=wanted, id="b"
        )
        tab.becomes("told.length === 5")
        assert tab.value("told") == ["65 %", "done", "42", "bill is read", "bill"]
        path = "/api/v1/messages/a/b/delivery"
        eventually(
            lambda: (
                request(service.port, "GET", path, headers=ADMIN).json()["state"] == "acknowledged"
            )
        )
        tab.value(CHANGING.splitlines()[1])
        eventually(
            lambda: [
                each for each in service.push.connections.values() if "kb:42" not in each.channels
            ],
            30,
        )


def test_tabs_of_one_session_share_a_connection(tmp_path: Path) -> None:
    with Host() as host, ThreadedService(cors_origins=(host.origin,)) as service:
        url = f"http://127.0.0.1:{service.port}"
        host.page = f"{SCRIPT}<script>{HELP}{TABS}push.on('info', (data, message) => show(message))</script>"
        host.page = host.page.replace("https://push.example.com", url).replace('"/"', f'"{url}"')
        with Browser(tmp_path) as browser:
            tabs = [browser.open(f"{host.origin}/") for _ in range(2)]
            eventually(lambda: service.push.connections, 30)
            for tab in tabs:
                tab.becomes("typeof push !== 'undefined'")
            heard = 'told.includes("now")'

            def hears() -> bool:
                publish(service, type="info", target={"user_id": "123"}, data={"text": "now"})
                return all(tab.value(heard) for tab in tabs)

            eventually(hears, 30)
            assert len(service.push.connections) == 1
