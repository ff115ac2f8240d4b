"""The operator's page in a real Chromium: what it shows, what it does, and what nobody can make of
it. Skipped where there is no Chromium; CI has one.
"""

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from msgpush.adapters.http.admin import FOLDER
from msgpush.adapters.notify.places import Place
from tests.integration.test_push_browser import authority, push_service
from tests.integration.test_pushing import VAPID
from tests.support.admin import (
    LANGUAGES,
    NARROW,
    VIEWS,
    WIDE,
    AdminPage,
    publish,
    settled,
    traffic,
)
from tests.support.browser import Browser, needs_chromium
from tests.support.client import SseClient, request
from tests.support.openid import CLIENT, OpenIdProvider
from tests.support.openid import SECRET as CLIENT_SECRET
from tests.support.push_services import PushService
from tests.support.redis_servers import RedisServer, free_port
from tests.support.service import ServiceProcess, ThreadedService, eventually
from tests.support.subscriptions import Browser as Subscribed
from tests.support.tokens import SECRET, bearer, token

pytestmark = needs_chromium
__all__ = ["authority", "push_service"]

AXE = Path(__file__).parents[2] / "clients/js/node_modules/axe-core/axe.min.js"
WORDS = "⟦{}⟧"
PUSHES: dict[str, Any] = {"vapid_private_key": VAPID, "vapid_subject": "mailto:ops@example.com"}
USUAL = "https://fcm.googleapis.com/fcm/send/1"  # an address that nothing is sent to here

