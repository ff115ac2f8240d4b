"""Who may come in: the keys of tokens, operators who sign in, how a caller is known."""

from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

from msgpush.adapters.auth.admission import HOME
from msgpush.adapters.auth.authenticator import OpenAuthenticator, TokenAuthenticator
from msgpush.adapters.auth.issuers import discovered
from msgpush.adapters.auth.keys import FetchedKeys, Keys, public_key, secret_key
from msgpush.adapters.auth.sessions import LIFETIME, Sealed, Sessions
from msgpush.adapters.auth.sign_in import PATIENCE, SignIn
from msgpush.adapters.auth.tokens import Tokens, read_claim
from msgpush.adapters.http.callers import Authenticator
from msgpush.adapters.http.origins import Origins, url_origin
from msgpush.adapters.memory.limiter import MemoryLimiter
from msgpush.domain.service import Push
from msgpush.entrypoints.settings import Settings

# Of one address: each has the provider asked.
SIGN_INS_PER_SECOND = 1
SIGN_INS_AT_ONCE = 60


class Access(NamedTuple):
    """How callers are known.

    Attributes:
        tokens: None where there are none.
        sign_in: None where nobody can sign in at a provider.
        resources: what has to be open meanwhile.
    """

    auth: Authenticator
    tokens: Tokens | None = None
    sign_in: SignIn | None = None
    resources: tuple[AbstractAsyncContextManager[object], ...] = ()


def access_of(settings: Settings, push: Push, pages: Origins) -> Access:
    """The access that these settings give.

    Args:
        pages: those that may use cookies.
    """
    if settings.mode != "tokens":
        return Access(OpenAuthenticator())
    fetched, sign_in, provider_keys = fetched_keys(settings), None, None
    tokens = token_reader(settings, token_keys(settings, fetched))
    if settings.oidc_issuer is not None:
        sign_in, provider_keys = _sign_in(settings)
    sessions = None if sign_in is None else sign_in.sessions
    return Access(
        TokenAuthenticator(tokens, push, pages, sessions),
        tokens,
        sign_in,
        tuple(each for each in (fetched, provider_keys) if each is not None),
    )


def fetched_keys(settings: Settings) -> FetchedKeys | None:
    """The keys that are fetched as these settings say; None: there are others, or none."""
    if settings.jwks_url:
        return FetchedKeys(settings.jwks_url)
    if settings.discovers_keys:
        assert settings.jwt_issuer
        return FetchedKeys(settings.jwt_issuer, setting="JWT_ISSUER", fetch=discovered)
    return None


def token_keys(settings: Settings, fetched: FetchedKeys | None) -> Keys:
    """The keys that these settings name, and those that are fetched."""
    fixed = []
    if settings.jwt_secret:
        fixed.append(secret_key(settings.jwt_secret))
    if settings.jwt_public_key:
        fixed.append(public_key(settings.jwt_public_key))
    return Keys(fixed, fetched)


def token_reader(settings: Settings, keys: Keys) -> Tokens:
    """A reader of tokens, as these settings say."""
    return Tokens(
        keys,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        audience_claim=settings.jwt_audience_claim,
        leeway=settings.jwt_leeway,
        max_lifetime=settings.max_token_lifetime,
    )


def _sign_in(settings: Settings) -> tuple[SignIn, FetchedKeys]:
    """Signing in at the provider that these settings name, and that one's keys."""
    # With it come Authlib's client and httpx2, which take 0.2 s and an extra.
    from msgpush.adapters.auth.oidc import Provider  # noqa: PLC0415

    secret, url = settings.sessions_secret, settings.public_url
    assert settings.oidc_issuer is not None
    assert settings.oidc_client_id is not None
    assert settings.oidc_admin_claim is not None
    assert secret is not None
    assert url is not None
    provider = Provider(
        settings.oidc_issuer,
        settings.oidc_client_id,
        settings.oidc_client_secret,
        callback=f"{url}{HOME}callback",
        scope=settings.oidc_scope,
        leeway=settings.jwt_leeway,
    )
    sessions = Sessions(
        secret,
        issuer=settings.oidc_issuer,
        origin=url_origin(url),
        claim=settings.oidc_admin_claim,
        given=read_claim(settings.oidc_grant),
        # No longer than a revocation is remembered.
        lifetime=min(LIFETIME, settings.max_token_lifetime),
    )
    sign_in = SignIn(
        provider,
        sessions,
        Sealed(secret, "sign-in", PATIENCE),
        url,
        settings.oidc_admin_claim,
        MemoryLimiter(SIGN_INS_PER_SECOND, SIGN_INS_AT_ONCE),
    )
    return sign_in, provider.keys
