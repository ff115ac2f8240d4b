"""Sign-in at an OpenID Connect provider, by Authlib's Starlette client.

Authorization code with PKCE (RFC 7636), nonce and state. Imported where a provider is set alone: it
needs an HTTP client (the extra `oidc`).
"""

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx2
import msgspec
from authlib.integrations.base_client import OAuthError
from authlib.integrations.starlette_client import StarletteIntegration, StarletteOAuth2App
from authlib.oidc.core import CodeIDToken
from joserfc.errors import JoseError
from starlette.requests import Request

from msgpush.adapters.auth.issuers import (
    FETCH_BYTES,
    HEADERS,
    Metadata,
    discovered,
    endpoint,
    fetch,
)
from msgpush.adapters.auth.keys import FetchedKeys, Keys
from msgpush.adapters.auth.sign_in import NotSignedIn
from msgpush.adapters.auth.tokens import Signatures
from msgpush.domain.errors import KeysUnavailable, Unauthorized
from msgpush.domain.quoting import short_repr

NAME = "msgpush"  # of the client, within Authlib
EXCHANGE_SECONDS = 8.0  # for the whole exchange of a code
READ_SECONDS = 4.0

_AWAY = "the sign-in provider can't be reached now"
_NONSENSE = "the sign-in provider has answered something that isn't right"


class Provider:
    """The provider that operators sign in at.

    Args:
        issuer: its name, which its metadata is found by and must have.
        callback: where it sends browsers back to.
        scope: what it is asked for.
        leeway: seconds by which clocks may differ.
        fetch: gets what is at a URL; it may block, and runs in a thread.
    """

    def __init__(
        self,
        issuer: str,
        client_id: str,
        client_secret: str | None,
        *,
        callback: str,
        scope: str = "openid",
        leeway: float = 30.0,
        fetch: Callable[[str], bytes] = fetch,
    ) -> None:
        self._issuer, self._callback = issuer, callback
        self._metadata: Metadata | None = None

        def keys_of(issuer: str) -> bytes:
            return discovered(issuer, fetch, setting="OIDC_ISSUER", tell=self._learn)

        # What stands there is fetched with the keys, and as often. An async context manager.
        self.keys = FetchedKeys(issuer, setting="OIDC_ISSUER", fetch=keys_of)
        self._framework = StarletteIntegration(NAME)
        self._client = _Client(
            self._framework,
            NAME,
            client_id=client_id,
            client_secret=client_secret,
            client_kwargs={
                "scope": scope,
                "code_challenge_method": "S256",
                "timeout": READ_SECONDS,
                "follow_redirects": False,
                "headers": {"Accept-Encoding": "identity"},
                "event_hooks": {"response": [_bound]},
                # Authlib makes a client for each request, and this takes a client most of its time.
                "verify": httpx2.create_ssl_context(),
            },
            user_agent=HEADERS["User-Agent"],
        )
        self._client.prepare(self._known, Signatures(Keys((), self.keys)), issuer, leeway)

    async def begin(self, request: Request) -> tuple[str, str, dict[str, Any]]:
        """Begin to sign in: where the browser has to go, the state, and what has to be kept of it.

        Raises:
            NotSignedIn: the provider can't be found now.
        """
        request.scope["session"] = {}
        state = secrets.token_urlsafe(32)
        answer = await self._client.authorize_redirect(request, self._callback, state=state)
        kept = await self._framework.get_state_data(request.session, state)
        assert kept is not None
        data = {name: kept[name] for name in ("nonce", "code_verifier", "redirect_uri")}
        return answer.headers["location"], state, data

    async def finish(self, request: Request, kept: Mapping[str, Any]) -> Mapping[str, Any]:
        """The claims of whom the provider has sent back, to the browser that had begun.

        Args:
            kept: what `begin` has given.

        Raises:
            NotSignedIn: why nobody is signed in.
        """
        await self._known()
        self._check_sender(request)
        if not {"code", "error"} & request.query_params.keys():
            raise NotSignedIn(400, "the sign-in provider has sent neither a code nor an error")
        request.scope["session"] = {}
        state = request.query_params.get("state", "")
        await self._framework.set_state_data(request.session, state, dict(kept))
        try:
            async with asyncio.timeout(EXCHANGE_SECONDS):
                token = await self._client.authorize_access_token(request)
        except OAuthError as error:
            raise _refused(error) from None
        except (Unauthorized, JoseError) as error:
            # Nothing of the token itself is in their texts.
            raise NotSignedIn(502, _NONSENSE, f"its ID token: {error}") from None
        except KeysUnavailable:
            raise NotSignedIn(503, _AWAY, f"its keys: {self.keys.problem}") from None
        except httpx2.DecodingError as error:
            raise NotSignedIn(502, _NONSENSE, f"its answer: {error}") from None
        except (httpx2.HTTPError, TimeoutError) as error:
            raise NotSignedIn(503, _AWAY, f"its token endpoint: {error!r:.200}") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise NotSignedIn(502, _NONSENSE, f"its answer: {type(error).__name__}") from None
        claims = token.get("userinfo")
        if not claims:
            raise NotSignedIn(502, _NONSENSE, "its answer has no ID token")
        found: Mapping[str, Any] = claims
        return found

    def _check_sender(self, request: Request) -> None:
        """Refuse an answer that says that another provider has sent it (RFC 9207)."""
        sender = request.query_params.get("iss")
        says = (self._metadata or {}).get("authorization_response_iss_parameter_supported")
        if sender != self._issuer and (sender is not None or says is True):
            raise NotSignedIn(400, "another provider has answered", f"iss is {short_repr(sender)}")

    def _learn(self, metadata: Metadata) -> None:
        # In a thread; one assignment.
        self._metadata = metadata

    async def _known(self) -> dict[str, Any]:
        """What Authlib has to know of the provider."""
        if self._metadata is None:
            await self.keys.look_again()
        if self._metadata is None:
            raise NotSignedIn(503, _AWAY, self.keys.problem or "it takes too long")
        metadata = self._metadata
        try:
            # No more of it: Authlib takes names such as `verify` for its HTTP client's options.
            known = {
                name: endpoint(metadata, name)
                for name in ("authorization_endpoint", "token_endpoint")
            }
        except ValueError as error:
            raise NotSignedIn(502, _NONSENSE, str(error)) from None
        methods = metadata.get("token_endpoint_auth_methods_supported")
        if isinstance(methods, list) and "client_secret_basic" not in methods:
            # Where it isn't said, the other one counts (OpenID Connect Discovery 1.0, section 3).
            known |= {"token_endpoint_auth_method": "client_secret_post"}
        return known


