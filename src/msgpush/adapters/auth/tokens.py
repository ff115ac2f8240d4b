"""JSON Web Tokens (RFC 7519), and what they allow."""

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Any

import msgspec
from joserfc import jws
from joserfc.errors import JoseError, UnsupportedAlgorithmError
from joserfc.jws import CompactSignature, JWSRegistry
from msgspec import UNSET, Struct, UnsetType

from msgpush.adapters.auth.issuers import differ_by_slash
from msgpush.adapters.auth.keys import ASYMMETRIC, Keys
from msgpush.domain.channel import USER, own_channel
from msgpush.domain.errors import Unauthorized
from msgpush.domain.grant import Grant, Patterns, is_pattern
from msgpush.domain.json_text import json_words
from msgpush.domain.message import format_seconds
from msgpush.domain.quoting import short_repr

CACHED = 4_096  # tokens whose signature is known to be right
FOREVER = 253_402_300_800  # the year 10000, in seconds since 1970


class MsgpushClaim(Struct, forbid_unknown_fields=True):
    """The claim `msgpush`. A misspelt permission must not be one that is silently missing."""

    subscribe: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    admin: bool = False


class Claims(Struct):
    """The claims that are looked at; a token may have others."""

    sub: str
    exp: float
    nbf: float | None = None
    iat: float | None = None
    iss: Any = None
    aud: str | tuple[str, ...] | None = None
    jti: str | None = None
    msgpush: MsgpushClaim | UnsetType = UNSET


_claims = msgspec.json.Decoder(Claims).decode


class _Registry(JWSRegistry):
    """The algorithms that we allow, though joserfc warns of some; headers as issuers make them."""

    max_header_length = 8 * 1024
    max_payload_length = 32 * 1024

    def get_alg(self, name: str) -> Any:
        if name not in (self.allowed or ()):
            raise UnsupportedAlgorithmError(name)
        return self.algorithms[name]


def registry_for(algorithms: Collection[str]) -> JWSRegistry:
    """A registry for joserfc: these algorithms, and any header that asks for nothing special."""
    return _Registry(algorithms=algorithms, strict_check_header=False)


