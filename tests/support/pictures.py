"""Pictures of the operator's page for the docs: `python -m tests.support.pictures docs/images`.

The page is the real one, in a real Chromium, before two instances on a real Redis, with traffic.
"""

import json
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from msgpush.adapters.notify.vapid import new_key, private_text
from tests.support.admin import NARROW, WIDE, AdminPage, publish, settled, traffic
from tests.support.browser import Browser
from tests.support.client import SseClient, request
from tests.support.redis_servers import RedisServer
from tests.support.service import ServiceProcess
from tests.support.subscriptions import Browser as Subscribed
from tests.support.tokens import SECRET, bearer, token

SECONDS = 75  # of traffic before the first picture

# The file, how it looks, and where it is.
PICTURES = (
    ("admin-overview-light", WIDE, "light", "en", "#/overview"),
    ("admin-overview-dark", WIDE, "dark", "en", "#/overview?by=service"),
    ("admin-overview-narrow", NARROW, "dark", "en", "#/overview"),
    ("admin-channels-dark", WIDE, "dark", "en", "#/channels?channel=imports"),
    ("admin-channels-zh", NARROW, "light", "zh", "#/channels?channel=imports"),
    ("admin-connections-zh", WIDE, "light", "zh", "#/connections"),
    ("admin-publish-light", WIDE, "light", "en", "#/publish"),
    ("admin-delivery-light", WIDE, "light", "en", "#/delivery?tab=pending&user=alice"),
    ("admin-devices-light", WIDE, "light", "en", "#/devices?user=alice"),
    ("admin-access-dark", WIDE, "dark", "en", "#/access"),
    ("admin-settings-light", WIDE, "light", "en", "#/settings?changed=1"),
)


def main(folder: Path) -> None:
    """Take all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "JWT_SECRET": SECRET,
        "VAPID_PRIVATE_KEY": private_text(new_key()),
        "VAPID_SUBJECT": "mailto:ops@example.com",
    }
    operator = token("olivia", subscribe=["*"], publish=["*"], users=["*"], admin=True)
    allowed = bearer(operator)
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        instances = [
            stack.enter_context(ServiceProcess(REDIS_URL=redis.url, **settings)) for _ in range(2)
        ]
        for n in range(36):
            user = ("alice", "bob", "carol", "dave", "erin", "frank")[n % 6]
            port = instances[n % 3 % 2].port
            stream = stack.enter_context(
                SseClient(
                    port,
                    f"/sse/user/{user}?channel=imports&passive=true",
                    {**bearer(token(user, subscribe=["imports"])), "User-Agent": "Mozilla/5.0"},
                )
            )
            threading.Thread(target=_read, args=(stream,), daemon=True).start()
        port = instances[0].port
        for n, text in enumerate(("The report is ready", "The import is done", "Sign here")):
            publish(
                port,
                allowed,
                id=f"report-{n + 1}",
                service="reports",
                type="success",
                target={"user_id": "alice"},
                data={"message": text},
                metadata={"ack": True, "priority": ("normal", "high", "urgent")[n]},
            )
        for n, label in enumerate(("Firefox on the laptop", "Chrome on the phone", None)):
            address = Subscribed().as_json(f"https://fcm.googleapis.com/fcm/send/{n}")
            body = json.dumps({"webpush": address, "label": label}).encode()
            assert request(port, "POST", "/api/v1/users/alice/devices", body, allowed).status == 201
        stack.enter_context(traffic(port, "imports", rate=30, headers=allowed))
        profile = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        browser = stack.enter_context(Browser(profile))
        pages = {
            look: AdminPage(
                browser, f"http://127.0.0.1:{port}", size=look[0], scheme=look[1], language=look[2]
            )
            for look in {picture[1:4] for picture in PICTURES}
        }
        for page in pages.values():
            page.tab.tell("Emulation.setScrollbarsHidden", hidden=True)
            page.go()
            page.sign_in(operator)
        # A page that nobody sees asks for nothing: each is to have something to show.
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            for page in pages.values():
                page.tab.tell("Page.bringToFront")
                time.sleep(2.5)
        for name, size, scheme, language, place in PICTURES:
            page = pages[size, scheme, language]
            page.tab.tell("Page.bringToFront")
            page.move(place)
            if name.startswith("admin-overview"):
                time.sleep(25)  # its charts begin anew
            settled(page)
            if "channel=" in place:
                page.tab.becomes("document.querySelector('.option') !== null")
                page.tab.click(".option:nth-child(4)")
            if place == "#/access":
                page.fill("[aria-labelledby=explain] textarea", token("bob", subscribe=["kb:*"]))
                page.tab.click("[aria-labelledby=explain] button")
                page.tab.becomes("document.querySelector('.notice') !== null")
                page.fill("[aria-labelledby=explain] textarea", "")
            if "by=" in place:
                page.tab.value("scrollTo(0, document.body.scrollHeight)")
            page.tab.value("document.activeElement.blur()")
            page.picture(folder / f"{name}.png")


def _read(stream: SseClient) -> None:
    try:
        while not stream.ended:
            stream.next()
    except (AssertionError, OSError):
        return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