async def _bound(response: httpx2.Response) -> None:
    """Have no more of an answer read than a megabyte, and nothing unpacked."""
    if "content-encoding" in response.headers:
        raise httpx2.DecodingError("it is compressed, without having been asked for that")
    response.stream = _Bounded(response.stream)


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self._stream:
            size += len(part)
            if size > FETCH_BYTES:
                raise httpx2.DecodingError(f"it is larger than {FETCH_BYTES} bytes")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Client(StarletteOAuth2App):  # type: ignore[misc]
    """Authlib's client, with metadata and signatures as tokens have them here: bounded and checked.

    Its own takes an ID token by any algorithm that the provider names."""

    def prepare(
        self,
        known: Callable[[], Any],
        signatures: Signatures,
        issuer: str,
        leeway: float,
    ) -> None:
        self._known, self._signatures = known, signatures
        self._issuer, self._leeway = issuer, leeway

    async def load_server_metadata(self) -> dict[str, Any]:
        known: dict[str, Any] = await self._known()
        if self.client_secret is None:
            known.pop("token_endpoint_auth_method", None)
        return known

    async def parse_id_token(
        self,
        token: Mapping[str, Any],
        nonce: str,
        claims_options: object = None,
        claims_cls: object = None,
        leeway: float = 0,
    ) -> Mapping[str, Any]:
        """The claims of an ID token, all of which are right (OpenID Connect Core 1.0, 3.1.3.7)."""
        text = token["id_token"]
        if not isinstance(text, str):
            raise Unauthorized("it is no text")
        signed = await self._signatures.payload(text)
        header = msgspec.json.decode(_part(text))
        if header["alg"] == "Ed25519":
            header["alg"] = "EdDSA"  # the name that Authlib knows its hash by (RFC 9864)
        wanted = {
            "iss": {"essential": True, "value": self._issuer},
            "aud": {"essential": True, "value": self.client_id},
            "sub": {"essential": True},
        }
        given = {
            "nonce": nonce,
            "client_id": self.client_id,
            "access_token": token.get("access_token"),
        }
        claims = CodeIDToken(msgspec.json.decode(signed, type=dict), header, wanted, given)
        claims.validate(leeway=self._leeway)
        return dict(claims)


def _part(token: str) -> bytes:
    """The header of a token whose signature is right."""
    head = token.partition(".")[0]
    return base64.urlsafe_b64decode(head + "=" * (-len(head) % 4))


def _refused(error: OAuthError) -> NotSignedIn:
    # Of the browser's own text nothing but a code is shown or logged (RFC 6749, section 4.1.2.1).
    code = str(error.error)
    known = code if code.isascii() and code.replace("_", "").isalpha() and len(code) < 50 else "?"
    if known == "access_denied":
        return NotSignedIn(403, "the sign-in was refused, or given up", "access_denied")
    return NotSignedIn(502, f"the sign-in provider has refused ({known})", known)
