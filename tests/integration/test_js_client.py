"""The JavaScript client in a real browser, with the real service."""

import gzip
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from msgpush.adapters.http import pages
from tests.support.browser import Browser, Tab, needs_chromium
from tests.support.client import request
from tests.support.js_pages import (
    SOURCES,
    ClientPage,
    Cutter,
    Tabs,
    build_tools,
    connections,
    publish,
)
from tests.support.service import ServiceProcess, ThreadedService, eventually
from tests.support.tokens import SECRET, bearer, token

SERVED = Path(pages.__file__).parent / "static" / "msgpush.js"
CORE = 5 * 1000  # bytes, minified and compressed
REQUIRED = "CI" in os.environ

pytestmark = pytest.mark.long
ADMIN = bearer(token("ops", admin=True, publish=["*"]))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@contextmanager
def pages_of(
    browser: Browser, **settings: Any
) -> Iterator[tuple[ThreadedService, ClientPage, Tabs]]:
    """A service, a page of another origin, and tabs to show it."""
    with ExitStack() as stack:
        page = stack.enter_context(ClientPage())
        service = stack.enter_context(ThreadedService(cors_origins=(page.origin,), **settings))
        page.base = f"http://127.0.0.1:{service.port}"
        yield service, page, stack.enter_context(Tabs(browser))


def open_streams(tab: Tab, number: int) -> None:
    tab.becomes(f"how('open').length >= {number}")


def heard(tab: Tab, texts: list[str]) -> None:
    """Return once a tab has heard exactly these."""
    tab.becomes(f"heard.length >= {len(texts)}")
    assert tab.value("heard") == texts
    assert tab.value("how('gap')") == []


def leave(tab: Tab) -> None:
    tab.value("void (location.href = '/elsewhere')")
    tab.becomes("document.title === 'Elsewhere'")


def come_back(tab: Tab) -> None:
    """Go back to the page, which the browser must have kept."""
    tab.value("void (window.gone = true, history.back())")
    tab.becomes("document.title === 'A page' && returned > 0 && !window.gone")


def listens_to(service: ThreadedService, channel: str) -> None:
    """Return once a connection listens to a channel."""
    eventually(lambda: any(channel in each["channels"] for each in connections(service.port)))


def alone(service: ThreadedService) -> str:
    """The id of the only connection, once it is the only one."""
    eventually(lambda: len(service.push.connections) == 1, 20)
    (id,) = service.push.connections
    return id


@needs_chromium
@pytest.mark.parametrize("transport", ["eventsource", "fetch", "websocket"])
def test_whatever_carries_it_nothing_is_lost_or_doubled_and_what_is_acknowledged_is_so(
    browser: Browser, transport: str
) -> None:
    with (
        pages_of(browser) as (service, page, tabs),
        Cutter(service.port) as proxy,
    ):
        tab = tabs.open(page)
        url = f"http://127.0.0.1:{proxy.port}"
        options = {"user": "alice", "transport": transport}
        tab.value(f"listen({json.dumps(options)}, {json.dumps(url)})")
        texts: list[str] = []
        for number, clean in enumerate([True, False, True]):
            open_streams(tab, number + 1)
            for when in ("before", "after"):
                texts.append(f"{number} {when}")
                publish(service.port, texts[-1])
                proxy.cut(clean=clean)
        open_streams(tab, 4)
        publish(service.port, "kb", channels=["kb"])
        tab.value("client.subscribe('kb')")
        listens_to(service, "kb")
        publish(service.port, "kb 2", channels=["kb"])
        target = {"user_id": "alice"}
        publish(service.port, "important", id="m1", target=target, metadata={"ack": True})
        tab.becomes("heard.at(-1) === 'important'")
        found = [each for each in tab.value("heard") if each != "kb"]
        assert found == [*texts, "kb 2", "important"]
        tab.value("client.acknowledge('tests/m1', 'tests/of-nobody')")
        state = request(service.port, "GET", "/api/v1/messages/tests/m1/delivery").json()["state"]
        assert state == "acknowledged"
        tab.becomes("how('acknowledged').length === 1")


