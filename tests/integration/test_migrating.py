"""docs/migrating.md: what takes the place of other projects' code does what that did.

Their own code is run as well where they are installed; they are no dependencies.
"""

import asyncio
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from msgpush.client import Publisher, SyncListener, SyncMessage
from msgpush.domain.channel import MAX_LISTENED
from msgpush.entrypoints.settings import Settings
from tests.support.browser import Browser, Tab, needs_chromium
from tests.support.client import request
from tests.support.migrating import (
    CONSOLE,
    HELPER,
    MOVES,
    PUBLISHER,
    TEXT,
    App,
    Recorder,
    asgi,
    page,
    threaded,
)
from tests.support.redis_servers import RedisServer
from tests.support.service import ThreadedService, eventually
from tests.support.tokens import SECRET, bearer, token

STARLETTE, FLASK, DJANGO = "sse-starlette", "Flask-SSE", "django-eventstream"
MERCURE, CENTRIFUGO, PUSHER = "Mercure", "Centrifugo's SSE", "Pusher"

# What a page listens to, and what it shows of what is published.
ARRIVES: dict[str, tuple[str, dict[str, Any]]] = {
    STARLETTE: ("orders", {"event": "order", "order": 7}),
    FLASK: ("users.social", {"event": "greeting", "message": "Hello!"}),
    DJANGO: ("room-7", {"text": "Hello"}),
    MERCURE: ("book:1", {"status": "checked out"}),
    CENTRIFUGO: ("news", {"text": "Hello"}),
    PUSHER: ("user:alice", {"event": "order-shipped", "order": 7}),
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def app() -> Iterator[App]:
    with App() as running:
        yield running


@pytest.fixture(scope="module")
def service(app: App) -> Iterator[ThreadedService]:
    with ThreadedService(jwt_secret=SECRET, cors_origins=(app.origin,)) as running:
        yield running


@pytest.fixture(scope="module")
def tokens() -> list[str]:
    """The tokens that the commands of the text make: the back end's, and alice's."""
    commands = [line for line in CONSOLE.splitlines() if "token issue" in line]
    assert len(commands) == 2
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-euc", "\n".join([commands[0], "echo $MSGPUSH_TOKEN", commands[1]])],
        env={"PATH": path, "JWT_SECRET": SECRET},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return result.stdout.split()


@pytest.fixture(scope="module")
def given(service: ThreadedService, tokens: list[str]) -> Iterator[dict[str, Any]]:
    """The names that the text's code finds: `push`, `url` and `token`."""
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("MSGPUSH_URL", f"http://127.0.0.1:{service.port}")
        environ.setenv("MSGPUSH_TOKEN", tokens[0])
        exec(PUBLISHER, names)
    with names["push"]:
        yield names


# The text itself


def test_every_project_is_there() -> None:
    assert [*MOVES] == [STARLETTE, FLASK, DJANGO, MERCURE, CENTRIFUGO, PUSHER]


def test_the_page_s_numbers_are_those_of_the_settings() -> None:
    settings = Settings()
    assert f"{settings.history_length} messages a channel (`HISTORY_LENGTH`)" in TEXT
    assert settings.message_ttl == 3600
    assert "for an hour (`MESSAGE_TTL`" in TEXT
    assert f"`/sse/stream/a,b,c`, up to {MAX_LISTENED}" in TEXT
    assert f"{settings.max_message_bytes // 1024} KiB (`MAX_MESSAGE_BYTES`)" in TEXT


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [
        ({"channels": [f"c{n}" for n in range(33)]}, "/channels"),
        ({"metadata": {"ttl": 7 * 86_400 + 1}}, "/metadata/ttl"),
    ],
)
def test_beyond_the_page_s_limits_a_message_is_refused(
    service: ThreadedService, tokens: list[str], wrong: dict[str, Any], pointer: str
) -> None:
    body = json.dumps({"type": "info", "service": "shop", **wrong}).encode()
    refused = request(service.port, "POST", "/api/v1/messages/send", body, bearer(tokens[0]))
    assert refused.status == 422
    assert [each["pointer"] for each in refused.json()["errors"]] == [pointer]


