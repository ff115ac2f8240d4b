"""Kinds of values that settings have: how each is read from a text, and what is allowed."""

import os
import re
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from msgpush.adapters.auth.issuers import is_issuer
from msgpush.adapters.auth.keys import KINDS, public_key, secret_key
from msgpush.adapters.auth.tokens import read_claim
from msgpush.adapters.http.addresses import Proxy, read_address, read_network
from msgpush.adapters.http.origins import read_origins, url_origin
from msgpush.adapters.notify.places import Place
from msgpush.adapters.notify.vapid import vapid_key
from msgpush.adapters.redis.target import RedisTarget
from msgpush.adapters.sse.endpoint import read_events
from msgpush.domain.errors import Malformed
from msgpush.domain.message import MAX_TTL, TYPES

MIB = 1024 * 1024
UNIX_PATH_BYTES = 108 if sys.platform == "linux" else 104


class Unfit(ValueError):
    """A value can't be used for a reason that is told: its text, which shows nothing secret."""


class Kind(Struct, frozen=True):
    """A kind of value: `parse` reads it or raises ValueError; `allowed` continues "it must be"."""

    parse: Callable[[str], Any]
    allowed: str


def whole(lowest: int, highest: int, unit: str = "") -> Kind:
    """Whole numbers within bounds."""

    def parse(text: str) -> int:
        # int() alone would take "+1", " 1", "1_0" and every script's digits.
        if not re.fullmatch("[0-9]{1,15}", text) or not lowest <= int(text) <= highest:
            raise ValueError
        return int(text)

    return Kind(parse, f"a whole number {f'of {unit} ' if unit else ''}from {lowest} to {highest}")


def decimal(lowest: float, highest: float, unit: str = "seconds") -> Kind:
    """Numbers within bounds, fractions allowed."""

    def parse(text: str) -> float:
        # float() alone would also take "nan", "inf" and "1e9".
        if (
            not re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,15})?", text)
            or not lowest <= float(text) <= highest
        ):
            raise ValueError
        return float(text)

    return Kind(parse, f"a number of {unit} from {lowest:.15g} to {highest:.15g}")


def choice(*words: str) -> Kind:
    """One of a few words, in any case."""

    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError
        return text.lower()

    return Kind(parse, f"{', '.join(words[:-1])} or {words[-1]}")


def matching(pattern: str, allowed: str) -> Kind:
    """Text that matches a regular expression as a whole."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError
        return text

    return Kind(parse, allowed)


def json_list(item: Callable[[str], Any], allowed: str) -> Kind:
    """A JSON list of strings, each of which `item` reads."""

    def parse(text: str) -> tuple[Any, ...]:
        try:
            items = msgspec.json.decode(text, type=list[str])
        except msgspec.MsgspecError as error:
            raise ValueError from error
        return tuple(map(item, items))

    return Kind(parse, f"a JSON list of {allowed}")


def _boolean(text: str) -> bool:
    word = text.lower()
    if word in ("true", "1", "yes", "on"):
        return True
    if word in ("false", "0", "no", "off"):
        return False
    raise ValueError


def _audience(text: str) -> str | tuple[str, ...]:
    if not text.startswith("["):
        return text
    try:
        several = msgspec.json.decode(text, type=tuple[str, ...])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError from error
    if not several or not all(several):
        raise Unfit("it names nobody")
    return several


def _issuer(text: str) -> str:
    if not is_issuer(text):
        raise ValueError
    return text


def _public_url(text: str) -> str:
    # Browsers leave a segment of dots out.
    path = r"(/(?!\.\.?(/|$))[A-Za-z0-9._~%-]+)*/?"
    if not is_issuer(text) or not re.fullmatch(f"https?://[^/]+{path}", text):
        raise ValueError
    url_origin(text)
    return text.removesuffix("/")


def _host(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", text):
        return text
    return str(read_address(text))


BASE = r"https?://[^\s/?#@]+(/[^\s?#]*)?"


def _base_url(text: str) -> str:
    parts = urlsplit(text)
    if not re.fullmatch(BASE, text) or not parts.hostname or parts.port == 0:
        raise ValueError
    return text


def _base_urls(text: str) -> str:
    return ",".join(_base_url(each.strip()) for each in text.split(","))


def _reachable(text: str) -> str:
    if text in ("0.0.0.0", "::"):
        raise Unfit("it stands for all addresses, and nobody can connect to that")
    return _host(text)


def _header_name(text: str) -> str:
    """The name of a header: a token (RFC 9110, section 5.6.2)."""
    if text == "*" or not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}", text):
        raise ValueError
    return text


def _proxy(text: str) -> Proxy:
    return "unix" if text == "unix" else read_network(text)


def _socket_path(text: str) -> str:
    # What the kernel has room for, with the zero byte at the end.
    if (
        not text.startswith("/")
        or text.endswith("/")
        or not text.isprintable()
        or len(os.fsencode(text)) >= UNIX_PATH_BYTES
    ):
        raise ValueError
    return text


def _events(text: str) -> frozenset[str]:
    try:
        return read_events(text)
    except Malformed as error:
        raise ValueError from error


def checked(check: Callable[[str], object], allowed: str) -> Kind:
    """Text that `check` takes; its ValueErrors say why it doesn't, and show nothing secret."""

    def parse(text: str) -> str:
        try:
            check(text)
        except ValueError as error:
            raise Unfit(str(error)) from None
        return text

    return Kind(parse, allowed)


