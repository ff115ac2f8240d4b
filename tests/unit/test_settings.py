"""Settings: one table; a wrong one stops the start with one line, and none is ignored."""

import json
import os
import tempfile
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OKPKey, RSAKey

from msgpush.adapters.notify.places import Place
from msgpush.adapters.notify.vapid import base64url
from msgpush.domain.message import TYPES
from msgpush.domain.quoting import short_repr
from msgpush.entrypoints.settings import Settings, SettingsError, help_text, markdown_table
from msgpush.entrypoints.table import DEFAULTS, FILES, SETTINGS
from tests.support.tokens import (
    ED448,
    ED25519,
    P256,
    P384,
    P521,
    RSA,
    SECRET,
    private_pem,
    public_pem,
)

with pytest.warns(SecurityWarning):
    SHORT_RSA = public_pem(RSAKey.generate_key(1024))
PEMS = [public_pem(key) for key in (RSA, P256, P384, P521, ED25519, ED448)]

VAPID = base64url(bytes(range(1, 33)))


def written(name: str, text: str) -> str:
    """The path of a file with this text: the same in all processes that run these tests."""
    folder = Path(tempfile.gettempdir(), f"msgpush-tests-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / f"{name}.{os.getpid()}").write_text(text)
    os.replace(folder / f"{name}.{os.getpid()}", folder / name)
    return str(folder / name)


APPLE_KEY = written("AuthKey_ABC123DEFG.p8", private_pem(P256))
SERVICE_ACCOUNT = written(
    "service-account.json",
    json.dumps(
        {
            "project_id": "a-project",
            "client_email": "push@a-project.example",
            "private_key": private_pem(RSA),
        }
    ),
)

BAD_NUMBERS = [
    "x",
    "-1",
    "+1",
    " 1",
    "1 ",
    "1\n",
    "1_0",
    "1e3",
    "0x10",
    "nan",
    "inf",
    "-0",
    "١",
    "9" * 400,
]
BAD_WHOLE = [*BAD_NUMBERS, "1.5", "1.0"]
BAD_SECONDS = [*BAD_NUMBERS, ".5", "5.", "1,5", "3601", "0.5.5"]
BAD_LISTS = ["x", "[", "{}", "null", "[1]", '["x"', '"x"', '[["x"]]', "[null]"]

BAD_URLS = ["consul", "consul:8500", "ftp://x", "http://", "http://a b", "http://a:0", "http:///x"]

GOOD: dict[str, list[tuple[str, Any]]] = {
    "SERVICE_HOST": [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("localhost", "localhost"),
        ("127.8.9.10",) * 2,
        ("::FFFF:127.0.0.1", "127.0.0.1"),
        ("0:0:0:0:0:0:0:1", "::1"),
    ],
    "SERVICE_PORT": [("0", 0), ("1", 1), ("65535", 65535)],
    "WORKERS": [("1", 1)],
    "REDIS_HOST": [("redis", "redis"), ("10.0.0.1", "10.0.0.1")],
    "REDIS_PORT": [("1", 1), ("65535", 65535)],
    "REDIS_PASSWORD": [("a b'\"=\n", "a b'\"=\n"), (" ", " ")],
    "REDIS_DB": [("0", 0), ("15", 15)],
    "REDIS_URL": [
        (url, url)
        for url in (
            "redis://r",
            "redis://r:1/3",
            "redis://[::1]:6379",
            f"rediss://u:p@r:6380/2?ssl_ca_certs={__file__}",
            "redis+sentinel://a,b/name/1?ssl=true&sentinel_password=x",
            "redis+cluster://a:1,b",
            "rediss://r?ssl_cert_reqs=none",
            "redis+cluster://r?ssl=true&ssl_cert_reqs=optional",
        )
    ],
    "REDIS_WAIT_REPLICAS": [("0", 0), ("64", 64)],
    "LOG_LENGTH": [("1000", 1000), ("100000000", 100_000_000)],
    "MEMORY_BUS_BYTES": [("8388608", 8388608), ("1099511627776", 1099511627776)],
    "HISTORY_LENGTH": [("1", 1), ("1000000", 1000000)],
    "MESSAGE_TTL": [("1", 1), ("604800", 604800)],
    "ACK_TTL": [("1", 1), ("604800", 604800)],
    "MAX_PENDING": [("1", 1), ("100000", 100_000)],
    "PENDING_BYTES": [("8388608", 8388608), ("1099511627776", 1099511627776)],
    "DEAD_LETTER_BYTES": [("8388608", 8388608), ("1099511627776", 1099511627776)],
    "DEAD_LETTER_TTL": [("1", 1), ("31536000", 31_536_000)],
    "ACK_RATE": [("0", 0.0), ("0.5", 0.5), ("1000000", 1000000.0)],
    "MAX_MESSAGE_BYTES": [("1024", 1024), ("16777216", 16777216)],
    "MAX_BATCH_BYTES": [("1024", 1024), ("1073741824", 1073741824)],
    "MAX_CONNECTIONS": [("1", 1), ("1000000", 1000000)],
    "HEARTBEAT_INTERVAL": [("0.2", 0.2), ("0.01", 0.01), ("30", 30.0), ("3600", 3600.0)],
    "DEFAULT_EVENTS": [
        ("progress,error", {"progress", "error"}),
        ("*", set(TYPES)),
        ("none", set()),
        ("custom", {"custom"}),
    ],
    "WRITE_TIMEOUT": [("0.5", 0.5), ("3600", 3600.0)],
    "HEADER_TIMEOUT": [("0.5", 0.5), ("3600", 3600.0)],
    "BODY_TIMEOUT": [("0.5", 0.5), ("3600", 3600.0)],
    "DRAIN_SECONDS": [("0", 0.0), ("0.5", 0.5), ("3600", 3600.0)],
    "CORS_ORIGINS": [
        ("[]", ()),
        (' [ "https://a.example" ] ', ("https://a.example",)),
        ('["http://localhost:3000", "app://x"]', ("http://localhost:3000", "app://x")),
        ('["http://[::1]:8080"]', ("http://[::1]:8080",)),
        ('["HTTPS://A.Example:443", "http://a:80"]', ("https://a.example", "http://a")),
        ('["http://[0:0:0:0:0:0:0:1]", "https://a.:443"]', ("http://[::1]", "https://a.")),
        ('["HTTPS://*.A.Example:443"]', ("https://*.a.example",)),
        (
            '["http://*.a.example:8080", "app://*.a.b.c"]',
            ("http://*.a.example:8080", "app://*.a.b.c"),
        ),
    ],
    "SERVICE_UDS": [("/run/msgpush.sock",) * 2, ("/é/" + "x" * 103,) * 2, ("/run/a b",) * 2],
    "SERVICE_UDS_MODE": [("660",) * 2, ("0600",) * 2, ("777",) * 2],
    "CORS_HEADERS": [("[]", ()), ('["X-Request-ID", "b3"]', ("X-Request-ID", "b3"))],
    "TRUSTED_PROXIES": [
        ("[]", ()),
        ('["10.0.0.0/8", "::1"]', (IPv4Network("10.0.0.0/8"), IPv6Network("::1/128"))),
        ('["192.0.2.1"]', (IPv4Network("192.0.2.1/32"),)),
        (
            '["::ffff:10.0.0.0/104", "::FFFF:c000:201"]',
            (IPv4Network("10.0.0.0/8"), IPv4Network("192.0.2.1/32")),
        ),
        ('["unix", "::1"]', ("unix", IPv6Network("::1/128"))),
        ('["2001:DB8::/32", "::/0"]', (IPv6Network("2001:db8::/32"), IPv6Network("::/0"))),
    ],
    "ROOT_PATH": [("/push", "/push"), ("/a/b-c.d", "/a/b-c.d")],
    "ENABLE_AUTH": [
        ("false", False),
        ("0", False),
        ("no", False),
        ("off", False),
        ("FALSE", False),
    ],
    "JWT_SECRET": [("s" * 32,) * 2, ("é" * 16,) * 2],
    "JWT_PUBLIC_KEY": [
        *((pem, pem) for pem in PEMS),
        (PEMS[0].replace("\n", "\\n"), PEMS[0].replace("\n", "\\n")),
    ],
    "JWKS_URL": [
        ("https://id.example/jwks",) * 2,
        ("http://keys",) * 2,
        ("http://keys?of=@x",) * 2,
    ],
    "MAX_TOKEN_LIFETIME": [("60", 60), ("2592000", 2_592_000)],
    "METRICS_TOKEN": [("abc-_.~+/=",) * 2],
    "MAX_CONNECTIONS_PER_SUBJECT": [("0", 0), ("1", 1)],
    "MAX_CONNECTIONS_PER_ADDRESS": [("0", 0), ("1000000", 1000000)],
    "PUBLISH_RATE": [("0", 0.0), ("0.0", 0.0), ("0.5", 0.5), ("1000000", 1000000.0)],
    "JWT_ISSUER": [
        (url, url)
        for url in (
            "https://id.example",
            "https://id.example:8443/realms/app",
            "http://127.0.0.1:8080/x/",
        )
    ],
    "JWT_AUDIENCE": [
        ("msgpush", "msgpush"),
        ('["msgpush"]', ("msgpush",)),
        (' ["x"]', ' ["x"]'),
        ('["a", "https://b"]', ("a", "https://b")),
    ],
    "JWT_AUDIENCE_CLAIM": [("client_id",) * 2, ("https://example.com/claims/for",) * 2],
    "JWT_LEEWAY": [("0", 0.0), ("2.5", 2.5)],
    "TRACE_MESSAGES": [("true", True), ("off", False)],
    "OIDC_ISSUER": [
        (url, url)
        for url in ("https://id.example", "https://id.example/realms/ops/", "http://[::1]:8080/x")
    ],
    "OIDC_CLIENT_ID": [("msgpush",) * 2, ("0oa1-b.c d",) * 2],
    "OIDC_CLIENT_SECRET": [("hush",) * 2, (" a b'\"=\n",) * 2],
    "OIDC_SCOPE": [("openid",) * 2, ("openid groups",) * 2, ("profile openid a:b/c",) * 2],
    "OIDC_ADMIN_CLAIM": [
        ("groups=ops",) * 2,
        ("realm_access.roles=ops",) * 2,
        ("groups=Domain Admins",) * 2,
        ("https://a.example/groups=a=b",) * 2,
    ],
    "OIDC_GRANT": [
        (text, text)
        for text in ("{}", '{"subscribe":["*"],"publish":["service:a"],"users":["acme-*"]}')
    ],
    "PUBLIC_URL": [
        ("https://push.example.com",) * 2,
        ("https://push.example.com:8443/push/", "https://push.example.com:8443/push"),
        ("http://127.0.0.1:8089/", "http://127.0.0.1:8089"),
        ("http://localhost:8089/a/b",) * 2,
    ],
    "SESSION_SECRET": [("s" * 32,) * 2, ("é" * 16,) * 2],
    "GATEWAY_URL": [("https://gw.example/push",) * 2, ("http://gw:8080",) * 2],
    "GATEWAY_TOKEN": [("abc-_.~+/=",) * 2],
    "CONSUL_URL": [("http://127.0.0.1:8500",) * 2, ("http://[::1]:8500/",) * 2],
    "CONSUL_TOKEN": [("6f9c3a1e-0000-4000-8000-1234567890ab",) * 2],
    "ETCD_URL": [
        ("http://etcd:2379",) * 2,
        ("https://a:1, https://b:2", "https://a:1,https://b:2"),
    ],
    "ETCD_USER": [("msgpush",) * 2],
    "ETCD_PASSWORD": [("a b'\"=\n",) * 2],
    "SERVICE_NAME": [("msgpush",) * 2, ("p",) * 2, ("eu.push_2-a",) * 2],
    "ADVERTISE_ADDRESS": [("10.0.0.7",) * 2, ("push-1.internal",) * 2, ("fd00::1",) * 2],
    "ADVERTISE_PORT": [("1", 1), ("65535", 65535)],
    "ADVERTISE_SCHEME": [("http",) * 2, ("HTTPS", "https")],
    "REGISTRY_TTL": [("3", 3), ("3600", 3600)],
    "WITHDRAW_SECONDS": [("0", 0.0), ("2.5", 2.5)],
    "LOG_LEVEL": [
        ("debug",) * 2,
        ("info",) * 2,
        ("warning",) * 2,
        ("error",) * 2,
        ("INFO", "info"),
    ],
    "LOG_FORMAT": [("console",) * 2, ("json",) * 2, ("JSON", "json")],
    "VAPID_PRIVATE_KEY": [(VAPID,) * 2, (private_pem(P256),) * 2],
    "VAPID_SUBJECT": [("mailto:ops@example.com",) * 2, ("https://example.com/contact",) * 2],
    "PUSH_ENDPOINTS": [
        ('["push.example"]', (Place("push.example"),)),
        ('["localhost:8443", "[::1]:1"]', (Place("localhost", 8443), Place("::1", 1))),
        ("[]", ()),
    ],
    "FCM_CREDENTIALS": [(SERVICE_ACCOUNT,) * 2],
    "FCM_URL": [("https://fcm.example",) * 2, ("https://localhost:8443/x",) * 2],
    "APNS_KEY": [(APPLE_KEY,) * 2],
    "APNS_KEY_ID": [("ABC123DEFG",) * 2],
    "APNS_TEAM_ID": [("DEF123GHIJ",) * 2],
    "APNS_TOPIC": [("com.example.app",) * 2],
    "APNS_URL": [("https://api.sandbox.push.apple.com",) * 2],
    "PUSH_DELAY": [("0", 0.0), ("2.5", 2.5), ("3600", 3600.0)],
    "PUSH_CONCURRENCY": [("1", 1), ("1000", 1000)],
}

BAD: dict[str, tuple[list[str], str]] = {
    "SERVICE_HOST": (
        ["[::1]", "a b", "http://x", "127.0.0.1:80", "*", " ", "-", "é", "::g"],
        "an IP address such as",
    ),
    "SERVICE_PORT": ([*BAD_WHOLE, "65536"], "a whole number from 0 to 65535"),
    "WORKERS": ([*BAD_WHOLE, "0", "65"], "a whole number from 1 to 64"),
    "REDIS_HOST": (["[::1]", "redis:6379", "redis://r"], "an IP address such as"),
    "REDIS_PORT": ([*BAD_WHOLE, "0", "65536"], "a whole number from 1 to 65535"),
    "REDIS_DB": ([*BAD_WHOLE, "65536"], "a whole number from 0 to 65535"),
    "REDIS_URL": (
        [
            "redis",
            "http://r",
            "redis://",
            "redis:///0",
            "redis://a b",
            "unix:///x",
            "redis://a,b",
            "redis://a/x",
            "redis://a/0/1",
            "redis://a:99999",
            "redis+sentinel://a",
            "redis+cluster://a/0",
            "redis+cluster://a,,b",
        ],
        "redis+cluster://",
    ),
    "REDIS_WAIT_REPLICAS": ([*BAD_WHOLE, "65"], "a whole number from 0 to 64"),
    "LOG_LENGTH": ([*BAD_WHOLE, "999", "100000001"], "a whole number from 1000 to 100000000"),
    "MEMORY_BUS_BYTES": (
        [*BAD_WHOLE, "0", "8388607", "1099511627777"],
        "a whole number of bytes from 8388608 to",
    ),
    "HISTORY_LENGTH": ([*BAD_WHOLE, "0", "1000001"], "a whole number from 1 to 1000000"),
    "MESSAGE_TTL": ([*BAD_WHOLE, "0", "604801"], "a whole number of seconds from 1 to 604800"),
    "ACK_TTL": ([*BAD_WHOLE, "0", "604801"], "a whole number of seconds from 1 to 604800"),
    "MAX_PENDING": ([*BAD_WHOLE, "0", "100001"], "a whole number from 1 to 100000"),
    "PENDING_BYTES": (
        [*BAD_WHOLE, "0", "8388607", "1099511627777"],
        "a whole number of bytes from 8388608 to",
    ),
    "DEAD_LETTER_BYTES": (
        [*BAD_WHOLE, "0", "8388607", "1099511627777"],
        "a whole number of bytes from 8388608 to",
    ),
    "DEAD_LETTER_TTL": (
        [*BAD_WHOLE, "0", "31536001"],
        "a whole number of seconds from 1 to 31536000",
    ),
    "ACK_RATE": (
        [*BAD_NUMBERS, "1000001"],
        "a number of acknowledgements a second from 0 to 1000000",
    ),
    "MAX_MESSAGE_BYTES": (
        [*BAD_WHOLE, "1023", "16777217"],
        "a whole number of bytes from 1024 to 16777216",
    ),
    "MAX_BATCH_BYTES": (
        [*BAD_WHOLE, "1023", "1073741825"],
        "a whole number of bytes from 1024 to 1073741824",
    ),
    "MAX_CONNECTIONS": ([*BAD_WHOLE, "0", "1000001"], "a whole number from 1 to 1000000"),
    "MAX_CONNECTIONS_PER_SUBJECT": ([*BAD_WHOLE, "1000001"], "a whole number from 0 to 1000000"),
    "MAX_CONNECTIONS_PER_ADDRESS": ([*BAD_WHOLE, "1000001"], "a whole number from 0 to 1000000"),
    "PUBLISH_RATE": ([*BAD_NUMBERS, "1000001"], "a number of messages a second from 0 to 1000000"),
    "HEARTBEAT_INTERVAL": (
        [*BAD_SECONDS, "0", "0.0", "0.001"],
        "a number of seconds from 0.01 to 3600",
    ),
    "DEFAULT_EVENTS": (
        ["x", "progress,", "progress, error", "progress,*", "PROGRESS", " "],
        "progress, status, error",
    ),
    "WRITE_TIMEOUT": ([*BAD_SECONDS, "0"], "a number of seconds from 0.01 to 3600"),
    "HEADER_TIMEOUT": ([*BAD_SECONDS, "0"], "a number of seconds from 0.01 to 3600"),
    "BODY_TIMEOUT": ([*BAD_SECONDS, "0"], "a number of seconds from 0.01 to 3600"),
    "DRAIN_SECONDS": (BAD_SECONDS, "a number of seconds from 0 to 3600"),
    "CORS_ORIGINS": (
        [
            *BAD_LISTS,
            "https://a.example",
            '["*"]',
            '["null"]',
            '["https://a.example/"]',
            '["https://a.example/x"]',
            '["https://*.example"]',
            '["https://u@a.example"]',
            '["a.example"]',
            '["https://a:65536"]',
            '["https://a:"]',
            '["https://a b"]',
            '["https://a?x"]',
            '["https://ä.example"]',
            '["https://[::g]"]',
            '["https://*"]',
            '["https://*:443"]',
            '["https://*."]',
            '["https://*.com"]',
            '["https://*.com:8443"]',
            '["https://*.0.0.1"]',
            '["https://*.[::1]"]',
            '["*://*.a.example"]',
            '["*://a.example"]',
            '["*.a.example"]',
            '["https://*a.example"]',
            '["https://a.*.example.com"]',
            '["https://*.*.example.com"]',
            '["https://*.a.example/"]',
            '["https://*.a.example:65536"]',
            '["https://*..example"]',
            '["https://a.example:*"]',
        ],
        'a JSON list of origins, scheme://host or scheme://host:port, such as ["https://app.example.com"]',
    ),
    "SERVICE_UDS": (
        [
            "msgpush.sock",
            "./x",
            "unix:/run/x",
            "@x",
            "/run/",
            "/",
            "/" + "x" * 107,
            "/é/" + "x" * 104,
        ],
        "a path such as /run/msgpush/http.sock: from the root, and of 107 bytes at most",
    ),
    "SERVICE_UDS_MODE": (
        ["66", "0o660", "888", "1777", "rw-rw----", "-660"],
        "an octal mode such as 660 or 666",
    ),
    "CORS_HEADERS": (
        [*BAD_LISTS, "x", '["*"]', '[""]', '["a b"]', '["a:"]', '["ä"]', '["a\\r"]'],
        "names of headers",
    ),
    "TRUSTED_PROXIES": (
        [
            *BAD_LISTS,
            "10.0.0.1",
            '["10.0.0.1/8"]',
            '["proxy"]',
            '["*"]',
            '["10.0.0.0/33"]',
            '["::1%lo"]',
            '[""]',
        ],
        "a JSON list of IP addresses and networks",
    ),
    "ROOT_PATH": (
        [
            "/",
            "push",
            "/push/",
            "//push",
            "/a//b",
            "/a b",
            "/a?x",
            "https://a/x",
            "/a%2Fb",
            "/a/%2f",
        ],
        "a path such as /push",
    ),
    "ENABLE_AUTH": (["x", "2", "tru", " true", "null"], "true or false"),
    "JWT_SECRET": (["s" * 31, "é" * 15, " ", PEMS[0]], "at least 32 bytes long"),
    "JWT_PUBLIC_KEY": (
        [
            "x",
            "-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----",
            private_pem(RSA),
            private_pem(P256),
            private_pem(ED25519),
            SHORT_RSA,
            public_pem(ECKey.generate_key("secp256k1")),
            public_pem(OKPKey.generate_key("X25519")),
            PEMS[0][:-40],
        ],
        "a public key in PEM: RSA of 2048 bits or more, EC on P-256, P-384 or P-521, Ed25519 or Ed448",
    ),
    "JWT_ISSUER": (
        [
            "id",
            "id.example",
            "http://id.example",
            "http://127.0.0.1.example",
            "ftp://id.example",
            "https://",
            "https:///x",
            "https://u@id.example",
            "https://id.example?x=1",
            "https://id.example/#x",
            "https://id.example/a b",
            "https://id.ex\u00e4mple",
            "https://id.example:99999",
            "HTTPS://id.example",
            "https://[::1",
            " https://id.example",
        ],
        "found by OpenID discovery, for which it must be an https:// URL",
    ),
    "JWT_AUDIENCE": (
        ["[", "[]", '[""]', '["a", 7]', '["a"', '[["a"]]'],
        "any text, or a JSON list of such",
    ),
    "JWT_AUDIENCE_CLAIM": (["x" * 201], "the name of a claim"),
    "MAX_TOKEN_LIFETIME": ([*BAD_WHOLE, "59"], "a whole number of seconds from 60 to"),
    "JWKS_URL": (
        ["id.example/jwks", "ftp://x", "https://", "https:///jwks", "https://a b"],
        "https:// or http://, and names no user",
    ),
    "JWT_LEEWAY": (BAD_SECONDS, "a number of seconds from 0 to 3600"),
    "GATEWAY_URL": (BAD_URLS, "has no user, query or fragment"),
    "GATEWAY_TOKEN": (["a b", "é", "a\n"], "text of A-Za-z0-9._~+/=-"),
    "CONSUL_URL": (BAD_URLS, "has no user, query or fragment"),
    "CONSUL_TOKEN": (["a b", "é", "a\r\nX: y"], "text of A-Za-z0-9._~+/=-"),
    "ETCD_URL": ([*BAD_URLS, "http://a,", "http://a,b"], "or several, with commas"),
    "SERVICE_NAME": (["a b", "-a", "a/b", "é", "x" * 64], "1 to 63 of A-Za-z0-9._-"),
    "ADVERTISE_ADDRESS": (["0.0.0.0", "::", "[::1]", "a:1", "http://a"], "of one machine"),
    "ADVERTISE_PORT": ([*BAD_WHOLE, "0", "65536"], "a whole number from 1 to 65535"),
    "ADVERTISE_SCHEME": (["ws", "h2"], "http or https"),
    "REGISTRY_TTL": ([*BAD_WHOLE, "2", "3601"], "a whole number of seconds from 3 to 3600"),
    "WITHDRAW_SECONDS": (BAD_SECONDS, "a number of seconds from 0 to 3600"),
    "METRICS_TOKEN": (["a b", "é", "a\n", '"'], "text of A-Za-z0-9._~+/=-"),
    "TRACE_MESSAGES": (["x", "2"], "true or false"),
    "OIDC_ISSUER": (
        [
            "id.example",
            "http://id.example",
            "https://u@id.example",
            "https://id.example?x=1",
            "https://id.example/#x",
            "https://id.example/a b",
            "HTTPS://id.example",
        ],
        "an https:// URL without query, fragment or user",
    ),
    "OIDC_SCOPE": (
        ["profile", "openidx", "openid  x", " openid", "openid ", 'openid,x "', "OPENID"],
        "one of which is openid",
    ),
    "OIDC_ADMIN_CLAIM": (
        ["groups", "=ops", "groups=", "a b=c", "groups= a", "groups=a ", "groups=a\nb"],
        "such as groups=ops",
    ),
    "OIDC_GRANT": (
        [
            "x",
            "[]",
            '{"subscribe":"*"}',
            '{"subscribes":["*"]}',
            '{"publish":["a b"]}',
            '{"users":["a,b"]}',
            "[" * 5000,
        ],
        "what a token's claim msgpush may be",
    ),
    "PUBLIC_URL": (
        [
            "https://push.example.com:",
            "https://push,example.com",
            "https://a b.example",
            "https://push.example.com/../x",
            "https://push.example.com/x/.",
            "push.example.com",
            "http://push.example.com",
            "https://",
            "https://u@push.example.com",
            "https://push.example.com?x",
            "https://push.example.com/#x",
            "https://push.example.com//x",
            "https://push.example.com/a;b",
            "ftp://127.0.0.1",
        ],
        "such as https://push.example.com or https://example.com/push",
    ),
    "SESSION_SECRET": (["s" * 31, " ", PEMS[0]], "at least 32 bytes long"),
    "LOG_LEVEL": (["trace", "critical", "10", " info"], "debug, info, warning or error"),
    "LOG_FORMAT": (["text", "console,json"], "console or json"),
    "VAPID_PRIVATE_KEY": (
        ["x", VAPID[:-2], private_pem(RSA), private_pem(P384), public_pem(P256)],
        "a private key on P-256, in PEM or as 32 bytes in base64url",
    ),
    "VAPID_SUBJECT": (
        ["ops@example.com", "http://x", "mailto:", "mailto:a b@c", "https://"],
        "mailto: and an address, or an https URL",
    ),
    "PUSH_ENDPOINTS": (
        [*BAD_LISTS, '["https://push.example"]', '["*.example"]', '["a:b"]', '[""]', '["a/b"]'],
        "a JSON list of names of hosts",
    ),
    "FCM_CREDENTIALS": (["/none", APPLE_KEY, "/"], ""),
    "FCM_URL": (["http://x", "x", "https://u@x", "https://x?y"], "begins with https://"),
    "APNS_KEY": (["/none", SERVICE_ACCOUNT, "/"], ""),
    "APNS_KEY_ID": (["", "a b", "é", "x" * 21][1:], "letters and digits"),
    "APNS_TEAM_ID": (["a-b", "x" * 21], "letters and digits"),
    "APNS_TOPIC": (["com.example app", "x" * 201], "an app's bundle id"),
    "APNS_URL": (["http://x", "x", "https://u@x", "https://x?y"], "begins with https://"),
    "PUSH_DELAY": (BAD_SECONDS, "a number of seconds from 0 to 3600"),
    "PUSH_CONCURRENCY": ([*BAD_WHOLE, "0", "1001"], "a whole number from 1 to 1000"),
}

ANYTHING_GOES = {
    *("REDIS_PASSWORD", "OIDC_CLIENT_ID", "OIDC_CLIENT_SECRET", "ETCD_USER", "ETCD_PASSWORD"),
}
# What stands for the public key may be the private one, by mistake.
ALWAYS_SECRET = {
    *("JWT_SECRET", "JWT_PUBLIC_KEY", "REDIS_PASSWORD", "METRICS_TOKEN"),
    *("OIDC_CLIENT_SECRET", "SESSION_SECRET"),
    *("GATEWAY_TOKEN", "CONSUL_TOKEN", "ETCD_PASSWORD"),
    "VAPID_PRIVATE_KEY",
}


# What a setting needs to be used, and so to be read.
REDIS, KEY = {"REDIS_HOST": "redis"}, {"JWT_SECRET": SECRET}
SIGN_IN = KEY | {
    "OIDC_ISSUER": "https://id.example",
    "OIDC_CLIENT_ID": "msgpush",
    "OIDC_ADMIN_CLAIM": "groups=ops",
    "PUBLIC_URL": "https://push.example.com",
}
OF_SIGN_IN = (
    *("OIDC_CLIENT_ID", "OIDC_CLIENT_SECRET", "OIDC_SCOPE", "OIDC_ADMIN_CLAIM", "OIDC_GRANT"),
    *("PUBLIC_URL", "SESSION_SECRET"),
)
# What is announced to others must be there for them.
OTHERS = {"SERVICE_HOST": "0.0.0.0", "ENABLE_AUTH": "false"}
ETCD = OTHERS | {"ETCD_URL": "http://etcd:2379"}
WEB_PUSH = {"VAPID_PRIVATE_KEY": VAPID, "VAPID_SUBJECT": "mailto:ops@example.com"}
APNS_NAMES = {
    "APNS_KEY_ID": "ABC123DEFG",
    "APNS_TEAM_ID": "DEF123GHIJ",
    "APNS_TOPIC": "com.example.app",
}
APNS = {"APNS_KEY": APPLE_KEY, **APNS_NAMES}
NEEDS: dict[str, dict[str, str]] = {
    "OIDC_ISSUER": SIGN_IN,
    **dict.fromkeys(OF_SIGN_IN, SIGN_IN),
    "GATEWAY_URL": OTHERS,
    "GATEWAY_TOKEN": OTHERS | {"GATEWAY_URL": "http://gw"},
    "CONSUL_URL": OTHERS,
    "CONSUL_TOKEN": OTHERS | {"CONSUL_URL": "http://consul:8500"},
    "ETCD_URL": OTHERS,
    "ETCD_USER": ETCD,
    "ETCD_PASSWORD": ETCD | {"ETCD_USER": "x"},
    "SERVICE_NAME": ETCD,
    "ADVERTISE_ADDRESS": ETCD,
    "ADVERTISE_PORT": ETCD,
    "ADVERTISE_SCHEME": ETCD,
    "REGISTRY_TTL": ETCD,
    "WITHDRAW_SECONDS": ETCD,
    "SERVICE_UDS_MODE": {"SERVICE_UDS": "/run/push.sock"},
    "REDIS_PORT": REDIS,
    "REDIS_PASSWORD": REDIS,
    "REDIS_DB": REDIS,
    "REDIS_WAIT_REPLICAS": REDIS,
    "PENDING_BYTES": REDIS,
    "LOG_LENGTH": REDIS,
    "JWT_AUDIENCE": KEY,
    "JWT_AUDIENCE_CLAIM": KEY | {"JWT_AUDIENCE": "x"},
    "JWT_LEEWAY": KEY,
    "MAX_TOKEN_LIFETIME": KEY,
    "VAPID_PRIVATE_KEY": {"VAPID_SUBJECT": "mailto:ops@example.com"},
    "VAPID_SUBJECT": {"VAPID_PRIVATE_KEY": VAPID},
    "PUSH_ENDPOINTS": WEB_PUSH,
    "PUSH_DELAY": WEB_PUSH,
    "PUSH_CONCURRENCY": WEB_PUSH,
    "FCM_URL": {"FCM_CREDENTIALS": SERVICE_ACCOUNT},
    "APNS_KEY": APNS_NAMES,
    "APNS_KEY_ID": APNS,
    "APNS_TEAM_ID": APNS,
    "APNS_TOPIC": APNS,
    "APNS_URL": APNS,
}
# What is used alone, and needs others all the same.
COMPLETES = ("VAPID_PRIVATE_KEY", "APNS_KEY")


def needs(name: str) -> dict[str, str]:
    return NEEDS.get(name, {})


def cases(table: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, case) for name, each in table.items() for case in each]