def test_the_commands_start_a_service_for_the_pages_of_an_origin() -> None:
    (serve,) = [line for line in CONSOLE.splitlines() if "serve" in line]
    origins = serve.partition("CORS_ORIGINS='")[2].partition("'")[0]
    assert Settings.from_environ({"CORS_ORIGINS": origins}).cors_origins == (
        "https://app.example.com",
    )


def test_alice_s_token_opens_what_its_command_says_and_her_own(
    service: ThreadedService, tokens: list[str]
) -> None:
    def status(channel: str) -> int:
        cookie = {"Cookie": f"msgpush_token={tokens[1]}"}
        return request(service.port, "HEAD", f"/sse/stream/{channel}", headers=cookie).status

    assert {status(each) for each in ("orders", "room-7", "user:alice", "broadcast")} == {200}
    assert status("news") == 403


# After


@needs_chromium
@pytest.mark.parametrize("project", ARRIVES)
def test_what_the_new_code_publishes_arrives_in_the_new_page(
    service: ThreadedService, given: dict[str, Any], browser: Browser, app: App, project: str
) -> None:
    channel, data = ARRIVES[project]
    tab = opened(service, browser, app, MOVES[project].after.page, channel)
    for times in (1, 2):
        publish(MOVES[project].after.python, given)
        tab.becomes(f"got.length === {times}")
    assert tab.value("got") == [data, data]
    tab.value("stream.close()")


def publish(code: str, given: dict[str, Any]) -> None:
    """Run the code, and what it defines."""
    names = dict(given)
    exec(code, names)
    if "shipped" in names:
        asyncio.run(ship(names))
    assert given["push"].flush(10)


async def ship(names: dict[str, Any]) -> None:
    async with names["push"]:
        await names["shipped"](7)


def opened(service: ThreadedService, browser: Browser, app: App, script: str, channel: str) -> Tab:
    """A page whose stream has opened: its user may listen to nothing but this channel."""
    own = channel.startswith("user:")
    app.cookie = token("alice") if own else token("alice", subscribe=[channel])
    helper = HELPER.replace("https://push.example.com", f"http://127.0.0.1:{service.port}")
    assert helper != HELPER
    app.script = helper + script
    tab = browser.open(app.origin)
    eventually(lambda: listens(service, channel), 30)
    return tab


def listens(service: ThreadedService, channel: str) -> bool:
    return any(channel in each.channels for each in service.push.connections.values())


@needs_chromium
def test_the_page_that_reloaded_after_a_reset_does_so_after_a_gap(
    service: ThreadedService, browser: Browser, app: App
) -> None:
    script = MOVES[DJANGO].after.page.replace("events=none", "events=none&last_event_id=undefined")
    counted = "let reloads = 0; const reload = () => (reloads += 1);\n"
    tab = opened(service, browser, app, counted + script, "room-7")
    tab.becomes("reloads === 1")
    tab.value("stream.close()")


def test_dates_and_decimals_and_uuids_may_stay_and_lazy_texts_may_not(
    service: ThreadedService, given: dict[str, Any], tokens: list[str]
) -> None:
    class Lazy:
        """As Django's translations: a text, once somebody asks for it."""

        def __str__(self) -> str:
            return "Hello"

    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    values = {"at": moment, "on": date(2026, 1, 2), "price": Decimal("9.90"), "id": UUID(int=7)}
    push: Publisher = given["push"]
    with pytest.raises(TypeError):
        push.send("custom", {"text": Lazy()}, channels=["values"])
    push.send("custom", values, channels=["values"])
    listener = SyncListener(
        given["url"], channels="values", since="earliest", token=token(subscribe=["values"])
    )
    message = next(each for each in listener if isinstance(each, SyncMessage))
    assert message.data == {
        "at": "2026-01-02T03:04:05Z",
        "on": "2026-01-02",
        "price": "9.90",
        "id": str(UUID(int=7)),
    }


# Before


@pytest.mark.parametrize("project", ARRIVES)
def test_the_old_code_is_python(project: str) -> None:
    compile(MOVES[project].before.python, project, "exec")


@needs_chromium
def test_the_old_pages_are_javascript(browser: Browser) -> None:
    tab = browser.open("about:blank")
    for project, move in MOVES.items():
        assert tab.value(f"typeof new Function({json.dumps(move.before.page)})"), project