# Text that isn't marked as being of no language, and that no dictionary has.
_STRAY = """
[...(function* () {
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) yield walk.currentNode;
})()].filter((node) => node.parentElement.checkVisibility())
  .filter((node) => !node.parentElement.closest("[translate=no], noscript, script, style"))
  .map((node) => node.data.trim())
  .filter((text) => {
    // One text may be within another.
    for (let before; before !== text; ) [before, text] = [text, text.replace(/⟦[^⟦⟧]*⟧/g, "")];
    return /\\p{Letter}/u.test(text.replace(/^\\d+ \\p{Letter}+ \\d{4}, [\\d:]+$/u, ""));
  })
"""
_STRAY_ATTRIBUTES = """
[...document.querySelectorAll("[aria-label], [title], [placeholder]")]
  .filter((e) => !e.closest("[translate=no]"))
  .flatMap((e) => ["aria-label", "title", "placeholder"].map((name) => e.getAttribute(name)))
  .filter((text) => text && !text.startsWith("⟦") && /\\p{Letter}/u.test(text))
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(scope="module")
def service() -> Iterator[ThreadedService]:
    with ThreadedService(**PUSHES) as service:
        yield service


@pytest.fixture(scope="module")
def guarded() -> Iterator[ThreadedService]:
    with ThreadedService(jwt_secret=SECRET) as service:
        yield service


def opened(browser: Browser, service: ThreadedService, where: str, **looks: Any) -> AdminPage:
    return AdminPage(browser, f"http://127.0.0.1:{service.port}", **looks).go(where)


def everything(sub: str = "operator", **more: Any) -> str:
    return token(sub, subscribe=["*"], publish=["*"], users=["*"], admin=True, **more)


def ask_for(port: int, id: str, **more: Any) -> None:
    publish(port, id=id, service="importer", target={"user_id": "alice"}, **more)


def register(
    port: int, endpoint: str = USUAL, *, user: str = "alice", label: str | None = None, **more: Any
) -> Subscribed:
    """A browser that is a device of this user."""
    browser = Subscribed()
    body = json.dumps({"webpush": browser.as_json(endpoint), "label": label}).encode()
    answer = request(port, "POST", f"/api/v1/users/{user}/devices", body, more.get("headers"))
    assert answer.status in (200, 201), answer.body
    return browser


# Looks


def populated(service: ThreadedService, stack: ExitStack) -> list[str]:
    """Something in every view, and the places where it is."""
    stack.enter_context(traffic(service.port, "demo"))
    for user in ("alice", "bob"):
        stack.enter_context(SseClient(service.port, f"/sse/stream/demo,user:{user}?passive=true"))
    ask_for(service.port, "waits", metadata={"ack": True})
    register(service.port, label="Laptop")
    return [
        "#/overview",
        "#/overview?range=day&by=service",
        "#/connections",
        "#/channels",
        "#/channels?channel=demo",
        "#/channels?channel=demo&mode=history",
        "#/publish",
        "#/delivery?tab=pending&user=alice",
        "#/delivery?tab=message&service=importer&id=waits",
        "#/delivery?tab=dead&service=importer",
        "#/devices",
        "#/devices?user=alice",
        "#/devices?user=nobody",
        "#/access",
        "#/settings",
    ]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [NARROW, WIDE], ids=["narrow", "wide"])
@pytest.mark.long
def test_axe_finds_nothing_and_nothing_is_wider_than_the_page(
    browser: Browser, service: ThreadedService, size: tuple[int, int], scheme: str, language: str
) -> None:
    if not AXE.is_file():
        assert "CI" not in os.environ, "npm ci in clients/js gets axe"
        pytest.skip("needs axe: npm ci in clients/js")
    with ExitStack() as stack:
        places = populated(service, stack)
        page = opened(browser, service, places[0], size=size, scheme=scheme, language=language)
        page.tab.value(AXE.read_text() + ";0")
        assert page.tab.value("document.documentElement.lang") == LANGUAGES[language]
        assert page.tab.value("document.documentElement.dataset.scheme") == scheme
        for place in places:
            page.move(place)
            settled(page)
            if "channel=" in place:
                page.tab.becomes("document.querySelector('.option') !== null")
                page.tab.click(".option")
            assert violations(page) == [], place
            assert page.tab.value("document.documentElement.scrollWidth <= innerWidth"), place
        assert page.noted == {"violations": [], "errors": []}


def violations(page: AdminPage) -> list[str]:
    """What axe has to say of the page."""
    run = "axe.run({resultTypes: ['violations']}).then(({violations}) => violations.flatMap("
    return list(
        page.tab.value(run + "(v) => v.nodes.map((n) => v.id + ': ' + n.target + ' ' + n.html)))")
    )


@pytest.mark.parametrize("size", [NARROW, WIDE], ids=["narrow", "wide"])
def test_axe_finds_nothing_where_one_signs_in_and_where_one_is_asked(
    browser: Browser, guarded: ThreadedService, service: ThreadedService, size: tuple[int, int]
) -> None:
    if not AXE.is_file():
        assert "CI" not in os.environ, "npm ci in clients/js gets axe"
        pytest.skip("needs axe: npm ci in clients/js")
    page = opened(browser, guarded, "", size=size, scheme="dark")
    page.tab.value(AXE.read_text() + ";0")
    assert violations(page) == []
    page = opened(browser, service, "#/access", size=size)
    page.tab.value(AXE.read_text() + ";0")
    page.fill("[aria-labelledby=revoke] input", "somebody")
    page.tab.click("[aria-labelledby=revoke] button")
    page.tab.becomes("document.querySelector('dialog[open]') !== null")
    assert violations(page) == []


@pytest.mark.long
def test_every_text_is_in_both_dictionaries_and_no_view_has_another(
    browser: Browser, service: ThreadedService
) -> None:
    with ExitStack() as stack:
        places = populated(service, stack)
        page = opened(browser, service, places[0])
        texts = page.tab.value("import('/admin/i18n.js').then((m) => m.TEXTS)")
        plural = {name for name in texts["en"] if name.endswith(".one")}
        assert set(texts["zh"]) == set(texts["en"]) - plural
        gaps = {name: sorted(_gaps(text)) for name, text in texts["en"].items()}
        assert {name: sorted(_gaps(text)) for name, text in texts["zh"].items()} == {
            name: found for name, found in gaps.items() if name not in plural
        }
        mark = "texts[key] = '⟦' + texts[key] + '⟧'"
        page.tab.value(
            "import('/admin/i18n.js').then((m) => { for (const texts of Object.values(m.TEXTS))"
            f" for (const key in texts) {mark}; m.choose('en') }})"
        )
        for place in [*places[1:], places[0]]:
            page.move(place)
            settled(page)
            # What the frame says was said before.
            page.tab.value(
                "document.querySelectorAll('.skip, .bar, #nav').forEach((e) => e.remove())"
            )
            assert page.tab.value(_STRAY) == [], place
            assert page.tab.value(_STRAY_ATTRIBUTES) == [], place


def _gaps(text: str) -> list[str]:
    return [part.partition("}")[0] for part in text.split("{")[1:]]


def test_language_and_colours_are_chosen_and_remembered(
    browser: Browser, service: ThreadedService
) -> None:
    page = opened(browser, service, "#/settings", scheme="light")
    page.fill(".looks select:nth-of-type(2)", "zh")
    page.tab.shows("h1", "设置")
    page.fill(".looks select:nth-of-type(1)", "dark")
    page.tab.becomes("document.documentElement.dataset.scheme === 'dark'")
    page.reload()
    page.tab.shows("h1", "设置")
    assert page.tab.value("document.documentElement.dataset.scheme") == "dark"
    page.tab.value("localStorage.clear()")


def test_an_address_that_makes_no_sense_shows_what_comes_nearest(
    browser: Browser, service: ThreadedService
) -> None:
    page = opened(browser, service, "#/settings")
    for where, title in (
        ("#/constructor", "Overview"),
        ("#/delivery?tab=constructor", "Delivery"),
        ("#/overview?range=constructor&by=nothing&count=toString", "Overview"),
        ("#/connections?planet=earth", "Connections"),
        ("#/channels?channel=a%20b", "Channels"),
        ("#/%%%?%", "Overview"),
    ):
        page.tab.value(f"void (location.hash = {json.dumps(where)})")
        page.tab.becomes(f"document.title === '{title} · msgpush'")
        page.tab.becomes("document.querySelector('main h1') !== null")
        settled(page)
        assert page.tab.value("document.querySelectorAll('main .choice').length") == page.tab.value(
            "document.querySelectorAll('main .choice [aria-pressed=true]').length"
        ), where
    assert page.noted == {"violations": [], "errors": []}


# By keyboard


def test_every_view_is_reached_and_left_by_keyboard_alone(
    browser: Browser, service: ThreadedService
) -> None:
    page = opened(browser, service, "#/overview")
    page.tab.tell("Page.bringToFront")
    page.tab.becomes("document.activeElement.tagName === 'H1'")
    page.tab.value("document.querySelector('a, button, input, select').focus()")
    assert page.has_focus() == "a Skip to the content"
    page.press("Enter")
    page.tab.becomes("document.activeElement.id === 'main'")
    assert page.tab.value("location.hash") == "#/overview", "it is no place"
    for name in VIEWS[1:]:
        page.tab.value("document.activeElement.blur()")
        page.tab.value("document.querySelector('.skip').focus()")
        for _ in range(20):
            page.press("Tab")
            assert page.tab.value("document.activeElement.matches(':focus-visible')")
            if page.tab.value("document.activeElement.dataset.view") == name:
                break
        page.press("Enter")
        page.tab.becomes(f"document.querySelector('main > .view.{name}') !== null")
        page.tab.becomes("document.activeElement.tagName === 'H1'")
        assert page.tab.value("document.querySelector('#nav [aria-current]').dataset.view") == name
        # Through all that is in it, and out again: nothing holds the focus.
        reached = 0
        for _ in range(80):
            page.press("Tab")
            if not page.tab.value(
                "document.querySelector('main').contains(document.activeElement)"
            ):
                break
            reached += 1
        else:
            pytest.fail(f"{name} is a trap")
        assert reached >= 2


def test_where_it_is_narrow_the_menu_opens_and_closes_by_keyboard(
    browser: Browser, service: ThreadedService
) -> None:
    page = opened(browser, service, "#/overview", size=NARROW)
    page.tab.tell("Page.bringToFront")
    assert page.tab.texts("#nav a") == []
    page.tab.value("document.querySelector('.menu').focus()")
    page.press("Enter")
    page.tab.becomes("document.querySelector('#nav a').checkVisibility()")
    page.press("Escape")
    page.tab.becomes("!document.querySelector('#nav a').checkVisibility()")
    assert page.has_focus() == "button Menu"
    page.press("Enter")
    page.press("Tab")
    page.press("Tab")
    page.press("Enter")
    page.tab.becomes("document.querySelector('.view.connections') !== null")
    assert page.tab.texts("#nav a") == [], "it closes by itself"


def test_messages_are_chosen_by_keyboard(browser: Browser, service: ThreadedService) -> None:
    for n in range(5):
        publish(service.port, channels=["keys"], data={"text": f"message {n}"})
    page = opened(browser, service, "#/channels?channel=keys")
    page.tab.tell("Page.bringToFront")
    page.tab.shows(".option .gist", *(f"message {n}" for n in (4, 3, 2, 1, 0)))
    page.tab.value("document.querySelector('[role=listbox]').focus()")
    for key, chosen in (
        ("ArrowDown", 4),
        ("ArrowDown", 3),
        ("End", 0),
        ("ArrowUp", 1),
        ("Home", 4),
    ):
        page.press(key)
        page.tab.becomes(
            f"document.querySelector('.whole pre')?.textContent.includes('message {chosen}')"
        )
        active = (
            "document.getElementById(document.activeElement.getAttribute('aria-activedescendant'))"
        )
        page.tab.becomes(f"{active}?.textContent.includes('message {chosen}')")


# Hostile content


HOSTILE = {
    "markup": '<img src=x onerror="window.hit=1"><script>window.hit=1</script><b>bold</b>',
    "bidi": "\u202egnp.exe\u2066 \u200f\u061c",
    "controls": "a\u0000b\u001b[31mc\u0085d\u2028e\ufefff\u200bg",
    "zalgo": "Z" + "\u0301" * 400,
    "long": "long " * 40_000,
}


def test_a_hostile_message_is_text_whatever_it_says(
    browser: Browser, service: ThreadedService
) -> None:
    for name, text in HOSTILE.items():
        publish(
            service.port,
            channels=["hostile"],
            source=text[:100],
            target={"kb_id": "x\u202ey"},
            data={"text": text, "name": name, text[:50]: [text[:50]]},
        )
    page = opened(browser, service, "#/channels?channel=hostile")
    page.tab.becomes(
        f"document.querySelectorAll('.option:not([hidden])').length === {len(HOSTILE)}"
    )
    for n in range(len(HOSTILE)):
        page.tab.value(f"document.querySelectorAll('.option:not([hidden])')[{n}].click()")
        page.tab.becomes("document.querySelector('.whole pre') !== null")
        shown = page.text
        assert not set("\u202e\u2066\u200f\u061c\u0000\u001b\u0085\ufeff\u200b") & set(shown)
        assert len(shown) < 40_000, "a part of it, and more on demand"
    assert "‹U+202E›" in page.text or "U+202E" in page.tab.value(
        "document.querySelector('.list').textContent"
    )
    assert page.tab.value("document.querySelector('main img, main script, main b')") is None
    assert page.tab.value("window.hit") is None
    assert page.tab.value(
        "[...document.querySelectorAll('.option > *, .data')]"
        ".every((e) => getComputedStyle(e).unicodeBidi === 'isolate' || e.matches('.time, .type'))"
    )
    # Names of others stand in other views, too.
    with SseClient(
        service.port,
        "/sse/stream/hostile,%3Cb%3Ex%3C%2Fb%3E?passive=true".replace("%2F", "%5C"),
        {"User-Agent": "<script>window.hit=1</script>"},
    ):
        page.move("#/connections?channel=hostile")
        page.tab.becomes("document.querySelector('tbody tr') !== null")
        assert "<script>window.hit=1</script>" in page.text
    assert page.tab.value("window.hit") is None
    assert page.noted == {"violations": [], "errors": []}


def test_a_megabyte_is_shown_at_once_and_whole_on_demand(browser: Browser) -> None:
    with ThreadedService(max_message_bytes=2 << 20) as service:
        publish(service.port, channels=["large"], data={"text": "x" * (1 << 20), "last": "the end"})
        page = opened(browser, service, "#/channels?channel=large")
        page.tab.tell("Page.bringToFront")
        page.tab.becomes("document.querySelector('.option') !== null")
        page.tab.value(
            "window.frames_ = []; (function next(t) { requestAnimationFrame((u) =>"
            " { frames_.push(u - t); next(u); }) })(performance.now())"
        )
        page.tab.click(".option")
        page.tab.becomes("document.querySelector('.whole pre')?.textContent.length > 10_000")
        assert page.tab.value("document.querySelector('.whole pre').textContent.length") < 30_000
        for _ in range(12):
            page.tab.click(".long > button")
        page.tab.becomes("document.querySelector('.whole pre').textContent.includes('the end')")
        assert not page.tab.texts(".long > button")


def test_nothing_inline_runs_and_nothing_comes_from_elsewhere(
    browser: Browser, service: ThreadedService
) -> None:
    page = opened(browser, service, "#/overview")
    page.tab.value(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.hit = 1';"
        " document.body.append(s); const d = document.createElement('div');"
        " d.setAttribute('onclick', 'window.hit = 2'); document.body.append(d); d.click();"
        " const e = document.createElement('div'); e.setAttribute('style', 'color: red');"
        " document.body.append(e); })()"
    )
    page.tab.becomes("noted.violations.length >= 3")
    assert page.tab.value("window.hit") is None


@pytest.mark.parametrize("name", ["nothing", "constructor", "toString", "__proto__"])
def test_an_address_of_no_view_shows_the_first_one(
    browser: Browser, service: ThreadedService, name: str
) -> None:
    page = opened(browser, service, f"#/{name}")
    page.tab.shows("h1", "Overview")
    page.go(f"#/delivery?tab={name}")
    page.tab.becomes("document.querySelector('form[role=search]') !== null")
    assert page.noted == {"violations": [], "errors": []}


# Who may see what


def test_one_signs_in_with_a_token_and_out_again(
    browser: Browser, guarded: ThreadedService
) -> None:
    page = opened(browser, guarded, "#/settings?q=TTL")
    page.tab.shows("h1", "Sign in")
    page.sign_in("no token")
    page.tab.becomes("document.querySelector('.sign .wrong')?.checkVisibility()")
    page.sign_in(everything())
    page.tab.shows("h1", "Settings")
    assert page.tab.value("location.hash") == "#/settings?q=TTL", "where one wanted to be"
    page.tab.becomes("document.querySelectorAll('tbody tr').length > 1")
    assert "operator" in page.text
    stored = "JSON.stringify(localStorage) + JSON.stringify(sessionStorage) + document.cookie"
    assert everything()[:20] not in page.tab.value(stored + "+ location.href"), "in memory alone"
    page.reload()
    page.tab.shows("h1", "Sign in")
    page.sign_in(everything(), stay=True)
    page.tab.shows("h1", "Settings")
    page.reload()
    page.tab.shows("h1", "Settings")
    assert everything()[:20] in page.tab.value("JSON.stringify(sessionStorage)")
    page.tab.value("sessionStorage.setItem('msgpush.admin.draft', 'a message of somebody')")
    page.tab.click(".foot button")
    page.tab.shows("h1", "Sign in")
    assert page.tab.value("sessionStorage.length") == 0, "neither the token nor a message"


# The URLs that a page asks for, by whatever means.
_URLS = """
window.urls = [];
for (const name of ["fetch", "EventSource", "WebSocket"]) {
  const given = window[name];
  window[name] = new Proxy(given, {
    apply: (target, self, args) => (urls.push(String(args[0])), Reflect.apply(target, self, args)),
    construct: (target, args) => (urls.push(String(args[0])), Reflect.construct(target, args)),
  });
}
"""


def test_a_token_stands_in_no_url(browser: Browser, guarded: ThreadedService) -> None:
    page = AdminPage(browser, f"http://127.0.0.1:{guarded.port}")
    page.tab.at_each_load(_URLS)
    page.go("#/channels?channel=demo")
    page.tab.tell("Page.bringToFront")
    page.sign_in(everything())
    page.tab.shows(".pill", "live")
    for view in VIEWS:
        page.move(f"#/{view}")
    asked = page.tab.value("JSON.stringify(urls)")
    assert "/sse/stream/demo" in asked
    assert "/api/v1/settings" in asked
    assert everything()[:20] not in asked + page.tab.value("location.href")


@contextmanager
def with_provider() -> Iterator[str]:
    """The URL of a service at which one signs in at a provider."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with OpenIdProvider() as provider:
        provider.callback = f"{url}/admin/callback"
        with ServiceProcess(
            SERVICE_PORT=str(port),
            JWT_SECRET=SECRET,
            OIDC_ISSUER=provider.issuer,
            OIDC_CLIENT_ID=CLIENT,
            OIDC_CLIENT_SECRET=CLIENT_SECRET,
            OIDC_ADMIN_CLAIM="groups=ops",
            OIDC_GRANT='{"subscribe": ["*"], "publish": ["*"]}',
            PUBLIC_URL=url,
        ):
            yield url


