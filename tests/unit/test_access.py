"""Who may do what: every endpoint gives every kind of credentials exactly the contract's status and
challenge.
"""

import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import msgspec
import pytest
from starlette.routing import Mount, Route, WebSocketRoute

from msgpush.adapters.auth.sessions import Sessions
from msgpush.adapters.auth.tokens import read_claim
from msgpush.adapters.websocket import commands
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings
from tests.support.asgi import Answer, AsgiDriver
from tests.support.tokens import (
    OTHER_RSA,
    RSA,
    SECRET,
    KeyServer,
    bearer,
    claims,
    public_jwk,
    public_pem,
    signed,
    unsigned,
)

MESSAGE = b'{"type":"info","service":"a","channels":["demo"]}'
BROADCAST = b'{"type":"info","service":"a"}'
REGISTRATION = b'{"fcm":{"token":"t","secret":"0123456789012345678901"}}'


class Endpoint(NamedTuple):
    method: str
    target: str
    body: bytes = b""


ENDPOINTS = {
    "send": Endpoint("POST", "/api/v1/messages/send", MESSAGE),
    "broadcast": Endpoint("POST", "/api/v1/messages/broadcast", BROADCAST),
    "batch": Endpoint("POST", "/api/v1/messages/batch", b"[" + MESSAGE + b"]"),
    "stream": Endpoint("GET", "/sse/stream/demo"),
    "head": Endpoint("HEAD", "/sse/stream/demo"),
    "user": Endpoint("GET", "/sse/user/alice"),
    "service": Endpoint("GET", "/sse/service/a"),
    "history": Endpoint("GET", "/api/v1/channels/demo/messages"),
    "ticket": Endpoint("POST", "/api/v1/tickets", b'{"channels":["demo"]}'),
    "acks": Endpoint("POST", "/api/v1/users/alice/acknowledgements", b'{"keys":["a/none"]}'),
    "pending": Endpoint("GET", "/api/v1/users/alice/pending"),
    "register": Endpoint("POST", "/api/v1/users/alice/devices", REGISTRATION),
    "devices": Endpoint("GET", "/api/v1/users/alice/devices"),
    "remove": Endpoint("DELETE", "/api/v1/users/alice/devices"),
    "device": Endpoint("DELETE", "/api/v1/users/alice/devices/none"),
    "delivery": Endpoint("GET", "/api/v1/messages/a/none/delivery"),
    "withdraw": Endpoint("DELETE", "/api/v1/messages/a/none/delivery"),
    "letters": Endpoint("GET", "/api/v1/dead-letters?service=a"),
    "redeliver": Endpoint("POST", "/api/v1/dead-letters/a/none/redeliver"),
    "forget": Endpoint("DELETE", "/api/v1/dead-letters/a/none"),
    "list": Endpoint("GET", "/api/v1/connections"),
    "stats": Endpoint("GET", "/api/v1/connections/stats"),
    "close": Endpoint("DELETE", "/api/v1/connections/none"),
    "messages": Endpoint("GET", "/api/v1/stats/messages"),
    "instances": Endpoint("GET", "/api/v1/instances"),
    "revoke": Endpoint("POST", "/api/v1/revocations", b'{"jti":"none"}'),
    "settings": Endpoint("GET", "/api/v1/settings"),
    "explain": Endpoint("POST", "/api/v1/tokens/explain", b'{"token":"none"}'),
    "session": Endpoint("GET", "/admin/session"),
}
OPEN = [
    Endpoint("GET", target)
    for target in (
        "/",
        "/docs",
        "/openapi.json",
        "/api/v1/push",
        "/health",
        "/health/live",
        "/health/ready",
        "/metrics",
        "/static/icon.svg",
        "/admin/",
        "/admin/main.js",
    )
]

# Each looks at cookies of its own, and at nothing else (test_sign_in.py).
SIGN_IN = [
    Endpoint("GET", "/admin/sign-in"),
    Endpoint("GET", "/admin/callback"),
    Endpoint("POST", "/admin/sign-out"),
]

