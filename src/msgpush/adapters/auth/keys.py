"""Keys to verify tokens with: a secret, a public key, or a set that is fetched (RFC 7517)."""

import asyncio
import base64
import contextvars
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Self

import msgspec
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey
from msgspec import Struct

from msgpush.adapters.auth.issuers import fetch
from msgpush.adapters.blocking import in_daemon
from msgpush.domain.errors import KeysUnavailable
from msgpush.domain.json_text import flatten, json_words, mask_surrogates
from msgpush.domain.quoting import short_repr

SMALLEST_SECRET = 32  # bytes, for HS256 (RFC 7518, section 3.2)
SMALLEST_RSA = 2048  # bits (section 3.3)
REFRESH = 600.0  # seconds after which a set is fetched again: a key that was withdrawn goes
MIN_INTERVAL = 3.0  # seconds between two fetches, whatever keys are asked for
LONGEST_LIST = 500  # characters of keys' names, in an answer
PATIENCE = 5.0  # seconds that a request waits for a fetch

# The algorithms of each kind of key, and no others: a token doesn't choose how it is verified (RFC
# 8725, section 3.1). The first is the one that tokens are issued with. Ed25519 and Ed448 go by two
# names each (RFC 9864).
SYMMETRIC: Final = frozenset({"HS256"})
RSA_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
CURVE_ALGORITHMS: Final[Mapping[str, Sequence[str]]] = {
    "P-256": ("ES256",),
    "P-384": ("ES384",),
    "P-521": ("ES512",),
    "Ed25519": ("Ed25519", "EdDSA"),
    "Ed448": ("Ed448", "EdDSA"),
}
ASYMMETRIC: Final = frozenset(RSA_ALGORITHMS).union(*CURVE_ALGORITHMS.values())
KINDS: Final = f"RSA of {SMALLEST_RSA} bits or more, EC on P-256, P-384 or P-521, Ed25519 or Ed448"

Asymmetric = RSAKey | ECKey | OKPKey

log = logging.getLogger("msgpush.auth")


class VerifyingKey(Struct, frozen=True):
    """A key, and the algorithms that it may be used with."""

    key: Key
    algorithms: frozenset[str]
    id: str | None = None


def secret_key(secret: str) -> VerifyingKey:
    """The key that a secret is.

    Raises:
        ValueError: it is too short, or it is a public key: those are no secrets.
    """
    raw = secret.encode(errors="surrogateescape")
    if len(raw.strip()) < SMALLEST_SECRET:
        raise ValueError(f"it is shorter than {SMALLEST_SECRET} bytes")
    if "-----BEGIN " in secret:
        raise ValueError("it is a PEM key, not a secret")
    return VerifyingKey(OctKey.import_key(raw), SYMMETRIC)


def public_key(pem: str) -> VerifyingKey:
    """The key that a PEM text has; its line ends may be written as two characters, backslash and n.

    Raises:
        ValueError: it is something else, or a kind of key that isn't used here.
    """
    text = pem.replace("\\n", "\n").strip() + "\n"
    if "PRIVATE KEY" in text:
        raise ValueError("it is a private key: only who issues tokens has that")
    if "-----BEGIN PUBLIC KEY-----" not in text and "-----BEGIN RSA PUBLIC KEY-----" not in text:
        raise ValueError("it is no public key in PEM")
    key, algorithms = _of_pem(text, "it is no public key that can be read")
    return VerifyingKey(key, frozenset(algorithms))


class SigningKey(NamedTuple):
    """A private key, or a secret: what tokens are signed with."""

    key: Key
    algorithm: str
    verifying: VerifyingKey
    public_pem: str


def private_key(pem: str) -> SigningKey:
    """The private key that a PEM text has.

    Raises:
        ValueError: it is something else, or a kind of key that isn't used here.
    """
    none = (
        f"it is no private RSA key of {SMALLEST_RSA} bits or more, none on P-256, P-384 or P-521,"
        " and no Ed25519 or Ed448 key, in PEM"
    )
    key, algorithms = _of_pem(pem, none)
    if not key.is_private:
        raise ValueError(none)
    public = key.as_pem(private=False).decode()
    return SigningKey(key, algorithms[0], VerifyingKey(key, frozenset(algorithms)), public)


