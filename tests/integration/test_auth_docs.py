"""docs/auth.md: every block of code in it does what the text says."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
import msgspec
import pytest

from msgpush.entrypoints.settings import Settings
from tests.support import openid
from tests.support.browser import dom, needs_chromium
from tests.support.client import Response, SseClient, request
from tests.support.openid import OpenIdProvider
from tests.support.providers import Provider, auth0, cognito, entra, keycloak
from tests.support.redis_servers import free_port
from tests.support.service import ServiceProcess, ThreadedService, eventually
from tests.support.tokens import (
    OTHER_RSA,
    RSA,
    SECRET,
    KeyServer,
    bearer,
    claims,
    public_jwk,
    signed,
    token,
)
from tests.support.web import Page

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "auth.md").read_text()
BLOCK = re.compile(r"^## ([^\n]+)$|^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

FIRST, TOKEN, USERS = "From nothing to the first token", "The token", "Your own users"
ISSUER, SERVICES = "An identity provider", "Services that publish"
KEYCLOAK, AUTH0, ENTRA, COGNITO = "Keycloak", "Auth0", "Microsoft Entra ID", "Amazon Cognito"
TICKET, COOKIE, ENDING = "EventSource with a ticket", "EventSource with a cookie", "Ending it"
SIGN_IN = "Signing in to the operator's page"


def blocks() -> dict[tuple[str, str], str]:
    """The blocks of code, by the heading that they stand under and their language."""
    found: dict[tuple[str, str], str] = {}
    heading = ""
    for match in BLOCK.finditer(TEXT):
        if match[1]:
            heading = match[1]
        else:
            assert (heading, match[2]) not in found, "one of a kind under a heading"
            found[heading, match[2]] = match[3]
    return found


BLOCKS = blocks()


def test_no_block_is_missing_here() -> None:
    run = {
        (FIRST, "bash"),
        (TOKEN, "json"),
        (USERS, "python"),
        (USERS, "js"),
        (ISSUER, "env"),
        (SERVICES, "bash"),
    }
    run |= {
        (KEYCLOAK, "env"),
        (AUTH0, "env"),
        (AUTH0, "js"),
        (ENTRA, "env"),
        (COGNITO, "env"),
        (COGNITO, "js"),
    }
    run |= {
        (SERVICES, "python"),
        (TICKET, "js"),
        (TICKET, "bash"),
        (COOKIE, "js"),
        (COOKIE, "env"),
        (COOKIE, "http"),
        (ENDING, "bash"),
        (SIGN_IN, "env"),
        (SIGN_IN, "bash"),
    }
    assert set(BLOCKS) == run


def shell(script: str, **environ: str) -> str:
    """What a script prints; every command in it must succeed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={"PATH": path, "HOME": os.environ.get("HOME", "/"), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def settings_of(block: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in block.splitlines())


def listens(port: int, text: str, channel: str) -> int:
    return request(port, "HEAD", f"/sse/stream/{channel}", headers=bearer(text)).status


def test_the_first_commands_lead_to_a_first_message(tmp_path: Path) -> None:
    port = free_port()
    serve, issue, listen, publish = BLOCKS[FIRST, "bash"].partition("\n")[2].strip().splitlines()
    script = [
        BLOCKS[FIRST, "bash"].splitlines()[0],
        "trap 'kill $(jobs -p); wait' EXIT",
        f"{serve.removesuffix('&')} > serve.log 2>&1 &",
        f"until curl -so /dev/null http://127.0.0.1:{port}/health; do sleep 0.1; done",
        issue,
        f"{listen.removesuffix('&')} > stream.txt 2> /dev/null &",
        "until grep -q msgpush.open stream.txt; do sleep 0.1; done",
        publish,
        'until grep -q \'"channels":\\["demo"\\]\' stream.txt; do sleep 0.1; done',
    ]
    text = f"cd {shlex.quote(str(tmp_path))}\n" + "\n".join(script).replace(":8089", f":{port}")
    assert '"duplicate":false' in shell(text, SERVICE_PORT=str(port))


def test_the_token_of_the_example_allows_what_the_text_says() -> None:
    given = json.loads(BLOCKS[TOKEN, "json"])
    now = claims()
    text = signed(given | {"iat": now["iat"], "exp": now["exp"]})
    with ThreadedService(jwt_secret=SECRET, jwt_audience=given["aud"]) as service:
        for channel, status in (
            ("kb:7", 200),
            ("imports", 200),
            ("user:user123", 200),
            ("user:x", 403),
            ("kb", 403),
        ):
            assert listens(service.port, text, channel) == status
        for fields, status in (
            ({"service": "knowledge-service", "target": {"user_id": "x"}}, 202),
            ({"service": "knowledge-service", "target": {"kb_id": "7"}}, 403),
            ({"service": "other", "target": {"user_id": "x"}}, 403),
        ):
            body = msgspec.json.encode({"type": "info", **fields})
            assert (
                request(service.port, "POST", "/api/v1/messages/send", body, bearer(text)).status
                == status
            )


@pytest.mark.parametrize("language", ["python", "js"])
def test_a_back_end_makes_tokens_of_its_own(language: str) -> None:
    program = {"python": sys.executable, "js": shutil.which("node")}[language]
    if program is None:
        pytest.skip("needs node")
    flag = "-c" if language == "python" else "-e"
    text = shell(
        f"{shlex.quote(program)} {flag} {shlex.quote(BLOCKS[USERS, language])}", JWT_SECRET=SECRET
    ).strip()
    with ThreadedService(jwt_secret=SECRET) as service:
        for channel, status in (("kb:7", 200), ("user:alice", 200), ("kb:8", 403)):
            assert listens(service.port, text, channel) == status


# Identity providers, on this machine in the place of their own: all that differs is where they are


ALLOWED = {"subscribe": ["kb:7"]}


def recipe_at(server: KeyServer, heading: str) -> dict[str, str]:
    """The settings of a recipe, for a provider at that server."""
    given = settings_of(BLOCKS[heading, "env"])
    Settings.from_environ(given | {"SERVICE_HOST": "0.0.0.0"})
    issuer = given["JWT_ISSUER"]
    assert issuer.startswith("https://")
    return given | {
        "JWT_ISSUER": server.origin
        + issuer.removeprefix("https://").removeprefix(urlsplit(issuer).netloc)
    }


def statuses(given: dict[str, str], asked: Sequence[tuple[str, str]]) -> list[int]:
    """What the service answers who listens to a channel with a token."""
    with ServiceProcess(
        *(f"--{name.lower().replace('_', '-')}={text}" for name, text in given.items())
    ) as service:
        return [listens(service.port, text, quote(channel)) for text, channel in asked]


def provider_of(heading: str, issuer: str, audience: str) -> Provider:
    if heading == ENTRA:
        return entra(issuer, audience)
    make = {KEYCLOAK: keycloak, AUTH0: auth0, COGNITO: cognito, ISSUER: keycloak}[heading]
    return make(issuer, audience, ALLOWED)


def other_slash(issuer: str) -> str:
    return issuer.removesuffix("/") if issuer.endswith("/") else f"{issuer}/"


@pytest.mark.parametrize("heading", [KEYCLOAK, AUTH0, ENTRA, COGNITO])
def test_a_provider_s_recipe_accepts_its_access_tokens_and_no_others(heading: str) -> None:
    with KeyServer() as server:
        given = recipe_at(server, heading)
        issuer, audience = given["JWT_ISSUER"], given["JWT_AUDIENCE"]
        provider = provider_of(heading, issuer, audience)
        server.documents = provider.documents
        own = f"user:{provider.claims['sub']}"
        claim = given.get("JWT_AUDIENCE_CLAIM", "aud")
        refused = [
            provider.token(key=OTHER_RSA),
            provider.token(kid="none"),
            provider.token({"iss": other_slash(issuer)}),
            provider.token({"iss": "https://id.example.com"}),
            provider.token({claim: "another"}),
            provider.token({claim: None}),
            # An ID token, which is for the client that has asked for it.
            provider.token({"client_id": None, "token_use": "id", "aud": "app"}),
        ]
        asked = [
            (provider.token(), own),
            (provider.token(), "kb:7"),
            *((text, own) for text in refused),
        ]
        assert statuses(given, asked) == [
            200,
            403 if heading == ENTRA else 200,
            *[401] * len(refused),
        ]


def test_a_provider_s_keys_are_found_by_its_name_alone() -> None:
    with KeyServer(public_jwk(RSA, "one")) as server:
        given = recipe_at(server, ISSUER)
        server.documents["/.well-known/openid-configuration"] = {
            "issuer": server.origin,
            "jwks_uri": server.url,
        }
        issued = claims("alice", iss=server.origin, aud=given["JWT_AUDIENCE"], subscribe=["kb:7"])
        text = signed(issued, RSA, kid="one")
        assert statuses(given, [(text, "kb:7"), (token("alice", RSA), "user:alice")]) == [200, 401]
        # With a key of its own nothing is looked for.
        fetches = server.fetches
        assert statuses(
            given | {"JWT_SECRET": SECRET}, [(signed(issued), "kb:7"), (text, "kb:7")]
        ) == [200, 401]
        assert server.fetches == fetches


@pytest.mark.parametrize(
    ("heading", "call"),
    [
        (
            AUTH0,
            "exports.onExecutePostLogin({}, {accessToken: {setCustomClaim: (name, value) => show({[name]: value})}})",
        ),
        (
            COGNITO,
            "exports.handler({}).then(({response: {claimsAndScopeOverrideDetails: {accessTokenGeneration: made}}}) => "
            "show(made.claimsToAddOrOverride))",
        ),
    ],
)
def test_what_runs_at_the_provider_makes_the_claim(heading: str, call: str) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node")
    script = f"{BLOCKS[heading, 'js']}\nconst show = (claims) => console.log(JSON.stringify(claims));\n{call};"
    assert json.loads(shell(f"{shlex.quote(node)} -e {shlex.quote(script)}")) == {
        "msgpush": ALLOWED
    }


def test_a_service_publishes_with_a_token_for_just_that() -> None:
    text = shell(BLOCKS[SERVICES, "bash"], JWT_SECRET=SECRET).strip()
    with ThreadedService(jwt_secret=SECRET) as service:
        program = BLOCKS[SERVICES, "python"].replace(":8089", f":{service.port}")
        told = shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(program)}", TOKEN=text)
        assert told == "['user:alice', 'service:importer']\n"
        body = b'{"type":"info","service":"importer","channels":["imports"]}'
        assert (
            request(service.port, "POST", "/api/v1/messages/send", body, bearer(text)).status == 403
        )
        assert listens(service.port, text, "user:alice") == 403