def flag(name: str) -> str:
    return "--" + name.lower().replace("_", "-")


def refusal(environ: dict[str, str], argv: list[str] | None = None) -> str:
    """The one line with which these settings stop the start."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ(environ, argv or [])
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert text.isprintable()
    return text


def outcome(environ: dict[str, str], argv: list[str]) -> str | None:
    """The line with which these settings stop the start, if they do."""
    try:
        Settings.from_environ(environ, argv)
    except SettingsError as error:
        return str(error)
    return None


def test_these_tables_cover_every_setting() -> None:
    names = {name.upper() for name in SETTINGS}
    assert GOOD.keys() == names
    assert BAD.keys() | ANYTHING_GOES == names


def test_the_defaults_are_the_contracts() -> None:
    assert {name.upper(): text for name, text in DEFAULTS.items() if text} == {
        "SERVICE_HOST": "127.0.0.1",
        "SERVICE_PORT": "8089",
        "WORKERS": "1",
        "REDIS_PORT": "6379",
        "REDIS_DB": "2",
        "REDIS_WAIT_REPLICAS": "0",
        "LOG_LENGTH": "100000",
        "MEMORY_BUS_BYTES": "268435456",
        "HISTORY_LENGTH": "1000",
        "MESSAGE_TTL": "3600",
        "ACK_TTL": "86400",
        "MAX_PENDING": "200",
        "PENDING_BYTES": "268435456",
        "DEAD_LETTER_BYTES": "67108864",
        "DEAD_LETTER_TTL": "604800",
        "ACK_RATE": "1000",
        "MAX_MESSAGE_BYTES": "262144",
        "MAX_BATCH_BYTES": "16777216",
        "MAX_CONNECTIONS": "10000",
        "MAX_CONNECTIONS_PER_SUBJECT": "0",
        "MAX_CONNECTIONS_PER_ADDRESS": "0",
        "PUBLISH_RATE": "0",
        "HEARTBEAT_INTERVAL": "30",
        "DEFAULT_EVENTS": "progress",
        "PUSH_ENDPOINTS": '["fcm.googleapis.com", "push.services.mozilla.com",'
        ' "push.apple.com", "notify.windows.com"]',
        "FCM_URL": "https://fcm.googleapis.com",
        "APNS_URL": "https://api.push.apple.com",
        "PUSH_DELAY": "5",
        "PUSH_CONCURRENCY": "50",
        "WRITE_TIMEOUT": "30",
        "HEADER_TIMEOUT": "5",
        "BODY_TIMEOUT": "30",
        "DRAIN_SECONDS": "10",
        "CORS_ORIGINS": "[]",
        "CORS_HEADERS": "[]",
        "SERVICE_UDS_MODE": "660",
        "TRUSTED_PROXIES": "[]",
        "JWT_AUDIENCE_CLAIM": "aud",
        "JWT_LEEWAY": "30",
        "MAX_TOKEN_LIFETIME": "2592000",
        "TRACE_MESSAGES": "false",
        "OIDC_SCOPE": "openid",
        "OIDC_GRANT": "{}",
        "SERVICE_NAME": "msgpush",
        "ADVERTISE_SCHEME": "http",
        "REGISTRY_TTL": "15",
        "WITHDRAW_SECONDS": "3",
        "LOG_LEVEL": "info",
        "LOG_FORMAT": "console",
    }
    assert Settings.from_environ({}) == Settings()


def test_every_default_reads_back_as_itself() -> None:
    environ = {name.upper(): text for name, text in DEFAULTS.items()}
    assert Settings.from_environ(environ) == Settings()


@pytest.mark.parametrize(("name", "case"), cases(GOOD))
def test_a_right_value_is_taken_from_the_environment_and_from_a_flag(
    name: str, case: tuple[str, Any]
) -> None:
    text, value = case
    ways = (
        Settings.from_environ(needs(name) | {name: text}),
        Settings.from_environ(needs(name), [flag(name), text]),
        Settings.from_environ(needs(name), [f"{flag(name)}={text}"]),
    )
    for settings in ways:
        read = getattr(settings, name.lower())
        assert read == value
        assert (
            type(read) is type(getattr(Settings(), name.lower()))
            or getattr(Settings(), name.lower()) is None
        )


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, (texts, _) in BAD.items() for text in texts]
)
def test_a_wrong_value_is_refused_in_a_line_with_the_setting_the_value_and_what_is_allowed(
    name: str, text: str
) -> None:
    _, allowed = BAD[name]
    for label, line in (
        (name, refusal(needs(name) | {name: text})),
        (flag(name), refusal(needs(name), [flag(name), text])),
        (flag(name), refusal(needs(name), [f"{flag(name)}={text}"])),
    ):
        assert line.startswith(label + " ")
        assert allowed in line
        if name not in ALWAYS_SECRET:
            assert short_repr(text)[:70] in line


def test_an_empty_variable_counts_as_unset() -> None:
    assert Settings.from_environ({name.upper(): "" for name in SETTINGS}) == Settings()


def test_a_flag_wins_over_the_environment_and_an_empty_flag_unsets_it() -> None:
    environ = {"SERVICE_PORT": "1", "REDIS_HOST": "redis", "HISTORY_LENGTH": "wrong"}
    settings = Settings.from_environ(
        environ, ["--service-port", "2", "--redis-host=", "--history-length", "3"]
    )
    assert (settings.service_port, settings.redis_host, settings.history_length) == (2, None, 3)


def test_the_last_of_equal_flags_counts() -> None:
    assert Settings.from_environ({}, ["--service-port", "1", "--service-port=2"]).service_port == 2


def test_other_variables_are_none_of_our_business() -> None:
    assert (
        Settings.from_environ({"PATH": "/bin", "SERVICE_PROT": "x", "service_port": "x"})
        == Settings()
    )


@pytest.mark.parametrize("argv", [["--service-port"], ["--service-port", "--log-level", "debug"]])
def test_a_flag_without_a_value_is_refused_with_what_is_allowed(argv: list[str]) -> None:
    assert (
        refusal({}, argv)
        == "--service-port has no value: it must be a whole number from 0 to 65535"
    )


@pytest.mark.parametrize(
    ("argument", "near"),
    [
        ("--service-prot", "--service-port"),
        ("--SERVICE_PORT=1", "--service-port"),
        ("--history", "--history-length"),
        ("--jwt-secrets=x", "--jwt-secret"),
        ("--max-connection", "--max-connections"),
    ],
)
def test_an_unknown_flag_is_refused_with_the_nearest_name(argument: str, near: str) -> None:
    line = refusal({}, [argument, "1"])
    name = argument.partition("=")[0]
    assert line.startswith(f'"{name}" is no flag')
    assert line.endswith(f"did you mean {near}?")


def test_an_unknown_flag_that_resembles_none_points_at_the_help() -> None:
    assert refusal({}, ["--zzz\n"]).endswith("msgpush serve --help lists them all")


@pytest.mark.parametrize(
    "argv", [["SERVICE_PORT=8089"], ["-service-port", "8089"], ["service-port"]]
)
def test_an_argument_that_is_no_flag_is_told_by_its_place_and_what_it_may_have_meant(
    argv: list[str],
) -> None:
    line = refusal({}, argv)
    assert line.startswith("argument 1 is no flag")
    assert line.endswith("did you mean --service-port?")


@pytest.mark.parametrize(
    ("environ", "argv"),
    [
        ({"JWT_SECRET": "hunter2"}, []),
        ({"JWT_SECRET": "hunter2" * 9, "SERVICE_PORT": "x"}, []),
        ({"JWT_PUBLIC_KEY": "hunter2"}, []),
        ({"METRICS_TOKEN": "hunter2 "}, []),
        ({"REDIS_URL": "redis://:hunter2@r/x"}, []),
        ({"REDIS_URL": "reddis://:hunter2@r"}, []),
        ({"REDIS_URL": "redis://r?password=hunter2"}, []),
        ({"REDIS_URL": "redis://user:hunter2"}, []),
        ({"REDIS_URL": "redis://user:12hunter2/0"}, []),
        ({"REDIS_URL": "redis://:hunter2"}, []),
        ({"REDIS_URL": "redis://:hunter2/x@r"}, []),
        ({"REDIS_URL": "redis://:x/hunter2@r"}, []),
        ({"REDIS_URL": "redis://:1/hunter2@r"}, []),
        ({"REDIS_URL": "redis://:x#hunter2@r"}, []),
        ({"REDIS_URL": "redis://u:1?hunter2@r"}, []),
        ({"REDIS_URL": "redis://u:1?hunter2=1&x@r"}, []),
        ({"REDIS_URL": "redis://u:1?x=hunter2@r"}, []),
        ({"REDIS_URL": "redis://u:hunter2@r:x"}, []),
        ({"REDIS_URL": "redis://u:hunter2@r/x"}, []),
        ({"REDIS_URL": "redis://hunter2@r"}, []),
        ({"REDIS_URL": "redis://u:hunter2@[r]"}, []),
        ({"REDIS_URL": "redis://u:hunter2@r?x=1"}, []),
        ({"REDIS_URL": "redis+sentinel://r/m?sentinel_password=hunter2&x=1"}, []),
        ({"REDIS_URL": "redis://:hunter2@r", "REDIS_HOST": "r"}, []),
        ({"REDIS_PASSWORD": "hunter2", "SERVICE_PORT": "x"}, []),
        ({"JWKS_URL": "htps://u:hunter2@id.example"}, []),
        (OTHERS | {"GATEWAY_URL": "https://u:hunter2@gw"}, []),
        (OTHERS | {"CONSUL_URL": "http://consul:8500/?token=hunter2"}, []),
        (OTHERS | {"ETCD_URL": "http://a:2379,http://u:hunter2@b:2379"}, []),
        (OTHERS | {"GATEWAY_URL": "http://gw", "GATEWAY_TOKEN": "hunter2 "}, []),
        (OTHERS | {"CONSUL_URL": "http://c", "CONSUL_TOKEN": "hunter2\n"}, []),
        ({"JWKS_URL": "https://u:hunter2@id.example/jwks"}, []),
        ({"JWKS_URL": "https://?key=hunter2"}, []),
        ({"JWT_ISSUER": "https://u:hunter2@id.example"}, []),
        ({"OIDC_ISSUER": "https://u:hunter2@id.example"}, []),
        ({"OIDC_ISSUER": "https://id.example", "PUBLIC_URL": "https://u:hunter2@a.example"}, []),
        ({"REDIS_HOST": "redis://:hunter2@r"}, []),
        ({"CORS_ORIGINS": '["https://u:hunter2@a.example"]'}, []),
        ({}, ["--jwt-secret", "hunter2"]),
        ({}, ["--jwt-secret=hunter2"]),
        ({}, ["--jwt-secrte=hunter2"]),
        ({}, ["--jwt-secret", "unquoted", "hunter2"]),
        ({}, ["--metrics-token", "hunter2 "]),
    ],
)
def test_a_secret_is_never_shown(environ: dict[str, str], argv: list[str]) -> None:
    assert "hunter2" not in refusal(environ, argv)


def test_a_redis_url_without_a_password_is_shown() -> None:
    assert '"http://redis:6379"' in refusal({"REDIS_URL": "http://redis:6379"})


def test_settings_printed_hide_their_secrets() -> None:
    settings = Settings(
        jwt_secret="hunter2",
        jwt_public_key="hunter2",
        metrics_token="hunter2",
        oidc_client_secret="hunter2",
        session_secret="hunter2",
        redis_password="hunter2",
        redis_url="redis://:hunter2@r",
        jwt_issuer="https://u:hunter2@id.example",
    )
    assert "hunter2" not in repr(settings)
    assert 'service_port="8089"' in repr(settings)


def test_redis_url_excludes_redis_host() -> None:
    line = refusal({"REDIS_URL": "redis://r", "REDIS_HOST": "r"})
    assert line.startswith("REDIS_URL excludes REDIS_HOST")


def test_several_workers_need_redis_and_that_is_said_with_what_to_do() -> None:
    for label, line in (
        ("WORKERS", refusal({"WORKERS": "64"})),
        ("--workers", refusal({}, ["--workers", "64"])),
    ):
        assert line.startswith(f'{label} is "64": several processes need a bus that they share')
        assert line.endswith("set REDIS_HOST or REDIS_URL, or leave it 1")
    with pytest.raises(SettingsError, match=r"^WORKERS "):
        _ = Settings(workers=2, enable_auth=False).mode


@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.0.9", "::1", "localhost", "LocalHost"])
def test_a_loopback_address_is_served_in_local_mode(host: str) -> None:
    assert Settings.from_environ({"SERVICE_HOST": host}).mode == "local"


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",
        "::",
        "10.0.0.1",
        "localhost.example.com",
        "127.0.0.1.example",
        "0",
        "128.0.0.1",
        "fe80::1",
    ],
)
def test_another_address_needs_a_key_or_authentication_switched_off_and_both_ways_out_are_named(
    host: str,
) -> None:
    for label, line in (
        ("SERVICE_HOST", refusal({"SERVICE_HOST": host})),
        ("--service-host", refusal({}, ["--service-host", host])),
    ):
        assert line.startswith(f'{label} is "{host}"')
        assert "ENABLE_AUTH=false" in line
        assert "set a key for tokens (JWT_SECRET, JWT_PUBLIC_KEY or JWKS_URL)" in line
    assert Settings.from_environ({"SERVICE_HOST": host, "ENABLE_AUTH": "false"}).mode == "open"
    assert Settings.from_environ({"SERVICE_HOST": host, "JWT_SECRET": SECRET}).mode == "tokens"


@pytest.mark.parametrize("text", ["true", "1", "yes", "on", "True"])
def test_authentication_switched_on_without_a_key_stops_the_start_and_both_ways_out_are_named(
    text: str,
) -> None:
    for label, line in (
        ("ENABLE_AUTH", refusal({"ENABLE_AUTH": text})),
        ("--enable-auth", refusal({"SERVICE_HOST": "0.0.0.0"}, ["--enable-auth", text])),
    ):
        assert line.startswith(f"{label} is true, and there is no key")
        assert "JWT_SECRET, JWT_PUBLIC_KEY or JWKS_URL" in line
        assert "ENABLE_AUTH=false" in line


@pytest.mark.parametrize(
    "key",
    [
        {"JWT_SECRET": SECRET},
        {"JWT_PUBLIC_KEY": PEMS[1]},
        {"JWKS_URL": "https://id.example/jwks"},
        {"JWT_ISSUER": "https://id.example"},
    ],
)
def test_any_key_switches_tokens_on_unless_authentication_is_switched_off(
    key: dict[str, str],
) -> None:
    assert Settings.from_environ(key).mode == "tokens"
    assert Settings.from_environ({**key, "ENABLE_AUTH": "true"}).mode == "tokens"
    assert Settings.from_environ({**key, "ENABLE_AUTH": "false"}).mode == "open"


@pytest.mark.parametrize(
    "key",
    [{"JWT_SECRET": SECRET}, {"JWT_PUBLIC_KEY": PEMS[1]}, {"JWKS_URL": "https://id.example/jwks"}],
)
def test_beside_another_key_an_issuer_is_any_text_and_nothing_is_found_by_it(
    key: dict[str, str],
) -> None:
    for issuer in ("my back end", "http://id.example", "https://id.example"):
        settings = Settings.from_environ({**key, "JWT_ISSUER": issuer})
        assert (settings.mode, settings.jwt_issuer, settings.discovers_keys) == (
            "tokens",
            issuer,
            False,
        )
    assert Settings.from_environ({"JWT_ISSUER": "https://id.example"}).discovers_keys


def test_an_issuer_whose_keys_cannot_be_found_opens_no_service() -> None:
    line = refusal({"JWT_ISSUER": "http://id.example", "SERVICE_HOST": "0.0.0.0"})
    assert line.startswith(
        'JWT_ISSUER is "http://id.example": without another key the issuer\'s keys are found by'
    )
    assert "or set JWT_SECRET, JWT_PUBLIC_KEY or JWKS_URL as well" in line
    with pytest.raises(SettingsError, match=r"^JWT_ISSUER "):
        _ = Settings(jwt_issuer="x").mode
    assert Settings.from_environ({"JWT_ISSUER": "x", "ENABLE_AUTH": "false"}).mode == "open"


def test_settings_made_in_code_do_not_open_a_service_that_was_asked_to_be_protected() -> None:
    with pytest.raises(SettingsError, match=r"^ENABLE_AUTH "):
        _ = Settings(enable_auth=True).mode


def test_authentication_switched_off_is_open_on_a_loopback_address_too() -> None:
    assert Settings.from_environ({"ENABLE_AUTH": "false"}).mode == "open"


# Signing in at a provider


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in SIGN_IN.items() if key != name}


def test_with_all_that_it_needs_people_may_sign_in_and_the_mode_is_that_of_tokens() -> None:
    settings = Settings.from_environ(SIGN_IN)
    assert (settings.mode, settings.sessions_secret) == ("tokens", SECRET)
    assert Settings.from_environ(SIGN_IN | {"SESSION_SECRET": "s" * 40}).sessions_secret == "s" * 40


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("OIDC_CLIENT_ID", "the name that the provider has given to this service"),
        ("OIDC_ADMIN_CLAIM", "which claim makes an operator, such as groups=ops"),
        ("PUBLIC_URL", "where browsers find the service"),
    ],
)
def test_a_provider_without_what_it_needs_stops_the_start(name: str, told: str) -> None:
    line = refusal(without(name))
    assert line.startswith(f"{name} has no value, and OIDC_ISSUER needs it: ")
    assert told in line


def test_a_provider_stops_the_start_where_nobody_would_have_to_sign_in() -> None:
    line = refusal(SIGN_IN | OPEN)
    assert line.startswith("OIDC_ISSUER excludes ENABLE_AUTH=false")
    line = refusal(SIGN_IN | OPEN | {"SERVICE_HOST": "0.0.0.0"})
    assert line.startswith("OIDC_ISSUER excludes ENABLE_AUTH=false")
    line = refusal(without("JWT_SECRET"))
    assert line.startswith("OIDC_ISSUER needs a key for tokens as well: set a key for tokens")


def test_sessions_need_a_secret_and_one_made_of_the_tokens_will_do() -> None:
    by_public_key = without("JWT_SECRET") | {"JWT_PUBLIC_KEY": PEMS[1]}
    line = refusal(by_public_key)
    assert line.startswith("SESSION_SECRET has no value, and there is no JWT_SECRET")
    assert "openssl rand -hex 32" in line
    assert Settings.from_environ(by_public_key | {"SESSION_SECRET": SECRET}).mode == "tokens"


def test_a_provider_without_an_http_client_stops_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("msgpush.entrypoints.settings.find_spec", lambda _: None)
    assert "pip install 'msgpush[oidc]'" in refusal(SIGN_IN)
    assert Settings.from_environ(KEY).mode == "tokens"


def test_settings_made_in_code_that_do_not_fit_open_no_service() -> None:
    with pytest.raises(SettingsError, match=r"^OIDC_ISSUER "):
        _ = Settings(oidc_issuer="https://id.example").mode


# Where they came from


def test_each_setting_knows_where_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(SECRET)
    settings = Settings.from_environ(
        {"JWT_SECRET_FILE": str(tmp_path / "key"), "ACK_RATE": "5", "LOG_LEVEL": "debug"},
        ["--log-level", "error", "--service-port="],
    )
    given = {name: settings.sources.of(name) for name in SETTINGS}
    assert {name: source for name, source in given.items() if source != "default"} == {
        "jwt_secret": "file",
        "ack_rate": "environment",
        "log_level": "flag",
    }
    changed = msgspec.structs.replace(settings, max_connections=7)
    assert changed.sources.of("jwt_secret") == "file"


# What isn't used isn't read


REDIS_URL, OPEN = {"REDIS_URL": "redis://r"}, {"ENABLE_AUTH": "false"}
# Always used where they are set, and refused by themselves.
FOR_OTHERS = {"GATEWAY_URL", "CONSUL_URL", "ETCD_URL"}
UNUSED = [
    *((name, KEY) for name in OF_SIGN_IN),
    *((name, {}) for name in NEEDS if name not in {"OIDC_ISSUER", *FOR_OTHERS, *COMPLETES}),
    *((name, REDIS_URL) for name in ("REDIS_PORT", "REDIS_PASSWORD", "REDIS_DB")),
    *(("MEMORY_BUS_BYTES", each) for each in (REDIS, REDIS_URL)),
    *(
        (name, OPEN)
        for name in ("JWT_SECRET", "JWT_PUBLIC_KEY", "JWKS_URL", "JWT_ISSUER", "JWT_AUDIENCE")
    ),
    *(
        (name, OPEN | KEY)
        for name in ("JWT_ISSUER", "JWT_AUDIENCE", "JWT_LEEWAY", "MAX_TOKEN_LIFETIME")
    ),
    ("JWT_AUDIENCE_CLAIM", KEY),
]


@pytest.mark.parametrize(("name", "others"), UNUSED)
def test_a_setting_that_is_not_used_stops_no_start_and_is_told(
    name: str, others: dict[str, str]
) -> None:
    without = Settings.from_environ(others)
    for text in (*BAD.get(name, (["x"], ""))[0], *(text for text, _ in GOOD[name])):
        for environ, argv, label in (
            ({name: text}, [], name),
            ({}, [flag(name), text], flag(name)),
        ):
            warnings: list[str] = []
            assert Settings.from_environ(others | environ, argv, warnings.append) == without
            assert any(f"{label} (used only with" in line for line in warnings)
            assert all(text not in line or len(text) < 5 for line in warnings), "it may be secret"


def test_on_a_unix_socket_host_and_port_mean_nothing_and_are_not_warned_of() -> None:
    warnings: list[str] = []
    given = {"SERVICE_UDS": "/tmp/x.sock", "SERVICE_HOST": "0.0.0.0", "SERVICE_PORT": "garbage"}
    settings = Settings.from_environ(given, ["--service-host", "a b"], warnings.append)
    assert (settings, warnings) == (Settings(service_uds="/tmp/x.sock"), [])
    assert refusal({"SERVICE_PORT": "garbage"}).startswith('SERVICE_PORT is "garbage": ')


@pytest.mark.parametrize("parameter", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
def test_a_file_for_tls_that_cannot_be_read_stops_the_start(parameter: str, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(
        url := f"rediss://u:hunter2@r?ssl_certfile={__file__}&{parameter}=/none"
    )
    if parameter == "ssl_certfile":
        (tmp_path / "url").write_text(url := "rediss://u:hunter2@r?ssl_certfile=/none")
    told = f'has {parameter}="/none": it can\'t be read: No such file or directory'
    assert refusal({"REDIS_URL": url}) == f"REDIS_URL {told}"
    assert refusal({}, ["--redis-url-file", str(tmp_path / "url")]) == f"--redis-url-file {told}"


def test_what_is_not_used_is_told_in_one_line() -> None:
    warnings: list[str] = []
    Settings.from_environ(
        {"LOG_LENGTH": "1", "REDIS_DB": "x", "REDIS_PASSWORD": "hunter2"}, [], warnings.append
    )
    assert warnings == [
        "set, but not used here and so not read: REDIS_PASSWORD (used only with REDIS_HOST), REDIS_DB (used only with "
        "REDIS_HOST), LOG_LENGTH (used only with REDIS_HOST or REDIS_URL)"
    ]


def test_on_redis_the_time_that_revocations_are_kept_for_counts_without_tokens_too() -> None:
    settings = Settings.from_environ(
        {**OPEN, **REDIS, "MAX_TOKEN_LIFETIME": "7200", "JWT_LEEWAY": "5"}
    )
    assert (settings.max_token_lifetime, settings.jwt_leeway) == (7200, 5)


LINKS = ["tcp://10.0.0.1:6379", "tcp://[fd00::1]:6379", "udp://10.0.0.1:53", "sctp://10.0.0.1:1"]
PORTS = [name.upper() for name in SETTINGS if name.endswith("_port")]


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("name", PORTS)
def test_what_kubernetes_sets_for_a_service_of_that_name_is_passed_over_with_a_warning(
    name: str, link: str
) -> None:
    warnings: list[str] = []
    needed = REDIS | needs(name)
    settings = Settings.from_environ(needed | {name: link}, [], warnings.append)
    assert getattr(settings, name.lower()) == getattr(Settings(), name.lower())
    (warning,) = warnings
    assert warning.startswith(
        f'{name} is "{link}", as Kubernetes sets it for a Service named {name.lower()[:-5]}: '
    )
    assert f" {DEFAULTS[name.lower()] or 'none'} is used" in warning
    assert "enableServiceLinks: false" in warning
    assert "another name" in warning


@pytest.mark.parametrize("others", [{}, {"REDIS_URL": "redis://r"}])
def test_what_kubernetes_sets_for_a_port_that_is_not_used_is_no_business_of_ours(
    others: dict[str, str],
) -> None:
    warnings: list[str] = []
    settings = Settings.from_environ(others | {"REDIS_PORT": LINKS[0]}, [], warnings.append)
    assert (settings, warnings) == (Settings.from_environ(others), [])


def test_a_flag_is_never_kubernetes() -> None:
    assert refusal(REDIS, ["--redis-port", LINKS[0]]).startswith(
        f'--redis-port is "{LINKS[0]}": it must be a whole'
    )
    for text in (
        "tcp://10.0.0.1",
        "tcp://a/b:1",
        "http://10.0.0.1:80",
        "10.0.0.1:6379",
        "tcp://10.0.0.1:6379 ",
    ):
        assert refusal(REDIS | {"REDIS_PORT": text}).startswith("REDIS_PORT is ")


# Secrets in files


SECRETS = {
    "REDIS_PASSWORD": ("pass word", REDIS),
    "REDIS_URL": ("redis://:pw@r", {}),
    "JWT_SECRET": (SECRET, {}),
    "JWT_PUBLIC_KEY": (PEMS[1].strip(), {}),
    "JWKS_URL": ("https://id.example/jwks?key=x", {}),
    "METRICS_TOKEN": ("let.me-in", {}),
    "OIDC_CLIENT_SECRET": ("hush", SIGN_IN),
    "SESSION_SECRET": (SECRET, SIGN_IN),
    "GATEWAY_URL": ("http://gw", OTHERS),
    "GATEWAY_TOKEN": ("let.me-in", OTHERS | {"GATEWAY_URL": "http://gw"}),
    "CONSUL_URL": ("http://consul:8500", OTHERS),
    "CONSUL_TOKEN": ("let.me-in", OTHERS | {"CONSUL_URL": "http://consul:8500"}),
    "ETCD_URL": ("http://etcd:2379", OTHERS),
    "ETCD_PASSWORD": ("pass word", ETCD | {"ETCD_USER": "x"}),
    "VAPID_PRIVATE_KEY": (VAPID, {"VAPID_SUBJECT": "mailto:ops@example.com"}),
}


def test_each_setting_that_may_be_secret_has_a_file() -> None:
    secret = {
        name.upper()
        for name, setting in SETTINGS.items()
        if any(map(setting.secret, ("x", "https://u@h")))
    }
    assert {name.upper() for name in FILES} == SECRETS.keys() == secret
    assert {name.upper() for name in FILES.values()} == {f"{name}_FILE" for name in SECRETS}


@pytest.mark.parametrize(
    ("name", "end"), [(name, end) for name in SECRETS for end in ("", "\n", "\r\n")]
)
def test_a_secret_comes_from_a_file_without_its_end_of_line(
    name: str, end: str, tmp_path: Path
) -> None:
    value, others = SECRETS[name]
    file = tmp_path / "secret"
    file.write_bytes((value + end).encode())
    by_value = Settings.from_environ(others | {name: value})
    assert getattr(by_value, name.lower()) == value
    for environ, argv in (
        ({f"{name}_FILE": str(file)}, []),
        ({}, [f"{flag(name)}-file", str(file)]),
        ({f"{name}_FILE": "/none"}, [f"{flag(name)}-file={file}"]),
    ):
        assert Settings.from_environ(others | environ, argv) == by_value


@pytest.mark.parametrize(
    "text", [" pw", "pw ", "pw\n\n", "pw\n\r\n", "pw\r", "pw\t\n", "p\nw", "p\u00e4ss"]
)
def test_no_other_white_space_of_a_file_is_lost(text: str, tmp_path: Path) -> None:
    (tmp_path / "pw").write_bytes(text.encode())
    read = Settings.from_environ(
        REDIS | {"REDIS_PASSWORD_FILE": str(tmp_path / "pw")}
    ).redis_password
    assert read == (
        text[:-2] if text.endswith("\r\n") else text[:-1] if text.endswith("\n") else text
    )


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_and_its_file_exclude_each_other(name: str, tmp_path: Path) -> None:
    value, others = SECRETS[name]
    file = tmp_path / "secret"
    file.write_text(value)
    one, two = f"{name}_FILE", f"{flag(name)}-file"
    assert (
        refusal(others | {name: value, one: str(file)})
        == f"{one} excludes {name}: set one of the two"
    )
    assert (
        refusal(others | {name: value}, [two, str(file)])
        == f"{two} excludes {name}: set one of the two"
    )
    unset = Settings.from_environ(others | {name: value, one: str(file)}, [f"{flag(name)}="])
    assert getattr(unset, name.lower()) == value


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file or directory"),
        (b"", "it is empty"),
        (b"\n", "it is empty"),
        (b"\r\n", "it is empty"),
        (b"hunter2\xff", "it is not UTF-8"),
        ("\ufeffhunter2".encode(), "it begins with a byte order mark"),
        ("hunter2".encode("utf-16"), "it is not UTF-8"),
        (b"hunter2" * 20_000, "it is larger than 65536 bytes"),
    ],
)
def test_a_file_that_holds_no_secret_is_told_with_its_path_and_never_what_is_in_it(
    name: str, content: bytes | None, why: str, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    for label, line in (
        (f"{name}_FILE", refusal(SECRETS[name][1] | {f"{name}_FILE": str(file)})),
        (f"{flag(name)}-file", refusal(SECRETS[name][1], [f"{flag(name)}-file", str(file)])),
    ):
        assert line.startswith(f'{label} is "{file}": ')
        assert why in line
        assert "hunter2" not in line


def test_a_directory_and_a_path_that_cannot_be_are_told(tmp_path: Path) -> None:
    assert "it can't be read: Is a directory" in refusal({"JWT_SECRET_FILE": str(tmp_path)})
    for path in ("/x\0y", "/x\ud800"):
        assert "no file has such a name" in refusal({"JWT_SECRET_FILE": path})
    assert "File name too long" in refusal({"JWT_SECRET_FILE": "/" + "x" * 5000})


def test_a_file_with_a_wrong_value_is_told_with_what_is_allowed_and_never_the_value(
    tmp_path: Path,
) -> None:
    file = tmp_path / "secret"
    for name, text, why in (
        ("JWT_SECRET", "hunter2", "it is shorter than 32 bytes; it must be at least 32 bytes long"),
        ("JWT_PUBLIC_KEY", "hunter2", "it is no public key in PEM; it must be"),
        ("JWT_PUBLIC_KEY", private_pem(P256), "it is a private key"),
        ("REDIS_URL", "redis:/hunter2", "redis+cluster://"),
        ("METRICS_TOKEN", "hunter2 ", "it must be text of"),
        ("JWKS_URL", "hunter2", "https:// or http://"),
    ):
        file.write_text(text)
        line = refusal({f"{name}_FILE": str(file)})
        assert line.startswith(f'{name}_FILE is "{file}", and its content can\'t be used: ')
        assert why in line
        assert "hunter2" not in line


@pytest.mark.parametrize(
    "text", ["hunter2", "hunter2/x", "redis://:hunter2@r", "-----BEGIN PRIVATE KEY-----\nhunter2"]
)
def test_a_secret_where_its_file_was_meant_is_not_shown(text: str) -> None:
    line = refusal({"JWT_SECRET_FILE": text})
    assert "hunter2" not in line
    assert line.startswith(
        "JWT_SECRET_FILE is no absolute path, and not shown, since it may be the secret itself: it "
    )


def test_a_file_that_is_not_used_is_not_read(tmp_path: Path) -> None:
    for name, others in (
        ("JWT_SECRET", OPEN),
        ("REDIS_PASSWORD", {}),
        ("REDIS_PASSWORD", REDIS_URL),
    ):
        warnings: list[str] = []
        environ = {f"{name}_FILE": str(tmp_path), name: "x"}
        assert Settings.from_environ(
            others | environ, [], warnings.append
        ) == Settings.from_environ(others)
        assert f"{name}_FILE (used only with" in warnings[0]


def test_what_a_file_holds_counts_as_set(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(SECRET)
    (tmp_path / "url").write_text("redis://r\n")
    environ = {"JWT_SECRET_FILE": str(tmp_path / "key"), "REDIS_URL_FILE": str(tmp_path / "url")}
    settings = Settings.from_environ(
        {**environ, "SERVICE_HOST": "0.0.0.0", "JWT_LEEWAY": "7", "LOG_LENGTH": "1234"}
    )
    assert (settings.mode, settings.jwt_leeway, settings.log_length) == ("tokens", 7, 1234)
    line = refusal({**environ, **REDIS})
    assert line.startswith("REDIS_URL_FILE excludes REDIS_HOST")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Settings().service_port = 1  # type: ignore[misc]
    assert msgspec.structs.replace(Settings(), service_port=1).service_port == 1


@given(name=st.sampled_from(sorted(SETTINGS)), text=st.text(min_size=1))
def test_no_text_makes_anything_but_a_value_or_one_line(name: str, text: str) -> None:
    line = outcome(needs(name.upper()) | {name.upper(): text}, [])
    assert line is None or (line.startswith(f"{name.upper()} ") and line.isprintable())


@given(
    name=st.sampled_from(sorted(BAD.keys() - {"JWT_AUDIENCE", "JWT_AUDIENCE_CLAIM"})),
    raw=st.binary(max_size=20),
)
def test_a_value_that_is_not_text_is_refused_like_any_other(name: str, raw: bytes) -> None:
    # So Python gives bytes of the environment that aren't UTF-8.
    text = (b"\xff" + raw).decode(errors="surrogateescape")
    assert refusal(needs(name) | {name: text}).startswith(f"{name} ")


@given(st.lists(st.text()))
def test_no_arguments_make_anything_but_settings_or_one_line(argv: list[str]) -> None:
    line = outcome({}, argv)
    assert line is None or line.isprintable()


@given(st.integers(min_value=1, max_value=65535))
def test_a_number_in_bounds_is_itself(number: int) -> None:
    assert Settings.from_environ({"SERVICE_PORT": str(number)}).service_port == number


def test_the_help_names_every_flag_with_its_default_and_what_is_allowed() -> None:
    text = help_text()
    flat = " ".join(text.split())
    for name, setting in SETTINGS.items():
        assert f"  {flag(name)}\n" in text
        assert f"Allowed: {setting.kind.allowed}." in flat
        assert not DEFAULTS[name] or f"Default: {DEFAULTS[name]}." in flat
        assert (f"Or {flag(name)}-file: the path of a file that holds it." in flat) == (
            name in FILES
        )
    assert "the end of line at its end doesn't count" in flat
    assert max(map(len, text.splitlines())) <= 110


def test_the_help_is_as_wide_as_a_narrow_terminal() -> None:
    narrow = help_text(80)
    assert max(map(len, narrow.splitlines())) <= 80
    assert narrow.split() == help_text().split()


def test_the_table_has_a_row_of_three_cells_for_every_setting() -> None:
    lines = markdown_table().splitlines()
    assert lines[:2] == ["| setting | default | meaning |", "|---|---|---|"]
    assert [line.split("`")[1].lower() for line in lines[2:]] == list(SETTINGS)
    assert all(line.count("|") == 4 and line.endswith(" |") for line in lines[2:])
    with_file = {
        line.split("`")[1].lower() for line in lines[2:] if "_FILE`: the path of a file" in line
    }
    assert with_file == FILES.keys()
    assert "| `SERVICE_PORT` | `8089` | Port to listen on; 0: any free one." in lines[5]


# Registries


@pytest.mark.parametrize("name", ["GATEWAY_URL", "CONSUL_URL", "ETCD_URL"])
def test_what_nobody_else_can_use_is_not_announced(name: str) -> None:
    registry = {name: "http://registry:8500"}
    line = refusal(registry)
    assert line.startswith(f"{name} announces this instance to others, and without authentication")
    assert "JWT_SECRET" in line
    for host in ("127.0.0.1", "::1", "localhost", "127.8.9.10"):
        line = refusal(registry | OPEN | {"SERVICE_HOST": host})
        assert line.startswith("SERVICE_HOST is ")
        assert f"{name} announces it to others" in line
        assert "0.0.0.0" in line
    line = refusal(registry | OPEN | {"SERVICE_UDS": "/run/x", "ADVERTISE_ADDRESS": "10.0.0.1"})
    assert line.startswith(f"SERVICE_UDS is no address that {name} could be told of")
    assert "ADVERTISE_PORT" in line


def test_what_a_proxy_on_this_machine_leads_to_is_announced_by_the_proxys_address() -> None:
    proxy = {"ADVERTISE_ADDRESS": "10.0.0.1", "ADVERTISE_PORT": "443", "ADVERTISE_SCHEME": "https"}
    registry = {"CONSUL_URL": "http://127.0.0.1:8500"}
    for own in ({"SERVICE_UDS": "/run/x"}, {"SERVICE_HOST": "127.0.0.1"}):
        settings = Settings.from_environ(OPEN | registry | proxy | own)
        assert settings.registries == ["consul_url"]