ANY_TEXT = matching(r"(?s).+", "any text")
LIMIT = whole(0, 1_000_000)
RATE = decimal(0, 1_000_000, "messages a second")
ACKS = decimal(0, 1_000_000, "acknowledgements a second")
SECONDS = decimal(0, 3600)
TIMEOUT = decimal(0.01, 3600)
TTL = whole(1, MAX_TTL, "seconds")
# No less than the largest message on its channels takes.
BUS_SIZE = whole(8 * MIB, 1024 * 1024 * MIB, "bytes")
BOOLEAN = Kind(_boolean, "true or false (also 1, 0, yes, no, on, off)")
HOST = Kind(_host, "an IP address such as 127.0.0.1, 0.0.0.0 or ::1, or a host name")
ORIGINS = json_list(
    read_origins,
    'origins, scheme://host or scheme://host:port, such as ["https://app.example.com"];'
    " https://*.example.com stands for all names below that one",
)
HEADERS = json_list(_header_name, 'names of headers, such as ["X-Request-ID"]')
PROXIES = json_list(
    _proxy,
    'IP addresses and networks (with no host bits), such as ["10.0.0.0/8", "::1"]; "unix" is'
    " whoever connects to SERVICE_UDS",
)
SOCKET_PATH = Kind(
    _socket_path,
    f"a path such as /run/msgpush/http.sock: from the root, and of {UNIX_PATH_BYTES - 1} bytes at"
    " most",
)
FILE_MODE = matching("0?[0-7]{3}", "an octal mode such as 660 or 666")
EVENTS = Kind(_events, f"a comma-separated list of {', '.join(TYPES)}; or *, all of them; or none")
# An encoded slash is refused in every request's path.
PATH = matching(
    r"(?!.*%2[fF])(/[A-Za-z0-9._~%-]+)+",
    "a path such as /push: with a slash before it, none after it, and no %2F",
)
REDIS = checked(
    RedisTarget.from_url,
    "redis://host, rediss://host, redis+sentinel://host,host/name or redis+cluster://host,host; see"
    " docs/redis.md",
)
HTTP_URL = matching(
    r"https?://[^\s/?#@]+([/?#]\S*)?",
    "a URL that begins with https:// or http://, and names no user",
)
BASE_URL = Kind(
    _base_url, "a URL that begins with https:// or http://, and has no user, query or fragment"
)
BASE_URLS = Kind(
    _base_urls,
    "a URL such as http://etcd:2379, with no user, query or fragment; or several, with commas"
    " between them",
)
SERVICE_NAME = matching(
    "[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?",
    "1 to 63 of A-Za-z0-9._-, the first and the last a letter or digit",
)
REACHABLE = Kind(_reachable, "an IP address of one machine, or a host name")
TOKEN = matching(r"[A-Za-z0-9._~+/=-]+", "text of A-Za-z0-9._~+/=-")
SECRET = checked(secret_key, "at least 32 bytes long, and no PEM key")
PUBLIC_KEY = checked(public_key, f"a public key in PEM: {KINDS}")
VAPID_KEY = checked(
    vapid_key, "a private key on P-256, in PEM or as 32 bytes in base64url: see msgpush push keys"
)
VAPID_SUBJECT = matching(
    r"mailto:[!-~]+@[!-~]+|https://[!-~]+", "mailto: and an address, or an https URL"
)
FILE = matching(r"[^\0]+", "the path of a file")
APPLE_ID = matching("[A-Za-z0-9]{1,20}", "up to 20 letters and digits, as Apple gives it")
TOPIC = matching("[A-Za-z0-9.-]{1,200}", "an app's bundle id, such as com.example.app")
HTTPS_URL = matching(
    r"https://[^\s/?#@]+(/[^\s?#]*)?", "a URL that begins with https://, without user and query"
)
PLACES = json_list(
    Place.parse,
    'names of hosts, such as ["push.example"]: those below them count, on port 443; one with a port'
    " (localhost:8443) alone, wherever it is",
)
AUDIENCE = Kind(_audience, 'any text, or a JSON list of such, as in ["push", "api"]')
_SAFE_URL = (
    "an https:// URL without query, fragment or user (http:// on this machine alone), such as"
)
PROVIDER = Kind(_issuer, f"{_SAFE_URL} https://id.example.com")
PUBLIC_URL = Kind(_public_url, f"{_SAFE_URL} https://push.example.com or https://example.com/push")
SCOPE = matching(
    r"(?=(.* )?openid( |$))[\x21\x23-\x5b\x5d-\x7e]+( [\x21\x23-\x5b\x5d-\x7e]+)*",
    "words with a space in between, one of which is openid",
)
CLAIM_VALUE = matching(
    r"[^=\s]{1,200}=\S(?:[^\r\n]{0,198}\S)?", "a claim's name, = and a value, such as groups=ops"
)
GRANT = checked(
    read_claim,
    'what a token\'s claim msgpush may be, such as {"subscribe": ["*"], "publish": ["service:a"]}',
)
CLAIM = matching(r"(?s).{1,200}", "the name of a claim, such as aud or client_id")