@needs_chromium
def test_ten_tabs_have_one_connection_and_the_next_leads_when_one_is_closed_or_crashes(
    browser: Browser,
) -> None:
    with pages_of(browser) as (service, page, tabs):
        opened = [tabs.open(page, user="alice", session="alice") for _ in range(10)]
        for tab in opened:
            open_streams(tab, 1)
        first = alone(service)
        publish(service.port, "1")
        for tab in opened:
            heard(tab, ["1"])
        # The first tab leads; the second is next in line.
        tabs.close(opened.pop(0))
        publish(service.port, "2")
        for tab in opened:
            heard(tab, ["1", "2"])
        second = alone(service)
        tabs.say(opened.pop(0), "Page.crash")
        publish(service.port, "3")
        for tab in opened:
            heard(tab, ["1", "2", "3"])
        assert len({first, second, alone(service)}) == 3


@needs_chromium
def test_tabs_hear_what_they_have_asked_for_each_over_one_connection(browser: Browser) -> None:
    with pages_of(browser) as (service, page, tabs):
        one = tabs.open(page, channels=["a"], session="s")
        other = tabs.open(page, channels=["b"], session="s")
        for tab in (one, other):
            tab.becomes("how('open').some(({channels}) => `${channels}` === 'a,b,broadcast')")
        publish(service.port, "a", channels=["a"])
        publish(service.port, "b", channels=["b"])
        publish(service.port, "both", channels=["a", "b"])
        heard(one, ["a", "both"])
        heard(other, ["b", "both"])
        other.value("client.subscribe('c')")
        listens_to(service, "c")
        publish(service.port, "c", channels=["c"])
        heard(other, ["b", "both", "c"])
        tabs.close(one)
        publish(service.port, "end", channels=["b"])
        heard(other, ["b", "both", "c", "end"])
        alone(service)
        eventually(lambda: "'a'" not in str(connections(service.port)))


@needs_chromium
def test_a_channel_that_is_refused_is_told_to_who_wants_it_and_ends_no_other_tabs_stream(
    browser: Browser,
) -> None:
    with pages_of(browser, jwt_secret=SECRET) as (service, page, tabs):
        options = {"user": "alice", "session": "alice", "token": token("alice")}
        one, other = (tabs.open(page, **options) for _ in range(2))
        for tab in (one, other):
            open_streams(tab, 1)
        other.value("client.subscribe('secret')")
        other.becomes("how('close').some(({reconnect}) => !reconnect)")
        other.becomes("how('error').some((text) => text.includes('403'))")
        open_streams(one, 2)
        publish(service.port, "1", headers=ADMIN)
        one.becomes("heard.length > 0")
        assert one.value("heard") == ["1"]
        assert one.value("how('close').some(({reconnect}) => !reconnect)") is False


@needs_chromium
def test_a_tab_that_follows_is_shown_what_waits_for_an_acknowledgement(browser: Browser) -> None:
    with pages_of(browser) as (service, page, tabs):
        target = {"user_id": "alice"}
        publish(service.port, "bill", id="m1", target=target, metadata={"ack": True})
        leader = tabs.open(page, user="alice", session="alice")
        heard(leader, ["bill"])
        follower = tabs.open(page, user="alice", session="alice")
        heard(follower, ["bill"])
        alone(service)


@needs_chromium
def test_a_leader_that_is_frozen_is_replaced_and_catches_up_afterwards(browser: Browser) -> None:
    with pages_of(browser, heartbeat_interval=1) as (service, page, tabs):
        leader, other = (tabs.open(page, user="alice", session="alice") for _ in range(2))
        for tab in (leader, other):
            open_streams(tab, 1)
        alone(service)
        tabs.tell(leader, "Page.setWebLifecycleState", state="frozen")
        publish(service.port, "1")
        heard(other, ["1"])
        publish(service.port, "2")
        heard(other, ["1", "2"])
        tabs.tell(leader, "Page.setWebLifecycleState", state="active")
        publish(service.port, "3")
        for tab in (leader, other):
            heard(tab, ["1", "2", "3"])
        alone(service)


