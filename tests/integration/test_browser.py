"""A real browser's EventSource on the start page. Skipped where there is no Chromium; CI has one."""

import threading
from pathlib import Path

from tests.support.browser import dom, needs_chromium
from tests.support.client import request
from tests.support.service import ThreadedService, eventually
from tests.support.tokens import SECRET

pytestmark = needs_chromium


def test_a_page_gets_everything_once_across_a_reconnect_and_stops_when_it_is_told_to(
    tmp_path: Path,
) -> None:
    with ThreadedService() as service:
        publish(service, "status", '{"text":"before the page"}')

        def act() -> None:
            first = connected(service)
            publish(service, "progress", '{"progress":65}')
            publish(service, "error", '{"text":"while it is open"}')
            close(service, first, "true")
            eventually(lambda: not service.push.connections)
            publish(service, "info", '{"text":"while it is away"}')
            close(service, connected(service), "false")

        actor = threading.Thread(target=act)
        actor.start()
        page = dom(f"http://127.0.0.1:{service.port}/", tmp_path)
        actor.join()
        assert service.push.connections == {}, "the browser has not come back"
    shown = [
        "before the page",
        'value="65"',
        "while it is open",
        "(disconnected); it opens again soon",
        "while it is away",
    ]
    places = [page.index(text) for text in shown]
    assert places == sorted(places, reverse=True), "the newest first"
    assert [page.count(text) for text in shown] == [1, 1, 1, 1, 1]
    assert "The server has closed the stream (disconnected).<" in page
    assert ">closed</span>" in page
    assert "may be missing" not in page


def connected(service: ThreadedService) -> str:
    (id,) = eventually(lambda: list(service.push.connections))
    return id


def close(service: ThreadedService, id: str, reconnect: str) -> None:
    assert (
        request(service.port, "DELETE", f"/api/v1/connections/{id}?reconnect={reconnect}").status
        == 204
    )


def publish(service: ThreadedService, type: str, data: str) -> None:
    body = f'{{"type":"{type}","service":"s","channels":["demo"],"data":{data}}}'.encode()
    assert request(service.port, "POST", "/api/v1/messages/send", body).status == 202


def test_a_page_without_a_token_says_what_is_missing_and_asks_for_one(tmp_path: Path) -> None:
    with ThreadedService(jwt_secret=SECRET) as service:
        page = dom(f"http://127.0.0.1:{service.port}/", tmp_path)
    assert "The service asks for a token" in page
    assert '<label class="wide" id="token">' in page
    assert ">closed</span>" in page
