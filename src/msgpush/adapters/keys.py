"""The keys that tokens are verified with: a secret, a public key, or a set of keys that is fetched (RFC 7517)."""

import asyncio
import logging
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from http.client import HTTPException
from typing import Any, Final, NamedTuple, Self

import msgspec
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey
from msgspec import Struct

from msgpush.adapters.web import KeysUnavailable

SMALLEST_SECRET = 32  # bytes, for HS256 (RFC 7518, section 3.2)
SMALLEST_RSA = 2048  # bits, for RS256 (section 3.3)
FETCH_SECONDS = 4.0
FETCH_BYTES = 1024 * 1024
REFRESH = 600.0  # seconds after which a set is fetched again: a key that was withdrawn goes
MIN_INTERVAL = 3.0  # seconds between two fetches, whatever keys are asked for
PATIENCE = 5.0  # seconds that a request waits for a fetch

# The algorithms of each kind of key, and no others: a token doesn't choose how it is verified (RFC 8725, section 3.1).
SYMMETRIC: Final = frozenset({"HS256"})
ASYMMETRIC: Final = frozenset({"RS256", "ES256", "Ed25519", "EdDSA"})

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
    for kind in (RSAKey, ECKey, OKPKey):
        key = _imported(kind, text)
        if key is not None and (algorithms := _algorithms_of(key)):
            return VerifyingKey(key, algorithms)
    raise ValueError(f"it is no RSA key of {SMALLEST_RSA} bits or more, no P-256 key and no Ed25519 key")


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
    for kind in (RSAKey, ECKey, OKPKey):
        key = _imported(kind, pem)
        if key is not None and key.is_private and (algorithms := _algorithms_of(key)):
            public = key.as_pem(private=False).decode()
            return SigningKey(key, min(algorithms - {"EdDSA"}), VerifyingKey(key, algorithms), public)
    raise ValueError(
        f"it is no private RSA key of {SMALLEST_RSA} bits or more, no P-256 key and no Ed25519 key, in PEM"
    )


def key_set(text: bytes) -> list[VerifyingKey]:
    """The keys of a JWK Set (RFC 7517, section 5) that tokens may be verified with; others are left out.

    Raises:
        ValueError: it is no JWK Set.
    """
    try:
        found = msgspec.json.decode(text, type=_KeySet)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"it is no JWK Set: {error}") from None
    keys = (_jwk(each) for each in found.keys)
    return [key for key in keys if key is not None]


class _KeySet(Struct):
    keys: list[dict[str, Any]]


# What makes a public key: nothing else that a set says of it is taken from it.
_MEMBERS: Mapping[str, tuple[type[Asymmetric], Sequence[str]]] = {
    "RSA": (RSAKey, ("n", "e")),
    "EC": (ECKey, ("crv", "x", "y")),
    "OKP": (OKPKey, ("crv", "x")),
}


def _jwk(given: dict[str, Any]) -> VerifyingKey | None:
    # Secrets (`oct`) least of all: whoever may read the set could then issue tokens.
    kind, members = _MEMBERS.get(str(given.get("kty")), (None, ()))
    uses = given.get("key_ops") or ["verify"]
    if kind is None or given.get("use", "sig") != "sig" or not isinstance(uses, list) or "verify" not in uses:
        return None
    key = _imported(kind, {"kty": given["kty"]} | {name: given.get(name) for name in members})
    algorithms = frozenset() if key is None else _algorithms_of(key)
    # Ed25519 and EdDSA are names of the same (RFC 9864).
    named = "EdDSA" if given.get("alg") == "Ed25519" else given.get("alg")
    if key is None or not algorithms or not (named is None or named in list(algorithms)):
        return None
    id = given.get("kid")
    return VerifyingKey(key, algorithms, id if isinstance(id, str) else None)


def _imported(kind: type[Asymmetric], given: str | dict[str, Any]) -> Asymmetric | None:
    """A key, if it is one of this kind."""
    with warnings.catch_warnings():
        # Of those that are too short, which are left out.
        warnings.simplefilter("ignore", SecurityWarning)
        try:
            return kind.import_key(given)
        except (JoseError, ValueError, TypeError, AttributeError, KeyError):
            return None