class Signatures:
    """Verifies what was signed with some keys."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._registry = registry_for(keys.algorithms)

    async def payload(self, token: str) -> bytes:
        """The payload of a token whose signature is right.

        Raises:
            Unauthorized: it isn't; the error says why.
            KeysUnavailable: there is nothing to verify it with yet.
        """
        try:
            signed = jws.extract_compact(token.encode("ascii"), None, self._registry)
            header = signed.headers()
            if "crit" in header or "b64" in header:
                raise Unauthorized(
                    "the token's header has extensions (crit), and none is understood here"
                )
            self._registry.check_header(header)
        except (JoseError, ValueError, RecursionError):
            raise Unauthorized("the token is no signed JSON Web Token") from None
        algorithm = header["alg"]
        if algorithm not in self._keys.algorithms:
            allowed = ", ".join(sorted(self._keys.algorithms))
            raise Unauthorized(
                f"the token's algorithm is {short_repr(algorithm)}; accepted are {allowed}"
            )
        # An issuer that rotates its key may give the next one the same name, or none.
        while not await self._is_signed(signed, header.get("kid"), algorithm):
            if algorithm not in ASYMMETRIC or not await self._keys.look_again():
                raise Unauthorized(
                    "the token's signature is wrong: it was made with another key, or changed"
                )
        return bytes(signed.payload)

    async def _is_signed(self, signed: CompactSignature, kid: str | None, algorithm: str) -> bool:
        keys = await self._keys.find(kid, algorithm)
        if not keys:
            why = self._keys.why_none(kid, algorithm)
            raise Unauthorized(
                f"the token's key {short_repr(kid)} for {algorithm} is not known{why}"
            )
        for key in keys:
            try:
                if jws.validate_compact(signed, key.key, registry=self._registry):
                    return True
            except (JoseError, ValueError):
                continue
        return False


class Tokens:
    """Reads tokens.

    Args:
        issuer: what a token must be from; None: whoever issues it.
        audience: what a token must be for: one of these; None: nobody in particular.
        audience_claim: the claim that says whom it is for.
        leeway: seconds by which clocks may differ.
        max_lifetime: seconds that a token may be valid for: as long as a revocation is remembered.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        keys: Keys,
        *,
        issuer: str | None = None,
        audience: str | Sequence[str] | None = None,
        audience_claim: str = "aud",
        leeway: float = 30.0,
        max_lifetime: float = 30 * 86_400,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys, self._clock = keys, clock
        self._issuer, self._audience, self._audience_claim = (
            issuer,
            frozenset(_texts(audience)),
            audience_claim,
        )
        self._leeway, self._max_lifetime = leeway, max_lifetime
        self._signatures = Signatures(keys)
        # By digest: neither the time of a look-up nor this process's memory tells what was nearly
        # right.
        self._known: OrderedDict[bytes, Grant] = OrderedDict()
        self._generation = 0

    async def read(self, token: str) -> Grant:
        """The permissions that a token gives, now.

        Raises:
            Unauthorized: it is not accepted; the error says why.
            KeysUnavailable: there is nothing to verify it with yet.
        """
        digest = sha256(token.encode(errors="surrogatepass")).digest()
        if self._generation != self._keys.generation:
            self._generation = self._keys.generation
            self._known.clear()
        grant = self._known.get(digest)
        if grant is None:
            grant = self._grant(await self._signatures.payload(token))
            self._known[digest] = grant
            if len(self._known) > CACHED:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(digest)
        assert grant.expires is not None
        if grant.expires + self._leeway <= self._clock():
            raise Unauthorized(f"the token has expired: its exp is {format_seconds(grant.expires)}")
        return grant

    def _grant(self, payload: bytes) -> Grant:
        """The permissions that a payload gives, if all its claims are right."""
        try:
            claims = _claims(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Unauthorized(
                f"the token's claims are wrong: {_claims_fault(payload, error)}"
            ) from None
        self._check(claims)
        self._check_audience(claims, payload)
        given = claims.msgpush or MsgpushClaim()
        if (fault := _pattern_fault(given)) is not None:
            raise Unauthorized(f"the token's claims are wrong: {fault}")
        own = own_channel(claims.sub)
        return Grant(
            claims.sub,
            frozenset(() if own is None else (own,)),
            Patterns(*given.subscribe),
            Patterns(*given.publish),
            given.admin,
            claims.exp,
            claims.iat,
            claims.jti,
            user=None if own is None else own.removeprefix(USER),
            users=Patterns(*given.users),
        )

    def _check(self, claims: Claims) -> None:
        """Raise `Unauthorized` where the subject, a moment or the issuer is wrong."""
        now, leeway = self._clock(), self._leeway
        if not claims.sub:
            raise Unauthorized("the token's sub is empty")
        if not 0 <= claims.exp < FOREVER:
            raise Unauthorized("the token's exp is no moment of the years 1970 to 9999")
        if claims.exp + leeway <= now:
            raise Unauthorized(f"the token has expired: its exp is {format_seconds(claims.exp)}")
        if claims.nbf is not None and claims.nbf - leeway > now:
            raise Unauthorized("the token is not valid yet (nbf)")
        if claims.iat is not None and claims.iat - leeway > now:
            raise Unauthorized("the token was issued in the future (iat)")
        since = now if claims.iat is None else claims.iat
        if claims.exp - since > self._max_lifetime:
            raise Unauthorized(
                f"the token is valid for longer than {self._max_lifetime:.15g} seconds"
                " (MAX_TOKEN_LIFETIME)"
            )
        if self._issuer is not None and claims.iss != self._issuer:
            told = "not the issuer that is trusted here"
            if isinstance(claims.iss, str) and differ_by_slash(claims.iss, self._issuer):
                told += (
                    f": JWT_ISSUER is {short_repr(self._issuer)}, and they differ by the slash at"
                    " the end alone"
                )
            raise Unauthorized(f"the token's iss is {short_repr(claims.iss)}, {told}")

    def _check_audience(self, claims: Claims, payload: bytes) -> None:
        """Raise `Unauthorized` where a token is for others."""
        if not self._audience:
            if claims.aud is not None:
                told = f"its aud is {short_repr(claims.aud)}, and no JWT_AUDIENCE is set"
                raise Unauthorized(f"the token is for others: {told}")
            return
        named: dict[str, object] = {"aud": claims.aud}
        if self._audience_claim != "aud":
            # Where there is an aud as well, it counts all the same (RFC 7519, section 4.1.3).
            named = named if claims.aud is not None else {}
            named[self._audience_claim] = msgspec.json.decode(payload).get(self._audience_claim)
        for claim, value in named.items():
            if self._audience.isdisjoint(_texts(value)):
                told = f"its {claim} is {short_repr(value)}, not this service's audience"
                raise Unauthorized(f"the token is for others: {told}")


def read_claim(text: str) -> MsgpushClaim:
    """The permissions that a text has, written as the claim `msgpush` is.

    Raises:
        ValueError: it has none; its text says why.
    """
    try:
        given = msgspec.json.decode(text, type=MsgpushClaim)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ValueError(json_words(str(error))) from None
    if (fault := _pattern_fault(given)) is not None:
        raise ValueError(fault)
    return given


def _pattern_fault(given: MsgpushClaim) -> str | None:
    """What is wrong with the first pattern that is none."""
    for name in ("subscribe", "publish"):
        for pattern in getattr(given, name):
            if not is_pattern(pattern):
                return (
                    f"{short_repr(pattern)} in msgpush.{name} is no channel name, and no prefix of"
                    " one that ends in *"
                )
    for pattern in given.users:
        if not is_pattern(USER + pattern):
            return f"{short_repr(pattern)} in msgpush.users is no user, and no prefix with *"
    return None


def _texts(value: object) -> tuple[str, ...]:
    """The texts in a claim that is one, or a list."""
    several = (
        (value,) if isinstance(value, str) else value if isinstance(value, list | tuple) else ()
    )
    return tuple(text for text in several if isinstance(text, str))


def _claims_fault(payload: bytes, error: Exception) -> str:
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        match msgspec.json.decode(payload):
            case {"msgpush": str(text)}:
                advice = (
                    "have the issuer write the claim as JSON, not as a text that has JSON in it"
                )
                return f"msgpush is the text {short_repr(text)}, and must be an object: {advice}"
    return json_words(str(error))