# What each of the credentials below gets; 4XX of another kind than 401 and 403 is what comes before
# or after them.
MATRIX = """
                      send broadcast batch stream head user service history ticket acks pending register devices remove device delivery withdraw letters redeliver forget list stats close messages instances revoke settings explain session
nothing               401  401       401   401    401  401  401     401     401    401  401     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     200
expired               401  401       401   401    401  401  401     401     401    401  401     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     401
wrong key             401  401       401   401    401  401  401     401     401    401  401     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     401
alg none              401  401       401   401    401  401  401     401     401    401  401     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     401
public key as secret  401  401       401   401    401  401  401     401     401    401  401     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     401
wrong audience        401  401       401   401    401  401  401     401     401    401  401     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     401
no audience           401  401       401   401    401  401  401     401     401    401  401     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     401
unknown key           401  401       401   401    401  401  401     401     401    401  401     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     401
wrong claim           401  401       401   401    401  401  401     401     401    401  401     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     401
two tokens            401  401       401   401    401  401  401     401     401    401  401     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     401
ticket as a token     401  401       401   401    401  401  401     401     401    403  403     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     401
own ticket as a token 401  401       401   401    401  401  401     401     401    200  200     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     401
ticket in a cookie    401  401       401   401    401  401  401     401     401    401  401     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     200
basic                 401  401       401   401    401  401  401     401     401    401  401     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     200
subscriber            403  403       403   200    200  403  200     200     201    403  403     403      403     403    403    403      403      200     403       403    403  403   403   403      403       403    403      403     200
publisher             202  202       202   403    403  403  403     403     403    403  403     403      403     403    403    404      404      403     404       404    403  403   403   403      403       403    403      403     200
publisher elsewhere   403  403       403   403    403  403  403     403     403    403  403     403      403     403    403    403      403      403     403       403    403  403   403   403      403       403    403      403     200
other user            403  403       403   403    403  403  403     403     403    403  403     403      403     403    403    403      403      403     403       403    403  403   403   403      403       403    403      403     200
that user             403  403       403   403    403  200  403     403     403    200  200     409      200     204    204    403      403      403     403       403    403  403   403   403      403       403    403      403     200
back end              403  403       403   403    403  403  403     403     403    200  200     409      200     204    204    403      403      403     403       403    403  403   403   403      403       403    403      403     200
back end elsewhere    403  403       403   403    403  200  403     403     403    403  403     403      403     403    403    403      403      403     403       403    403  403   403   403      403       403    403      403     200
admin                 403  403       403   403    403  403  403     403     403    403  403     403      403     403    403    404      403      403     403       403    200  200   404   200      200       201    200      200     200
everything            202  202       202   200    200  200  200     200     201    200  200     409      200     204    204    404      404      200     404       404    200  200   404   200      200       201    200      200     200
cookie                403  403       403   200    200  200  200     200     403    403  200     403      200     403    403    404      403      200     403       403    200  200   403   200      200       403    200      403     200
cookie own page       202  202       202   200    200  200  200     200     201    200  200     409      200     204    204    404      404      200     404       404    200  200   404   200      200       201    200      200     200
cookie known page     202  202       202   200    200  200  200     200     201    200  200     409      200     204    204    404      404      200     404       404    200  200   404   200      200       201    200      200     200
cookie other page     403  403       403   403    403  403  403     403     403    403  403     403      403     403    403    403      403      403     403       403    403  403   403   403      403       403    403      403     200
cookie no page        403  403       403   403    403  403  403     403     403    403  403     403      403     403    403    403      403      403     403       403    403  403   403   403      403       403    403      403     200
cookie cross-site     403  403       403   403    403  403  403     403     403    403  403     403      403     403    403    403      403      403     403       403    403  403   403   403      403       403    403      403     200
cookie same-site      403  403       403   403    403  403  403     403     403    403  403     403      403     403    403    403      403      403     403       403    403  403   403   403      403       403    403      403     200
cookie typed in       403  403       403   200    200  200  200     200     403    403  200     403      200     403    403    404      403      200     403       403    200  200   403   200      200       403    200      403     200
cookie subscriber     403  403       403   200    200  403  200     200     403    403  403     403      403     403    403    403      403      200     403       403    403  403   403   403      403       403    403      403     200
cookie expired        401  401       401   401    401  401  401     401     401    401  401     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     200
header and cookie     401  401       401   401    401  401  401     401     401    401  401     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     401
session own page      202  202       202   200    200  403  200     200     201    403  403     403      403     403    403    404      404      200     404       404    200  200   404   200      200       201    200      200     200
session no origin     202  202       202   200    200  403  200     200     201    403  403     403      403     403    403    404      404      200     404       404    200  200   404   200      200       201    200      200     200
session known page    401  401       401   401    401  401  401     401     401    401  401     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     200
session other page    401  401       401   401    401  401  401     401     401    401  401     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     200
session same host     401  401       401   401    401  401  401     401     401    401  401     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     200
session same-site     401  401       401   401    401  401  401     401     401    401  401     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     200
session typed in      401  401       401   401    401  401  401     401     401    401  401     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     200
session unsaid        401  401       401   401    401  401  401     401     401    401  401     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     200
session and header    401  401       401   401    401  401  401     401     401    401  401     401      401     401    401    401      401      401     401       401    401  401   401   401      401       401    401      401     401
query                 401  401       401   200    200  200  200     400     401    200  200     400      400     400    400    400      400      400     400       400    400  400   400   400      400       401    400      401     400
query expired         403  403       403   401    401  401  401     400     403    401  401     400      400     400    400    400      400      400     400       400    400  400   400   400      400       403    400      403     400
query and header      401  401       401   401    401  401  401     400     401    401  401     400      400     400    400    400      400      400     400       400    400  400   400   400      400       401    400      401     400
ticket                401  401       401   200    200  403  403     400     401    403  403     400      400     400    400    400      400      400     400       400    400  400   400   400      400       401    400      401     400
own ticket            401  401       401   403    403  200  403     400     401    200  200     400      400     400    400    400      400      400     400       400    400  400   400   400      400       401    400      401     400
ticket unknown        401  401       401   401    401  401  401     400     401    401  401     400      400     400    400    400      400      400     400       400    400  400   400   400      400       401    400      401     400
"""

