"""Fetches issuers' keys, over the metadata that says where they are (OpenID Discovery 1.0)."""

import ipaddress
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import msgspec
from authlib.oidc.discovery import OpenIDProviderMetadata, get_well_known_url

from msgpush import __version__
from msgpush.domain.quoting import short_repr

FETCH_SECONDS = 4.0
FETCH_BYTES = 1024 * 1024

# Firewalls refuse those who don't say what they are.
HEADERS = {
    "User-Agent": f"msgpush/{__version__}",
    "Accept": "application/jwk-set+json, application/json",
}


def is_issuer(text: str) -> bool:
    """True for a name that keys can be found by: an https URL without query, fragment or user.

    Also http on this machine alone, where nobody is in between."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    plain = text.isascii() and text.isprintable() and not set(text) & set(" ?#@\\")
    return plain and is_safe(text) and text.startswith(f"{parts.scheme}://")


def is_safe(url: str) -> bool:
    """True where nobody can be in between: it is https, or http on this machine alone."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    host = parts.hostname or ""
    return bool(host) and (
        parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    # Whoever is sent elsewhere for keys might take a stranger's.
    def redirect_request(self, *_: object) -> None:
        return None


def fetch(url: str) -> bytes:
    """Get a URL's content, within a few seconds and a megabyte.

    Raises:
        OSError: that can't be had.
    """
    until = time.monotonic() + FETCH_SECONDS
    opener = urllib.request.build_opener(_NoRedirects)
    request = urllib.request.Request(url, headers=HEADERS)
    parts, size = [], 0
    try:
        with opener.open(request, timeout=FETCH_SECONDS) as response:
            while part := response.read1(65_536):
                parts.append(part)
                size += len(part)
                if size > FETCH_BYTES:
                    raise OSError(f"the answer is larger than {FETCH_BYTES} bytes")
                if time.monotonic() > until:
                    raise TimeoutError("the answer takes too long")
    except urllib.error.HTTPError as error:
        error.close()
        redirect = ", and redirects aren't followed" if 300 <= error.code < 400 else ""
        raise OSError(f"the answer's status is {error.code}{redirect}") from None
    except (HTTPException, ValueError) as error:
        raise OSError(f"the answer can't be read: {error!r}") from None
    return b"".join(parts)


Metadata = dict[str, Any]


def discovered(
    issuer: str,
    fetch: Callable[[str], bytes] = fetch,
    *,
    setting: str = "JWT_ISSUER",
    tell: Callable[[Metadata], object] = lambda _: None,
) -> bytes:
    """Get the key set of an issuer, which its metadata leads to.

    Args:
        fetch: gets what is at a URL.
        setting: the one that names the issuer.
        tell: is told the metadata, of which the issuer and the place of its keys are checked.

    Raises:
        OSError: that can't be had.
        ValueError: the metadata isn't this issuer's, or leads nowhere.
    """
    at = get_well_known_url(issuer, external=True)
    try:
        text = fetch(at)
    except OSError as error:
        raise OSError(f"its metadata at {at}: {error}") from None
    metadata = _read_metadata(issuer, text, at, setting)
    location = _key_location(issuer, metadata, at)
    tell(metadata)
    try:
        return fetch(location)
    except OSError as error:
        raise OSError(f"its keys at {location}: {error}") from None


def endpoint(metadata: Metadata, name: str) -> str:
    """The URL that an issuer's metadata has under a name, where nobody can be in between.

    Raises:
        ValueError: there is none.
    """
    url = metadata.get(name)
    if not isinstance(url, str) or not leads_safely(metadata["issuer"], url):
        raise ValueError(f"the issuer's metadata is wrong: its {name} is {short_repr(url)}")
    return url


def leads_safely(issuer: str, url: str) -> bool:
    """True where an issuer may lead there: over https, or on this machine if it is there itself."""
    # Authlib lets each issuer lead to this machine, and has a variable that lets it lead anywhere.
    return is_safe(url) and (url.startswith("https://") or issuer.startswith("http://"))


def _read_metadata(issuer: str, text: bytes, at: str, setting: str) -> Metadata:
    """An issuer's metadata, which calls itself so."""
    try:
        found = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        raise ValueError(f"at {at} is no JSON object") from None
    issued = found.get("issuer")
    # Whoever can put a document there mustn't be taken for another issuer (OpenID Connect Discovery
    # 1.0, section 4.3).
    if issued != issuer:
        hint = ""
        if isinstance(issued, str) and differ_by_slash(issued, issuer):
            hint = f": they differ by the slash at the end alone, so set {setting}={issued}"
        raise ValueError(
            f"the metadata at {at} is that of the issuer {short_repr(issued)}, not of"
            f" {short_repr(issuer)}{hint}"
        )
    return found


def _key_location(issuer: str, found: Metadata, at: str) -> str:
    """The URL of an issuer's keys, as its own metadata says."""
    location = found.get("jwks_uri")
    # Of all that such a document says no more is used, and what is said of logins needn't be right.
    metadata = OpenIDProviderMetadata(
        {"issuer": issuer, "jwks_uri": location if isinstance(location, str) else None}
    )
    try:
        metadata.validate_issuer()
        metadata.validate_jwks_uri()
    except ValueError as error:
        raise ValueError(f"the metadata at {at} is wrong: {error}") from None
    assert isinstance(location, str)
    if not leads_safely(issuer, location):
        raise ValueError(
            f"the metadata at {at} is wrong: its jwks_uri is {short_repr(location)}, not https"
        )
    return location


def differ_by_slash(one: str, other: str) -> bool:
    """True where only a slash at the end differs, the mistake that is made most with issuers."""
    return one != other and one.removesuffix("/") == other.removesuffix("/")