def test_one_signs_in_at_the_provider_and_comes_back_to_where_one_was(browser: Browser) -> None:
    with with_provider() as url:
        page = AdminPage(browser, url).go("#/channels?channel=demo")
        page.tab.tell("Page.bringToFront")
        page.tab.shows("h1", "Sign in")
        page.tab.click(".sign > button")
        page.tab.shows(".pill", "live")
        assert page.tab.value("location.hash") == "#/channels?channel=demo"
        assert "oidc:ada" in page.text
        publish_from_page(page)
        page.tab.shows(".option .gist", "by cookie")
        assert page.tab.value("sessionStorage.length") == 0
        page.tab.click(".foot button")
        page.tab.shows("h1", "Sign in")
        page.reload()
        page.tab.shows("h1", "Sign in")
        assert page.noted == {"violations": [], "errors": []}


def test_whoever_has_a_token_that_is_refused_signs_in_at_the_provider(browser: Browser) -> None:
    with with_provider() as url:
        page = AdminPage(browser, url).go("#/settings")
        page.sign_in(everything("was", jti="one"), stay=True)
        page.tab.shows("h1", "Settings")
        port = int(url.rpartition(":")[2])
        admin = bearer(everything("other", jti="other"))
        request(port, "POST", "/api/v1/revocations", b'{"jti": "one"}', admin)
        page.reload()
        page.tab.shows("h1", "Sign in")
        page.tab.click(".sign > button")
        page.tab.shows("h1", "Settings")
        assert "oidc:ada" in page.text


def publish_from_page(page: AdminPage) -> None:
    """Publish as the page does, with whatever it is signed in by."""
    message = {"type": "info", "service": "me", "channels": ["demo"], "data": {"text": "by cookie"}}
    page.tab.value(
        "import('/admin/api.js').then((m) => m.ask('api/v1/messages/send',"
        f" {{method: 'POST', body: {json.dumps(message)}}}))"
    )


def test_a_session_that_ends_is_begun_again_where_one_was(
    browser: Browser, guarded: ThreadedService
) -> None:
    page = opened(browser, guarded, "#/publish")
    page.sign_in(everything("leaving", jti="first"))
    page.tab.shows("h1", "Publish")
    page.fill(".view textarea[rows='20']", '{"type": "info", "service": "kept", "channels": ["a"]}')
    revoked = request(
        guarded.port,
        "POST",
        "/api/v1/revocations",
        b'{"jti": "first"}',
        bearer(everything("other", jti="other")),
    )
    assert revoked.status == 201
    page.tab.click(".acts button")
    page.tab.becomes("document.querySelector('dialog[open] .sign') !== null")
    for _ in range(3):
        page.press("Escape")
        assert page.tab.value("document.querySelector('dialog').open"), "nothing is behind it"
    page.sign_in(everything("leaving", jti="second"))
    page.tab.becomes("document.querySelector('dialog') === null")
    assert "kept" in page.tab.value("document.querySelector('textarea[rows=\"20\"]').value")
    page.tab.click(".acts button")
    page.tab.becomes("document.querySelector('.notice.good') !== null")


def test_a_live_tail_goes_on_after_signing_in_again(
    browser: Browser, guarded: ThreadedService
) -> None:
    page = opened(browser, guarded, "#/channels?channel=tailed")
    page.tab.tell("Page.bringToFront")
    page.sign_in(everything("tailing", jti="tail-1"))
    page.tab.shows(".pill", "live")
    admin = bearer(everything("other", jti="other"))
    request(guarded.port, "POST", "/api/v1/revocations", b'{"jti": "tail-1"}', admin)
    page.tab.becomes("document.querySelector('dialog[open] .sign') !== null")
    publish(guarded.port, admin, channels=["tailed"], data={"text": "while away"})
    page.sign_in(everything("tailing", jti="tail-2"))
    page.tab.shows(".option .gist", "while away")


def test_what_one_may_not_see_says_so(browser: Browser, guarded: ThreadedService) -> None:
    page = opened(browser, guarded, "#/overview")
    page.sign_in(token("reader", subscribe=["demo"]))
    page.tab.becomes("document.querySelectorAll('.nothing[role=note]').length === 2")
    for place in ("#/connections", "#/settings", "#/delivery?tab=dead&service=importer"):
        page.move(place)
        page.tab.becomes("document.querySelector('.nothing[role=note]') !== null")
        assert "You may not see this" in page.text
    page.move("#/channels?channel=demo")
    page.tab.shows(".pill", "live")
    page.move("#/channels?channel=other")
    page.tab.becomes("document.querySelector('.nothing[role=note]') !== null")
    assert page.noted == {"violations": [], "errors": []}
    page = opened(browser, guarded, "#/channels?channel=demo")
    page.sign_in(token("admin", admin=True))
    page.tab.becomes("document.querySelector('.nothing[role=note]') !== null")