# The same of a WebSocket: whether it opens (101), or else how that is refused, by a close code of
# 4000 more or, where a page may not even see that, by a status; and of each command on one that
# names no channel, which is asked of none that doesn't open.
SOCKETS = """
                      open  listen  subscribe  user  unsubscribe  acknowledge  own  publish  token  ping
nothing               401   401     401        401   401          401          401  401      401    401
expired               401   401     401        401   401          401          401  401      401    401
wrong key             401   401     401        401   401          401          401  401      401    401
alg none              401   401     401        401   401          401          401  401      401    401
public key as secret  401   401     401        401   401          401          401  401      401    401
wrong audience        401   401     401        401   401          401          401  401      401    401
no audience           401   401     401        401   401          401          401  401      401    401
unknown key           401   401     401        401   401          401          401  401      401    401
wrong claim           401   401     401        401   401          401          401  401      401    401
two tokens            401   401     401        401   401          401          401  401      401    401
ticket as a token     401   401     401        401   401          401          401  401      401    401
own ticket as a token 401   401     401        401   401          401          401  401      401    401
ticket in a cookie    401   401     401        401   401          401          401  401      401    401
basic                 401   401     401        401   401          401          401  401      401    401
subscriber            101   101     200        403   200          403          200  403      403    200
publisher             101   403     403        403   200          403          200  200      403    200
publisher elsewhere   101   403     403        403   200          403          200  403      403    200
other user            101   403     403        403   200          403          200  403      403    200
that user             101   403     403        200   200          200          200  403      403    200
back end              101   403     403        403   200          200          200  403      403    200
back end elsewhere    101   403     403        200   200          403          200  403      403    200
admin                 101   403     403        403   200          403          200  403      200    200
everything            101   101     200        200   200          200          200  200      200    200
cookie                101   101     200        200   200          200          200  200      200    200
cookie own page       101   101     200        200   200          200          200  200      200    200
cookie known page     101   101     200        200   200          200          200  200      200    200
cookie other page     403   403     403        403   403          403          403  403      403    403
cookie no page        403   403     403        403   403          403          403  403      403    403
cookie cross-site     403   403     403        403   403          403          403  403      403    403
cookie same-site      403   403     403        403   403          403          403  403      403    403
cookie typed in       101   101     200        200   200          200          200  200      200    200
cookie subscriber     101   101     200        403   200          403          200  403      403    200
cookie expired        403   403     403        403   403          403          403  403      403    403
header and cookie     401   401     401        401   401          401          401  401      401    401
session own page      101   101     200        403   200          403          403  200      403    200
session no origin     101   101     200        403   200          403          403  200      403    200
session known page    401   401     401        401   401          401          401  401      401    401
session other page    403   403     403        403   403          403          403  403      403    403
session same host     401   401     401        401   401          401          401  401      401    401
session same-site     401   401     401        401   401          401          401  401      401    401
session typed in      401   401     401        401   401          401          401  401      401    401
session unsaid        401   401     401        401   401          401          401  401      401    401
session and header    401   401     401        401   401          401          401  401      401    401
query                 101   101     200        200   200          200          200  200      200    200
query expired         401   401     401        401   401          401          401  401      401    401
query and header      401   401     401        401   401          401          401  401      401    401
ticket                101   101     200        403   200          403          403  403      403    200
own ticket            101   403     403        200   200          200          200  403      403    200
ticket unknown        401   401     401        401   401          401          401  401      401    401
"""
COMMANDS = {
    "subscribe": '"subscribe":["demo"]',
    "user": '"subscribe":["user:alice"]',
    "unsubscribe": '"unsubscribe":["broadcast"]',
    "acknowledge": '"acknowledge":["a/none"],"user":"alice"',
    "own": '"acknowledge":["a/none"]',
    "publish": f'"publish":{MESSAGE.decode()}',
    "token": '"token":"{later}"',
    "ping": '"ping":1',
}


