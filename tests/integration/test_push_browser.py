"""A real browser's service worker: what is pushed is shown, and a click acknowledges it."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from msgpush.adapters.notify.places import Place
from tests.integration.test_pushing import VAPID, authority
from tests.support.browser import PATIENCE, Browser, Tab, needs_chromium
from tests.support.certificates import Authority
from tests.support.client import request
from tests.support.push_services import PushService
from tests.support.pushes import push_body
from tests.support.service import ThreadedService, eventually
from tests.support.subscriptions import Browser as Subscribed
from tests.support.web import WebServer, answer

pytestmark = needs_chromium
__all__ = ["authority"]

HTML = ("Content-Type", "text/html")
SCRIPT = ("Content-Type", "text/javascript")


class App(WebServer):
    """An app's page and its service worker, at an origin of their own."""

    base = ""

    def get(self, exchange: BaseHTTPRequestHandler) -> None:
        if exchange.path == "/worker.js":
            script = f"""importScripts("{self.base}/static/msgpush-worker.js");
MsgPushWorker.handlePush({{ url: "{self.base}" }});
addEventListener("activate", (event) => event.waitUntil(clients.claim()));"""
            answer(exchange, script.encode(), SCRIPT)
        else:
            page = f"""<!doctype html><title>An app</title>
<script src="{self.base}/static/msgpush-push.js"></script>
<script>const ready = navigator.serviceWorker.register("/worker.js").then(() => navigator.serviceWorker.ready);</script>"""
            answer(exchange, page.encode(), HTML)


@pytest.fixture
def push_service(authority: Authority) -> Iterator[PushService]:
    """One in a thread of its own, beside the browser that is asked in this one."""
    service = PushService(authority, http2=False)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="push service")
    thread.start()
    asyncio.run_coroutine_threadsafe(service.__aenter__(), loop).result(PATIENCE)
    yield service
    asyncio.run_coroutine_threadsafe(service.__aexit__(), loop).result(PATIENCE)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def found(browser: Browser, tab: Tab, wanted: Callable[[dict[str, Any]], Any]) -> Any:
    """What an event has that the browser tells of its own accord."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        tab.value("1")  # so that what it tells is read
        for event in browser.events:
            if value := wanted(event):
                return value
        time.sleep(0.02)
    raise AssertionError([each.get("method") for each in browser.events])


def registration(event: dict[str, Any]) -> str | None:
    if event.get("method") != "ServiceWorker.workerRegistrationUpdated":
        return None
    ids: list[str] = [each["registrationId"] for each in event["params"]["registrations"]]
    return ids[0] if ids else None


def test_what_is_pushed_is_shown_and_a_click_acknowledges_it_without_a_page_or_a_token(
    tmp_path: Path, push_service: PushService
) -> None:
    settings: dict[str, Any] = {
        "vapid_private_key": VAPID,
        "vapid_subject": "mailto:ops@example.com",
        "push_endpoints": (Place("localhost", push_service.port),),
        "push_delay": 0.0,
    }
    with App() as app, ThreadedService(**settings) as service, Browser(tmp_path / "p") as browser:
        app.base = f"http://127.0.0.1:{service.port}"
        permitted = {"origin": app.origin, "permissions": ["notifications"]}
        browser.ask("Browser.grantPermissions", permitted)
        tab = browser.open(app.origin)
        tab.becomes("ready.then((found) => found.active?.state === 'activated')")
        tab.tell("ServiceWorker.enable")
        id = found(browser, tab, registration)

        # What the service pushes to a browser of the test's own is given to this one.
        subscribed = Subscribed()
        body = {"webpush": subscribed.as_json(f"{push_service.origin}/push/bob")}
        path = "/api/v1/users/bob/devices"
        assert request(service.port, "POST", path, json.dumps(body).encode()).status == 201
        pushed = push_body("m1", push={"title": "Import", "url": "/imports"}, ttl=600)
        assert request(service.port, "POST", "/api/v1/messages/send", pushed).status == 202
        eventually(lambda: push_service.asked)
        data = subscribed.decrypt(push_service.asked[0].body).decode()
        shown = "ready.then(async (found) => (await found.getNotifications())"

        def is_shown() -> bool:
            # A registration that the browser hasn't written down yet gets nothing, and nobody is
            # told.
            tab.tell(
                "ServiceWorker.deliverPushMessage", origin=app.origin, registrationId=id, data=data
            )
            tab.value("new Promise((done) => setTimeout(done, 100))")
            return bool(tab.value(f"{shown}.length === 1)"))

        eventually(is_shown)
        notes = tab.value(f"{shown}.map((each) => [each.title, each.body, each.tag]))")
        assert notes == [["Import", "Hello", "tests/m1"]]
        # Pushed twice, as may happen, it is shown once.
        tab.tell(
            "ServiceWorker.deliverPushMessage", origin=app.origin, registrationId=id, data=data
        )
        tab.value("new Promise((done) => setTimeout(done, 300))")
        assert tab.value(f"{shown}.length)") == 1

        def pending() -> int:
            total: int = request(service.port, "GET", "/api/v1/users/bob/pending").json()["total"]
            return total

        assert pending() == 1
        worker = next(
            each["targetId"]
            for each in browser.ask("Target.getTargets", {})["targetInfos"]
            if each["type"] == "service_worker"
        )
        attached = browser.ask("Target.attachToTarget", {"targetId": worker, "flatten": True})
        # A click can't be made by the protocol: its event is.
        Tab(browser, attached["sessionId"]).value(
            """registration.getNotifications().then(([notification]) => {
              try {
                dispatchEvent(new NotificationEvent("notificationclick", { notification }));
              } catch {}
            })"""
        )
        eventually(lambda: pending() == 0)
        tab.becomes(f"{shown}.length === 0)")
