"""Connections to the Redis that has the log now, wherever that is.

A `Link` is one connection, used by one part of the service; a `SharedLink` is one that many callers
use at a time. Whatever goes wrong with it, it is dropped, and the next call looks for the server
anew: a failover needs nothing else. Nothing is retried in here, since only the caller knows whether
a command may be sent twice."""

import asyncio
import contextlib
import hashlib
import logging
import random
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import hiredis
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

from msgpush.adapters.redis.batching import Batcher
from msgpush.adapters.redis.target import Address, RedisTarget
from msgpush.domain.errors import BusUnavailable, MsgpushError

HASH_TAG = "{msgpush}"  # all keys have it, so that a Cluster keeps them on one primary
TIMEOUT = 1.5  # seconds; less than the two in which a publisher is promised an answer
CLOSING = 0.5
WAIT_MS = 1000  # for replicas to confirm what was written
# Calls that a shared link has under way at most: to begin with, and on a server that is quick.
CALLS_TOGETHER = (4, 32)
ASK_TIMEOUT = 0.4  # for each server that is asked where the log is

RedisCommand = Sequence[str | bytes | int]


log = logging.getLogger("msgpush.redis")


class NotExecuted(MsgpushError):
    """The server has refused the command without doing it: here or elsewhere, it may be sent again.

    Who can't send it again is told `BusUnavailable` instead.

    Args:
        public: what strangers are told of it, who aren't to know where Redis is.
    """

    def __init__(self, detail: str, public: str) -> None:
        super().__init__(detail)
        self.public = public


class _Translated:
    # A generator would cost each call of the hot path a microsecond.
    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, NotExecuted):
            raise BusUnavailable(str(error), public=error.public) from error


translated = _Translated()
"""Raises `BusUnavailable` in the place of `NotExecuted`."""


def lua(name: str) -> str:
    """The text of one of our scripts."""
    return (files("msgpush.adapters.redis") / "scripts" / f"{name}.lua").read_text()


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
        with translated:
            return await self._calls(commands)

    async def script(
        self,
        script: Script,
        keys: Sequence[str | bytes],
        args: Sequence[str | bytes | int],
    ) -> Any:
        """A script's reply. Raises as `call` does."""
        with translated:
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

    async def script_until(
        self,
        until: float,
        script: Script,
        keys: Sequence[str | bytes],
        args: Sequence[str | bytes | int],
        *then: RedisCommand,
    ) -> list[Any]:
        """As `try_script`, again and again until it has been executed, or a moment has come.

        Args:
            until: by the monotonic clock.

        Raises:
            BusUnavailable: as `call`.
        """
        delay = RetryDelay()
        refused: NotExecuted | None = None
        try:
            async with asyncio.timeout(until - time.monotonic()):
                while True:
                    try:
                        return await self.try_script(script, keys, args, *then)
                    except NotExecuted as error:
                        refused = error
                    await delay.pause()
        except TimeoutError:
            with translated:
                raise refused or no_answer(self._target) from None

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
        """Send some calls together; each comes to its replies, or the first error among them.

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
        """The connection that there is, or else a new one to where Redis is now."""
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
        """Find the server that has the log: itself, by Sentinels, or in a Cluster."""
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
        """Ask one Sentinel, or one node of a Cluster, where the log's server is."""
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
        """A connection of redis-py, not connected yet, without its own timeouts and retries."""
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


def no_answer(target: RedisTarget) -> BusUnavailable:
    return BusUnavailable(f"Redis ({target}) doesn't answer", public="Redis doesn't answer")


def _told(error: Exception, target: RedisTarget) -> MsgpushError:
    if _is_elsewhere(error) or isinstance(error, BusyLoadingError | TryAgainError | NoScriptError):
        # Those two name another server.
        words = "it is elsewhere" if isinstance(error, MovedError | AskError) else str(error)
        return NotExecuted(f"Redis ({target}) has refused: {error}", f"Redis has refused: {words}")
    if isinstance(error, TimeoutError):
        return no_answer(target)
    if isinstance(error, ResponseError):
        return BusUnavailable(
            f"Redis ({target}) has failed: {error}", public=f"Redis has failed: {error}"
        )
    return BusUnavailable(
        f"Redis ({target}) can't be reached: {error}", public="Redis can't be reached"
    )


class SharedLink(Link):
    """One connection for many callers, whose calls are sent together.

    Nobody's going disturbs the others.
    How long a call waits for those before it has no limit of its own: while they are answered the
    server is well, and when they aren't, all that wait fail with them."""

    def __init__(self, target: RedisTarget, name: str) -> None:
        super().__init__(target, name)
        self._together: Batcher[list[bytes], list[Any] | ResponseError] = Batcher(
            self._exchange_in_time, CALLS_TOGETHER[0]
        )

    async def _calls(self, commands: Sequence[RedisCommand]) -> list[Any]:
        # What can't be sent is its caller's fault alone.
        found = await self._together(_packed(commands))
        if isinstance(found, ResponseError):
            raise _told(found, self._target) from found
        return found

    async def _exchange_in_time(
        self, calls: Sequence[list[bytes]]
    ) -> list[list[Any] | ResponseError]:
        """Exchange calls for answers, and learn how many may go together."""
        # A server answers what it was sent together when it has done all of it: where that takes
        # long, fewer are sent. After a group that took too long one is sent alone, and for a moment
        # only: is it the server, or the group?
        together = self._together
        most, alone = together.most, together.doubted
        together.most, together.doubted = 1, len(calls) > 1
        began = time.monotonic()
        with translated:
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
