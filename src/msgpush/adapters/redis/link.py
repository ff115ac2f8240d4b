"""Connections to the Redis that has the log now: one server, the master that Sentinels name, or a
Cluster's primary.

A `Link` is one connection, used by one part of the service; a `SharedLink` is one that many callers
use at a time. Whatever goes wrong with it, it is dropped, and the next call looks for the server
anew: a failover needs nothing else. Nothing is retried in here, since only the caller knows whether
a command may be sent twice."""

import asyncio
import contextlib
import difflib
import hashlib
import ipaddress
import logging
import random
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import parse_qsl, unquote

import hiredis
from msgspec import Struct
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.maint_notifications import MaintNotificationsConfig

from msgpush.domain.errors import BusUnavailable, MsgpushError
from msgpush.domain.quoting import short_repr

HASH_TAG = "{msgpush}"  # all keys have it, so that a Cluster keeps them on one primary
TIMEOUT = 1.5  # seconds; less than the two in which a publisher is promised an answer
CLOSING = 0.5
QUESTIONS = 256  # questions that a batcher puts together, at most
CALLS_TOGETHER = (
    4,
    32,
)  # calls that a shared link has under way at most: to begin with, and on a server that is quick
ASKED_NO_MORE = "Redis is not asked any more"
ASK_TIMEOUT = 0.4  # for each server that is asked where the log is

Address = tuple[str, int]
RedisCommand = Sequence[str | bytes | int]


log = logging.getLogger("msgpush.redis")

Q = TypeVar("Q")
A = TypeVar("A")


class NotExecuted(MsgpushError):
    """The server has refused the command without doing it: here or elsewhere, it may be sent again.

    Who can't send it again is told `BusUnavailable` instead.

    Args:
        public: what strangers are told of it, who aren't to know where Redis is.
    """

    def __init__(self, detail: str, public: str) -> None:
        super().__init__(detail)
        self.public = public


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raises `BusUnavailable` in the place of `NotExecuted`."""
    try:
        yield
    except NotExecuted as error:
        raise BusUnavailable(str(error), public=error.public) from error


class RedisTarget(Struct, frozen=True):
    """Which Redis: where to look, and what each connection needs.

    Args:
        hosts: the server; or those that know where it is.
        master: the name that Sentinels know it by.
        options: for redis-py's connections: database, password, certificates.
        sentinel_options: for connections to Sentinels.
    """

    kind: Literal["server", "sentinel", "cluster"]
    hosts: tuple[Address, ...]
    options: Mapping[str, Any]
    master: str = ""
    sentinel_options: Mapping[str, Any] = {}

    @classmethod
    def from_url(cls, url: str) -> "RedisTarget":
        """The target that a URL names.

        `redis://[[user]:password@]host[:port][/database]`, `rediss://` with TLS,
        `redis+sentinel://host[:port],.../master[/database]`, `redis+cluster://host[:port],...`.
        Parameters are `ssl=true` for Sentinel and Cluster, then, or with `rediss://`, those of
        redis-py for TLS (`ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`, `ssl_cert_reqs`,
        `ssl_check_hostname`), and `sentinel_username`, `sentinel_password`.

        Raises:
            ValueError: it says which part is wrong, and what is allowed there; never a user nor a
                password."""
        scheme, authority, path, query = _parts(url.strip())
        login, _, hosts = authority.rpartition("@")
        found = _hosts(hosts, 26379 if scheme == "redis+sentinel" else 6379)
        tls, sentinel = _read_options(query, scheme)
        options: dict[str, Any] = tls | _login(login)
        if scheme == "redis+cluster":
            if path:
                raise ValueError("a Cluster has no databases: its path must be empty")
            return cls("cluster", found, options)
        if scheme == "redis+sentinel":
            if not path:
                raise ValueError(
                    "its path must begin with the master's name: redis+sentinel://host,host/name"
                )
            options["db"] = _database(path[1:])
            return cls("sentinel", found, options, path[0], tls | sentinel)
        options["db"] = _database(path)
        if len(found) != 1:
            raise ValueError(
                "it names several hosts, and they take redis+sentinel:// or redis+cluster://"
            )
        return cls("server", found, options)

    def __str__(self) -> str:
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{self.kind} {hosts}" + (f" ({self.master})" if self.master else "")


SCHEMES = ("redis", "rediss", "redis+sentinel", "redis+cluster")


def _parts(url: str) -> tuple[str, str, list[str], str]:
    """A URL's scheme, authority, steps of its path, and query (RFC 3986, section 3)."""
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in SCHEMES:
        tls = scheme in ("rediss+sentinel", "rediss+cluster")
        hint = f"; TLS is {scheme.replace('rediss', 'redis')}://...?ssl=true" if tls else ""
        raise ValueError(
            f"it must begin with {', '.join(f'{each}://' for each in SCHEMES[:-1])} or"
            f" {SCHEMES[-1]}://{hint}"
        )
    before, hash, fragment = rest.partition("#")
    where, _, query = before.partition("?")
    authority, _, path = where.partition("/")
    # What comes before the host ends at the first of / ? #, and the host's @ is then behind it.
    name = query.partition("=")[0]
    cut_short = "@" in query and "@" not in authority and name not in _TLS | _SENTINEL
    if "@" in path or "@" in fragment or "@" in name or cut_short:
        raise ValueError(
            "its user or password has a character that ends it: percent-encode them, / as %2F, ? as"
            " %3F, # as %23 and @ as %40"
        )
    if hash:
        raise ValueError(
            "it has a fragment (#), and there is none in such a URL: in a password # is %23"
        )
    return scheme, authority, [unquote(step) for step in path.split("/") if step], query