class Credentials(NamedTuple):
    headers: dict[str, str]
    query: str = ""


def issue(sub: str, **more: Any) -> str:
    return signed(claims(sub, **({"aud": "msgpush"} | more)), RSA, kid="one")


def cookie(token: str, **headers: str) -> Credentials:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return Credentials({"Cookie": f"other=1; msgpush_token={token}; more=2", **given})


EVERYTHING: dict[str, Any] = {
    "subscribe": ["*"],
    "publish": ["*"],
    "users": ["*"],
    "admin": True,
}


PROVIDER, OWN = "http://127.0.0.1:9", "https://push.example"
GRANTED = '{"subscribe":["demo","service:*"],"publish":["service:a","demo","broadcast"]}'
CLAIM = "groups=ops"
SESSIONS = Sessions(SECRET, issuer=PROVIDER, origin=OWN, claim=CLAIM, given=read_claim(GRANTED))


def session(**headers: str) -> Credentials:
    _, text = SESSIONS.open("ada")
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return Credentials({"Cookie": text.partition(";")[0], **given})


async def credentials(client: AsgiDriver) -> dict[str, Credentials]:
    subscriber = issue("carol", subscribe=["demo", "service:*"])
    everything, expired = issue("root", **EVERYTHING), issue("root", **EVERYTHING, lifetime=-3600)
    made = await client.request(
        "POST", "/api/v1/tickets", b'{"channels":["demo"]}', bearer(subscriber)
    )
    ticket = made.json()["ticket"]
    own = await client.request(
        "POST",
        "/api/v1/tickets",
        b'{"channels":["user:alice"],"acknowledge":true}',
        bearer(issue("alice")),
    )
    acting = own.json()["ticket"]
    all_claims = claims("root", aud="msgpush", **EVERYTHING)
    publisher = issue("importer", publish=["service:a", "demo", "broadcast"])
    headers = {
        "nothing": {},
        "expired": bearer(expired),
        "wrong key": bearer(signed(all_claims, OTHER_RSA, kid="one")),
        "alg none": bearer(unsigned(all_claims)),
        "public key as secret": bearer(signed(all_claims, public_pem(RSA), kid="one")),
        "wrong audience": bearer(issue("root", **EVERYTHING, aud="other")),
        "no audience": bearer(signed(claims("root", **EVERYTHING), RSA, kid="one")),
        "unknown key": bearer(signed(all_claims, RSA, kid="two")),
        "wrong claim": bearer(issue("root", subscribe="*", publish=["*"], admin=True)),
        "two tokens": {
            "Authorization": f"Bearer {everything}",
            "authorization": f"Bearer {everything}",
        },
        "ticket as a token": bearer(ticket),
        "basic": {"Authorization": "Basic cm9vdDpyb290"},
        "subscriber": bearer(subscriber),
        "publisher": bearer(publisher),
        "publisher elsewhere": bearer(issue("importer", publish=["service:b", "dem", "demo2*"])),
        "other user": bearer(issue("bob")),
        "that user": bearer(issue("alice")),
        "back end": bearer(issue("desk", users=["al*"])),
        "back end elsewhere": bearer(issue("desk", users=["bob", "alic"], subscribe=["user:*"])),
        "own ticket as a token": bearer(acting),
        "admin": bearer(issue("root", admin=True)),
        "everything": {"Authorization": f"bEARER {everything}"},
    }
    return {
        **{name: Credentials(given) for name, given in headers.items()},
        "ticket in a cookie": cookie(ticket),
        "cookie": cookie(everything),
        "cookie own page": cookie(
            everything, Origin="http://localhost", Sec_Fetch_Site="same-origin"
        ),
        "cookie known page": cookie(
            everything, Origin="https://app.example", Sec_Fetch_Site="cross-site"
        ),
        "cookie other page": cookie(everything, Origin="https://localhost"),
        "cookie no page": cookie(everything, Origin="null"),
        "cookie cross-site": cookie(everything, Sec_Fetch_Site="cross-site"),
        "cookie same-site": cookie(everything, Sec_Fetch_Site="same-site"),
        "cookie typed in": cookie(everything, Sec_Fetch_Site="none"),
        "cookie subscriber": cookie(subscriber),
        "cookie expired": cookie(expired, Origin="https://evil.example"),
        # The first that is there decides, and nothing falls back.
        "header and cookie": Credentials({**bearer(expired), **cookie(everything).headers}),
        "session own page": session(Origin=OWN, Sec_Fetch_Site="same-origin"),
        "session no origin": session(Sec_Fetch_Site="same-origin"),
        "session known page": session(Origin="https://app.example", Sec_Fetch_Site="same-site"),
        "session other page": session(Origin="https://evil.example", Sec_Fetch_Site="cross-site"),
        "session same host": session(Origin="http://localhost"),
        "session same-site": session(Sec_Fetch_Site="same-site"),
        "session typed in": session(Sec_Fetch_Site="none"),
        "session unsaid": session(),
        "session and header": session(Origin=OWN, **bearer(expired)),
        "query": Credentials({}, f"?token={everything}"),
        "query expired": Credentials(cookie(everything).headers, f"?token={expired}"),
        "query and header": Credentials(bearer(expired), f"?token={everything}"),
        "ticket": Credentials({}, f"?token={ticket}"),
        "own ticket": Credentials({}, f"?token={acting}"),
        "ticket unknown": Credentials({}, f"?token={ticket[:-1]}_"),
    }