def test_revocations_refuse_what_the_text_says() -> None:
    with ThreadedService(jwt_secret=SECRET) as service:
        alice, importer, old = (
            token("alice"),
            token("importer", jti="importer-1"),
            token("bob", iat=1_767_200_000),
        )
        for text, name in ((alice, "alice"), (importer, "importer")):
            assert listens(service.port, text, f"user:{name}") == 200
        with SseClient(service.port, "/sse/user/alice", bearer(alice)) as stream:
            script = BLOCKS[ENDING, "bash"].replace(":8089", f":{service.port}")
            told = shell(script, ADMIN=token("ops", admin=True))
            assert told.count('"until"') == 3
            assert stream.rest()[-1].data == '{"reason":"revoked","reconnect":false}'
        for text, name in ((alice, "alice"), (importer, "importer"), (old, "bob")):
            assert listens(service.port, text, f"user:{name}") == 401
        assert listens(service.port, token("bob"), "user:bob") == 200


def test_a_back_end_makes_tickets_that_acknowledge() -> None:
    text = shell(BLOCKS[TICKET, "bash"], JWT_SECRET=SECRET).strip()
    asked = re.search(r"`(\{[^`]*\"acknowledge\": true\})`\. Who", TEXT)
    assert asked is not None
    body, path = asked[1].encode(), "/api/v1/users/alice/acknowledgements"
    with ThreadedService(jwt_secret=SECRET) as service:
        for maker, status in (
            (text, 201),
            (token("alice"), 201),
            (token("bob", subscribe=["user:*"]), 403),
        ):
            made = request(service.port, "POST", "/api/v1/tickets", body, bearer(maker))
            assert made.status == status
            if status == 201:
                ticket = json.loads(made.body)["ticket"]
                keys = b'{"keys": ["a/1"]}'
                answer = request(service.port, "POST", f"{path}?token={ticket}", keys)
                assert json.loads(answer.body) == {"acknowledged": [], "unknown": ["a/1"]}