def _login(text: str) -> dict[str, Any]:
    username, colon, password = text.partition(":")
    if username and not password:
        raise ValueError(
            "it has a user without a password before the @: it must be user:password@host, or"
            " :password@host" + (" where there is no user" if not colon else "")
        )
    given = {"username": unquote(username), "password": unquote(password)}
    return {name: value for name, value in given.items() if value}


def _hosts(text: str, default_port: int) -> tuple[Address, ...]:
    several = text.split(",")
    found = []
    for each in several:
        if not each or re.fullmatch(":[^:]*", each):
            place = " between its commas" if len(several) > 1 else ""
            raise ValueError(f"a host is missing{place}: it must be host or host:port")
        address = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", each, re.DOTALL)
        if address is None and ("[" in each or each.count(":") > 1):
            raise ValueError(
                "a host is no name: an IPv6 address has brackets around it, as in [::1]:6379"
            )
        host, _, port = (
            each.partition(":") if address is None else (address[1], "", address[2] or "")
        )
        if address is not None:
            _check_ipv6(host)
        elif not re.fullmatch(r"[A-Za-z0-9._-]+", host):
            raise ValueError(
                "a host is no name: it must be of letters, digits, '.', '-' and '_', or [IPv6"
                " address]"
            )
        if port and not (re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= 65535):
            # The port isn't shown: redis://user:password is a URL whose host was forgotten.
            raise ValueError(
                f"the port of the host {short_repr(host)} must be a number from 1 to 65535, and a"
                " login ends with an @"
            )
        found.append((host.lower(), int(port or default_port)))
    return tuple(found)


def _check_ipv6(text: str) -> None:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        raise ValueError("what is between the brackets of a host is no IPv6 address") from None


def _database(path: list[str]) -> int:
    if len(path) > 1:
        raise ValueError("its path has more than the database's number in it")
    if path and not (re.fullmatch("[0-9]{1,5}", path[0]) and int(path[0]) <= 65535):
        raise ValueError("the database in its path must be a number from 0 to 65535")
    return int(path[0]) if path else 0


_TRUTH = {"true": True, "false": False}
# Each parameter, and what its value may be; None: any text.
_TLS: dict[str, Mapping[str, Any] | None] = {
    "ssl": _TRUTH,
    "ssl_ca_certs": None,
    "ssl_certfile": None,
    "ssl_keyfile": None,
    "ssl_cert_reqs": {each: each for each in ("none", "optional", "required")},
    "ssl_check_hostname": _TRUTH,
}
_SENTINEL: dict[str, Mapping[str, Any] | None] = {
    "sentinel_username": None,
    "sentinel_password": None,
}
_ELSEWHERE = {
    "db": "the database is the end of the path, as in redis://host/2",
    "username": "it stands before the host, as in redis://user:password@host",
    "password": "it stands before the host, as in redis://:password@host",
}