@needs_chromium
def test_a_leader_that_hangs_is_replaced_and_nothing_comes_twice_when_it_wakes(
    browser: Browser,
) -> None:
    with pages_of(browser, heartbeat_interval=1) as (service, page, tabs):
        leader, other = (tabs.open(page, user="alice", session="alice") for _ in range(2))
        for tab in (leader, other):
            open_streams(tab, 1)
        first = alone(service)
        other.value("void (new BroadcastChannel('busy').onmessage = () => { window.busy = true; })")
        busy = (
            "new BroadcastChannel('busy').postMessage(1);"
            "const until = Date.now() + 8000; while (Date.now() < until);"
        )
        tabs.say(leader, "Runtime.evaluate", expression=busy)
        other.becomes("window.busy")
        since = time.monotonic()
        publish(service.port, "1")
        heard(other, ["1"])
        assert time.monotonic() - since < 7, "it wasn't the leader's waking up that told it"
        assert len(service.push.connections) == 2
        for text in ("2", "3"):
            publish(service.port, text)
        heard(other, ["1", "2", "3"])
        leader.becomes("true")
        publish(service.port, "4")
        for tab in (leader, other):
            tab.becomes("heard.length >= 4")
            assert sorted(tab.value("heard")) == ["1", "2", "3", "4"]
        assert alone(service) != first


@needs_chromium
def test_a_leader_that_nobody_sees_and_whose_timers_wait_is_replaced_when_its_stream_is_lost(
    browser: Browser,
) -> None:
    with pages_of(browser) as (service, page, tabs):
        leader, other = (tabs.open(page, user="alice", session="alice") for _ in range(2))
        for tab in (leader, other):
            open_streams(tab, 1)
        first = alone(service)
        leader.value(
            "Object.defineProperty(document, 'visibilityState', {value: 'hidden'});"
            "void (window.setTimeout = () => 0)"
        )
        request(service.port, "DELETE", f"/api/v1/connections/{first}?reconnect=true")
        publish(service.port, "1")
        for tab in (leader, other):
            heard(tab, ["1"])
        assert alone(service) != first


@needs_chromium
def test_tabs_that_have_no_locks_have_a_connection_each_and_end_with_their_session_too(
    browser: Browser,
) -> None:
    with pages_of(browser) as (service, page, tabs):
        opened = []
        for user in ("alice", "alice", "bob"):
            opened.append(tab := tabs.open(page))
            tab.value("void Object.defineProperty(navigator, 'locks', {value: undefined})")
            tab.value(f"listen({{user: '{user}', session: '{user}'}})")
            open_streams(tab, 1)
            if user == "alice":
                assert len(service.push.connections) == len(opened)
        for tab in opened[:2]:
            tab.becomes("how('close').length === 1 && !how('close')[0].reconnect")
        alone(service)


@needs_chromium
def test_a_worker_hears_and_acknowledges(browser: Browser) -> None:
    with pages_of(browser) as (service, page, tabs):
        tab = tabs.open(page)
        script = f"""importScripts("{page.base}/static/msgpush.js");
            const client = new MsgPush("{page.base}", {{ user: "alice", session: "alice" }});
            client.on("open", () => postMessage("open"));
            client.on("info", async (data, message) => {{
              await client.acknowledge(message);
              postMessage(data.text);
            }});"""
        tab.value(
            f"const worker = new Worker(URL.createObjectURL(new Blob([{json.dumps(script)}])));"
            "void (worker.onmessage = ({data}) => heard.push(data))"
        )
        tab.becomes("heard.length === 1")
        publish(service.port, "1", target={"user_id": "alice"}, metadata={"ack": True})
        heard(tab, ["open", "1"])


@needs_chromium
def test_another_session_ends_the_one_before(browser: Browser) -> None:
    with pages_of(browser) as (service, page, tabs):
        before = [tabs.open(page, user="alice", session="alice") for _ in range(2)]
        for tab in before:
            open_streams(tab, 1)
        after = tabs.open(page, user="bob", session="bob")
        open_streams(after, 1)
        for tab in before:
            tab.becomes("how('close').length === 1")
            assert tab.value("how('close')") == [{"reason": "session", "reconnect": False}]
        alone(service)
        publish(service.port, "for alice")
        publish(service.port, "for bob", target={"user_id": "bob"})
        heard(after, ["for bob"])
        assert [tab.value("heard") for tab in before] == [[], []]


@needs_chromium
@pytest.mark.parametrize("options", [{}, {"session": "alice"}], ids=["alone", "shared"])
def test_a_page_that_comes_back_from_the_back_forward_cache_goes_on_where_it_was(
    browser: Browser, options: dict[str, str]
) -> None:
    with pages_of(browser, heartbeat_interval=1) as (service, page, tabs):
        tab, other = (tabs.open(page, user="alice", **options) for _ in range(2))
        for each in (tab, other):
            open_streams(each, 1)
        publish(service.port, "1")
        heard(tab, ["1"])
        leave(tab)
        alone(service)
        publish(service.port, "2")
        heard(other, ["1", "2"])
        come_back(tab)
        heard(tab, ["1", "2"])
        publish(service.port, "3")
        for each in (tab, other):
            heard(each, ["1", "2", "3"])


