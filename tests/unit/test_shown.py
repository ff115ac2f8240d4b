"""`GET /api/v1/settings`: what is in force, where it came from, and nothing secret."""

from pathlib import Path

import pytest

from msgpush.adapters.http.settings import ShownSetting
from msgpush.entrypoints.app import create_app, lifespan
from msgpush.entrypoints.settings import Settings
from msgpush.entrypoints.shown import HIDDEN, PLAIN, URLS, bare, shown
from msgpush.entrypoints.table import FILES, SETTINGS
from tests.support.asgi import AsgiDriver
from tests.support.tokens import P256, bearer, public_pem, token

MARK = "h-u-n-t-e-r-2"
KEY = f"{MARK} is what tokens are signed with"
PEM = public_pem(P256)
# Each setting with a value that can be told from others; what is secret of it has the mark.
MARKED = {
    "service_uds": "/run/plain.sock",
    "service_uds_mode": "600",
    "workers": "3",
    "redis_url": f"rediss://user:{MARK}@plain-redis:6380/2?ssl_cert_reqs=none",
    "redis_wait_replicas": "1",
    "jwks_url": f"https://plain-keys.example/jwks?key={MARK}#{MARK}",
    "jwt_issuer": f"https://user:{MARK}@plain-issuer.example/x?{MARK}",
    "jwt_secret": KEY,
    "jwt_public_key": PEM,
    "oidc_issuer": "https://plain-id.example/realms/ops",
    "oidc_client_id": "plain-client",
    "oidc_client_secret": MARK,
    "oidc_scope": "openid plain",
    "oidc_admin_claim": "groups=plain",
    "oidc_grant": '{"subscribe":["plain"]}',
    "public_url": "https://plain.example/push",
    "session_secret": f"{MARK} is what sessions are signed with",
    "metrics_token": MARK,
    "cors_origins": '["https://plain-app.example"]',
    "jwt_audience": "plain-audience",
}


OTHERS = [
    {"REDIS_HOST": "plain-redis", "REDIS_PASSWORD": MARK},
    {"GATEWAY_URL": "https://plain-gateway.example/x", "GATEWAY_TOKEN": MARK},
    {"CONSUL_URL": "http://plain-consul:8500", "CONSUL_TOKEN": MARK},
    {"ETCD_URL": "http://plain-etcd:2379", "ETCD_USER": MARK, "ETCD_PASSWORD": MARK},
    {"VAPID_PRIVATE_KEY": MARK + "A" * 30, "VAPID_SUBJECT": "mailto:plain@example.com"},
]


async def asked(settings: Settings) -> tuple[str, list[ShownSetting]]:
    """The answer as it is sent, and what it says."""
    app = create_app(settings)
    key = settings.jwt_secret or KEY
    headers = bearer(token("root", key, admin=True, iss=settings.jwt_issuer))
    async with lifespan(app):
        answer = await AsgiDriver(app).request("GET", "/api/v1/settings", b"", headers)
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    return answer.body.decode(), [ShownSetting(**each) for each in answer.json()["settings"]]


def test_every_setting_is_in_one_of_the_lists() -> None:
    lists = (PLAIN, URLS, HIDDEN)
    assert {*SETTINGS} == PLAIN | URLS | HIDDEN, "decide what operators may see of a new setting"
    assert sum(map(len, lists)) == len(SETTINGS), "in one only"


def test_whatever_may_be_secret_is_not_shown_as_it_is() -> None:
    assert FILES.keys() <= URLS | HIDDEN


def test_no_mark_of_a_secret_is_in_what_is_shown_of_any_setting() -> None:
    settings = Settings.from_environ({name.upper(): text for name, text in MARKED.items()})
    found = {each.name: each for each in shown(settings)}
    assert [*found] == [name.upper() for name in SETTINGS], "in the table's order"
    assert MARK not in repr(found)
    assert PEM.splitlines()[1] not in repr(found)
    for name in MARKED:
        assert found[name.upper()].source == "environment", name
    for name in HIDDEN:
        assert found[name.upper()].value is None
    assert found["REDIS_URL"].value == "rediss://plain-redis:6380/2"
    assert found["JWKS_URL"].value == "https://plain-keys.example/jwks"
    assert found["JWT_ISSUER"].value == "https://plain-issuer.example/x"
    assert found["PUBLIC_URL"].value == "https://plain.example/push"
    assert found["OIDC_ADMIN_CLAIM"].value == "groups=plain"
    assert found["MAX_CONNECTIONS"] == ShownSetting("MAX_CONNECTIONS", "10000", "default")


@pytest.mark.parametrize("given", OTHERS, ids=[*map(" ".join, OTHERS)])
def test_nor_of_those_that_exclude_some_of_these(given: dict[str, str]) -> None:
    settings = Settings.from_environ(given | {"JWT_SECRET": KEY, "SERVICE_HOST": "0.0.0.0"})
    found = {each.name: each for each in shown(settings)}
    assert MARK not in repr(found)
    for name, text in given.items():
        value = None if MARK in text else text
        assert found[name] == ShownSetting(name, value, "environment")


def test_the_mark_is_in_every_setting_that_may_be_secret() -> None:
    tried = {name.upper() for name in MARKED}.union(*OTHERS)
    assert {name.upper() for name in FILES} <= tried


def test_a_setting_that_is_in_no_list_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msgpush.entrypoints.shown.PLAIN", PLAIN - {"log_level"})
    found = {each.name: each.value for each in shown(Settings())}
    assert (found["LOG_LEVEL"], found["LOG_FORMAT"]) == (None, "console")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://a.example/x", "https://a.example/x"),
        ("https://u:p@a.example/x", "https://a.example/x"),
        ("https://u@x:p@a.example/x?k=v#f", "https://a.example/x"),
        ("https://a.example?u:p@b", "https://a.example"),
        ("redis+sentinel://:p@a,b:1/name/1?sentinel_password=p", "redis+sentinel://a,b:1/name/1"),
        ("my back end", "my back end"),
        (" https://u:p@a.example", None),
        ("https://a.example/b@c.example", None),
        ("redis+sentinel://u:1/2@a/name", None),
        ("a.example#p", None),
        ("http://a:2379,http://b:2379", "http://a:2379,http://b:2379"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_user_and_query(url: str, told: str | None) -> None:
    assert bare(url) == told


async def test_an_admin_sees_where_each_setting_came_from(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(KEY)
    settings = Settings.from_environ(
        {"JWT_SECRET_FILE": str(tmp_path / "secret"), "ACK_RATE": "7.5", "LOG_LEVEL": "debug"},
        ["--log-level", "error"],
    )
    text, found = await asked(settings)
    assert MARK not in text
    told = {each.name: (each.value, each.source) for each in found if each.source != "default"}
    assert told == {
        "JWT_SECRET": (None, "file"),
        "ACK_RATE": ("7.5", "environment"),
        "LOG_LEVEL": ("error", "flag"),
    }


async def test_nobody_else_sees_them_and_there_are_no_parameters() -> None:
    app = create_app(Settings(jwt_secret=KEY))
    async with lifespan(app):
        client = AsgiDriver(app)
        assert (await client.request("GET", "/api/v1/settings")).status == 401
        bob = bearer(token("bob", KEY, subscribe=["*"], publish=["*"]))
        assert (await client.request("GET", "/api/v1/settings", b"", bob)).status == 403
        root = bearer(token("root", KEY, admin=True))
        assert (await client.request("GET", "/api/v1/settings?x=1", b"", root)).status == 400