def _read_options(query: str, scheme: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a query says of TLS, and for Sentinels."""
    known = _TLS | _SENTINEL if scheme == "redis+sentinel" else _TLS
    read: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise ValueError(_no_parameter(name, known))
        if name in read:
            raise ValueError(f"its parameter {name} is there twice")
        allowed = known[name]
        if not value or (allowed and value not in allowed):
            raise ValueError(
                f"its parameter {name} must be {_either(allowed) if allowed else 'some text'}"
            )
        read[name] = allowed[value] if allowed else value
    if scheme == "rediss" and read.setdefault("ssl", True) is False:
        raise ValueError(
            "its parameter ssl is false, and rediss:// is with TLS: redis:// is without"
        )
    tls = {name: value for name, value in read.items() if name in _TLS}
    _check_tls(tls, scheme)
    return tls, {
        name.removeprefix("sentinel_"): value for name, value in read.items() if name in _SENTINEL
    }


def _either(words: Mapping[str, Any]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}"


def _check_tls(tls: dict[str, Any], scheme: str) -> None:
    if (used := [name for name in tls if name != "ssl"]) and not tls.get("ssl"):
        needed = "rediss:// instead of redis://" if scheme == "redis" else "ssl=true as well"
        raise ValueError(f"its parameter {used[0]} is for TLS, which needs {needed}")
    if "ssl_keyfile" in tls and "ssl_certfile" not in tls:
        raise ValueError(
            "its parameter ssl_keyfile needs ssl_certfile, the certificate of that key"
        )
    if tls.get("ssl_check_hostname") and tls.get("ssl_cert_reqs") == "none":
        raise ValueError(
            "its parameter ssl_check_hostname=true needs a certificate that is checked, not"
            " ssl_cert_reqs=none"
        )


def _no_parameter(name: str, known: Mapping[str, object]) -> str:
    if name in _SENTINEL:
        return f"its parameter {name} is for redis+sentinel:// alone"
    if name in _ELSEWHERE:
        return f"it has no parameter {name}: {_ELSEWHERE[name]}"
    near = difflib.get_close_matches(name.lower(), known, 1)
    advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"it has no parameter {short_repr(name)}: {advice}"


class Script:
    """A Lua script, and the name that servers know it by, once they have run it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.known = False  # whether a server has run it, as far as is known


class Link:
    """One connection to wherever the log is, for one caller. Calls on it follow one another.

    Args:
        name: shown by Redis's CLIENT LIST.
        timeout: seconds that a call may take, finding the server and connecting included.
    """

    def __init__(self, target: RedisTarget, name: str, timeout: float = TIMEOUT) -> None:
        self._target, self._name, self._timeout = target, name, timeout
        self._hosts = list(target.hosts)
        self._connection: Connection | None = None
        self._expired = False
        self._lock = asyncio.Lock()

    async def call(self, *command: str | bytes | int) -> Any:
        """A command's reply; bytes stay bytes.

        Raises:
            BusUnavailable: no answer, or an error; whether it was done isn't known.
        """
        (reply,) = await self.calls([command])
        return reply

    async def calls(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """The replies of commands that are sent together; as `call`, where one of them fails."""
        with translated():
            return await self._calls(commands)

    async def script(
        self,
        script: Script,
        keys: Sequence[str | bytes],
        args: Sequence[str | bytes | int],
    ) -> Any:
        """A script's reply. Raises as `call` does."""
        with translated():
            (reply,) = await self.try_script(script, keys, args)
        return reply

    async def _calls(self, commands: Sequence[RedisCommand]) -> list[Any]:
        async with self._lock:
            (reply,) = await self._exchange([_packed(commands)])
        if isinstance(reply, ResponseError):
            raise _told(reply, self._target) from reply
        return reply

    async def try_script(
        self,
        script: Script,
        keys: Sequence[str | bytes],
        args: Sequence[str | bytes | int],
        *then: RedisCommand,
    ) -> list[Any]:
        """A script's reply, and those of commands that follow it over the same connection.

        Its text is sent where the server doesn't know it.

        Raises:
            NotExecuted: it was refused, and not done.
            BusUnavailable: as `call`.
        """
        try:
            if script.known:
                return await self._calls([("EVALSHA", script.sha, len(keys), *keys, *args), *then])
        except NotExecuted as error:
            if not isinstance(error.__cause__, NoScriptError):
                raise
        replies = await self._calls([("EVAL", script.text, len(keys), *keys, *args), *then])
        script.known = True
        return replies

    def expire(self) -> None:
        """Have the next call look for the server anew; one that is under way isn't disturbed."""
        self._expired = True

    async def drop(self) -> None:
        """Close the connection, at once; the next call looks for the server anew."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await _cut(connection)

    async def close(self) -> None:
        """Close the connection in the open, which takes TLS a moment."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(RedisError, OSError):
                async with asyncio.timeout(CLOSING):
                    await connection.disconnect()

    async def _exchange(
        self, calls: Sequence[list[bytes]], timeout: float | None = None
    ) -> list[list[Any] | ResponseError]:
        """Send some calls together; what each comes to is its replies, or the first error among
        them.

        Time is counted from when they are sent.

        Raises:
            NotExecuted, BusUnavailable: the connection or the server has failed; what was done
                isn't known."""
        try:
            async with asyncio.timeout(timeout or self._timeout):
                connection = await self._connected()
                await connection.send_packed_command(
                    [each for call in calls for each in call], check_health=False
                )
                results = [await _replies(connection, len(call)) for call in calls]
        except (RedisError, OSError) as error:
            await self.drop()
            raise _told(error, self._target) from error
        except BaseException:
            # Also when the caller has gone: the replies that are still to come would be taken for
            # others'.
            await self.drop()
            raise
        if any(isinstance(each, ResponseError) and _is_elsewhere(each) for each in results):
            await self.drop()
        return results

    async def _connected(self) -> Connection:
        connection = self._connection
        if connection is not None:
            # What is there to read unasked is the end: it was closed, as when the server was
            # restarted.
            if not self._expired and not await connection.can_read():
                return connection
            await self.drop()
        self._expired = False
        connection = self._new(await self._locate(), self._target.options)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await self._greet(connection)
        except ResponseError as error:
            await _cut(connection)
            if not _is_no_such_database(error):
                raise
            advice = "use 0: REDIS_DB=0, or a REDIS_URL that ends in /0"
            raise ResponseError(
                f"{error}: the server has no database {connection.db}; {advice}"
            ) from error
        except BaseException:
            await _cut(connection)
            raise
        self._connection = connection
        return connection

    async def _greet(self, connection: Connection) -> None:
        """Give the connection its name, and see to it that it leads to a master.

        With HELLO, which every user may call; ROLE and CLIENT SETNAME are refused to many. Where
        even that is refused, or not known, the first write finds out that this is no master."""
        await connection.send_command("HELLO", "2", "SETNAME", self._name)
        try:
            told = await connection.read_response(disable_decoding=True)
        except ResponseError as error:
            log.debug("Redis (%s) doesn't say what it is: %s", self._target, error)
            return
        role = dict(zip(told[::2], told[1::2], strict=True)).get(b"role", b"master")
        if role != b"master":
            # It would take reads for ever, and say nothing new.
            raise ReadOnlyError(f"this server is a {role.decode()}")

    async def _locate(self) -> Address:
        if self._target.kind == "server":
            return self._hosts[0]
        failed: Exception = ConnectionError("nobody to ask")
        for address in list(self._hosts):
            try:
                async with asyncio.timeout(ASK_TIMEOUT):
                    found = await self._ask(address)
            except (RedisError, OSError, TimeoutError) as error:
                failed = error
                continue
            finally:
                # Who has answered comes first the next time, and who hasn't, last: before the time
                # is up.
                self._hosts.remove(address)
                self._hosts.append(address)
            self._hosts.insert(0, self._hosts.pop())
            return found
        raise failed

    async def _ask(self, address: Address) -> Address:
        sentinel = self._target.kind == "sentinel"
        connection = self._new(
            address, self._target.sentinel_options if sentinel else self._target.options
        )
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            if sentinel:
                await connection.send_command(
                    "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._target.master
                )
                found = await connection.read_response(disable_decoding=True)
                if found is None:
                    raise ConnectionError(f"this Sentinel knows no master {self._target.master}")
                return found[0].decode(), int(found[1])
            await connection.send_command("CLUSTER", "SLOTS")
            return self._primary(address, await connection.read_response(disable_decoding=True))
        finally:
            await _cut(connection)

    def _primary(self, asked: Address, ranges: list[Any]) -> Address:
        slot = key_slot(HASH_TAG.encode())
        for start, end, *nodes in ranges:
            if start <= slot <= end:
                # A server that doesn't know its own name means the one by which it was reached.
                addresses = [
                    ((node[0] or b"").decode() or asked[0], int(node[1])) for node in nodes
                ]
                self._hosts += [each for each in addresses if each not in self._hosts]
                return addresses[0]
        raise ClusterDownError(f"no primary has slot {slot}")

    def _new(self, address: Address, options: Mapping[str, Any]) -> Connection:
        options = dict(options)
        kind = SSLConnection if options.pop("ssl", False) else Connection
        if self._target.kind == "cluster":
            options.pop("db", None)
        return kind(
            host=address[0],
            port=address[1],
            # The timeout is ours, and so is the decision to try again: redis-py's ten retries have
            # written twice.
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,  # CLIENT SETINFO is a right that isn't needed
            # Hides dead connections.
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
            **options,
        )


def _packed(commands: Sequence[RedisCommand]) -> list[bytes]:
    # In C; what redis-py does for asyncio costs ten times that.
    return [hiredis.pack_command(tuple[Any, ...](each)) for each in commands]


async def _replies(connection: Connection, number: int) -> list[Any] | ResponseError:
    replies: list[Any] = []
    failed: ResponseError | None = None
    for _ in range(number):
        try:
            replies.append(await connection.read_response(disable_decoding=True))
        except ResponseError as error:
            failed = failed or error
    return failed or replies


async def _cut(connection: Connection) -> None:
    # Without waiting for the end: the server that it would wait for may be the one that doesn't
    # answer.
    await connection.disconnect(nowait=True)


def _is_no_such_database(error: ResponseError) -> bool:
    # Both have no class of their own: a server with fewer databases, and one that is part of a
    # Cluster.
    return "DB index is out of range" in str(error) or "SELECT is not allowed" in str(error)


def _is_elsewhere(error: Exception) -> bool:
    moved = isinstance(
        error, ReadOnlyError | MovedError | AskError | ClusterDownError | MasterDownError
    )
    # What a master tells a reader that waits when it becomes a replica; redis-py has no class for
    # it.
    return moved or str(error).startswith("UNBLOCKED")


def _told(error: Exception, target: RedisTarget) -> MsgpushError:
    if _is_elsewhere(error) or isinstance(error, BusyLoadingError | TryAgainError | NoScriptError):
        # Those two name another server.
        words = "it is elsewhere" if isinstance(error, MovedError | AskError) else str(error)
        return NotExecuted(f"Redis ({target}) has refused: {error}", f"Redis has refused: {words}")
    if isinstance(error, TimeoutError):
        return BusUnavailable(f"Redis ({target}) doesn't answer", public="Redis doesn't answer")
    if isinstance(error, ResponseError):
        return BusUnavailable(
            f"Redis ({target}) has failed: {error}", public=f"Redis has failed: {error}"
        )
    return BusUnavailable(
        f"Redis ({target}) can't be reached: {error}", public="Redis can't be reached"
    )


class Batcher(Generic[Q, A]):
    """Answers questions together: those which come up while others are being answered are the next
    group.

    A task of its own asks, so that nobody's going disturbs the others; who has gone isn't asked for
    any more.

    Args:
        ask: the answers to some questions, in their order; an error among them is that question's
            alone. Raises BusUnavailable or NotExecuted where none could be answered.
        most: questions of a group.

    Attributes:
        doubted: whether those behind a group that failed are to be asked all the same, one alone,
            since it may have failed for how much was asked."""

    def __init__(
        self,
        ask: Callable[[Sequence[Q]], Awaitable[Sequence[A | Exception]]],
        most: int = QUESTIONS,
    ) -> None:
        self._ask, self.most = ask, most
        self.doubted = False
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def __call__(self, question: Q) -> A:
        """The answer to one question. Raises BusUnavailable or NotExecuted."""
        if self._closed:
            raise BusUnavailable(ASKED_NO_MORE)
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="msgpush redis batcher")
        return await answer

    async def close(self) -> None:
        """Ask no more; who still waits is refused, and so is who comes later."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        # Of a task that had no turn yet.
        _fail(self._waiting, BusUnavailable(ASKED_NO_MORE))
        self._waiting.clear()

    async def _run(self) -> None:
        group: list[tuple[Q, asyncio.Future[A]]] = []
        try:
            while group := self._next_group():
                try:
                    answers = await self._ask([question for question, _ in group])
                except (NotExecuted, BusUnavailable) as error:
                    _fail(group, error)
                    # Those behind them would find the same, and have waited as long already.
                    if not self.doubted:
                        _fail(self._waiting, error)
                        self._waiting.clear()
                else:
                    for (_, waiting), answer in zip(group, answers, strict=True):
                        _answer(waiting, answer)
        except BaseException:
            _fail([*group, *self._waiting], BusUnavailable(ASKED_NO_MORE))
            self._waiting.clear()
            raise
        finally:
            self._task = None

    def _next_group(self) -> list[tuple[Q, asyncio.Future[A]]]:
        group: list[tuple[Q, asyncio.Future[A]]] = []
        while self._waiting and len(group) < self.most:
            question, answer = self._waiting.popleft()
            if not answer.done():
                group.append((question, answer))
        return group


def _fail(waiting: Iterable[tuple[Any, asyncio.Future[Any]]], error: Exception) -> None:
    for _, answer in waiting:
        _answer(answer, error)


def _answer(waiting: asyncio.Future[A], answer: A | Exception) -> None:
    if waiting.done():
        return
    if isinstance(answer, Exception):
        waiting.set_exception(answer)
        waiting.exception()  # it is no mistake if nobody waits for it any more
    else:
        waiting.set_result(answer)


class SharedLink(Link):
    """One connection for many callers: what waits is sent together, and nobody's going disturbs the
    others.

    How long a call waits for those before it has no limit of its own: while they are answered the
    server is well, and when they aren't, all that wait fail with them."""

    def __init__(self, target: RedisTarget, name: str) -> None:
        super().__init__(target, name)
        self._together = Batcher(self._exchange_in_time, CALLS_TOGETHER[0])

    async def _calls(self, commands: Sequence[RedisCommand]) -> list[Any]:
        packed = _packed(commands)  # what can't be sent is its caller's fault alone
        try:
            return await self._together(packed)
        except ResponseError as error:
            raise _told(error, self._target) from error

    async def _exchange_in_time(
        self, calls: Sequence[list[bytes]]
    ) -> list[list[Any] | ResponseError]:
        # A server answers what it was sent together when it has done all of it: where that takes
        # long, fewer are sent. After a group that took too long one is sent alone, and for a moment
        # only: is it the server, or the group?
        together = self._together
        most, alone = together.most, together.doubted
        together.most, together.doubted = 1, len(calls) > 1
        began = time.monotonic()
        try:
            results = await self._exchange(calls, self._timeout / 4 if alone else None)
        except (NotExecuted, BusUnavailable) as error:
            together.doubted &= isinstance(error.__cause__, TimeoutError)
            raise
        quick = time.monotonic() - began < self._timeout / 8
        together.most = min(CALLS_TOGETHER[1], 2 * most) if quick else max(1, most // 2)
        together.doubted = False
        return results

    async def close(self) -> None:
        await self._together.close()
        await super().close()


class RetryDelay:
    """Pauses between tries: from 50 ms, doubled each time, at most two seconds, with jitter."""

    def __init__(self) -> None:
        self._next = 0.05

    def reset(self) -> None:
        self._next = 0.05

    async def pause(self) -> None:
        delay = self._next * random.uniform(0.5, 1)
        self._next = min(2.0, self._next * 2)
        await asyncio.sleep(delay)