def rows(matrix: str = MATRIX) -> Iterator[tuple[str, dict[str, int]]]:
    head, *lines = matrix.strip("\n").splitlines()
    names = head.split()
    for line in lines:
        name, *statuses = re.split(r"  +|(?<=[a-z]) (?=\d)", line.strip())
        yield name, dict(zip(names, map(int, statuses), strict=True))


@pytest.fixture(scope="module")
def keys() -> Iterator[KeyServer]:
    with KeyServer(public_jwk(RSA, "one")) as server:
        yield server


@pytest.fixture
async def client(keys: KeyServer) -> AsyncIterator[AsgiDriver]:
    settings = Settings(
        jwks_url=keys.url,
        jwt_audience="msgpush",
        cors_origins=("https://app.example",),
        # Nobody is there: it signs nobody in here.
        oidc_issuer=PROVIDER,
        oidc_client_id="msgpush",
        oidc_admin_claim=CLAIM,
        oidc_grant=GRANTED,
        public_url=OWN,
        session_secret=SECRET,
    )
    app = create_app(settings)
    async with lifespan(app):
        yield AsgiDriver(app)


async def ask(client: AsgiDriver, endpoint: Endpoint, credentials: Credentials) -> Answer:
    method, target, body = endpoint
    query = credentials.query.replace("?", "&") if "?" in target else credentials.query
    target += query
    if method == "GET" and target.startswith("/sse/"):
        async with client.stream(target, credentials.headers) as exchange:
            return Answer(exchange.status, exchange.headers, exchange.body)
    return await client.request(method, target, body, credentials.headers)


def check_challenge(answer: Answer, credentials: Credentials) -> None:
    challenge = answer.headers.get("www-authenticate")
    if answer.status == 401:
        assert challenge is not None
        assert challenge.startswith(
            'Bearer realm="msgpush", error="invalid_token", error_description="'
        )
    elif (
        answer.status == 403
        and "Origin" not in credentials.headers
        and "Cookie" not in credentials.headers
    ):
        assert challenge is not None
        assert challenge.startswith(
            'Bearer realm="msgpush", error="insufficient_scope", error_description="'
        )
    elif answer.status != 403:
        assert challenge is None
    if answer.status in (401, 403):
        assert answer.headers["content-type"] == "application/problem+json"
        assert len(answer.json()["detail"]) > 20 or "HEAD" in answer.headers


