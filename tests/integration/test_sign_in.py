"""Signing in over real sockets: an HTTP client that keeps cookies, and a browser."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from msgpush.domain.credentials import Revocation
from tests.integration.test_nginx import NGINX, Nginx
from tests.support.browser import Browser, needs_chromium
from tests.support.client import request
from tests.support.openid import CLIENT, SECRET, OpenIdProvider
from tests.support.redis_servers import free_port
from tests.support.service import ServiceProcess, ThreadedService, eventually
from tests.support.tokens import SECRET as KEY
from tests.support.tokens import bearer, token
from tests.support.web import Page

needs_nginx = pytest.mark.skipif(NGINX is None and "CI" not in os.environ, reason="needs nginx")

# The service ends a stream's connection with it: nothing else is to be sent there.
ALONE = {"Connection": "close"}


@pytest.fixture
def provider() -> Iterator[OpenIdProvider]:
    with OpenIdProvider() as provider:
        yield provider


def sign_in_settings(provider: OpenIdProvider, port: int) -> dict[str, Any]:
    """Settings of a service that listens there."""
    url = f"http://127.0.0.1:{port}"
    provider.callback = f"{url}/admin/callback"
    return {
        "jwt_secret": KEY,
        "oidc_issuer": provider.issuer,
        "oidc_client_id": CLIENT,
        "oidc_client_secret": SECRET,
        "oidc_admin_claim": "groups=ops",
        "oidc_grant": '{"subscribe":["*"],"publish":["demo","service:ops"]}',
        "public_url": url,
    }


def service_of(provider: OpenIdProvider, **more: Any) -> ThreadedService:
    port = free_port()
    return ThreadedService(port=port, **sign_in_settings(provider, port), **more)


def browser_of(service: ThreadedService | ServiceProcess) -> httpx2.Client:
    """What asks as the page does that the service itself has."""
    url = f"http://127.0.0.1:{service.port}"
    return httpx2.Client(base_url=url, headers={"Sec-Fetch-Site": "same-origin"}, timeout=10)


def test_who_signs_in_operates_the_service_until_signing_out(provider: OpenIdProvider) -> None:
    with service_of(provider) as service, browser_of(service) as browser:
        answer = browser.get("/admin/sign-in?next=/health", follow_redirects=True)
        assert [each.status_code for each in answer.history] == [302, 302, 303]
        assert answer.url == f"http://127.0.0.1:{service.port}/health"
        assert [cookie.name for cookie in browser.cookies.jar] == ["msgpush_admin"]
        assert browser.get("/admin/session").json()["subject"] == "oidc:ada"
        assert browser.get("/api/v1/connections").json()["connections"] == []
        sent = browser.post(
            "/api/v1/messages/send",
            json={"type": "info", "service": "ops", "channels": ["demo"]},
            headers={"Origin": f"http://127.0.0.1:{service.port}"},
        )
        assert sent.status_code == 202
        with browser.stream("GET", "/sse/stream/demo", headers=ALONE) as stream:
            assert stream.status_code == 200
            lines = stream.iter_lines()
            assert "event: msgpush.open" in lines
            assert browser.post("/admin/sign-out").status_code == 303
            assert 'data: {"reason":"revoked","reconnect":false}' in list(lines)
        assert not [*browser.cookies.jar]
        assert browser.get("/api/v1/connections").status_code == 401


def test_a_revoked_subject_loses_its_streams(provider: OpenIdProvider) -> None:
    with service_of(provider) as service, browser_of(service) as browser:
        browser.get("/admin/sign-in?next=/health", follow_redirects=True)
        with browser.stream("GET", "/sse/stream/demo", headers=ALONE) as stream:
            lines = stream.iter_lines()
            assert "event: msgpush.open" in lines
            headers = bearer(token("root", admin=True))
            body = b'{"subject":"oidc:ada"}'
            revoked = request(service.port, "POST", "/api/v1/revocations", body, headers)
            assert revoked.status == 201
            assert 'data: {"reason":"revoked","reconnect":false}' in list(lines)
        assert browser.get("/admin/session").json()["mode"] is None


def test_a_process_logs_nothing_of_a_sign_in_that_would_open_anything(
    provider: OpenIdProvider,
) -> None:
    port = free_port()
    given = sign_in_settings(provider, port) | {"service_port": port, "log_level": "debug"}
    environ: dict[str, Any] = {name.upper(): str(value) for name, value in given.items()}
    with ServiceProcess(**environ) as service, browser_of(service) as browser:
        answer = browser.get("/admin/sign-in?next=/health", follow_redirects=True)
        assert answer.status_code == 200
        session = browser.cookies["msgpush_admin"]
        back = answer.history[1].headers["location"]
        assert browser.get(back).status_code == 400, "once more"
        service.signal(signal.SIGTERM)
        assert service.wait() == 0
        eventually(lambda: any("signed in" in str(line.get("event")) for line in service.log))
        logged = repr(service.log)
    kept = [cookie for each in answer.history for cookie in each.headers.get_list("set-cookie")]
    secret = [session, *(each.partition("=")[2].partition(";")[0] for each in kept)]
    secret += [provider.seen[0][name] for name in ("code", "code_verifier")]
    secret += [provider.asked[0][name] for name in ("state", "nonce", "code_challenge")]
    assert [each for each in secret if each and each in logged] == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"JWT_SECRET": "", "JWT_PUBLIC_KEY": ""}, "OIDC_ISSUER needs a key for tokens as well"),
        ({"ENABLE_AUTH": "false"}, "OIDC_ISSUER excludes ENABLE_AUTH=false"),
        ({"PUBLIC_URL": ""}, "PUBLIC_URL has no value"),
        ({"OIDC_GRANT": "{"}, 'OIDC_GRANT is "{"'),
    ],
)
def test_what_does_not_fit_stops_the_start(
    provider: OpenIdProvider, change: dict[str, str], told: str
) -> None:
    given = sign_in_settings(provider, 8089)
    environ: dict[str, Any] = {name.upper(): str(value) for name, value in given.items()}
    environ |= change
    service = ServiceProcess(**environ)
    try:
        assert service.wait() == 2
        eventually(lambda: service.log)
        assert told in str(service.log[0]["event"])
    finally:
        service.__exit__()


@needs_chromium
def test_in_a_browser_one_signs_in_and_a_page_of_another_origin_gets_nothing(
    provider: OpenIdProvider, tmp_path: Path
) -> None:
    provider.page = True
    # Another port is another origin, of the same site: the browser sends the cookie along.
    with Page() as sister, service_of(provider, cors_origins=(sister.origin,)) as service:
        url = f"http://127.0.0.1:{service.port}"
        with Browser(tmp_path) as browser:
            tab = browser.open(f"{url}/admin/sign-in?next=/docs")
            tab.becomes("document.title === 'Provider'")
            tab.click("#go")
            tab.becomes(f"location.href === '{url}/docs'")
            assert tab.value("document.cookie") == "", "no script sees it"
            ask = "fetch('{}', {{method: '{}', credentials: 'include', body: {}}}).then((a) => a.status)"
            body = """'{"type":"info","service":"ops","channels":["demo"]}'"""
            send = f"{url}/api/v1/messages/send"
            assert tab.value(ask.format("/api/v1/connections", "GET", "undefined")) == 200
            assert tab.value(ask.format(send, "POST", body)) == 202
            assert tab.value(socket_to(f"ws://127.0.0.1:{service.port}/ws?channel=demo")) == (
                "msgpush.open"
            )
            assert tab.value(stream_of("/sse/stream/demo")) == "open"

            other = browser.open(sister.origin)
            other.becomes("document.readyState === 'complete'")
            assert other.value(ask.format(f"{url}/admin/session", "GET", "undefined")) == 200
            told = f"fetch('{url}/admin/session', {{credentials: 'include'}}).then((a) => a.json())"
            assert other.value(told)["mode"] is None
            assert other.value(ask.format(f"{url}/api/v1/connections", "GET", "undefined")) == 401
            assert other.value(ask.format(send, "POST", body)) == 401
            assert other.value(ask.format(f"{url}/admin/sign-out", "POST", "undefined")) == 403
            assert other.value(socket_to(f"ws://127.0.0.1:{service.port}/ws?channel=demo")) == (
                "msgpush.close"
            )
            assert other.value(stream_of(f"{url}/sse/stream/demo")) == "refused"

            # A form goes anywhere, and as a navigation takes the cookie along.
            other.value(form_to(f"{url}/admin/sign-out"))
            other.becomes(f"location.href === '{url}/admin/sign-out'")
            other.becomes("document.body.innerText.includes('only a page of this service itself')")
            assert tab.value(told)["mode"] == "oidc", "nobody has signed it out"
            tab.value("fetch('/admin/sign-out', {method: 'POST'}).then((a) => a.status)")
            assert tab.value(told)["mode"] is None


@needs_chromium
@needs_nginx
def test_over_tls_behind_a_proxy_that_tells_nothing_the_cookie_is_of_this_host_alone(
    provider: OpenIdProvider, tmp_path: Path
) -> None:
    # Its Host and its scheme are wrong, and it takes the prefix off: PUBLIC_URL is all that counts.
    upgrade = (
        "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;"
    )
    place = (
        "location /push/ { proxy_pass http://msgpush/; proxy_http_version 1.1; proxy_buffering off;"
        f" proxy_set_header Host inside; {upgrade} }} location / {{"
    )
    port = free_port()
    changes = [("location / {", place)]
    with Nginx(tmp_path, port, port, tls=True, changes=changes) as nginx:
        url = f"https://127.0.0.1:{nginx.tls_port}/push"
        given = sign_in_settings(provider, port) | {"service_port": port, "public_url": url}
        provider.callback = f"{url}/admin/callback"
        environ: dict[str, Any] = {name.upper(): str(value) for name, value in given.items()}
        profile = tmp_path / "browser"
        with (
            ServiceProcess(ROOT_PATH="/push", **environ),
            Browser(profile, "--ignore-certificate-errors") as browser,
        ):
            tab = browser.open(f"{url}/admin/sign-in?next=/docs")
            tab.becomes(f"location.href === '{url}/docs'")
            told = "fetch('admin/session').then((answer) => answer.json())"
            assert tab.value(told)["subject"] == "oidc:ada"
            kept = browser.ask("Storage.getCookies", {})["cookies"]
            (cookie,) = [each for each in kept if each["name"] == "__Host-msgpush_admin"]
            names = ("domain", "path", "secure", "httpOnly", "sameSite")
            assert [cookie[name] for name in names] == ["127.0.0.1", "/", True, True, "Lax"]
            assert tab.value(socket_to(f"{url.replace('https', 'wss')}/ws?channel=demo")) == (
                "msgpush.open"
            )
            assert tab.value(stream_of("sse/stream/demo")) == "open"
            leaves = "fetch('admin/sign-out', {method: 'POST', redirect: 'manual'})"
            tab.value(f"{leaves}.then((answer) => answer.type)")
            tab.becomes("fetch('admin/session').then((a) => a.json()).then((a) => !a.mode)")
        log = nginx.logs("access.log")
    assert "/admin/callback" in log
    assert [name for name in ("code=", "state=") if name in log] == []


@needs_chromium
@needs_nginx
def test_a_page_of_a_sister_domain_signs_nobody_in_as_somebody_else(
    provider: OpenIdProvider, tmp_path: Path
) -> None:
    port = free_port()
    with Nginx(tmp_path, port, port, tls=True) as nginx:
        url = f"https://push.example.test:{nginx.tls_port}"
        given = sign_in_settings(provider, port) | {"service_port": port, "public_url": url}
        provider.callback = f"{url}/admin/callback"
        environ: dict[str, Any] = {name.upper(): str(value) for name, value in given.items()}
        flags = (
            "--ignore-certificate-errors",
            "--host-resolver-rules=MAP *.example.test 127.0.0.1",
        )
        with ServiceProcess(**environ), Browser(tmp_path / "browser", *flags) as browser:
            began = request(port, "GET", "/admin/sign-in")
            (kept,) = (v for k, v in began.headers.items() if k.lower() == "set-cookie")
            back = httpx2.get(began.headers["location"]).headers["location"]
            # Browsers take only spaces and tabs off a name before they look for its prefix.
            tossed = [
                ("Set-Cookie", f"{blank}{kept.partition(';')[0]}; Domain=example.test; Path=/")
                for blank in ("", "\xa0", "\x85", "\t")
            ]
            with Page(*tossed) as sister:
                tab = browser.open(sister.origin.replace("127.0.0.1", "app.example.test"))
                tab.becomes("location.hostname === 'app.example.test'")
            names = [each["name"] for each in browser.ask("Storage.getCookies", {})["cookies"]]
            assert len(names) == 2, "it may set those for all hosts of its domain"
            tab = browser.open(back)
            tab.shows("h1", "Not signed in")
            assert "wasn't begun in this browser" in tab.texts("p")[0]


def form_to(url: str) -> str:
    """JavaScript: submit a form, which leaves the page."""
    return f"""void setTimeout(() => {{
        const form = document.createElement("form");
        [form.method, form.action] = ["post", "{url}"];
        document.body.append(form);
        form.submit();
    }})"""


def socket_to(url: str) -> str:
    """JavaScript: the first event on a WebSocket."""
    return f"""new Promise((done) => {{
        const socket = new WebSocket("{url}");
        socket.onmessage = (message) => done(JSON.parse(message.data).event);
        socket.onerror = () => done("error");
    }})"""


def stream_of(url: str) -> str:
    """JavaScript: what becomes of an EventSource that sends cookies."""
    return f"""new Promise((done) => {{
        const stream = new EventSource("{url}", {{ withCredentials: true }});
        stream.addEventListener("msgpush.open", () => {{ stream.close(); done("open"); }});
        stream.onerror = () => done("refused");
    }})"""


@needs_chromium
def test_in_a_browser_whoever_is_no_operator_is_told_so_and_may_try_again(
    provider: OpenIdProvider, tmp_path: Path
) -> None:
    provider.user = {"sub": "bob", "groups": ["staff"]}
    with service_of(provider) as service, Browser(tmp_path) as browser:
        tab = browser.open(f"http://127.0.0.1:{service.port}/admin/sign-in?next=/docs")
        tab.shows("h1", "Not signed in")
        assert "claim groups must have the value ops" in tab.texts("p")[0]
        provider.user = {"sub": "bob", "groups": ["ops"]}
        tab.click("a")
        tab.becomes("location.pathname === '/admin/'")
        told = "fetch('/admin/session').then((answer) => answer.json())"
        assert tab.value(told)["subject"] == "oidc:bob"


@needs_chromium
def test_on_the_operator_s_page_itself_one_signs_in_and_is_asked_again_once_revoked(
    provider: OpenIdProvider, tmp_path: Path
) -> None:
    provider.page = True
    with service_of(provider) as service, Browser(tmp_path) as browser:
        url = f"http://127.0.0.1:{service.port}/admin/"
        tab = browser.open(f"{url}#/settings")
        tab.becomes("document.querySelector('.sign button[type=button]') !== null")
        tab.click(".sign button[type=button]")
        tab.becomes("document.title === 'Provider'")
        tab.click("#go")
        tab.becomes(f"location.href === '{url}#/settings'")
        tab.becomes("document.querySelector('nav').textContent.includes('oidc:ada')")
        tab.becomes("document.body.innerText.includes('OIDC_ADMIN_CLAIM')")
        assert KEY not in tab.value("document.body.innerText")
        service.call(lambda: service.push.revoke(Revocation("subject", "oidc:ada", time.time())))
        tab.value("void (location.hash = '#/overview')")
        tab.becomes("document.querySelector('.sign button[type=button]') !== null")