# In a browser, from a page of another origin


ADMIN = bearer(token("ops", admin=True, publish=["*"]))


def say(service: ThreadedService, user: str, text: str) -> Response:
    message: dict[str, Any] = {
        "type": "info",
        "service": "a",
        "target": {"user_id": user},
        "data": {"text": text},
    }
    return request(
        service.port, "POST", "/api/v1/messages/send", msgspec.json.encode(message), ADMIN
    )


def seen_by(origin: str, service: ThreadedService, profile: Path) -> str:
    """What the page has become, after a message for alice, one for bob, and the stream's end."""

    def act() -> None:
        (id,) = eventually(lambda: list(service.push.connections), 30)
        for user in ("bob", "alice"):
            assert say(service, user, f"for {user}").status == 202
        assert (
            request(
                service.port, "DELETE", f"/api/v1/connections/{id}?reconnect=false", headers=ADMIN
            ).status
            == 204
        )

    actor = threading.Thread(target=act)
    actor.start()
    try:
        return dom(origin + "/", profile)
    finally:
        actor.join()


def at(service: ThreadedService, script: str) -> str:
    return f'const base = "http://127.0.0.1:{service.port}";\n{script}'


@needs_chromium
def test_a_page_listens_with_a_ticket(tmp_path: Path) -> None:
    with Page() as page, ThreadedService(jwt_secret=SECRET, cors_origins=(page.origin,)) as service:
        page.script = at(service, f'{BLOCKS[TICKET, "js"]}\nlisten("{token("alice")}");')
        shown = seen_by(page.origin, service, tmp_path)
    assert shown.count("got for alice. ") == 1
    assert "for bob" not in shown


