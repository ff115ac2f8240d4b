"""Callers: the port that says what the sender of a request may do, and its token."""

import hmac
from collections.abc import Iterator
from typing import Protocol

from starlette.types import Scope

from msgpush.domain.errors import Unauthorized
from msgpush.domain.grant import Grant

COOKIE = "msgpush_token"

# What browsers take off (RFC 6265, section 5.2), and no more: a page of a sister domain may set a
# cookie whose name is a no-break space and `__Host-...`, which they keep from it without that.
_BLANK = " \t"


class Authenticator(Protocol):
    """Finds out what the sender of a request may do."""

    async def authenticate(
        self, scope: Scope, token: str | None = None, *, by_ticket: bool = False
    ) -> Grant:
        """The permissions that the credentials in this request give.

        Args:
            token: what the request's query says, where a token is read there.
            by_ticket: whether the header may have a ticket in the place of a token, too.

        Raises:
            Unauthorized: there are none, or they aren't valid.
            Denied: they came along without having been sent: by another origin's page, for all that
                is known.
            KeysUnavailable, BusUnavailable: that can't be found out now.
        """

    async def read(self, token: str) -> Grant:
        """The permissions that a token gives; a ticket is none.

        Raises:
            Unauthorized: it isn't valid.
            KeysUnavailable, BusUnavailable: that can't be found out now.
        """


def bearer(scope: Scope) -> str | None:
    """A request's bearer token (RFC 6750, section 2.1); other schemes are for others."""
    tokens = []
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.decode("latin-1").partition(" ")
            if scheme.lower() == "bearer":
                tokens.append(token.strip())
    if len(tokens) > 1:
        raise Unauthorized("there is more than one token")
    return tokens[0] if tokens else None


def cookie(scope: Scope, name: str) -> str | None:
    """The value of a request's cookie, if it has one that isn't empty; the first of several."""
    return next((value for key, value in cookies(scope) if key == name and value), None)


def cookies(scope: Scope) -> Iterator[tuple[str, str]]:
    """The cookies of a request, as it has them."""
    # Not by Python's own parser (http.cookies): unquoting takes it, before 3.11.10, the square of a
    # value's length (CVE-2024-7592), and no token is quoted.
    for name, value in scope["headers"]:
        for pair in value.decode("latin-1").split(";") if name == b"cookie" else ():
            key, _, text = pair.partition("=")
            yield key.strip(_BLANK), text.strip(_BLANK)


def has_token(scope: Scope, token: str) -> bool:
    """True if a request carries this very token."""
    return hmac.compare_digest((bearer(scope) or "").encode(), token.encode())