@pytest.mark.parametrize(("name", "expected"), list(rows()), ids=[name for name, _ in rows()])
async def test_every_endpoint_gives_these_credentials_what_the_contract_says(
    client: AsgiDriver, name: str, expected: dict[str, int]
) -> None:
    given = (await credentials(client))[name]
    got = {}
    for column, endpoint in ENDPOINTS.items():
        answer = await ask(client, endpoint, given)
        got[column] = answer.status
        if endpoint.method != "HEAD":
            check_challenge(answer, given)
    assert got == expected
    for endpoint in OPEN:
        assert (await client.request("GET", endpoint.target, b"", given.headers)).status == 200


@pytest.mark.parametrize(
    ("name", "expected"), list(rows(SOCKETS)), ids=[name for name, _ in rows(SOCKETS)]
)
@pytest.mark.parametrize("wire", [True, False])
async def test_every_command_gives_these_credentials_what_the_contract_says(
    client: AsgiDriver, name: str, expected: dict[str, int], wire: bool
) -> None:
    client = AsgiDriver(client.app, wire=wire)
    given = (await credentials(client))[name]
    got = dict.fromkeys(expected, await connect(client, given))
    got["listen"] = await connect(client, given, "demo")
    if got["open"] == 101:
        async with client.socket(f"/ws{given.query}", given.headers) as socket:
            later = issue("root", **EVERYTHING, lifetime=900)
            for column, command in COMMANDS.items():
                socket.say(f'{{"ref":"{column}",{command}}}'.replace("{later}", later))
                answer = await socket.answer(column)
                got[column] = answer["error"]["status"] if "error" in answer else 200
    assert got == expected


async def connect(client: AsgiDriver, given: Credentials, *channels: str) -> int:
    """Whether a WebSocket opens, as `SOCKETS` has it."""
    query = [given.query.removeprefix("?"), *(f"channel={each}" for each in channels)]
    async with client.socket(f"/ws?{'&'.join(filter(None, query))}", given.headers) as socket:
        if socket.denial is not None:
            return socket.denial.status
        if (await socket.first())["event"] == "msgpush.open":
            return 101
        return await socket.closed() - 4000


async def test_the_matrix_knows_all_these_credentials(client: AsgiDriver) -> None:
    for matrix in (MATRIX, SOCKETS):
        assert [name for name, _ in rows(matrix)] != []
        assert {name for name, _ in rows(matrix)} == set(await credentials(client))
    assert {*COMMANDS} - {"user", "own"} == {*commands.COMMANDS}


async def test_no_route_is_missing_from_the_matrix(client: AsgiDriver) -> None:
    asked = [
        *ENDPOINTS.values(),
        *OPEN,
        *SIGN_IN,
        Endpoint("GET", "/admin"),
        Endpoint("GET", "/ws"),
    ]
    for route in create_app(Settings()).routes:
        if isinstance(route, Mount):
            assert any(endpoint.target.startswith(route.path) for endpoint in asked)
            continue
        assert isinstance(route, Route | WebSocketRoute)
        covered = {
            method
            for method, target, _ in asked
            if route.path_regex.fullmatch(target.partition("?")[0])
        }
        methods = (route.methods if isinstance(route, Route) else None) or {"GET"}
        # The regular expression of a route may match what an earlier one serves.
        assert methods - {"HEAD"} <= covered, f"{route.path} is not in the matrix"


@pytest.mark.parametrize(
    "settings",
    [Settings(), Settings(enable_auth=False), Settings(enable_auth=False, jwt_secret="s" * 32)],
)
async def test_the_open_modes_ask_for_nothing(settings: Settings) -> None:
    app = create_app(settings)
    async with lifespan(app):
        client = AsgiDriver(app)
        for headers in ({}, bearer("whatever")):
            got = {
                name: (await ask(client, each, Credentials(headers))).status
                for name, each in ENDPOINTS.items()
            }
            assert set(got.values()) == {200, 201, 202, 204, 404, 409}
            assert await connect(client, Credentials(headers), "demo", "user:alice") == 101


# Whose name can't be a channel's