def _algorithms_of(key: Asymmetric) -> frozenset[str]:
    if isinstance(key, RSAKey):
        return frozenset({"RS256"}) if key.public_key.key_size >= SMALLEST_RSA else frozenset()
    if isinstance(key, ECKey):
        return frozenset({"ES256"}) if key.curve_name == "P-256" else frozenset()
    return frozenset({"Ed25519", "EdDSA"}) if key.curve_name == "Ed25519" else frozenset()


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

    async def look_again(self) -> bool:
        """Look whether there are other keys by now; returns whether there are."""
        return self._fetched is not None and await self._fetched.look_again()


class FetchedKeys:
    """The keys at a URL. An async context manager: it fetches them while it is open, at times and when one is missing.

    Keys that were fetched stay in use when they can't be fetched again.

    Args:
        fetch: gets the set's text; it may block, and runs in a thread. Raises OSError.
        monotonic: seconds of a clock that never jumps.
        patience: seconds to wait for it at most.
    """

    def __init__(
        self,
        url: str,
        *,
        fetch: Callable[[str], bytes] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        patience: float = PATIENCE,
    ) -> None:
        self._url, self._fetch, self._monotonic, self._patience = url, fetch or fetched, monotonic, patience
        self.generation = 0
        self._keys: list[VerifyingKey] | None = None
        self._text = b""
        self._tried = -MIN_INTERVAL
        self._fetching: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._failed = False

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
        """Whether they are being fetched just now."""
        return self._fetching is not None

    async def find(self, id: str | None, algorithm: str) -> list[VerifyingKey]:
        """As `Keys.find`; a key that isn't known is looked for, unless that has just been done."""
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
        """Fetch the keys: once, however many ask for it at the same time, and none of them waits for long."""
        if self._fetching is None:
            self._tried = self._monotonic()
            self._fetching = asyncio.create_task(self._refresh(), name="msgpush keys fetch")
        # One that asks may go, the others wait for the same. A name that nobody answers for, or headers that trickle,
        # are bounded by no timeout of the request itself.
        await asyncio.wait((self._fetching,), timeout=self._patience)

    async def _run(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(MIN_INTERVAL if self._failed or self.fetching else REFRESH)

    async def _refresh(self) -> None:
        try:
            text = await _in_daemon(self._fetch, self._url)
            keys = key_set(text)
            if not keys:
                raise ValueError("it has no key that can be used")
        except (OSError, ValueError) as error:
            if not self._failed:
                kept = "; those fetched before stay in use" if self._keys is not None else ""
                log.warning("the keys of JWKS_URL can't be fetched: %s%s", error, kept)
            self._failed = True
        except Exception:
            log.exception("the keys of JWKS_URL can't be fetched")
            self._failed = True
        else:
            if self._failed or self._keys is None:
                log.info("fetched %d keys from JWKS_URL", len(keys))
            self._keys, self._failed = keys, False
            if text != self._text:
                self._text = text
                self.generation += 1
        finally:
            self._fetching = None

    def _known(self, id: str | None, algorithm: str) -> list[VerifyingKey]:
        return [key for key in self._keys or () if algorithm in key.algorithms and id in (None, key.id)]


async def _in_daemon(function: Callable[[str], bytes], url: str) -> bytes:
    """What a function returns that may block: in a thread that the process doesn't wait for when it ends."""
    done = Future[bytes]()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(function(url))
        except Exception as error:
            done.set_exception(error)

    threading.Thread(target=run, name="msgpush keys fetch", daemon=True).start()
    return await asyncio.wrap_future(done)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    # Whoever is sent elsewhere for keys might take a stranger's.
    def redirect_request(self, *_: object) -> None:
        return None


def fetched(url: str) -> bytes:
    """What is at a URL, within a few seconds and a megabyte.

    Raises:
        OSError: that can't be had.
    """
    until = time.monotonic() + FETCH_SECONDS
    opener = urllib.request.build_opener(_NoRedirects)
    request = urllib.request.Request(url, headers={"Accept": "application/jwk-set+json, application/json"})
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
        raise OSError(f"the answer's status is {error.code}") from None
    except (HTTPException, ValueError) as error:
        raise OSError(f"the answer can't be read: {error!r}") from None
    return b"".join(parts)
