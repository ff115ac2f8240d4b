"""The operator's page in a real Chromium: a tab of it, as wide, as dark and in the language that a
test wants; and traffic for it to show.
"""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from tests.support.browser import Browser, Tab
from tests.support.client import request

NARROW, WIDE = (375, 812), (1440, 900)
VIEWS = (
    *("overview", "connections", "channels", "publish"),
    *("delivery", "devices", "access", "settings"),
)
LANGUAGES = {"en": "en-GB", "zh": "zh-CN"}

# What must not happen on any page is noted from before its first script.
_NOTES = """
window.noted = {violations: [], errors: []};
addEventListener("securitypolicyviolation", (event) =>
  noted.violations.push(event.violatedDirective + " " + event.blockedURI));
addEventListener("error", (event) => noted.errors.push(String(event.message)));
addEventListener("unhandledrejection", (event) => noted.errors.push(String(event.reason)));
"""


class AdminPage:
    """A tab that shows the operator's page of the service at `base`."""

    def __init__(
        self,
        browser: Browser,
        base: str,
        *,
        size: tuple[int, int] = WIDE,
        scheme: str = "light",
        language: str = "en",
        calm: bool = True,
    ) -> None:
        self.base = base
        self.tab: Tab = browser.open("about:blank")
        width, height = size
        self.tab.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.tab.tell(
            "Emulation.setEmulatedMedia",
            features=[
                {"name": "prefers-color-scheme", "value": scheme},
                {"name": "prefers-reduced-motion", "value": "reduce" if calm else "no-preference"},
            ],
        )
        agent = self.tab.value("navigator.userAgent")
        self.tab.tell(
            "Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=LANGUAGES[language]
        )
        self.tab.at_each_load(_NOTES)

    def go(self, where: str = "#/overview") -> Self:
        """Load the page at this place, and return once it shows something."""
        self.tab.tell("Page.navigate", url=f"{self.base}/admin/{where}")
        self.tab.becomes("document.querySelector('main h1') !== null")
        return self

    def reload(self) -> Self:
        """Load it anew, where it is."""
        self.tab.value("void (window.old = true)")
        self.tab.tell("Page.reload")
        self.tab.becomes("window.old === undefined && document.querySelector('main h1') !== null")
        return self

    def move(self, where: str) -> Self:
        """Go to another view without loading the page anew."""
        self.tab.value(f"void (location.hash = {json.dumps(where)})")
        name = where.removeprefix("#/").partition("?")[0]
        self.tab.becomes(f"document.querySelector('main > .view.{name} h1') !== null")
        return self

    def sign_in(self, token: str, *, stay: bool = False) -> None:
        """Fill in the form, and send it."""
        self.tab.becomes("document.querySelector('.sign form') !== null")
        self.fill(".sign input[type=password]", token)
        if stay:
            self.tab.click(".sign input[type=checkbox]")
        self.tab.click(".sign form button")

    def fill(self, selector: str, text: str) -> None:
        """Write a text into a field, as if it were typed or pasted."""
        self.tab.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            f" e.focus(); e.value = {json.dumps(text)};"
            " e.dispatchEvent(new Event(e.tagName === 'SELECT' ? 'change' : 'input',"
            " {bubbles: true})); })()"
        )

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key, and let it go."""
        texts = {"Enter": "\r", "Space": " "}
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "Space": 32, "End": 35, "Home": 36}
        codes |= {"ArrowUp": 38, "ArrowDown": 40, "ArrowLeft": 37, "ArrowRight": 39}
        name = " " if key == "Space" else key
        told: dict[str, Any] = {"key": name, "code": key, "windowsVirtualKeyCode": codes[key]}
        told["modifiers"] = 8 if shift else 0
        if key in texts:
            told["text"] = texts[key]
        self.tab.tell("Input.dispatchKeyEvent", type="keyDown", **told)
        told.pop("text", None)
        self.tab.tell("Input.dispatchKeyEvent", type="keyUp", **told)

    def type(self, text: str) -> None:
        self.tab.tell("Input.insertText", text=text)

    def has_focus(self) -> str:
        """What has the focus: its role or tag, and its name."""
        focused: str = self.tab.value(
            "(() => { const e = document.activeElement; return (e.getAttribute('role') ?? e.tagName)"
            ".toLowerCase() + ' ' + (e.getAttribute('aria-label')"
            " ?? e.labels?.[0]?.textContent ?? e.textContent).trim().slice(0, 60) })()"
        )
        return focused

    def picture(self, path: Path | None = None, *, whole: bool = False) -> bytes:
        """A picture of it, as PNG."""
        told: dict[str, Any] = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            width = self.tab.value("innerWidth")
            height = min(4000, self.tab.value("document.documentElement.scrollHeight"))
            told["clip"] = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        picture = base64.b64decode(self.tab.tell("Page.captureScreenshot", **told)["data"])
        if path is not None:
            path.write_bytes(picture)
        return picture

    @property
    def text(self) -> str:
        """All that can be read of it."""
        text: str = self.tab.value("document.body.innerText")
        return text

    @property
    def noted(self) -> dict[str, list[str]]:
        """Violations of its policy, and errors that nobody caught: since it was loaded."""
        noted: dict[str, list[str]] = self.tab.value("noted")
        return noted


def publish(port: int, headers: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
    """Publish a message: the answer."""
    message = {"type": "info", "service": "tests", "data": {"text": "Hello"}, **fields}
    body = json.dumps(message).encode()
    sent = request(port, "POST", "/api/v1/messages/send", body, headers or {})
    assert sent.status == 202, sent.body
    answer: dict[str, Any] = sent.json()
    return answer


@contextmanager
def traffic(
    port: int, *channels: str, rate: float = 20.0, headers: dict[str, str] | None = None
) -> Iterator[None]:
    """Messages as of a few services, to these channels, until it is left."""
    over = threading.Event()

    def run() -> None:
        for n in range(1_000_000):
            stage = ("reading", "splitting", "embedding", "storing")[n % 100 // 25]
            service, type, data = (
                ("knowledge-service", "progress", {"progress": n % 100, "stage": stage}),
                ("importer", "success", {"message": f"document-{n}.pdf is done"}),
                ("gateway", "info", {"message": "A new client has signed in"}),
                ("billing", "warning", {"message": "The invoice of May waits for approval"}),
            )[n % 4]
            if n % 40 == 39:
                type, data = "error", {"message": f"document-{n}.pdf could not be read"}
            # On a busy machine the bus, or the service, may be away for a moment.
            with suppress(AssertionError, OSError):
                publish(port, headers, service=service, type=type, data=data, channels=[*channels])
            # A wave, so that there is something to see.
            if over.wait((1 + 0.5 * (n // 50 % 3)) / rate):
                return

    thread = threading.Thread(target=run, name="traffic")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def settled(page: AdminPage, seconds: float = 0.3) -> None:
    """Return once nothing on the page has changed for a moment."""
    page.tab.value(
        "new Promise((done) => { let timer; const quiet = () => { watch.disconnect(); done(); };"
        " const watch = new MutationObserver(() => { clearTimeout(timer);"
        f" timer = setTimeout(quiet, {seconds * 1000}); }});"
        " watch.observe(document.body, {subtree: true, childList: true, characterData: true});"
        f" timer = setTimeout(quiet, {seconds * 1000}); setTimeout(quiet, 3000); }})"
    )