async def test_a_subject_that_is_no_name_listens_to_itself_under_the_name_that_its_refusals_tell(
    client: AsgiDriver,
) -> None:
    headers = bearer(issue("acme/ann lee", publish=["*"]))
    refused = await client.request("GET", "/sse/user/acme%2Fann%20lee", b"", headers)
    assert refused.status == 400
    path = refused.json()["detail"].rpartition(" ")[2]
    assert path == "/sse/user/acme%252Fann%2520lee"
    message: dict[str, Any] = {
        "type": "info",
        "service": "a",
        "target": {"user_id": "acme/ann lee"},
    }
    send = "/api/v1/messages/send"
    refused = await client.request("POST", send, msgspec.json.encode(message), headers)
    assert refused.status == 422
    fault = refused.json()["errors"][0]
    assert fault["detail"].endswith('percent-encoded it is "acme%2Fann%20lee"')
    message["target"]["user_id"] = "acme%2Fann%20lee"
    async with client.stream(path, headers) as stream:
        await stream.read_until(b"\n\n")
        answer = await client.request("POST", send, msgspec.json.encode(message), headers)
        assert answer.json()["channels"][0] == "user:acme%2Fann%20lee"
        await stream.read_until(answer.json()["id"].encode())
    for other in ("acme%2Fann%20lee", "acme", "acme/ann"):
        assert (await client.request("GET", path, b"", bearer(issue(other)))).status == 403


# What a refusal says


async def test_a_refusal_says_which_permission_is_missing_for_which_channels(
    client: AsgiDriver,
) -> None:
    answer = await client.request(
        "GET", "/sse/stream/a,b,kb:1", b"", bearer(issue("bob", subscribe=["kb:*"]))
    )
    assert answer.status == 403
    assert answer.json()["detail"] == 'the permission to subscribe is missing for "a", "b"'
    body = b'{"type":"info","service":"a","target":{"user_id":"1"},"channels":["x"]}'
    answer = await client.request(
        "POST", "/api/v1/messages/send", body, bearer(issue("bob", publish=["user:*"]))
    )
    assert answer.json()["detail"] == 'the permission to publish is missing for "service:a", "x"'
    answer = await client.request("GET", "/api/v1/connections", b"", bearer(issue("bob")))
    assert answer.json()["detail"] == "the permission `admin` is missing"


async def test_a_refusal_names_a_few_of_many_channels(client: AsgiDriver) -> None:
    channels = ",".join(f"c{number:02}" for number in range(64))
    answer = await client.request("GET", f"/sse/stream/{channels}", b"", bearer(issue("bob")))
    assert answer.json()["detail"].endswith('missing for "c00", "c01", "c02", "c03", "c04", ...')


async def test_a_challenge_has_no_character_that_would_end_it(client: AsgiDriver) -> None:
    for token in (
        signed(claims("bob", aud='"\\\r\nX-Evil: 1é'), RSA, kid='"\r\né'),
        issue("bob", aud='"\\\n'),
    ):
        answer = await client.request("GET", "/api/v1/connections", b"", bearer(token))
        assert answer.status == 401
        description = re.fullmatch(
            r'Bearer realm="msgpush", error="invalid_token", error_description="([\x20\x21\x23-\x5b\x5d-\x7e]+)"',
            answer.headers["www-authenticate"],
        )
        assert description is not None


async def test_each_item_of_a_batch_is_allowed_by_itself(client: AsgiDriver) -> None:
    items = [
        {"type": "info", "service": "a", "channels": [name]} for name in ("demo", "other", "demo")
    ]
    headers = bearer(issue("importer", publish=["service:a", "demo"]))
    answer = await client.request(
        "POST", "/api/v1/messages/batch", msgspec.json.encode(items), headers
    )
    assert answer.status == 202
    first, second, third = answer.json()["results"]
    assert first["channels"] == third["channels"] == ["demo", "service:a"]
    assert second["error"]["status"] == 403
    assert '"other"' in second["error"]["detail"]


async def test_the_order_of_refusals_on_a_stream(client: AsgiDriver) -> None:
    bob = bearer(issue("bob"))
    assert (await client.request("POST", "/sse/stream/demo?x=1")).status == 405
    assert (await client.request("GET", "/sse/stream/demo?x=1")).status == 400
    assert (await client.request("GET", "/sse/stream/a b", b"", bob)).status == 400
    assert (await client.request("GET", "/sse/stream/demo?token=a&token=b", b"", bob)).status == 400
    assert (await client.request("GET", "/sse/stream/demo")).status == 401
    assert (await client.request("GET", "/sse/stream/demo", b"", bob)).status == 403
    over = "/sse/stream/a b?x=1&last_event_id=x.1-0~end"
    assert (await client.request("GET", over)).status == 204
    assert (await client.request("POST", over)).status == 204