# What goes away


@pytest.mark.long
def test_an_instance_that_is_away_is_told_of_and_found_again(browser: Browser) -> None:
    with ServiceProcess() as first:
        port = first.port
        page = AdminPage(browser, f"http://127.0.0.1:{port}").go("#/overview")
        page.tab.becomes("document.querySelector('tbody tr') !== null")
    page.tab.becomes("document.querySelector('.banner p') !== null")
    assert "can’t be reached" in page.text
    assert page.tab.texts("tbody tr"), "what was known is still shown"
    page.move("#/settings")
    page.tab.becomes("document.querySelector('.nothing') !== null")
    with ServiceProcess(SERVICE_PORT=str(port)):
        page.tab.becomes("document.querySelector('.banner p') === null")
        page.tab.becomes("document.querySelectorAll('tbody tr').length > 10")


@pytest.mark.long
def test_an_instance_that_has_stopped_without_a_word_is_told_of(browser: Browser) -> None:
    with ServiceProcess() as service:
        page = AdminPage(browser, f"http://127.0.0.1:{service.port}").go("#/overview")
        page.tab.tell("Page.bringToFront")
        page.tab.becomes("document.querySelector('tbody tr') !== null")
        service.signal(signal.SIGSTOP)
        try:
            page.tab.becomes("document.querySelector('.banner p') !== null")
            assert "can’t be reached" in page.text
        finally:
            service.signal(signal.SIGCONT)
        page.tab.becomes("document.querySelector('.banner p') === null")


def test_an_answer_that_breaks_off_is_told_of_as_the_network(
    browser: Browser, service: ThreadedService
) -> None:
    page = opened(browser, service, "#/publish")
    # A body that ends before all of it has come, and one of a proxy that isn't JSON.
    found = page.tab.value(
        "import('/admin/api.js').then(async ({ask}) => { const real = fetch; const found = [];"
        " const broken = () => new Response(new ReadableStream({start: (it) =>"
        " it.error(new TypeError('network error'))}));"
        " for (const answer of [broken, () => new Response('<p>Bad gateway', {status: 502})]) {"
        " window.fetch = async () => answer();"
        " await ask('health', {quiet: true}).catch((problem) => found.push(problem.status)); }"
        " window.fetch = real; return found; })"
    )
    assert found == [0, 502]


@pytest.mark.long
def test_a_store_that_is_away_is_told_of_and_found_again(browser: Browser) -> None:
    with RedisServer() as redis, ServiceProcess(REDIS_URL=redis.url) as service:
        page = AdminPage(browser, f"http://127.0.0.1:{service.port}").go("#/overview")
        page.tab.becomes("document.querySelector('tbody tr') !== null")
        redis.kill()
        page.tab.becomes("document.querySelector('.banner p') !== null")
        assert "its store isn’t" in page.text
        page.move("#/connections")
        page.tab.becomes("document.querySelector('.nothing, .totals .fact') !== null")
        redis.restart()
        page.tab.becomes("document.querySelector('.banner p') === null")
        page.move("#/overview")
        page.tab.becomes("document.querySelector('tbody .badge.good') !== null")


@pytest.mark.long
def test_a_history_that_was_away_is_shown_once_it_is_back(
    browser: Browser, service: ThreadedService
) -> None:
    publish(service.port, channels=["back"], data={"text": "still here"})
    page = opened(browser, service, "#/channels")
    page.tab.tell("Page.bringToFront")
    page.tab.value(
        "window.real = fetch; window.fetch = (url, options) => String(url).includes('/messages')"
        " ? Promise.reject(new TypeError('away')) : real(url, options); 0"
    )
    for mode in ("history", "live"):
        page.tab.value("window.kept ??= fetch; window.fetch = kept; 0")
        page.move(f"#/channels?channel=back&mode={mode}")
        page.tab.becomes("document.querySelector('.list .nothing') !== null")
        page.tab.value("void (window.fetch = real)")
        page.tab.shows(".option .gist", "still here")
        page.fill(".tools input[placeholder]", "something else")
        page.tab.becomes("document.querySelector('.list .nothing') !== null")


def test_an_answer_that_comes_late_is_not_that_to_another_question(
    browser: Browser, service: ThreadedService
) -> None:
    page = opened(browser, service, "#/connections")
    page.tab.becomes("document.querySelector('.totals .fact') !== null")
    page.tab.value(
        "window.real = fetch; window.fetch = async (url, options) => { const answer = await"
        " real(url, options); if (String(url).includes('user=first')) await new Promise((go) =>"
        " (window.go = go)); return answer; }; 0"
    )
    with SseClient(service.port, "/sse/user/first"), SseClient(service.port, "/sse/user/second"):
        page.fill(".tools input", "first")
        assert page.tab.value("document.querySelector('.tools select').value") == "user"
        page.tab.click(".tools button")
        page.tab.becomes("window.go !== undefined")
        page.fill(".tools input", "second")
        page.tab.click(".tools button")
        page.tab.becomes("document.querySelector('tbody')?.textContent.includes('user:second')")
        page.tab.value("window.go(); new Promise((done) => setTimeout(done, 200))")
        assert "user:second" in page.tab.value("document.querySelector('tbody').textContent")


def test_a_clock_of_the_browser_that_is_wrong_makes_nothing_wrong(browser: Browser) -> None:
    with ThreadedService() as service, SseClient(service.port, "/sse/user/alice"):
        publish(service.port, service="historian", channels=["demo"])
        service.call(_recorded(service))
        page = AdminPage(browser, f"http://127.0.0.1:{service.port}")
        page.tab.at_each_load("const real = Date.now; Date.now = () => real() + 5 * 3600_000;")
        page.go("#/overview")
        page.tab.becomes("document.querySelectorAll('.view > div:last-child .chart').length > 0")
        page.tab.becomes("document.querySelector('tbody td:last-child') !== null")
        assert "h" not in page.tab.texts("tbody td:last-child")[0]
        page.move("#/connections")
        page.tab.becomes("document.querySelector('tbody tr') !== null")
        assert "h" not in page.tab.texts("tbody td:nth-child(5)")[0]


_ASKED = """
window.asked = {};
const fetched = window.fetch;
window.fetch = (url, options) => {
  const name = String(url).replace(/.*[/]/, "").replace(/[?].*/, "");
  asked[name] = (asked[name] ?? 0) + 1;
  return fetched(url, options);
};
// An hour of the page in a minute.
const later = window.setTimeout;
window.setTimeout = (act, ms, ...more) => later(act, ms > 1500 ? ms / 60 : ms, ...more);
"""


@pytest.mark.long
def test_a_page_that_nobody_sees_asks_for_nothing(browser: Browser) -> None:
    with ThreadedService() as service:
        publish(service.port, service="historian", channels=["demo"])
        service.call(_recorded(service))
        page = AdminPage(browser, f"http://127.0.0.1:{service.port}")
        page.tab.at_each_load(_ASKED)
        page.go("#/overview")
        page.tab.tell("Page.bringToFront")
        page.tab.becomes("document.querySelectorAll('.view > div:last-child .chart').length > 0")
        page.tab.value(
            "document.querySelector('.view > div:last-child details').open = true;"
            "document.querySelector('.view > div:last-child summary').focus()"
        )
        page.tab.value("void (asked.messages = 0)")
        page.tab.becomes("asked.messages > 2 && asked.instances > 30")
        assert page.tab.value("document.querySelector('.view > div:last-child details').open")
        assert page.tab.value("document.activeElement.tagName") == "SUMMARY", "and keeps the focus"
        seen = "Object.defineProperty(document, 'visibilityState', {value: '%s', writable: true});"
        seen += "document.dispatchEvent(new Event('visibilitychange'))"
        page.tab.value(seen % "hidden")
        # What was asked before is answered; then it is quiet for as long as two minutes here.
        quiet = "later(() => later(() => done(JSON.stringify(asked)), 2000), 500)"
        page.tab.value("window.later = later; 0")
        before = page.tab.value(
            "new Promise((done) => later(() => done(JSON.stringify(asked)), 500))"
        )
        assert page.tab.value(f"new Promise((done) => {quiet})") == before
        page.tab.value(seen % "visible")
        page.tab.becomes(f"asked.messages > {json.loads(before)['messages']}")
        page.tab.becomes(f"asked.instances > {json.loads(before)['instances']}")


def test_its_modules_are_all_asked_for_at_once() -> None:
    told = re.findall(r'rel="modulepreload" href="([^"]+)"', (FOLDER / "index.html").read_text())
    modules = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.js")}
    assert set(told) == {each for each in modules if not each.startswith("vendor/")} - {"main.js"}


