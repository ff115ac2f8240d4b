"""A real Chromium: pages that a test opens, looks into and clicks in, each a tab of one browser."""

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE = 30.0  # a page reconnects after 5 seconds, and once more if that was too early
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="needs Chromium"
)


def dom(url: str, profile: Path) -> str:
    """What a page has become in a browser when its stream has ended for good.

    The browser's virtual time stands still while a stream is open, and passes at once while it
    waits to reconnect."""
    assert CHROMIUM is not None, "CI installs Chromium"
    flags = [*FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=30000", "--dump-dom"]
    result = subprocess.run(
        [CHROMIUM, *flags, url], capture_output=True, text=True, timeout=60, check=True
    )
    return result.stdout


class Unanswered(Exception):
    """The page can't say: it is just being replaced by another, or what was asked is wrong."""


class Browser:
    """A browser of the test's own, which is asked over two pipes (Chrome's DevTools Protocol).

    Args:
        flags: further ones of its command line.
    """

    def __init__(self, profile: Path, *flags: str) -> None:
        assert CHROMIUM is not None, "CI installs Chromium"
        asked, self._asking = os.pipe()
        self._telling, told = os.pipe()
        # Out of the way: in the browser they become 3 and 4.
        given = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in (asked, told)]
        own = (f"--user-data-dir={profile}", "--remote-debugging-pipe")
        argv = [CHROMIUM, *FLAGS, *flags, *own]
        self._pid = os.posix_spawn(
            CHROMIUM,
            argv,
            {**os.environ},
            file_actions=[
                *((os.POSIX_SPAWN_DUP2, end, place) for place, end in enumerate(given, 3)),
                *((os.POSIX_SPAWN_OPEN, n, "/dev/null", os.O_WRONLY, 0) for n in (1, 2)),
            ],
            setpgroup=0,
        )
        for end in (asked, told, *given):
            os.close(end)
        self._poll = select.poll()  # a test may have more files open than select() takes
        self._poll.register(self._telling, select.POLLIN)
        self.events: deque[dict[str, Any]] = deque(maxlen=1_000)  # what it has told unasked
        self._number = 0
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._asking)
        os.close(self._telling)

    def open(self, url: str) -> "Tab":
        """A new tab that shows this page."""
        target = self.ask("Target.createTarget", {"url": url})["targetId"]
        session = self.ask("Target.attachToTarget", {"targetId": target, "flatten": True})
        return Tab(self, session["sessionId"])

    def ask(self, method: str, params: dict[str, Any], session: str | None = None) -> Any:
        """The answer to a command of the protocol; `Unanswered` where there is none."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": params}
        command |= {"sessionId": session} if session else {}
        os.write(self._asking, json.dumps(command).encode() + b"\0")
        while (told := self._read()).get("id") != self._number:
            self.events.append(told)
        if "error" in told:
            raise Unanswered(told["error"])
        return told["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert self._poll.poll(PATIENCE * 1000), "the browser is silent"
            received = os.read(self._telling, 65_536)
            assert received, "the browser has ended"
            self._rest += received
        text, _, self._rest = self._rest.partition(b"\0")
        told: dict[str, Any] = json.loads(text)
        return told


class Tab:
    """A page in a tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def value(self, expression: str) -> Any:
        """The value of some JavaScript in the page."""
        params = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self._browser.ask("Runtime.evaluate", params, self._session)
        if "exceptionDetails" in answer:
            raise Unanswered(answer["exceptionDetails"])
        return answer["result"].get("value")

    def tell(self, method: str, **params: Any) -> Any:
        """The answer to a command of the protocol to this tab."""
        return self._browser.ask(method, params, self._session)

    def at_each_load(self, script: str) -> None:
        """Have some JavaScript run before that of each page that is loaded from here on."""
        self._browser.ask("Page.enable", {}, self._session)
        params = {"source": script}
        self._browser.ask("Page.addScriptToEvaluateOnNewDocument", params, self._session)

    def becomes(self, expression: str) -> None:
        """Return once some JavaScript is true in the page; fail when it isn't in time."""
        assert self._waited(expression, bool), expression

    def shows(self, selector: str, *texts: str) -> None:
        """Return once the elements that can be seen have these texts; fail when not in time."""
        shown = self._waited(_texts_of(selector), lambda found: found == [*texts])
        assert shown == [*texts], selector

    def click(self, selector: str) -> None:
        """Click the first such element."""
        self.value(f"document.querySelector({json.dumps(selector)}).click()")

    def texts(self, selector: str) -> list[str]:
        """What the elements that can be seen say, each."""
        texts: list[str] = self.value(_texts_of(selector))
        return texts

    def _waited(self, expression: str, wanted: Callable[[Any], bool]) -> Any:
        """The value of some JavaScript once it is as wanted, or the last one."""
        until = time.monotonic() + PATIENCE
        found = None
        while time.monotonic() < until:
            with suppress(Unanswered):
                found = self.value(expression)
            if wanted(found):
                break
            time.sleep(0.02)
        return found


def _texts_of(selector: str) -> str:
    found = f"[...document.querySelectorAll({json.dumps(selector)})]"
    return f"{found}.filter(e => e.checkVisibility()).map(e => e.textContent)"
