"""Cross-site WebSocket hijacking, in a real browser: it asks nobody before it opens a WebSocket, and
sends its cookie along, whatever page it is that asks. So a page of a foreign origin gets none.

Skipped where there is no Chromium; CI has one."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.browser import Browser, Tab, needs_chromium
from tests.support.service import ThreadedService
from tests.support.tokens import SECRET, token
from tests.support.web import Page

pytestmark = needs_chromium

EVIL = "http://evil.example"  # another site; whatever its name, it leads to this machine
REFUSED = [1006]  # all that a page sees: a code that no server sends
ATTEMPT = """
const told = [];
const socket = new WebSocket("ws://127.0.0.1:PORT/ws?channel=user:alice&QUERY");
socket.onmessage = ({ data }) => told.push(JSON.parse(data));
socket.onclose = ({ code }) => told.push(code);
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A victim's browser, which is signed in: it has the cookie of the service's host."""
    cookie = f"msgpush_token={token('alice')}; Path=/; HttpOnly; SameSite=Lax"
    rules = "--host-resolver-rules=MAP evil.example 127.0.0.1"
    with (
        Browser(tmp_path_factory.mktemp("profile"), rules) as running,
        Page(("Set-Cookie", cookie)) as host,
    ):
        has_loaded(running.open(host.origin), host.origin)
        yield running


@pytest.fixture
def foreign() -> Iterator[Page]:
    """A page of another origin of the service's own site: it has the service's cookie."""
    with Page() as page:
        yield page


def evil(page: Page) -> str:
    """The origin of the same page as one of another site."""
    return f"{EVIL}:{page.origin.rpartition(':')[2]}"


def has_loaded(tab: Tab, origin: str) -> None:
    """Return once a tab shows the page of an origin, and no empty one before it."""
    tab.becomes(f"location.origin === '{origin}' && document.readyState === 'complete'")


def told(tab: Tab) -> list[Any]:
    """What a page is told when it has tried: a frame, or the end."""
    tab.becomes("told.length > 0")
    found: list[Any] = tab.value("socket.close() ?? told")
    return found


def attempt(
    browser: Browser, service: ThreadedService, page: Page, origin: str, query: str = ""
) -> list[Any]:
    """What a page of an origin is told that tries to open a WebSocket."""
    page.script = script(service, query)
    return told(browser.open(origin))


def script(service: ThreadedService, query: str = "") -> str:
    return ATTEMPT.replace("PORT", str(service.port)).replace("QUERY", query)


def opened(found: list[Any]) -> bool:
    return found != REFUSED and found[0]["event"] == "msgpush.open"


def from_its_own_page(browser: Browser, service: ThreadedService) -> list[Any]:
    """What the service's own page is told."""
    own = f"http://127.0.0.1:{service.port}"
    tab = browser.open(own)
    has_loaded(tab, own)
    tab.value(script(service))
    return told(tab)


def test_the_cookie_of_a_victim_opens_nothing_for_a_foreign_page(
    browser: Browser, foreign: Page, caplog: pytest.LogCaptureFixture
) -> None:
    with ThreadedService(jwt_secret=SECRET) as service:
        for origin in (foreign.origin, evil(foreign)):
            assert attempt(browser, service, foreign, origin) == REFUSED
            # Whatever it shows: what it has itself is no good here, either.
            query = f"token={token('alice')}"
            assert attempt(browser, service, foreign, origin, query) == REFUSED
            assert caplog.text.count(f'"{origin}"') == 1, "it is logged, and once"
        assert "CORS_ORIGINS" in caplog.text
        assert service.push.connections == {}
        assert opened(from_its_own_page(browser, service))


def test_a_page_whose_origin_is_known_is_served_as_whom_the_cookie_names(
    browser: Browser, foreign: Page
) -> None:
    with ThreadedService(jwt_secret=SECRET, cors_origins=(foreign.origin,)) as service:
        assert opened(attempt(browser, service, foreign, foreign.origin)), "the cookie came along"
        assert attempt(browser, service, foreign, evil(foreign)) == REFUSED
    with ThreadedService(jwt_secret=SECRET, cors_origins=(evil(foreign),)) as service:
        # Between sites no cookie does.
        first, *_ = attempt(browser, service, foreign, evil(foreign))
        assert first["data"]["reason"] == "unauthorized"


def test_without_authentication_a_foreign_page_gets_nothing_either(
    browser: Browser, foreign: Page
) -> None:
    with ThreadedService(enable_auth=False) as service:
        for origin in (foreign.origin, evil(foreign)):
            assert attempt(browser, service, foreign, origin) == REFUSED
        assert opened(from_its_own_page(browser, service))
    with ThreadedService(enable_auth=False, cors_origins=(evil(foreign),)) as service:
        assert opened(attempt(browser, service, foreign, evil(foreign)))
        assert attempt(browser, service, foreign, foreign.origin) == REFUSED


def test_in_local_mode_the_pages_of_this_machine_may_and_no_others(
    browser: Browser, foreign: Page, caplog: pytest.LogCaptureFixture
) -> None:
    with ThreadedService() as service:
        assert attempt(browser, service, foreign, evil(foreign)) == REFUSED
        assert "JWT_SECRET" in caplog.text
        assert opened(from_its_own_page(browser, service))
        assert opened(attempt(browser, service, foreign, foreign.origin))
    with ThreadedService(cors_origins=(evil(foreign),)) as service:
        assert opened(attempt(browser, service, foreign, evil(foreign)))