@needs_chromium
def test_the_old_code_of_sse_starlette_did_the_same(browser: Browser) -> None:
    pytest.importorskip("sse_starlette")
    names: dict[str, Any] = {}
    exec(MOVES[STARLETTE].before.python, names)

    async def index(_: Request) -> Response:
        return HTMLResponse(page(MOVES[STARLETTE].before.page))

    async def ship(_: Request) -> Response:
        await names["shipped"](7)
        return Response()

    routes = [Route("/", index), Route("/events", names["events"]), Route("/ship", ship)]
    with asgi(Starlette(routes=routes)) as origin:
        tab = browser.open(origin)
        eventually(lambda: names["readers"], 30)
        tab.value("fetch('/ship').then(() => 0)")
        assert shown(tab) == {"order": 7}


@needs_chromium
def test_the_old_code_of_flask_sse_did_the_same(browser: Browser) -> None:
    pytest.importorskip("flask_sse")
    flask, serving = pytest.importorskip("flask"), pytest.importorskip("werkzeug.serving")
    *setup, publishing = MOVES[FLASK].before.python.splitlines()
    with RedisServer() as redis:
        application = flask.Flask("old")
        names: dict[str, Any] = {"app": application}
        exec("\n".join(setup).replace("redis://localhost", redis.url), names)
        application.route("/")(lambda: page(MOVES[FLASK].before.page))
        server = serving.make_server("127.0.0.1", 0, application, threaded=True)

        def published() -> int:
            """Publish it, and say how many streams there are."""
            with application.app_context():
                exec(publishing, names)
            return len(redis.client().pubsub_channels("users.social"))

        with threaded(server.serve_forever, server.shutdown):
            tab = browser.open(f"http://127.0.0.1:{server.server_port}")
            eventually(lambda: redis.client().pubsub_channels("users.social"), 30)
            assert published() == 1
            assert shown(tab) == {"message": "Hello!"}
            # It sees that its reader has gone when it writes.
            eventually(lambda: published() == 0)


@needs_chromium
def test_the_old_code_of_django_eventstream_did_the_same(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    django, conf = pytest.importorskip("django"), pytest.importorskip("django.conf")
    conf.settings.configure(
        ROOT_URLCONF="old_urls",
        INSTALLED_APPS=["django_eventstream"],
        ALLOWED_HOSTS=["127.0.0.1"],
        SECRET_KEY=SECRET,
    )
    eventstream = pytest.importorskip("django_eventstream")
    django.setup()
    *setup, publishing = MOVES[DJANGO].before.python.splitlines()
    urls: Any = types.ModuleType("old_urls")
    monkeypatch.setitem(sys.modules, "old_urls", urls)
    exec("\n".join(setup), vars(urls))
    static = Path(eventstream.__file__).parent / "static" / "django_eventstream"
    library = (static / "reconnecting-eventsource.js").read_text()
    script = f"{library}\nconst reload = () => 0;\n{MOVES[DJANGO].before.page}"
    html = pytest.importorskip("django.http").HttpResponse(page(script))
    urls.urlpatterns.append(urls.path("", lambda _: html))
    with asgi(pytest.importorskip("django.core.asgi").get_asgi_application()) as origin:
        tab = browser.open(origin)
        tab.becomes("stream.readyState === 1")

        def arrives() -> Any:
            # Where nothing is stored, what comes while a stream is just opening is lost.
            exec(publishing, vars(urls))
            return tab.value("got.length")

        eventually(arrives, 30)
        assert tab.value("got")[0] == {"text": "Hello"}
        tab.value("stream.close()")


def test_the_old_code_of_pusher_triggers_what_the_text_says() -> None:
    pytest.importorskip("pusher")
    with Recorder() as recorder:
        here = f'host="127.0.0.1", port={recorder.port}, ssl=False'
        exec(MOVES[PUSHER].before.python.replace('cluster="eu"', here), {})
    ((path, body),) = recorder.posted
    assert path == "/apps/4/events"
    assert json.loads(body) == {
        "name": "order-shipped",
        "channels": ["private-user-alice", "orders"],
        "data": '{"order": 7}',
    }


def shown(tab: Tab) -> Any:
    """What the page has been told, once it has; its stream ends."""
    tab.becomes("got.length === 1")
    (data,) = tab.value("got")
    tab.value("stream.close()")
    return data
