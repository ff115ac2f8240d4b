"""`msgpush token`: issue a token, or find out why one is accepted or isn't, and what it allows."""

import asyncio
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
from joserfc import jws

from msgpush.adapters.auth.explanation import Explanation, explained, said_by
from msgpush.adapters.auth.keys import Keys, SigningKey, private_key, secret_key
from msgpush.adapters.auth.tokens import registry_for
from msgpush.adapters.redis.credentials import RedisCredentials
from msgpush.domain.credentials import Revocations
from msgpush.domain.errors import BusUnavailable, KeysUnavailable, Unauthorized
from msgpush.domain.grant import Grant
from msgpush.domain.quoting import short_repr
from msgpush.entrypoints.access import fetched_keys, token_keys, token_reader
from msgpush.entrypoints.settings import Settings, SettingsError

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
NO_KEY = "has no value: set it, or JWT_PUBLIC_KEY, JWKS_URL or JWT_ISSUER, to what the service has"


class _Wrong(click.ClickException):
    """Something that was asked for can't be done so; its text says what to change."""

    exit_code = 2


class _Lifetime(click.ParamType[int]):
    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch("([0-9]{1,9})([smhd]?)", value)
        if found is None:
            self.fail(f"{short_repr(value)} is not such as 90s, 15m, 1h or 30d", param, ctx)
        return int(found[1]) * UNITS[found[2]]


@click.group(
    epilog="""\
\b
Example:
  msgpush token issue --sub 123 --subscribe 'kb:*' --publish service:importer
"""
)
def token() -> None:
    """Issue a token, or say why one isn't accepted.

    With the service's own settings from the environment.
    """


@token.command(
    epilog="""\
\b
Example:
  msgpush token issue --sub importer --publish service:importer --publish 'user:*' --lifetime 30d
"""
)
@click.option("--sub", required=True, help="Whom it is for: may listen to user:SUB.")
@click.option("--subscribe", multiple=True, metavar="PATTERN", help="May listen to; repeatable.")
@click.option("--publish", multiple=True, metavar="PATTERN", help="May publish to; repeatable.")
@click.option(
    "--users",
    multiple=True,
    metavar="PATTERN",
    help="May acknowledge for these users, as a back end does; repeatable.",
)
@click.option("--admin", is_flag=True, help="May see and close connections, and revoke tokens.")
@click.option(
    "--lifetime", type=_Lifetime(), default=3600, help="Such as 90s, 15m, 1h or 30d; default 1h."
)
@click.option("--jti", help="Its own name, by which it can be revoked alone.")
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A private key in PEM, instead of JWT_SECRET.",
)
@click.option("--kid", help="The key's id in the set that the service fetches.")
@click.pass_obj
def issue(
    environ: Mapping[str, str],
    *,
    sub: str,
    subscribe: Sequence[str],
    publish: Sequence[str],
    users: Sequence[str],
    admin: bool,
    lifetime: int,
    jti: str | None,
    key: Path | None,
    kid: str | None,
) -> None:
    """Print a new token, signed with JWT_SECRET or a private key."""
    signing, settings = _signing(key, _local(environ))
    now = int(time.time())
    claims: dict[str, Any] = {"sub": sub, "iat": now, "exp": now + lifetime}
    claims |= {"iss": settings.jwt_issuer} if settings.jwt_issuer else {}
    claims |= (
        {settings.jwt_audience_claim: settings.first_audience} if settings.first_audience else {}
    )
    claims |= {"jti": jti} if jti else {}
    claims["msgpush"] = {"subscribe": subscribe, "publish": publish, "admin": admin} | (
        {"users": users} if users else {}
    )
    header = {"alg": signing.algorithm, "typ": "JWT"} | ({"kid": kid} if kid else {})
    registry = registry_for({signing.algorithm})
    text = jws.serialize_compact(header, json.dumps(claims), signing.key, registry=registry)
    try:
        # What the service wouldn't accept isn't worth printing.
        asyncio.run(token_reader(settings, Keys([signing.verifying])).read(text))
    except Unauthorized as error:
        raise _Wrong(f"the service would refuse it: {error}") from None
    click.echo(text)


