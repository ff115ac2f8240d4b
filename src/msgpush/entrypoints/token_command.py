"""`msgpush token`: issue a token, or find out why one is accepted or isn't, and what it allows."""

import argparse
import asyncio
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError

from msgpush.adapters.auth.keys import Keys, SigningKey, private_key, secret_key
from msgpush.adapters.auth.tokens import registry_for
from msgpush.adapters.redis.credentials import RedisCredentials
from msgpush.domain.credentials import Revocations
from msgpush.domain.errors import BusUnavailable, KeysUnavailable, Unauthorized
from msgpush.domain.grant import Grant
from msgpush.domain.message import format_ms
from msgpush.domain.quoting import short_repr
from msgpush.entrypoints.app import fetched_keys, token_keys, token_reader
from msgpush.entrypoints.output import complain
from msgpush.entrypoints.settings import Settings, SettingsError

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
NO_KEY = "has no value: set it, or JWT_PUBLIC_KEY, JWKS_URL or JWT_ISSUER, to what the service has"


def token_command(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run `msgpush token ...`; returns the exit status: 0 good, 1 refused, 2 asked wrongly."""
    asked = _parser().parse_args(argv)
    environ = {**environ, "SERVICE_HOST": "127.0.0.1", "ENABLE_AUTH": ""}
    try:
        if asked.action == "issue":
            return _issue(asked, environ)
        settings = Settings.from_environ(environ)
        text = sys.stdin.read().strip() if asked.token == "-" else asked.token
        return asyncio.run(_inspect(text, settings))
    except SettingsError as error:
        complain(f"msgpush: {error}")
        return 2


class _Parser(argparse.ArgumentParser):
    def print_help(self, file: Any = None) -> None:
        # argparse's own takes what can't be written for written.
        print(self.format_help(), end="", file=file)


def _parser() -> argparse.ArgumentParser:
    """The parser of what the command is asked for."""
    parser = _Parser(
        "msgpush token",
        description=(
            "Issue and inspect tokens, with the service's own settings from the environment."
        ),
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="issue|inspect")
    issue = actions.add_parser(
        "issue",
        help="print a new token",
        description="Print a new token, signed with JWT_SECRET or a private key.",
    )
    issue.add_argument("--sub", required=True, help="whom it is for: may listen to user:SUB")
    issue.add_argument(
        "--subscribe",
        action="append",
        default=[],
        metavar="PATTERN",
        help="may listen to; repeatable",
    )
    issue.add_argument(
        "--publish",
        action="append",
        default=[],
        metavar="PATTERN",
        help="may publish to; repeatable",
    )
    issue.add_argument(
        "--users",
        action="append",
        default=[],
        metavar="PATTERN",
        help="may acknowledge for these users, as a back end does; repeatable",
    )
    issue.add_argument(
        "--admin", action="store_true", help="may see and close connections, and revoke tokens"
    )
    issue.add_argument(
        "--lifetime", type=_seconds, default=3600, help="such as 90s, 15m, 1h or 30d; default 1h"
    )
    issue.add_argument("--jti", help="its own name, by which it can be revoked alone")
    issue.add_argument(
        "--key", type=Path, metavar="FILE", help="a private key in PEM, instead of JWT_SECRET"
    )
    issue.add_argument("--kid", help="the key's id in the set that the service fetches")
    inspect = actions.add_parser(
        "inspect",
        help="say why a token is accepted or isn't",
        description="Say why a token is accepted or isn't, and what it allows. Exits with 0 or 1.",
    )
    inspect.add_argument(
        "token",
        nargs="?",
        default="-",
        help="the token; - or none: from stdin, where no other user sees it",
    )
    return parser


def _seconds(text: str) -> int:
    found = re.fullmatch("([0-9]{1,9})([smhd]?)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{short_repr(text)} is not such as 90s, 15m, 1h or 30d")
    return int(found[1]) * UNITS[found[2]]


def _issue(asked: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print a new token; returns the exit status."""
    if asked.key is None:
        settings = Settings.from_environ(environ)
        key = _secret(settings)
    else:
        try:
            key = private_key(asked.key.read_text())
        except (OSError, ValueError) as error:
            complain(f"msgpush: --key {asked.key}: {error}")
            return 2
        # The service has its public half: so what goes with a key is read here, too.
        public = {"JWT_PUBLIC_KEY": key.public_pem, "JWT_PUBLIC_KEY_FILE": ""}
        settings = Settings.from_environ({**environ, **public})
    now = int(time.time())
    claims: dict[str, Any] = {"sub": asked.sub, "iat": now, "exp": now + asked.lifetime}
    claims |= {"iss": settings.jwt_issuer} if settings.jwt_issuer else {}
    claims |= (
        {settings.jwt_audience_claim: settings.first_audience} if settings.first_audience else {}
    )
    claims |= {"jti": asked.jti} if asked.jti else {}
    claims["msgpush"] = {
        "subscribe": asked.subscribe,
        "publish": asked.publish,
        "admin": asked.admin,
    } | ({"users": asked.users} if asked.users else {})
    header = {"alg": key.algorithm, "typ": "JWT"} | ({"kid": asked.kid} if asked.kid else {})
    payload = json.dumps(claims)
    token = jws.serialize_compact(header, payload, key.key, registry=registry_for({key.algorithm}))
    try:
        # What the service wouldn't accept isn't worth printing.
        asyncio.run(token_reader(settings, Keys([key.verifying])).read(token))
    except Unauthorized as error:
        complain(f"msgpush: the service would refuse it: {error}")
        return 2
    print(token)
    return 0


def _secret(settings: Settings) -> SigningKey:
    if settings.jwt_secret is None:
        raise SettingsError(
            "JWT_SECRET",
            "has no value: set it to what the service has, or give a private key by --key",
        )
    verifying = secret_key(settings.jwt_secret)
    return SigningKey(verifying.key, "HS256", verifying, public_pem="")


async def _inspect(token: str, settings: Settings) -> int:
    """Print why a token is accepted or isn't; returns the exit status."""
    if not settings.has_key:
        raise SettingsError("JWT_SECRET", NO_KEY)
    _show_unverified(token)
    async with AsyncExitStack() as opened:
        fetched = fetched_keys(settings)
        if fetched is not None:
            await opened.enter_async_context(fetched)
        try:
            grant = await token_reader(settings, token_keys(settings, fetched)).read(token)
            await _check_revocations(grant, settings)
        except KeysUnavailable as error:
            why = f": {fetched.setting}: {fetched.problem}" if fetched and fetched.problem else ""
            print(f"refused: {error}{why}")
            return 1
        except Unauthorized as error:
            print(f"refused: {error}")
            return 1
    _show(grant)
    return 0


def _show_unverified(token: str) -> None:
    try:
        signed = jws.extract_compact(token.encode(), None, registry_for(()))
        header, claims = signed.headers(), json.loads(signed.payload)
    except (JoseError, ValueError, RecursionError):
        return
    # Written anew: nobody has verified it, and what it says must not speak to the terminal.
    print(f"header:   {json.dumps(header)}\nclaims:   {json.dumps(claims)}\n")


async def _check_revocations(grant: Grant, settings: Settings) -> None:
    """Raise `Unauthorized` where a token was revoked, as far as that can be told."""
    if settings.redis is None:
        print("(What was revoked on an embedded bus, only that service itself knows.)\n")
        return
    revocations = Revocations(settings.max_token_lifetime)
    try:
        async with RedisCredentials(
            settings.redis, lifetime=settings.max_token_lifetime
        ) as credentials:
            for revocation in await credentials.revocations():
                revocations.add(revocation, time.time())
    except BusUnavailable as error:
        print(f"(Whether it was revoked can't be told: {error}.)\n")
    if (reason := revocations.reason(grant)) is not None:
        raise Unauthorized(reason)


def _show(grant: Grant) -> None:
    assert grant.expires is not None
    left = int(grant.expires - time.time())
    told = f"for {left} more seconds" if left >= 0 else "and now for as long as JWT_LEEWAY says"
    listens = ["broadcast", *sorted(grant.channels), *grant.subscribe]
    users = [*filter(None, [grant.user]), *grant.users]
    print(
        f"accepted: until {format_ms(int(grant.expires * 1000))}, {told}\n"
        f"  subject     {_printable(grant.subject or '')}\n"
        f"  listens to  {', '.join(map(_printable, listens))}\n"
        f"  publishes   {', '.join(map(_printable, grant.publish)) or 'nothing'}\n"
        f"  acts for    {', '.join(map(_printable, users)) or 'nobody'}\n"
        f"  admin       {'yes' if grant.admin else 'no'}"
    )


def _printable(text: str) -> str:
    # A subject is often what its user chose, and a terminal obeys what it is told.
    return text if text.isprintable() else short_repr(text)
