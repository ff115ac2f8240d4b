"""Whom a sign-in admits, and where it leads."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

HOME = "/admin/"
LONGEST_NEXT = 1_500  # bytes: it has to fit into a cookie, encrypted


def safe_next(text: str) -> str:
    """The path to come back to, if that is one of this service, however often it is decoded.

    One slash, then neither a slash nor a backslash, which browsers take for one; no control
    character."""
    decoded, before = text, None
    while decoded != before:
        if (
            len(decoded.encode(errors="surrogatepass")) > LONGEST_NEXT
            or not decoded.startswith("/")
            or decoded[1:2] in ("/", "\\")
            or any(ord(each) < 0x20 or 0x7F <= ord(each) < 0xA0 for each in decoded)
        ):
            return HOME
        before, decoded = decoded, unquote(decoded)
    return text


def where_to(public_url: str, path: str) -> str:
    """The URL of a path that `safe_next` has passed: with the service's own prefix, or without."""
    parts = urlsplit(public_url)
    prefix = parts.path
    within = prefix and (path == prefix or path.startswith(prefix + "/"))
    base = public_url.removesuffix(prefix) if within else public_url
    return base + quote(path, safe="/?#[]@!$&'()*+,;=:%~")


def has_claim(claims: Mapping[str, Any], wanted: str) -> bool:
    """True if a claim has a value, as `groups=ops`: it is that text, or a list that has it.

    A `scope` has it among its words (RFC 8693, section 4.2); no other text is taken apart, or
    `department=Ops` would be true of whoever is "Not Ops". The name may lead into objects, as
    `realm_access.roles=ops`; one that has the dots itself counts first."""
    name, _, value = wanted.partition("=")
    found: Any = claims
    if name in claims:
        found = claims[name]
    else:
        for step in name.split("."):
            found = found.get(step) if isinstance(found, Mapping) else None
    if isinstance(found, bool):
        return value == str(found).lower()
    if isinstance(found, str):
        return found == value or (name == "scope" and value in found.split(" "))
    return isinstance(found, list) and value in found