async def test_a_cookie_is_read_as_it_is_and_costs_what_its_length_does(client: AsgiDriver) -> None:
    alice = issue("alice")
    for text, status in (
        (f"msgpush_token={alice}", 200),
        (f"a=b; msgpush_token = {alice} ;c", 200),
        (f"msgpush_token=; msgpush_token={alice}", 200),
        (f'msgpush_token="{alice}"', 401),
        (f"xmsgpush_token={alice}", 401),
        (f"msgpush_token%20={alice}", 401),
        ("msgpush_token=", 401),
        (";;;=;", 401),
    ):
        assert (
            await client.request("HEAD", "/sse/user/alice", b"", {"Cookie": text})
        ).status == status, text

    async def seconds(text: str) -> float:
        began = time.process_time()
        for _ in range(5):
            assert (
                await client.request("HEAD", "/sse/user/alice", b"", {"Cookie": text})
            ).status == 401
        return time.process_time() - began

    # An unquoting parser took a thousand times as long.
    assert await seconds('a="' + "\\" * 15_000 + '"') < 50 * await seconds(
        'a="' + "x" * 15_000 + '"'
    )


async def test_a_query_has_no_more_parameters_than_anybody_needs(client: AsgiDriver) -> None:
    alice = bearer(issue("alice"))
    for number, status in ((255, 200), (300, 400)):
        target = "/sse/user/alice?" + "&".join(f"_{n}=x" for n in range(number))
        assert (await client.request("HEAD", target, b"", alice)).status == status


async def test_who_may_publish_nothing_uses_up_no_names_in_the_metrics(client: AsgiDriver) -> None:
    eve = bearer(issue("eve"))
    for number in range(200):
        body = b'{"type":"info","service":"invented%d"}' % number
        assert (await client.request("POST", "/api/v1/messages/send", body, eve)).status == 403
    importer = bearer(issue("importer", publish=["*"]))
    assert (await client.request("POST", "/api/v1/messages/send", MESSAGE, importer)).status == 202
    metrics = (await client.request("GET", "/metrics")).body.decode()
    assert "invented" not in metrics
    assert (
        'message_push_messages_failed_total{reason="denied",service="other",type="info"} 200.0'
        in metrics
    )
    assert 'message_push_messages_sent_total{service="a",type="info"} 1.0' in metrics


# Keys and metrics


async def test_without_keys_a_stream_is_put_off_and_a_publish_is_told_when_to_come_again(
    keys: KeyServer,
) -> None:
    keys.status = 500
    try:
        app = create_app(Settings(jwks_url=keys.url))
        async with lifespan(app):
            client, headers = AsgiDriver(app), bearer(signed(claims("bob", publish=["*"]), RSA))
            answer = await client.request("GET", "/sse/user/bob", b"", headers)
            assert answer.status == 200
            assert b'data: {"reason":"overload","reconnect":true}\n' in answer.body
            answer = await client.request("POST", "/api/v1/messages/send", MESSAGE, headers)
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
            metrics = (await client.request("GET", "/metrics")).body
            assert b'message_push_refused_total{reason="keys"} 1.0' in metrics
            # A token that no key could make right is refused all the same.
            assert (await client.request("GET", "/sse/user/bob", b"", bearer("x"))).status == 401
    finally:
        keys.status = 200


@pytest.mark.parametrize("settings", [{}, {"enable_auth": False}, {"jwt_secret": "s" * 32}])
async def test_metrics_may_have_a_token_of_their_own(settings: dict[str, Any]) -> None:
    app = create_app(Settings(metrics_token="let.me-in", **settings))
    async with lifespan(app):
        client = AsgiDriver(app)
        assert (await client.request("GET", "/metrics", b"", bearer("let.me-in"))).status == 200
        for headers in (
            {},
            bearer("let.me-i"),
            bearer("let.me-in2"),
            bearer("é"),
            {"Cookie": "msgpush_token=let.me-in"},
        ):
            answer = await client.request("GET", "/metrics", b"", headers)
            assert answer.status == 401
            assert answer.headers["www-authenticate"].startswith("Bearer ")
        assert (await client.request("GET", "/metrics?token=let.me-in")).status == 401