def _of_pem(pem: str, none: str) -> tuple[Asymmetric, Sequence[str]]:
    """Read the key of a PEM text, and its algorithms.

    Raises:
        ValueError: with `none`, or why that key isn't used here.
    """
    for kind in (RSAKey, ECKey, OKPKey):
        if (key := _imported(kind, pem)) is not None:
            try:
                return key, _algorithms(key)
            except ValueError as error:
                raise ValueError(f"it {error}") from None
    raise ValueError(none)


class LeftOut(NamedTuple):
    """A key of a set that tokens can't be verified with, and why: continues "it"."""

    id: str | None
    reason: str


def key_set(text: bytes, leave: Callable[[LeftOut], object] = lambda _: None) -> list[VerifyingKey]:
    """Read the keys of a JWK Set (RFC 7517, section 5), each taken for itself.

    Args:
        leave: is told each of the others.

    Raises:
        ValueError: it is no JWK Set.
    """
    try:
        each = _keys_in(text)
    except (msgspec.DecodeError, RecursionError):
        # What the decoder doesn't take may be within one key.
        try:
            each = _keys_in(flatten(mask_surrogates(text)))
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(f"it is no JWK Set: {error}") from None
    found, objects = [], 0
    for raw in each:
        id = None
        try:
            given = _object(raw)
            objects += 1
            id = given["kid"] if isinstance(given.get("kid"), str) else None
            found.append(_jwk(given, id))
        except ValueError as error:
            leave(LeftOut(id, str(error)))
    if each and not objects:
        raise ValueError("it is no JWK Set: none of its keys is an object")
    return found


class _KeySet(Struct):
    keys: list[msgspec.Raw]


def _keys_in(text: bytes) -> list[msgspec.Raw]:
    try:
        return msgspec.json.decode(text, type=_KeySet).keys
    except msgspec.ValidationError as error:
        raise ValueError(f"it is no JWK Set: {json_words(str(error))}") from None


def _object(raw: msgspec.Raw) -> dict[str, Any]:
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"can't be read: {json_words(str(error))}") from None


# What makes a public key: nothing else that a set says of it is taken from it.
_MEMBERS: Mapping[str, tuple[type[Asymmetric], Sequence[str]]] = {
    "RSA": (RSAKey, ("n", "e")),
    "EC": (ECKey, ("x", "y")),
    "OKP": (OKPKey, ("x",)),
}


def _jwk(given: dict[str, Any], id: str | None) -> VerifyingKey:
    """Read the key of a JWK; a member that is null or "" is absent.

    Raises:
        ValueError: with what it is instead.
    """
    said = {name: value for name, value in given.items() if value != ""}
    kty, use, operations, alg = (said.get(name) for name in ("kty", "use", "key_ops", "alg"))
    if kty == "oct":
        # Least of all: whoever may read the set could then issue tokens.
        raise ValueError("is a secret (kty oct), which doesn't belong in a set")
    if not isinstance(kty, str) or kty not in _MEMBERS:
        raise ValueError(f"is of the kty {short_repr(kty)}, and {', '.join(_MEMBERS)} are known")
    if use not in (None, "sig"):
        purpose = "for encryption" if use == "enc" else "not for signatures"
        raise ValueError(f'is {purpose}: its use is {short_repr(use)}, not "sig"')
    if operations and not (isinstance(operations, list) and "verify" in operations):
        raise ValueError(
            f'is not for signatures: its key_ops are {short_repr(operations)}, without "verify"'
        )
    kind, members = _MEMBERS[kty]
    curve = {} if kty == "RSA" else {"crv": _curve(said.get("crv"))}
    key = _imported(
        kind, {"kty": kty} | curve | {name: _base64url(name, said.get(name)) for name in members}
    )
    if key is None:
        raise ValueError(f"can't be read: its {' and '.join(members)} make no {kty} key")
    algorithms = _algorithms(key)
    named = [name for name in algorithms if name == alg]
    if named and kty != "OKP":
        algorithms = named
    elif alg is not None and not named:
        raise ValueError(
            f"is for the algorithm {short_repr(alg)}, and one of its kind verifies"
            f" {', '.join(algorithms)}"
        )
    return VerifyingKey(key, frozenset(algorithms), id)


