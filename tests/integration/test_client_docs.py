"""docs/clients.md: its scripts do what the text says, in a browser."""

import re
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.browser import dom, needs_chromium
from tests.support.client import request
from tests.support.service import ThreadedService, eventually
from tests.support.tokens import SECRET, bearer, token
from tests.support.web import Page, answer

TEXT = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
LISTEN, RENEW, FETCH = re.findall(r"^```js\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
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