# Views


def test_charts_show_the_last_minute_before_there_is_anything_to_show(
    browser: Browser, service: ThreadedService
) -> None:
    page = opened(browser, service, "#/settings")
    spans = page.tab.value(
        "import('/admin/charts.js').then(async ({Chart}) => { const spans = [];"
        " const real = uPlot; let plot; window.uPlot = function (...all) {"
        " return (plot = new real(...all)); };"
        " for (const times of [[], [Date.now() / 1000]]) {"
        " const chart = new Chart({title: 'A', unit: 's', series: [{label: 'a', colour: 'c1'}]});"
        " document.querySelector('main').append(chart.element);"
        " chart.show([times, times.map(() => 1)]);"
        " await new Promise((done) => setTimeout(done, 200));"
        " spans.push([plot.scales.x.max - plot.scales.x.min,"
        " Math.abs(plot.scales.x.max - Date.now() / 1000) < 5]); }"
        " window.uPlot = real; return spans; })"
    )
    assert spans == [[60, True], [60, True]]


def test_the_overview_counts_what_is_published_and_delivered(
    browser: Browser, service: ThreadedService
) -> None:
    with (
        SseClient(service.port, "/sse/stream/demo?passive=true"),
        traffic(service.port, "demo", rate=40),
    ):
        page = opened(browser, service, "#/overview")
        page.tab.tell("Page.bringToFront")
        page.tab.becomes("parseFloat(document.querySelector('.chart .big')?.textContent) > 10")
        page.tab.becomes("document.querySelectorAll('.plot canvas').length >= 4")
        assert page.tab.texts("tbody .badge") == ["ready"]
        page.tab.value("document.querySelector('.chart details').open = true")
        page.tab.becomes("document.querySelectorAll('.chart details tbody tr').length > 0")
        page.tab.becomes("document.querySelector('.chart > p.away').textContent.includes('now')")


def test_one_stream_is_a_stream_and_none_are_streams(browser: Browser) -> None:
    with ThreadedService() as service:
        page = opened(browser, service, "#/overview")
        page.tab.tell("Page.bringToFront")
        said = "[...document.querySelectorAll('.chart .value')].map((e) => e.textContent)"
        page.tab.becomes(f"{said}.includes('0 streams')")
        with SseClient(service.port, "/sse/stream/demo"):
            page.tab.becomes(f"{said}.includes('1 stream')")


def test_a_chart_with_nothing_in_it_yet_is_of_now(
    browser: Browser, service: ThreadedService
) -> None:
    page = AdminPage(browser, f"http://127.0.0.1:{service.port}")
    page.tab.at_each_load(
        "window.drawn = []; const drawing = CanvasRenderingContext2D.prototype, { fillText } = drawing;"
        " drawing.fillText = function (text, ...at)"
        " { drawn.push(text); return fillText.call(this, text, ...at) }"
    )
    page.go("#/overview").tab.tell("Page.bringToFront")
    times = "drawn.filter((text) => /^\\d\\d:\\d\\d:\\d\\d$/.test(text))"
    page.tab.becomes(f"{times}.length > 0")
    # The clock's seconds apart, around midnight as well.
    apart = (
        "(text) => { const off = Math.abs(new Date(new Date().toDateString() + ' ' + text)"
        " - new Date()) / 1000; return Math.min(off, 86_400 - off) }"
    )
    assert page.tab.value(f"{times}.map({apart}).filter((seconds) => seconds > 180)") == []


@pytest.mark.long
def test_an_instance_that_stops_reporting_is_silent_and_counts_no_more(browser: Browser) -> None:
    with (
        RedisServer() as redis,
        ServiceProcess(REDIS_URL=redis.url) as first,
        ServiceProcess(REDIS_URL=redis.url) as second,
    ):
        page = AdminPage(browser, f"http://127.0.0.1:{first.port}").go("#/overview")
        page.tab.tell("Page.bringToFront")
        published = "[...document.querySelectorAll('tbody td:nth-child(4)')].map(e => +e.innerText)"
        page.tab.shows("tbody .badge", "ready", "ready")
        with traffic(second.port, "demo", rate=40):
            page.tab.becomes(f"{published}.some((each) => each > 5)")
            second.signal(signal.SIGSTOP)
            try:
                page.tab.becomes(
                    "[...document.querySelectorAll('tbody .badge')].map((e) => e.textContent)"
                    ".sort().join() === 'ready,silent'"
                )
                assert page.tab.texts(".chart .big")[0] == "0", "nobody knows that it goes on"
            finally:
                second.signal(signal.SIGCONT)
            page.tab.shows("tbody .badge", "ready", "ready")


def test_history_is_told_by_range_by_service_and_by_what_is_counted(browser: Browser) -> None:
    with ThreadedService() as service:
        publish(service.port, service="historian", channels=["demo"])
        service.call(_recorded(service))
        page = opened(browser, service, "#/overview")
        page.tab.becomes("document.querySelectorAll('.view > div:last-child .chart').length > 0")
        page.tab.value(
            "document.querySelectorAll('.choice')[1].querySelectorAll('button')[1].click()"
        )
        page.tab.becomes("location.hash.includes('by=service')")
        page.tab.becomes(
            "document.querySelector('.view > div:last-child').textContent.includes('historian')"
        )
        page.fill(".view select", "dead")
        page.tab.becomes("location.hash.includes('count=dead')")
        page.tab.becomes("document.querySelector('.view > div:last-child .nothing') !== null")


def _recorded(service: ThreadedService) -> Any:
    """Have what was counted recorded now, not within ten seconds."""
    from msgpush.domain.statistics import Recording

    (recording,) = (each for each in service.app.state.resources if isinstance(each, Recording))
    return recording.flush


def test_connections_are_found_paged_and_ended(browser: Browser) -> None:
    with ExitStack() as stack:
        service = stack.enter_context(ThreadedService())
        streams = [
            stack.enter_context(SseClient(service.port, f"/sse/user/u{n}")) for n in range(60)
        ]
        eventually(
            lambda: request(service.port, "GET", "/api/v1/connections/stats").json()["total"] == 60
        )
        page = opened(browser, service, "#/connections")
        page.tab.becomes("document.querySelectorAll('tbody tr').length === 50")
        page.tab.value("[...document.querySelectorAll('.row.end button')].at(-1).click()")
        page.tab.becomes("document.querySelectorAll('tbody tr').length === 10")
        page.fill(".tools select", "user")
        page.fill(".tools input", "u7")
        page.tab.click(".tools button")
        page.tab.becomes("document.querySelectorAll('tbody tr').length === 1")
        assert page.tab.value("location.hash") == "#/connections?user=u7"
        page.tab.click("tbody button")
        page.tab.becomes("document.querySelector('dialog[open]') !== null")
        page.tab.click("dialog button.danger")
        page.tab.shows(".status", "It is disconnected.")
        closed = [each for each in streams[7].rest() if each.type == "msgpush.close"]
        assert json.loads(closed[0].data) == {"reason": "disconnected", "reconnect": False}


def test_a_tail_shows_everything_once_and_uses_nothing_up(
    browser: Browser, service: ThreadedService
) -> None:
    publish(service.port, target={"user_id": "tail"}, data={"text": "before"})
    page = opened(browser, service, "#/channels?channel=user:tail")
    page.tab.tell("Page.bringToFront")
    page.tab.shows(".option .gist", "before")
    page.tab.shows(".pill", "live")
    publish(
        service.port,
        id="tailed",
        service="importer",
        target={"user_id": "tail"},
        data={"text": "now"},
        metadata={"ack": True},
    )
    page.tab.shows(".option .gist", "now", "before")
    told = request(service.port, "GET", "/api/v1/messages/importer/tailed/delivery").json()
    assert told["state"] == "accepted", "the page looks on"
    page.tab.click(".tools button.plain")  # pause
    publish(service.port, target={"user_id": "tail"}, type="warning", data={"text": "paused"})
    page.tab.shows(".status", "One new message waits")
    page.tab.shows(".option .gist", "now", "before")
    page.tab.click(".tools button.plain")
    page.tab.shows(".option .gist", "paused", "now", "before")
    page.fill(".tools input[placeholder]", "BEFORE")
    page.tab.shows(".option .gist", "before")
    page.fill(".tools input[placeholder]", "")
    page.fill(".tools select", "warning")
    page.tab.shows(".option .gist", "paused")


