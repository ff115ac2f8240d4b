"""docs/clients.md: its scripts do what the text says, in a browser."""

import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest

from tests.integration.test_browser import CHROMIUM, dom
from tests.support.client import request
from tests.support.service import ThreadedService, eventually
from tests.support.tokens import SECRET, bearer, token

TEXT = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
LISTEN, RENEW, FETCH = re.findall(r"^```js\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
CALL = 'listen("/sse/user/alice", renewCookie, show);'
ADMIN = bearer(token("ops", admin=True, publish=["*"]))
SHORT = 2  # seconds that the first token is good for

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="needs Chromium"
)


class BackEnd:
    """A page at an origin of its own, and the back end that knows its user: the first token is a
    short one.
    """

    def __init__(self, *, fails_once: bool = False) -> None:
        self.script = ""
        self.issued = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/token":
                    self._answer(owner.next_token().encode())
                else:
                    show = "const show = (message) => document.body.append(`got ${message.data.text}. `);"
                    page = f"<!doctype html><body><script>{show}\n{owner.script}</script></body>"
                    self._answer(page.encode(), ("Content-Type", "text/html"))

            def do_POST(self) -> None:
                assert self.path == "/session/push-cookie"
                cookie = f"msgpush_token={owner.next_token()}; Path=/; HttpOnly; SameSite=Lax"
                self._answer(b"", ("Set-Cookie", cookie))

            def _answer(self, body: bytes, *headers: tuple[str, str]) -> None:
                self.send_response(200)
                for name, value in (*headers, ("Content-Length", str(len(body)))):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def next_token(self) -> str:
        self.issued += 1
        return token("alice", lifetime=SHORT if self.issued == 1 else 3600)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


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
        (first,) = eventually(lambda: list(service.push.hub.connections), 30)
        say(service, "before")
        eventually(lambda: first not in service.push.hub.connections, 30)
        say(service, "between")
        (second,) = eventually(lambda: list(service.push.hub.connections), 30)
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
