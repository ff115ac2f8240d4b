"""Identity providers as they answer: their metadata, their keys, and the access tokens that they
issue.

Each as its own documentation and a look at its endpoints have it, members that are of no use here
included."""

import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

from joserfc.jwk import RSAKey

from tests.support.tokens import OTHER_RSA, RSA, claims, public_jwk, signed

METADATA = "/.well-known/openid-configuration"
KID = "Ux9wJ2mO3xLtQ"
SUBJECT = "0b0a1e6e-7f4b-4f3c-9d0e-2f3f5c1d7a11"


class Provider(NamedTuple):
    """What a provider has at its paths, and what it issues.

    Args:
        documents: by their paths.
        claims: of an access token for alice.
        header: of a token, besides `alg` and `kid`.
    """

    documents: dict[str, object]
    claims: dict[str, Any]
    header: dict[str, Any]

    def token(
        self, changes: Mapping[str, object] | None = None, *, key: RSAKey = RSA, kid: str = KID
    ) -> str:
        """An access token, with other claims than the usual ones; None takes one away."""
        given = {
            name: value
            for name, value in {**self.claims, **(changes or {})}.items()
            if value is not None
        }
        return signed(given, key, kid=kid, **self.header)


def _metadata(issuer: str, keys: str, base: str, **more: object) -> dict[str, object]:
    return {
        "issuer": issuer,
        "authorization_endpoint": f"{base}/authorize",
        "token_endpoint": f"{base}/token",
        "jwks_uri": keys,
        "response_types_supported": ["code", "id_token", "code id_token"],
        "response_modes_supported": ["query", "fragment", "form_post"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "scopes_supported": ["openid", "profile", "email", "offline_access"],
        "claims_supported": ["sub", "iss", "aud", "exp", "iat"],
    } | more


def keycloak(issuer: str, audience: str, allowed: object) -> Provider:
    """Keycloak: two keys, one of them for encryption; several audiences."""
    path = "/" + issuer.split("/", 3)[3]
    base = f"{issuer}/protocol/openid-connect"
    encryption = public_jwk(
        OTHER_RSA, "4Z9f-enc", use="enc", alg="RSA-OAEP", x5c=["MIIClzCCAX8CBgGK"], x5t="Lk0z"
    )
    signing = public_jwk(RSA, KID, use="sig", alg="RS256", x5c=["MIIClzCCAX8CBgGK"], x5t="u9dF")
    return Provider(
        {
            path + METADATA: _metadata(
                issuer,
                f"{base}/certs",
                base,
                subject_types_supported=["public", "pairwise"],
                id_token_signing_alg_values_supported=[
                    "PS384",
                    "RS384",
                    "EdDSA",
                    "ES384",
                    "HS256",
                    "RS256",
                ],
                backchannel_logout_supported=True,
            ),
            f"{path}/protocol/openid-connect/certs": {"keys": [encryption, signing]},
        },
        claims(
            SUBJECT,
            iss=issuer,
            aud=[audience, "account"],
            jti=f"onrtac:{uuid.uuid4()}",
            typ="Bearer",
            azp="app",
            sid=str(uuid.uuid4()),
            acr="1",
            realm_access={"roles": ["offline_access", "uma_authorization"]},
            scope="openid profile email",
            email_verified=True,
            preferred_username="alice",
            msgpush=allowed,
        ),
        {"typ": "JWT"},
    )


def auth0(issuer: str, audience: str, allowed: object) -> Provider:
    """Auth0: an issuer with a slash at its end; the keys at the root."""
    base = issuer.rstrip("/")
    keys = [
        public_jwk(key, kid, use="sig", alg="RS256", x5c=["MIIDHT"], x5t=kid) for key, kid in _two()
    ]
    return Provider(
        {
            METADATA: _metadata(issuer, f"{base}/.well-known/jwks.json", base),
            "/.well-known/jwks.json": {"keys": keys},
        },
        claims(
            "auth0|66f1c2d4e5a6b7c8d9e0f1a2",
            iss=issuer,
            aud=[audience, f"{base}/userinfo"],
            scope="openid profile",
            azp="iq0rXc2wYxYVwQ1pYbX3wT5bT9sB0aVd",
            msgpush=allowed,
        ),
        {"typ": "at+jwt"},
    )


def entra(issuer: str, audience: str) -> Provider:
    """Entra ID, v2.0: keys without an algorithm; an issuer with the tenant's id; no claim that is
    an object.
    """
    tenant = issuer.split("/")[3]
    origin = "/".join(issuer.split("/")[:3])
    more = {
        "x5t": KID,
        "x5c": ["MIIC/jCCAeagAwIBAgIJ"],
        "cloud_instance_name": "microsoftonline.com",
        "issuer": issuer,
    }
    keys = [public_jwk(key, kid, use="sig", **more) for key, kid in _two()]
    metadata = _metadata(
        issuer,
        f"{origin}/{tenant}/discovery/v2.0/keys",
        f"{origin}/{tenant}/oauth2/v2.0",
        token_endpoint_auth_methods_supported=[
            "client_secret_post",
            "private_key_jwt",
            "client_secret_basic",
        ],
        subject_types_supported=["pairwise"],
        http_logout_supported=True,
        tenant_region_scope="EU",
        cloud_instance_name="microsoftonline.com",
    )
    issued = claims(
        "AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
        iss=issuer,
        aud=audience,
        aio="AXQAi/8TAAAA",
        azp="11112222-bbbb-3333-cccc-4444dddd5555",
        azpacr="0",
        name="Alice",
        oid="00000000-0000-0000-66f3-3332eca7ea81",
        preferred_username="alice@example.com",
        rh="0.AQ8A",
        scp="listen",
        tid=tenant,
        uti="kx1u",
        ver="2.0",
    )
    issued["nbf"] = issued["iat"]
    return Provider(
        {f"/{tenant}/v2.0{METADATA}": metadata, f"/{tenant}/discovery/v2.0/keys": {"keys": keys}},
        issued,
        {"typ": "JWT"},
    )


def cognito(issuer: str, client: str, allowed: object) -> Provider:
    """Cognito: access tokens without an audience, which name the client instead; no `typ`."""
    path = "/" + issuer.split("/", 3)[3]
    keys = [public_jwk(key, kid, use="sig", alg="RS256") for key, kid in _two()]
    return Provider(
        {
            path + METADATA: _metadata(
                issuer, f"{issuer}/.well-known/jwks.json", "https://app.auth.example.com"
            ),
            f"{path}/.well-known/jwks.json": {"keys": keys},
        },
        claims(
            SUBJECT,
            iss=issuer,
            client_id=client,
            origin_jti=str(uuid.uuid4()),
            event_id=str(uuid.uuid4()),
            token_use="access",
            scope="openid profile",
            jti=str(uuid.uuid4()),
            username=SUBJECT,
            version=2,
            msgpush=allowed,
        ),
        {},
    )


def _two() -> list[tuple[RSAKey, str]]:
    return [(OTHER_RSA, "the-next-one"), (RSA, KID)]