def test_a_tail_that_was_ended_for_good_is_opened_again(
    browser: Browser, service: ThreadedService
) -> None:
    page = opened(browser, service, "#/channels?channel=ended")
    page.tab.tell("Page.bringToFront")
    page.tab.shows(".pill", "live")
    found = request(service.port, "GET", "/api/v1/connections?channel=ended").json()
    (connection,) = found["connections"]
    where = f"/api/v1/connections/{connection['id']}?reconnect=false"
    assert request(service.port, "DELETE", where).status in (200, 202, 204)
    page.tab.shows(".pill", "closed")
    page.tab.click("form[role=search] button")
    page.tab.shows(".pill", "live")


def test_history_is_read_page_by_page(browser: Browser, service: ThreadedService) -> None:
    for n in range(130):
        publish(service.port, channels=["paged"], data={"text": f"message {n}"})
    page = opened(browser, service, "#/channels?channel=paged&mode=history")
    page.tab.tell("Page.bringToFront")
    page.tab.becomes("document.querySelector('.option .gist')?.textContent === 'message 129'")
    page.tab.value("document.querySelectorAll('.split .row button')[0].click()")
    page.tab.becomes("document.querySelector('.option .gist')?.textContent === 'message 99'")
    page.tab.value("document.querySelectorAll('.split .row button')[1].click()")
    page.tab.becomes("document.querySelector('.option .gist')?.textContent === 'message 129'")
    page.tab.shows(".status", "30 messages on this page, the oldest at the bottom.")


def test_what_a_page_holds_is_bounded(browser: Browser, service: ThreadedService) -> None:
    page = opened(browser, service, "#/channels")
    held = """import('/admin/held.js').then(({ Held }) => {
      const held = new Held();
      for (let n = 0; n < 5000; n++) held.push({ n });
      const many = [held.length, held.range(), held.at(4999).message.n, held.at(2999)];
      for (let n = 0; n < 40; n++) held.push({ n, text: "x".repeat(1_000_000) });
      const large = held.length;
      held.filter(({ message }) => message.n === 39);
      const [first, last] = held.range();
      return [...many, large, first === last && held.at(first).message.n];
    })"""
    assert page.tab.value(held) == [2000, [3000, 4999], 4999, None, 15, 39]
    ring = """import('/admin/charts.js').then(({ Ring }) => {
      const ring = new Ring(1, 300);
      for (let n = 0; n < 100_000; n++) ring.push(n, [2 * n]);
      const [times, values] = ring.columns();
      return [times.length, times[0], times[299], values[299], times.buffer.byteLength];
    })"""
    assert page.tab.value(ring) == [300, 99_700, 99_999, 199_998, 4800]


def test_the_form_and_the_json_follow_each_other(
    browser: Browser, service: ThreadedService
) -> None:
    page = opened(browser, service, "#/publish")
    by_label = (
        "window.by = (label) => [...document.querySelectorAll('label')]"
        ".find((e) => e.textContent === label).control ?? null"
    )
    page.tab.value(by_label + "; 0")
    page.fill(
        ".view textarea[rows='20']",
        json.dumps(
            {
                "type": "success",
                "service": "from-json",
                "target": {"user_id": "alice"},
                "metadata": {"ack": {"deadline": 7, "later": 1}},
                "unknown": 1,
            }
        ),
    )
    page.tab.becomes("by('Service').value === 'from-json' && by('Type').value === 'success'")
    assert page.tab.value(
        "[...document.querySelectorAll('.targets input')].map((e) => e.value)"
    ) == ["user", "alice"]
    assert page.tab.value("by('Try again after (seconds)').value") == "7"
    assert any("/unknown" in each for each in page.tab.texts("ul.wrong li"))
    page.tab.value(
        "by('Service').focus(); by('Service').value = 'from form';"
        " by('Service').dispatchEvent(new Event('input', {bubbles: true}))"
    )
    told = "JSON.parse(document.querySelector('textarea[rows=\"20\"]').value)"
    assert page.tab.value(told + ".service") == "from form"
    assert page.tab.value(told + ".unknown") == 1, "what has no field stays"
    assert page.tab.value(told + ".metadata.ack") == {"deadline": 7, "later": 1}
    page.tab.becomes("by('Service').getAttribute('aria-invalid') === 'true'")


@pytest.mark.parametrize(
    ("message", "pointer"),
    [
        ({"type": "info", "service": "a b", "channels": ["x"]}, "/service"),
        (
            {"type": "progress", "service": "a", "channels": ["x"], "data": {"progress": 101}},
            "/data/progress",
        ),
        ({"type": "info", "service": "a", "channels": ["x", "no good"]}, "/channels/1"),
        ({"type": "info", "service": "a", "target": {"user_id": "a b"}}, "/target/user_id"),
        ({"type": "info", "service": "a", "target": {"user": "a"}}, "/target/user"),
        (
            {"type": "info", "service": "a", "channels": ["x"], "metadata": {"ttl": 0}},
            "/metadata/ttl",
        ),
        (
            {
                "type": "info",
                "service": "a",
                "channels": ["x"],
                "metadata": {"ack": {"deliveries": 21}},
                "target": {"user_id": "u"},
            },
            "/metadata/ack/deliveries",
        ),
        (
            {
                "type": "info",
                "service": "a",
                "metadata": {"push": {"url": "javascript:alert(1)"}},
                "target": {"user_id": "u"},
            },
            "/metadata/push/url",
        ),
        (
            {
                "type": "info",
                "service": "a",
                "metadata": {"push": {"title": ""}},
                "target": {"user_id": "u"},
            },
            "/metadata/push/title",
        ),
        ({"type": "nothing", "service": "a", "channels": ["x"]}, "/type"),
        ({"type": "info", "service": "a", "channels": ["x"], "extra": 1}, "/extra"),
        (
            {"type": "info", "service": "a", "channels": ["x"], "timestamp": "2026-01-31 12:00"},
            "/timestamp",
        ),
    ],
)
def test_what_the_form_refuses_the_api_refuses_at_the_same_place(
    browser: Browser, service: ThreadedService, message: dict[str, Any], pointer: str
) -> None:
    body = json.dumps(message).encode()
    answer = request(service.port, "POST", "/api/v1/messages/send", body)
    assert answer.status == 422
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]
    page = opened(browser, service, "#/publish")
    found = page.tab.value(
        "Promise.all([import('/admin/schema.js'), fetch('/openapi.json').then((a) => a.json())])"
        ".then(([{faultsOf}, document]) => faultsOf(document.components.schemas.Message,"
        f" {json.dumps(message)}, document).map((each) => each.pointer))"
    )
    assert pointer in found


def test_times_are_taken_and_refused_by_the_form_as_by_the_api(
    browser: Browser, service: ThreadedService
) -> None:
    days = ("2026-02-28", "2026-02-29", "2024-02-29", "2000-02-29", "1900-02-29", "2026-04-31")
    times = [f"{day}T12:00:00Z" for day in (*days, "2026-13-01", "2026-00-10", "0000-01-01")]
    times += ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-01-31T24:00:00Z"]
    for end in ("", "Z", "z", " Z", "Zx", ".5Z", ".Z", "+08:00", "-23:59", "+24:00", "+0800"):
        times.append(f"2026-01-31T12:00:00{end}")
    times += ["2026-01-31t12:00:00Z", "2026-01-31 12:00:00Z", "2026-01-31T12:00:60Z"]
    messages = [
        {"type": "info", "service": "a", "channels": ["x"], "timestamp": each} for each in times
    ]
    answers = [
        request(service.port, "POST", "/api/v1/messages/send", json.dumps(each).encode()).status
        for each in messages
    ]
    page = opened(browser, service, "#/publish")
    found = page.tab.value(
        "Promise.all([import('/admin/schema.js'), fetch('/openapi.json').then((a) => a.json())])"
        ".then(([{faultsOf}, document]) =>"
        f" {json.dumps(messages)}.map((each) => faultsOf(document.components.schemas.Message,"
        " each, document).length))"
    )
    assert dict(zip(times, [422 if faults else 202 for faults in found], strict=True)) == dict(
        zip(times, answers, strict=True)
    )


def test_data_that_is_no_json_is_not_published_as_it_was_before(
    browser: Browser, service: ThreadedService
) -> None:
    page = opened(browser, service, "#/publish")
    page.fill(
        ".view textarea[rows='20']",
        '{"type":"info","service":"me","channels":["broken"],"data":{"text":"before"}}',
    )
    page.fill(".view textarea[rows='5']", '{"text": "half of')
    page.tab.click(".acts button")
    page.tab.becomes("document.activeElement === document.querySelector('textarea[rows=\"5\"]')")
    assert page.tab.value("document.activeElement.getAttribute('aria-invalid')") == "true"
    kept = "/api/v1/channels/broken/messages"
    assert request(service.port, "GET", kept).json()["messages"] == []
    page.fill(".view textarea[rows='5']", '{"text": "all of it"}')
    page.tab.click(".acts button")
    page.tab.becomes("document.querySelector('.notice.good') !== null")
    (published,) = request(service.port, "GET", kept).json()["messages"]
    assert published["data"] == {"text": "all of it"}