@needs_chromium
def test_a_page_that_comes_back_when_somebody_else_is_signed_in_hears_nothing_any_longer(
    browser: Browser,
) -> None:
    with pages_of(browser) as (service, page, tabs):
        before = tabs.open(page, user="alice", session="alice")
        open_streams(before, 1)
        leave(before)
        after = tabs.open(page, user="bob", session="bob")
        open_streams(after, 1)
        come_back(before)
        before.becomes("how('close').length === 1 && how('close')[0].reason === 'session'")
        publish(service.port, "for bob", target={"user_id": "bob"})
        heard(after, ["for bob"])
        alone(service)


@needs_chromium
def test_whatever_becomes_of_tabs_and_streams_all_that_is_said_is_heard_once_and_in_order(
    browser: Browser,
) -> None:
    with pages_of(browser, heartbeat_interval=1) as (service, page, tabs):
        opened = [tabs.open(page, user="alice", session="alice") for _ in range(4)]
        for tab in opened:
            open_streams(tab, 1)
        said: list[str] = []
        over = threading.Event()

        def talk() -> None:
            while not over.wait(0.01):
                publish(service.port, str(len(said)))
                said.append(str(len(said)))

        with ThreadPoolExecutor() as pool:
            talking = pool.submit(talk)
            try:
                for _ in range(2):
                    for tab in opened[1:]:
                        leave(tab)
                        come_back(tab)
                        tabs.tell(tab, "Page.setWebLifecycleState", state="frozen")
                        for id in list(service.push.connections):
                            closing = f"/api/v1/connections/{id}?reconnect=true"
                            request(service.port, "DELETE", closing)
                        tabs.tell(tab, "Page.setWebLifecycleState", state="active")
                    tabs.close(opened.pop(0))
            finally:
                over.set()
                talking.result()
        for tab in opened:
            heard(tab, said)
        alone(service)


@needs_chromium
def test_a_reloaded_page_goes_on_at_the_cursor_that_it_keeps(browser: Browser) -> None:
    with pages_of(browser) as (service, page, tabs):
        tab = tabs.open(page, user="alice", storage="cursor")
        open_streams(tab, 1)
        publish(service.port, "1")
        heard(tab, ["1"])
        leave(tab)
        publish(service.port, "2")
        tab.value("void (location.href = '/')")
        tab.becomes("typeof listen === 'function' && document.readyState === 'complete'")
        tab.value("listen({user: 'alice', storage: 'cursor'})")
        heard(tab, ["2"])


@needs_chromium
def test_a_page_that_was_offline_is_live_again_at_once(browser: Browser) -> None:
    with pages_of(browser) as (service, page, tabs):
        tab = tabs.open(page, user="alice")
        open_streams(tab, 1)
        network = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        tabs.tell(tab, "Network.enable")
        tabs.tell(tab, "Network.emulateNetworkConditions", offline=True, **network)
        tab.becomes("!navigator.onLine")
        first = alone(service)
        request(service.port, "DELETE", f"/api/v1/connections/{first}?reconnect=true")
        tab.becomes("how('close').length === 1")
        publish(service.port, "meanwhile")
        tabs.tell(tab, "Network.emulateNetworkConditions", offline=False, **network)
        since = time.monotonic()
        heard(tab, ["meanwhile"])
        assert time.monotonic() - since < 1


@needs_chromium
@pytest.mark.parametrize("transport", ["eventsource", "fetch", "websocket"])
def test_a_token_that_ends_or_is_refused_is_renewed(browser: Browser, transport: str) -> None:
    with pages_of(browser, jwt_secret=SECRET, jwt_leeway=0.0) as (service, page, tabs):
        page.tokens = iter(["no token", token(lifetime=2), token()])
        tab = tabs.open(page)
        fresh = "async () => (await fetch('/token')).text()"
        tab.value(f"listen({{user: 'alice', transport: '{transport}', token: {fresh}}})")
        tab.becomes("how('close').some(({reason}) => reason === 'expired')")
        body = {
            "type": "info",
            "service": "t",
            "target": {"user_id": "alice"},
            "data": {"text": "1"},
        }
        sent = request(
            service.port, "POST", "/api/v1/messages/send", json.dumps(body).encode(), ADMIN
        )
        assert sent.status == 202
        heard(tab, ["1"])
        assert page.issued == 3