def _curve(crv: object) -> str:
    if not isinstance(crv, str) or crv not in CURVE_ALGORITHMS:
        raise ValueError(
            f"is on the curve {short_repr(crv)}, and {', '.join(CURVE_ALGORITHMS)} are known"
        )
    return crv


def _base64url(name: str, value: object) -> str:
    """A member as RFC 7518 has it, where it was padded, or is in the other alphabet of base64."""
    if not isinstance(value, str):
        raise ValueError(
            f"has no {name}" if value is None else f"can't be read: its {name} is no text"
        )
    text = value.rstrip("=").replace("+", "-").replace("/", "_")
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
    except ValueError:
        raise ValueError(f"can't be read: its {name} is no base64url") from None
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _imported(kind: type[Asymmetric], given: str | dict[str, Any]) -> Asymmetric | None:
    """A key, if it is one of this kind."""
    with warnings.catch_warnings():
        # Of those that are too short, which are left out.
        warnings.simplefilter("ignore", SecurityWarning)
        try:
            return kind.import_key(given)
        except (JoseError, ValueError, TypeError, AttributeError, KeyError):
            return None


def _algorithms(key: Asymmetric) -> Sequence[str]:
    """The algorithms of a key. Raises ValueError: it has none; its text continues "it"."""
    if isinstance(key, RSAKey):
        size = key.public_key.key_size
        if size < SMALLEST_RSA:
            raise ValueError(f"is an RSA key of {size} bits, and {SMALLEST_RSA} are the least")
        return RSA_ALGORITHMS
    return CURVE_ALGORITHMS[_curve(key.curve_name)]


class Keys:
    """The keys that the service was given.

    Args:
        fixed: used whatever key a token names.
        fetched: used where a token names one of them, or none.
    """

    def __init__(self, fixed: Iterable[VerifyingKey], fetched: "FetchedKeys | None" = None) -> None:
        self._fixed, self._fetched = tuple(fixed), fetched
        algorithms = {name for key in self._fixed for name in key.algorithms}
        self.algorithms = frozenset(algorithms | ASYMMETRIC if fetched else algorithms)

    @property
    def generation(self) -> int:
        """Changes whenever the keys do."""
        return 0 if self._fetched is None else self._fetched.generation

    async def find(self, id: str | None, algorithm: str) -> list[VerifyingKey]:
        """The keys that may have signed a token.

        Args:
            id: the key's id (`kid`), if the token names one.

        Raises:
            KeysUnavailable: they have never been fetched.
        """
        found = [key for key in self._fixed if algorithm in key.algorithms]
        if self._fetched is not None and algorithm in ASYMMETRIC:
            try:
                found += await self._fetched.find(id, algorithm)
            except KeysUnavailable:
                if not found:
                    raise
        return found

    def why_none(self, id: str | None, algorithm: str) -> str:
        """The reason why there is no such key, as far as it is known; it continues a sentence."""
        return "" if self._fetched is None else self._fetched.why_none(id, algorithm)

    async def look_again(self) -> bool:
        """Look for other keys; returns whether there are some by now."""
        return self._fetched is not None and await self._fetched.look_again()