@needs_chromium
def test_a_page_listens_with_a_cookie_if_its_origin_is_known(tmp_path: Path) -> None:
    form = re.search(r"Set-Cookie: (msgpush_token=<token>.*)", BLOCKS[COOKIE, "http"])
    assert form is not None
    # Without TLS there are no secure cookies.
    value = form[1].replace("<token>", token("alice")).replace("Secure; ", "")
    assert "HttpOnly" in value
    closed = "stream.onerror = () => document.body.append(`closed ${stream.readyState}. `);"
    with Page(("Set-Cookie", value)) as page:
        with ThreadedService(jwt_secret=SECRET, cors_origins=(page.origin,)) as service:
            page.script = at(service, BLOCKS[COOKIE, "js"] + closed)
            assert seen_by(page.origin, service, tmp_path / "known").count("got for alice. ") == 1
        with ThreadedService(jwt_secret=SECRET) as service:
            page.script = at(service, BLOCKS[COOKIE, "js"] + closed)
            shown = dom(page.origin + "/", tmp_path / "unknown").partition("</script>")[2]
            assert (shown.count("closed 2. "), shown.count("got ")) == (1, 0)
    example = Settings.from_environ({"JWT_SECRET": SECRET, **settings_of(BLOCKS[COOKIE, "env"])})
    assert example.cors_origins == ("https://app.example.com",)


# Operators


def test_an_operator_signs_in_with_the_settings_of_the_example_and_is_locked_out(
    tmp_path: Path,
) -> None:
    given = settings_of(BLOCKS[SIGN_IN, "env"])
    secret = tmp_path / "oidc"
    secret.write_text(openid.SECRET)
    given |= {"OIDC_CLIENT_SECRET_FILE": str(secret), "JWT_SECRET": SECRET}
    Settings.from_environ(given | {"SERVICE_HOST": "0.0.0.0"})
    callback = f"{given['PUBLIC_URL']}/admin/callback"
    assert f"`{callback}`" in TEXT
    port = free_port()
    here = f"http://127.0.0.1:{port}"
    with OpenIdProvider() as provider:
        provider.client, provider.callback = given["OIDC_CLIENT_ID"], f"{here}/admin/callback"
        given |= {"OIDC_ISSUER": provider.issuer, "PUBLIC_URL": here, "SERVICE_PORT": str(port)}
        flags = (f"--{name.lower().replace('_', '-')}={text}" for name, text in given.items())
        own = {"Sec-Fetch-Site": "same-origin"}
        with ServiceProcess(*flags), httpx2.Client(base_url=here, headers=own) as browser:
            browser.get("/admin/sign-in?next=/health", follow_redirects=True)
            found = browser.get("/admin/session").json()
            granted = json.loads(given["OIDC_GRANT"])
            assert found["subject"] == "oidc:ada"
            assert (found["subscribe"], found["publish"]) == (
                granted["subscribe"],
                granted["publish"],
            )
            script = BLOCKS[SIGN_IN, "bash"].replace(":8089", f":{port}").replace("SUB", "ada")
            assert '"oidc:ada"' in shell(script, ADMIN=token("root", admin=True))
            assert browser.get("/admin/session").json()["mode"] is None