@needs_chromium
def test_a_page_is_live_again_within_a_second_of_the_service_s_return(browser: Browser) -> None:
    with ClientPage() as page, Tabs(browser) as tabs:
        origins = json.dumps([page.origin])
        with ServiceProcess(CORS_ORIGINS=origins) as service:
            page.base = f"http://127.0.0.1:{service.port}"
            shared = [tabs.open(page, user="alice", session="alice") for _ in range(2)]
            opened = [*shared, tabs.open(page, user="alice", transport="websocket")]
            for tab in opened:
                open_streams(tab, 1)
        for tab in opened:
            tab.becomes("how('close').length === 1")
            tab.value("void client.on('open', () => { window.back = Date.now() })")
        time.sleep(1.5)  # an outage of some length
        with ServiceProcess(CORS_ORIGINS=origins, SERVICE_PORT=str(service.port)) as again:
            ready = time.time()
            for tab in opened:
                open_streams(tab, 2)
                assert tab.value("back") / 1000 - ready < 1
            publish(again.port, "back")
            for tab in opened:
                tab.becomes("heard.at(-1) === 'back'")
                # The embedded bus has forgotten, and says so.
                assert tab.value("how('gap').map(({reason}) => reason)") == ["reset"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client's sources, built anew."""
    copy = build_tools(tmp_path_factory.mktemp("built"), REQUIRED)
    run(copy, "node", "build.mjs")
    return copy


def run(copy: Path, *argv: str) -> None:
    done = subprocess.run(
        [*argv], cwd=copy, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_chromium
@pytest.mark.parametrize("framework", ["react", "vue"])
def test_a_component_hears_what_it_asks_for_and_as_long_as_it_is_there(
    browser: Browser, built: Path, framework: str
) -> None:
    argv = [
        f"test/apps/{framework}.js",
        "--bundle",
        "--log-level=error",
        f"--outfile={framework}.js",
    ]
    run(built, "node_modules/.bin/esbuild", *argv, '--define:process.env.NODE_ENV="development"')
    script = (built / f"{framework}.js").read_text()
    with pages_of(browser) as (service, page, tabs):
        tab = tabs.open(page)
        tab.value(f"globalThis.base = {json.dumps(page.base)}; {script}; 0")
        for user, percent in (("alice", 65), ("bob", 66)):
            tab.becomes("document.body.textContent.startsWith('open')")
            listens_to(service, f"user:{user}")
            alone(service)
            fields: dict[str, Any] = {"target": {"user_id": user}, "data": {"progress": percent}}
            publish(service.port, "", type="progress", **fields)
            tab.shows("button", f"open {user} {percent}")
            tab.click("button")
            tab.value("new Promise((done) => setTimeout(done))")
        tab.value("leave()")
        eventually(lambda: not service.push.connections)


def test_what_is_served_is_what_the_sources_give(built: Path) -> None:
    for name in ("msgpush.js", "msgpush-push.js", "msgpush-worker.js"):
        assert SERVED.with_name(name).read_bytes() == (built / "dist" / name).read_bytes(), (
            "npm run build, and commit it"
        )


def test_the_core_is_small(built: Path) -> None:
    argv = ["src/index.ts", "--bundle", "--minify", "--format=esm", "--external:./tabs.js"]
    run(built, "node_modules/.bin/esbuild", *argv, "--outfile=core.js", "--log-level=error")
    assert len(gzip.compress((built / "core.js").read_bytes(), 9)) < CORE


def test_it_has_types_for_each_of_its_modules_and_needs_nothing_at_run_time(built: Path) -> None:
    package = json.loads((SOURCES / "package.json").read_text())
    for names in package["exports"].values():
        for path in names.values():
            assert (built / path).is_file()
    assert "dependencies" not in package
    assert package["license"] == "Apache-2.0"
    lock = (SOURCES / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    pinned = package["devDependencies"].values()
    assert all(re.fullmatch(r"[\d.]+", version) for version in pinned)