def test_a_number_of_many_digits_is_sent_as_it_is_or_not_at_all(
    browser: Browser, service: ThreadedService
) -> None:
    number = "12345678901234567891"
    page = opened(browser, service, "#/publish")
    start = '{"type": "info", "service": "me", "channels": ["digits"], "data": '
    page.fill(".view textarea[rows='20']", start + "{}}")
    page.fill(".view textarea[rows='5']", f'{{"n": {number}}}')
    page.tab.click(".acts button")
    page.tab.becomes("document.activeElement.getAttribute('aria-invalid') === 'true'")
    page.fill(".view textarea[rows='20']", f'{start}{{"n": {number}}}}}')
    assert page.tab.value("document.querySelector('.view [inert] textarea') !== null")
    page.tab.click(".acts button")
    page.tab.becomes("document.querySelector('.notice.good') !== null")
    kept = request(service.port, "GET", "/api/v1/channels/digits/messages").json()["messages"]
    assert [each["data"] for each in kept] == [{"n": int(number)}]
    page.fill(
        ".view textarea[rows='20']", f'{start}{{"n": [1.5e300, 0.{number}], "t": "{number}"}}}}'
    )
    assert page.tab.value("document.querySelector('.view [inert]')") is None


def test_what_was_being_written_stays_wherever_one_goes(
    browser: Browser, guarded: ThreadedService
) -> None:
    page = opened(browser, guarded, "#/publish")
    page.sign_in(everything(), stay=True)
    page.tab.shows("h1", "Publish")
    written = '{"type": "info", "service": "half", "chan'
    text = "document.querySelector('textarea[rows=\"20\"]')?.value"
    page.fill(".view textarea[rows='20']", written)
    page.fill(".looks select:nth-of-type(2)", "zh")
    page.tab.shows("h1", "发布")
    assert page.tab.value(text) == written
    page.fill(".looks select:nth-of-type(2)", "en")
    page.move("#/settings")
    page.tab.value("history.back()")
    page.tab.becomes(f"{text} === {json.dumps(written)}")
    page.reload()
    page.tab.becomes(f"{text} === {json.dumps(written)}")
    # As one who signs in at the provider goes: to another page, and back.
    page.tab.tell("Page.navigate", url="about:blank")
    page.go("#/publish")
    page.tab.becomes(f"{text} === {json.dumps(written)}")
    page.tab.click(".foot button")
    page.tab.shows("h1", "Sign in")
    assert page.tab.value("sessionStorage.length") == 0, "the next one is another"
    page.tab.value("localStorage.clear()")


def test_what_the_api_refuses_stands_at_its_field(
    browser: Browser, service: ThreadedService
) -> None:
    page = opened(browser, service, "#/publish")
    # Without the description nothing is checked before: the API itself says what is wrong.
    page.tab.value(
        "window.real = fetch; window.fetch = (url, options) => String(url).endsWith('openapi.json')"
        " ? Promise.reject(new TypeError('away')) : real(url, options); 0"
    )
    page.move("#/settings")
    page.move("#/publish")
    page.fill(
        ".view textarea[rows='20']", '{"type":"info","service":"a","channels":["x","no good"]}'
    )
    page.tab.click(".acts button")
    page.tab.becomes("document.querySelector('.field .wrong:not([hidden])') !== null")
    page.tab.becomes("document.querySelector('.notice.bad') !== null")
    assert page.tab.value("document.activeElement.getAttribute('aria-invalid')") == "true"


def test_a_message_is_published_and_can_be_copied_as_curl(
    browser: Browser, service: ThreadedService
) -> None:
    page = opened(browser, service, "#/publish")
    page.tab.value("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.fill(
        ".view textarea[rows='20']",
        '{"type":"info","service":"me","channels":["published"],"data":{"text":"it\'s"}}',
    )
    page.tab.value("document.querySelectorAll('.acts button')[1].click()")
    page.tab.becomes("window.copied?.startsWith('curl ')")
    assert "'\\''" in page.tab.value("copied")
    page.tab.click(".acts button")
    page.tab.becomes("document.querySelector('.notice.good') !== null")
    kept = request(service.port, "GET", "/api/v1/channels/published/messages").json()["messages"]
    assert [each["data"]["text"] for each in kept] == ["it's"]
    page.move("#/publish?mode=broadcast")
    page.tab.click(".acts button")
    page.tab.becomes("document.querySelector('.notice.good')?.textContent.includes('broadcast')")


def test_what_is_pending_is_withdrawn_and_what_was_given_up_is_redelivered_or_forgotten(
    browser: Browser,
) -> None:
    with ThreadedService() as service:
        ask_for(service.port, "pending-1", metadata={"ack": True, "priority": "high"})
        for n in range(2):
            ask_for(service.port, f"dead-{n}", metadata={"ack": True, "ttl": 1})
        page = opened(browser, service, "#/delivery?tab=pending&user=alice")
        page.tab.becomes("document.querySelector('tbody tr')?.textContent.includes('pending-1')")
        page.tab.click("td:last-child button")
        page.tab.click("dialog button.danger")
        page.tab.shows(".status", "It is withdrawn.")
        page.move("#/delivery?tab=message&service=importer&id=pending-1")
        page.tab.shows(".head .badge", "withdrawn")
        dead = "/api/v1/dead-letters?service=importer"
        eventually(lambda: len(request(service.port, "GET", dead).json()["dead_letters"]) == 2, 20)
        page.move("#/delivery?tab=dead&service=importer")
        page.tab.becomes("document.querySelectorAll('tbody tr').length === 2")
        page.tab.click("tbody tr:first-child td:last-child button")
        page.tab.click("dialog button[value=yes]")
        page.tab.shows(".status", "It is on its way again.")
        page.tab.value(
            "[...document.querySelectorAll('tbody tr:last-child button')].at(-1).click()"
        )
        page.tab.click("dialog button.danger")
        page.tab.shows(".status", "It is gone.")
        assert request(service.port, "GET", dead).json()["dead_letters"] == []


# Devices


def test_devices_are_shown_tested_and_deleted(browser: Browser, push_service: PushService) -> None:
    places = (Place("localhost", push_service.port),)
    with ThreadedService(**PUSHES, push_endpoints=places) as service:
        devices = "/api/v1/users/alice/devices"
        hers = [
            register(service.port, f"{push_service.origin}/push/{n}", label=label)
            for n, label in enumerate(("Laptop", None, "<b>Phone</b>"))
        ]
        page = opened(browser, service, "#/devices")
        page.tab.tell("Page.bringToFront")
        page.tab.shows(".kinds .badge", "on", "off", "off")
        page.fill("input[type=search]", "alice")
        page.tab.click("form button")
        page.tab.shows(".status", "3 devices")
        shown = page.tab.texts("tbody td:first-child > div > :first-child")
        assert shown == ["Laptop", "no label", "<b>Phone</b>"]
        assert page.tab.value("location.hash") == "#/devices?user=alice"
        whole = page.tab.value("document.documentElement.outerHTML")
        assert push_service.origin not in whole
        assert hers[0].as_json("")["keys"]["auth"] not in whole

        page.tab.click(".head button")
        page.tab.becomes("document.querySelector('.status').textContent.includes('to 3 devices')")
        eventually(lambda: len(push_service.asked) == 3)
        for each in push_service.asked:
            of = hers[int(each.path[-1])]
            told = json.loads(of.decrypt(each.body))
            assert told["title"] == "A test"
            assert told["body"] == "If you can read this, notifications arrive here."
        history = request(service.port, "GET", "/api/v1/channels/user:alice/messages").json()
        (sent,) = history["messages"]
        assert (sent["service"], sent["metadata"]["ttl"]) == ("operator", 300)

        # Asked first, and not done where one thinks better of it.
        page.tab.click("tbody tr:first-child button")
        page.tab.becomes("document.querySelector('dialog[open]') !== null")
        page.press("Escape")
        page.tab.becomes("document.querySelector('dialog') === null")
        assert len(request(service.port, "GET", devices).json()["devices"]) == 3
        # By keyboard, so that what had the focus goes away.
        page.tab.value("document.querySelector('tbody tr:first-child button').focus()")
        page.press("Enter")
        page.tab.becomes("document.querySelector('dialog[open]') !== null")
        page.press("Tab")
        page.press("Enter")
        page.tab.shows(".status", "It is deleted.")
        page.tab.becomes("document.activeElement === document.querySelector('.card h2')")
        labels = [each["label"] for each in request(service.port, "GET", devices).json()["devices"]]
        assert labels == [None, "<b>Phone</b>"]
        page.tab.value("document.querySelector('.head button:last-child').focus()")
        page.press("Enter")
        page.tab.click("dialog button.danger")
        page.tab.shows(".status", "All are deleted.")
        assert request(service.port, "GET", devices).json()["devices"] == []
        page.tab.becomes("document.querySelector('.card .nothing') !== null")
        page.tab.becomes("document.activeElement.type === 'search'")
        assert page.noted == {"violations": [], "errors": []}