class FetchedKeys:
    """The keys at a URL. An async context manager.

    While it is open it fetches them, from time to time and when one is missing.
    Keys that were fetched stay in use when they can't be fetched again.

    Args:
        setting: the one that names the URL.
        fetch: gets the set's text; it may block, and runs in a thread. Raises OSError or
            ValueError.
        monotonic: seconds of a clock that never jumps.
        patience: seconds to wait for it at most.
    """

    def __init__(
        self,
        url: str,
        *,
        setting: str = "JWKS_URL",
        fetch: Callable[[str], bytes] = fetch,
        monotonic: Callable[[], float] = time.monotonic,
        patience: float = PATIENCE,
    ) -> None:
        self._url, self._fetch = url, fetch
        self._monotonic, self._patience = monotonic, patience
        self.setting = setting
        self.generation = 0
        self.problem = ""  # why they couldn't be fetched, last time
        self._left_out: list[LeftOut] = []
        self._keys: list[VerifyingKey] | None = None
        self._text = b""
        self._tried = -MIN_INTERVAL
        self._fetching: asyncio.Task[None] | None = None
        # Whoever asks first isn't the one that it is done for alone.
        self._context = contextvars.copy_context()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="msgpush keys")
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [task for task in (self._task, self._fetching) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def fetching(self) -> bool:
        """True while they are being fetched."""
        return self._fetching is not None

    async def find(self, id: str | None, algorithm: str) -> list[VerifyingKey]:
        """The same as `Keys.find`; an unknown one is looked for, unless that was just done."""
        if found := self._known(id, algorithm):
            return found
        await self.look_again()
        if self._keys is None:
            raise KeysUnavailable("the keys that tokens are verified with can't be fetched now")
        return self._known(id, algorithm)

    async def look_again(self) -> bool:
        """Fetch the keys, unless that has just been done; returns whether they have changed."""
        before = self.generation
        if self.fetching or self._monotonic() - self._tried >= MIN_INTERVAL:
            await self.refresh()
        return self.generation != before

    async def refresh(self) -> None:
        """Fetch the keys: once, however many ask at a time, and none of them waits for long."""
        if self._fetching is None:
            self._tried = self._monotonic()
            self._fetching = asyncio.create_task(
                self._refresh(), name="msgpush keys fetch", context=self._context
            )
        # One that asks may go, the others wait for the same. A name that nobody answers for, or
        # headers that trickle, are bounded by no timeout of the request itself.
        await asyncio.wait((self._fetching,), timeout=self._patience)

    async def _run(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(MIN_INTERVAL if self.problem or self.fetching else REFRESH)

    async def _refresh(self) -> None:
        """Fetch the keys, and use them from now on; after a failure the former ones stay in use."""
        left_out: list[LeftOut] = []
        try:
            text = await in_daemon(partial(self._fetch, self._url), "msgpush keys fetch")
            keys = key_set(text, left_out.append)
            self._tell(left_out)
            if not keys:
                told = "; ".join(f"{short_repr(each.id)} {each.reason}" for each in left_out[:3])
                raise ValueError(f"it has no key that can be used{told and f': {told}'}")
        except (OSError, ValueError) as error:
            if not self.problem:
                kept = "; those fetched before stay in use" if self._keys is not None else ""
                log.warning("the keys of %s can't be fetched: %s%s", self.setting, error, kept)
            self.problem = str(error) or repr(error)
        except Exception as error:
            log.exception("the keys of %s can't be fetched", self.setting)
            self.problem = repr(error)
        else:
            if self.problem or self._keys is None:
                log.info("fetched %d keys from %s", len(keys), self.setting)
            self._keys, self.problem = keys, ""
            if text != self._text:
                self._text = text
                self.generation += 1
        finally:
            self._fetching = None

    def _tell(self, left_out: list[LeftOut]) -> None:
        """Log what is left out, once for each change of that."""
        if left_out != self._left_out:
            for each in left_out:
                log.info(
                    "a key of %s is left out: %s %s", self.setting, short_repr(each.id), each.reason
                )
            self._left_out = left_out

    def why_none(self, id: str | None, algorithm: str) -> str:
        """The same as `Keys.why_none`."""
        for key in self._keys or ():
            if id is not None and key.id == id:
                return (
                    f": in the set of {self.setting} it is a key for"
                    f" {', '.join(sorted(key.algorithms))}"
                )
        for each in self._left_out:
            if id is not None and each.id == id:
                return f": in the set of {self.setting} it {each.reason}"
        names = ", ".join(short_repr(key.id) for key in self._keys or ())
        return f": the set of {self.setting} has {names}" if 0 < len(names) <= LONGEST_LIST else ""

    def _known(self, id: str | None, algorithm: str) -> list[VerifyingKey]:
        return [
            key for key in self._keys or () if algorithm in key.algorithms and id in (None, key.id)
        ]