@token.command(
    epilog="""\
\b
Example:
  msgpush token issue --sub 123 | msgpush token inspect
"""
)
@click.argument("token", default="-")
@click.pass_context
def inspect(ctx: click.Context, token: str) -> None:
    """Say why a token is accepted or isn't, and what it allows.

    TOKEN is the token; - or none: from stdin, where no other user sees it. The exit status is 0
    when it is accepted, and 1 when it isn't.
    """
    settings = _settings(_local(ctx.obj))
    text = sys.stdin.read().strip() if token == "-" else token
    if not settings.has_key:
        raise _Wrong(f"JWT_SECRET {NO_KEY}")
    ctx.exit(asyncio.run(_inspect(text, settings)))


def _local(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The variables, but for those that make no difference to a token."""
    return {**environ, "SERVICE_HOST": "127.0.0.1", "ENABLE_AUTH": "", "OIDC_ISSUER": ""}


def _settings(environ: Mapping[str, str]) -> Settings:
    try:
        return Settings.from_environ(environ)
    except SettingsError as error:
        raise _Wrong(str(error)) from None


def _signing(file: Path | None, environ: Mapping[str, str]) -> tuple[SigningKey, Settings]:
    """The key to sign with, and the settings of a service that has its other half."""
    if file is None:
        settings = _settings(environ)
        return _secret(settings), settings
    try:
        key = private_key(file.read_text())
    except (OSError, ValueError) as error:
        raise _Wrong(f"--key {file}: {error}") from None
    # The service has its public half: so what goes with a key is read here, too.
    public = {"JWT_PUBLIC_KEY": key.public_pem, "JWT_PUBLIC_KEY_FILE": ""}
    return key, _settings({**environ, **public})


def _secret(settings: Settings) -> SigningKey:
    if settings.jwt_secret is None:
        raise _Wrong(
            "JWT_SECRET has no value: set it to what the service has, or give a private key by"
            " --key"
        )
    verifying = secret_key(settings.jwt_secret)
    return SigningKey(verifying.key, "HS256", verifying, public_pem="")


async def _inspect(token: str, settings: Settings) -> int:
    """Print why a token is accepted or isn't; returns the exit status."""
    if (said := said_by(token)) is not None:
        # Written anew: nobody has verified it, and what it says must not speak to the terminal.
        click.echo(f"header:   {json.dumps(said.header)}\nclaims:   {json.dumps(said.claims)}\n")
    async with AsyncExitStack() as opened:
        fetched = fetched_keys(settings)
        if fetched is not None:
            await opened.enter_async_context(fetched)
        reader = token_reader(settings, token_keys(settings, fetched))
        try:
            found = await explained(token, reader.read, partial(_revoked, settings))
        except KeysUnavailable as error:
            why = f": {fetched.setting}: {fetched.problem}" if fetched and fetched.problem else ""
            click.echo(f"refused: {error}{why}")
            return 1
    if not found.accepted:
        click.echo(f"refused: {found.reason}")
        return 1
    _show(found)
    return 0


async def _revoked(settings: Settings, grant: Grant) -> str | None:
    """The reason why a token is refused that was revoked, as far as that can be told."""
    if settings.redis is None:
        click.echo("(What was revoked on an embedded bus, only that service itself knows.)\n")
        return None
    revocations = Revocations(settings.max_token_lifetime)
    try:
        async with RedisCredentials(
            settings.redis, lifetime=settings.max_token_lifetime
        ) as credentials:
            for revocation in await credentials.revocations():
                revocations.add(revocation, time.time())
    except BusUnavailable as error:
        click.echo(f"(Whether it was revoked can't be told: {error}.)\n")
    return revocations.reason(grant)


def _show(found: Explanation) -> None:
    assert found.expires_at is not None
    left = int(datetime.fromisoformat(found.expires_at).timestamp() - time.time())
    told = f"for {left} more seconds" if left >= 0 else "and now for as long as JWT_LEEWAY says"
    click.echo(
        f"accepted: until {found.expires_at}, {told}\n"
        f"  subject     {_printable(found.subject or '')}\n"
        f"  listens to  {', '.join(map(_printable, found.subscribe))}\n"
        f"  publishes   {', '.join(map(_printable, found.publish)) or 'nothing'}\n"
        f"  acts for    {', '.join(map(_printable, found.users)) or 'nobody'}\n"
        f"  admin       {'yes' if found.admin else 'no'}"
    )


def _printable(text: str) -> str:
    # A subject is often what its user chose, and a terminal obeys what it is told.
    return text if text.isprintable() else short_repr(text)