def test_whose_devices_one_may_not_see_says_so_and_so_does_a_test_that_is_refused(
    browser: Browser,
) -> None:
    with ThreadedService(jwt_secret=SECRET, **PUSHES) as service:
        for user in ("alice", "bob"):
            whose = bearer(token(user))
            endpoint = f"{USUAL}/{user}"
            register(service.port, endpoint, user=user, label=f"of {user}", headers=whose)
        page = opened(browser, service, "#/devices?user=alice")
        page.sign_in(token("helper", users=["bob"], admin=True))
        page.tab.becomes("document.querySelector('.nothing[role=note]') !== null")
        assert "users" in page.text or "act for" in page.text
        assert "of alice" not in page.text
        page.fill("input[type=search]", "bob")
        page.tab.click("form button")
        page.tab.shows(".status", "One device")
        page.tab.click(".head button")
        page.tab.becomes("document.querySelector('.status .wrong') !== null")
        assert "publish" in page.tab.value("document.querySelector('.status').textContent")
        assert page.tab.value("document.querySelector('.head button').disabled") is False
        assert page.noted == {"violations": [], "errors": []}


@pytest.mark.parametrize("size", [NARROW, WIDE], ids=["narrow", "wide"])
def test_where_nothing_can_be_pushed_the_page_says_how_it_could_be(
    browser: Browser, size: tuple[int, int]
) -> None:
    with ThreadedService() as service:
        page = opened(browser, service, "#/devices", size=size)
        page.tab.becomes("document.querySelector('.kinds .nothing') !== null")
        assert "msgpush push keys" in page.text
        if AXE.is_file():
            page.tab.value(AXE.read_text() + ";0")
            assert violations(page) == []
        page.move("#/publish")
        settled(page)
        assert "on the user’s devices" not in page.text
        # What the JSON asks for stays, whatever the form does; and the API has the last word.
        page.fill(
            ".view textarea[rows='20']",
            '{"type":"info","service":"a","target":{"user_id":"u"},"metadata":{"push":true}}',
        )
        page.fill(".view textarea[rows='5']", "{}")
        told = "JSON.parse(document.querySelector('textarea[rows=\"20\"]').value)"
        assert page.tab.value(told + ".metadata") == {"push": True}
        page.tab.click(".acts button")
        page.tab.becomes("document.querySelector('ul.wrong li') !== null")
        assert "/metadata/push" in page.tab.texts("ul.wrong li")[0]


def test_a_device_of_a_kind_that_is_off_says_so_and_gets_no_test(browser: Browser) -> None:
    keys: dict[str, Any] = {name.upper(): value for name, value in PUSHES.items()}
    with (
        RedisServer() as redis,
        ServiceProcess(REDIS_URL=redis.url, **keys) as before,
        ServiceProcess(REDIS_URL=redis.url) as service,
    ):
        register(before.port, label="Laptop")
        page = AdminPage(browser, f"http://127.0.0.1:{service.port}").go("#/devices?user=alice")
        page.tab.shows("tbody .badge", "off")
        assert page.tab.texts(".head button") == ["Delete all alice"]
        page.tab.click("tbody button")
        page.tab.click("dialog button.danger")
        page.tab.shows(".status", "It is deleted.")
        page.tab.shows(".card .nothing strong", "No devices")


def test_the_form_asks_for_a_push(browser: Browser, service: ThreadedService) -> None:
    page = opened(browser, service, "#/publish")
    page.tab.value(
        "window.by = (label) => [...document.querySelectorAll('.check, label')]"
        ".find((e) => e.textContent === label).control; 0"
    )
    box = "by('Show it on the user’s devices')"
    page.tab.becomes(f"{box}.checkVisibility()")
    page.fill(
        ".view textarea[rows='20']",
        '{"type":"info","service":"a","channels":["x"],"metadata":{"push":{"icon":"/i.png"}}}',
    )
    page.tab.becomes(f"{box}.checked")
    # Pushed to nobody: the page knows that before the API says so.
    page.tab.shows("fieldset > .wrong", "This is missing.")
    page.fill(".targets input:nth-of-type(2)", "alice")
    page.tab.becomes("document.querySelector('fieldset > .wrong').hidden")
    told = "JSON.parse(document.querySelector('textarea[rows=\"20\"]').value).metadata"
    write = "((e, text) => { e.value = text; e.dispatchEvent(new Event('input')); })"
    page.tab.value(f"{write}(by('Title'), 'Billing')")
    page.tab.value(f"{write}(by('A click opens'), '//elsewhere.example')")
    assert page.tab.value(told) == {
        "push": {"icon": "/i.png", "title": "Billing", "url": "//elsewhere.example"}
    }
    page.tab.becomes("by('A click opens').getAttribute('aria-invalid') === 'true'")
    if AXE.is_file():
        page.tab.value(AXE.read_text() + ";0")
        assert violations(page) == []
    page.tab.value(f"{write}(by('A click opens'), '/invoices/7')")
    page.tab.becomes("!by('A click opens').hasAttribute('aria-invalid')")
    page.tab.value(f"{box}.click()")
    assert page.tab.value(told + " ?? null") is None
    page.tab.value(f"{box}.click()")
    assert page.tab.value(told) == {"push": {"title": "Billing", "url": "/invoices/7"}}
    page.tab.value("by('Title').value = ''; by('A click opens').value = ''")
    page.tab.value(f"{write}(by('Text'), '')")
    assert page.tab.value(told) == {"push": True}
    # `offline` needs an acknowledgement: that only the API knows.
    page.fill("[data-key='when'] select", "offline")
    page.tab.click(".acts button")
    page.tab.becomes("document.querySelector('.terms [aria-invalid]')?.value === 'offline'")
    page.fill("[data-key='when'] select", "always")
    page.tab.click(".acts button")
    page.tab.becomes("document.querySelector('.notice.good') !== null")


def test_a_token_is_explained_and_revoked(browser: Browser, guarded: ThreadedService) -> None:
    page = opened(browser, guarded, "#/access")
    page.sign_in(everything())
    page.tab.shows("h1", "Access")
    subject = token("bob", subscribe=["kb:*"], jti="of bob")
    page.fill("[aria-labelledby=explain] textarea", f"Bearer {subject}")
    page.tab.click("[aria-labelledby=explain] button")
    page.tab.becomes("document.querySelector('.notice.good') !== null")
    assert "kb:*" in page.text
    page.fill("[aria-labelledby=revoke] select", "jti")
    page.fill("[aria-labelledby=revoke] input", "of bob")
    page.tab.click("[aria-labelledby=revoke] button")
    page.tab.click("dialog button.danger")
    page.tab.becomes("document.querySelector('[aria-labelledby=revoke] .notice.good') !== null")
    page.tab.click("[aria-labelledby=explain] button")
    page.tab.becomes("document.querySelector('[aria-labelledby=explain] .notice.bad') !== null")
    assert "revoked" in page.text
    assert subject not in page.tab.value("location.href + JSON.stringify(sessionStorage)")


def test_settings_are_searched(browser: Browser, service: ThreadedService) -> None:
    page = opened(browser, service, "#/settings")
    page.tab.becomes("document.querySelectorAll('tbody tr').length > 20")
    page.fill("input[type=search]", "ack_ttl")
    page.tab.shows("tbody td:first-child bdi", "ACK_TTL")
    page.fill("input[type=search]", "there is none")
    page.tab.becomes("document.querySelector('.nothing') !== null")


@pytest.mark.parametrize("stripped", [True, False], ids=["stripped", "left in the path"])
def test_it_works_under_a_prefix(browser: Browser, stripped: bool) -> None:
    with ThreadedService(root_path="/push") as service:
        base = f"http://127.0.0.1:{service.port}" + ("" if stripped else "/push")
        page = AdminPage(browser, base).go("#/channels?channel=demo")
        page.tab.shows(".pill", "live")
        page.tab.tell("Page.navigate", url=f"{base}/admin")
        page.tab.becomes("location.pathname.endsWith('/admin/')")
