"""The bus over Redis: any number of instances, one log.

Every instance reads the whole log, over a connection of its own, and drops what it has nobody for.
Nothing travels by Pub/Sub, which loses what is sent while a connection is down. Writes are
committed in groups: what was published while the last group was under way is the next."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from importlib.resources import files
from operator import attrgetter
from typing import Any, Final, NamedTuple, Self

import msgspec

from msgpush.adapters.redis.link import (
    HASH_TAG,
    TIMEOUT,
    Link,
    NotExecuted,
    RedisCommand,
    RedisTarget,
    RetryDelay,
    Script,
    SharedLink,
    translated,
)
from msgpush.adapters.redis.log import (
    EPOCH,
    NO_TAG,
    ORIGIN,
    TAG,
    Chain,
    Decoder,
    EntryRef,
    StoredMessage,
    Unfinished,
    fields_of,
    id_of,
    new_tag,
    payload,
    position_of,
    ref_of,
)
from msgpush.domain.control import CHANNEL
from msgpush.domain.errors import BusUnavailable, Conflict
from msgpush.domain.history import Page, Reason
from msgpush.domain.message import Draft, Entry
from msgpush.domain.ports import Cut, Stored
from msgpush.domain.position import ZERO, Cursor, Position, new_epoch

GROUP_MESSAGES = 256
GROUP_BYTES = 1024 * 1024
GROUP_CHANNELS = 1_000
WAIT_MS = 1000
BLOCK = 1.0  # seconds for which one read of the tail waits
READ = 1_000
READ_BYTES = 4 * 1024 * 1024  # what one read of the tail should come to
DAY_MS = 86_400_000
MENDED_AT_MOST = 100  # calls that were stopped halfway, in one go
BROKEN_TOLD = 100
HALFWAY = "a message that was stored halfway can't be completed now"

HEAD: Final = f"{HASH_TAG}:head"
LOG: Final = f"{HASH_TAG}:log"

log = logging.getLogger("msgpush.redis")

_body, _channels = attrgetter("body"), attrgetter("channels")
_pack = msgspec.msgpack.Encoder().encode
_scripts = files("msgpush.adapters.redis") / "scripts"
APPEND = (_scripts / "append.lua").read_text()
BEGIN = (_scripts / "begin.lua").read_text()
MEND = (_scripts / "mend.lua").read_text()


class _Waiting(NamedTuple):
    """A publish that waits for its group."""

    drafts: Sequence[Draft]
    results: list[Stored | Conflict | BusUnavailable]
    done: asyncio.Future[None]


class _State(NamedTuple):
    """What the log says of itself.

    Attributes:
        number: of the epoch, counted from the first.
        unfinished: a call that was stopped halfway: see `append.lua`.
    """

    epoch: str
    number: int
    cut: Cursor | None
    end: EntryRef
    unfinished: Unfinished | None


class RedisBus:
    """The log and its histories in Redis or Valkey. An async context manager.

    Args:
        log_length: entries that the log keeps, so that an instance which was away finds them.
        history_length: messages retained a channel; up to a hundred more are kept.
        wait_replicas: replicas that must have a message before it counts as accepted.
        clock: seconds since 1970; None takes Redis's own, which all instances share.
    """

    def __init__(
        self,
        target: RedisTarget,
        *,
        log_length: int = 100_000,
        history_length: int = 1000,
        wait_replicas: int = 0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.epoch = ""
        self.cut: Cursor | None = None
        self.reachable = False
        self.trouble: str | None = None
        self.length = 0
        self._target = target
        self._log_length, self._history_length = log_length, history_length
        self._wait_replicas = wait_replicas
        self._clock = clock
        self._writer = Link(target, "msgpush-writer")
        self._reader = SharedLink(target, "msgpush-reader")
        self._asker = SharedLink(
            target, "msgpush-asker"
        )  # apart from the histories, which may be long
        self._tail_link = Link(target, "msgpush-tail", BLOCK + TIMEOUT)
        self._append_script, self._begin_script, self._mend_script = (
            Script(APPEND),
            Script(BEGIN),
            Script(MEND),
        )
        self._decoder = Decoder()
        self._chain = Chain(ORIGIN)
        self._links = (self._writer, self._reader, self._asker, self._tail_link)
        self._number = 0
        self._tailing = False
        self._doubt = False
        self._count = READ
        self._failures = 0
        self._broken: set[str] = (
            set()
        )  # histories that nothing can be written to, as far as it was told
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def unknown(self) -> int:
        return self._decoder.unknown

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._write(), name="msgpush redis writer")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._refuse(BusUnavailable("the bus is closed"))
        for link in self._links:
            await link.close()

    # Writing

    async def append(self, drafts: Sequence[Draft]) -> list[Stored | Conflict | BusUnavailable]:
        if not drafts:
            return []
        if self._task is None or self._task.done():
            return [BusUnavailable("the bus is not open")] * len(drafts)
        waiting = _Waiting(drafts, [], asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        await waiting.done
        return waiting.results

    async def _write(self) -> None:
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            group = self._next_group()
            try:
                with translated():
                    results = await self._commit(group)
            except BusUnavailable as error:
                # Those behind it would find the same, and have waited as long already.
                self._refuse(error)
            except Exception:
                # Publishing must outlive a mistake.
                log.exception("a group of messages can't be stored")
                self._refuse(BusUnavailable("the messages can't be stored"))
            else:
                self._hand_out(results)

    def _next_group(self) -> list[Draft]:
        group: list[Draft] = []
        size = channels = 0
        for waiting in self._waiting:
            done = len(waiting.results)
            some = waiting.drafts[done : done + GROUP_MESSAGES - len(group)]
            while True:
                more_size = sum(map(len, map(_body, some)))
                more_channels = sum(map(len, map(_channels, some)))
                if size + more_size <= GROUP_BYTES and channels + more_channels <= GROUP_CHANNELS:
                    break
                if len(some) <= 1:
                    return group or list(some)
                some = some[: len(some) // 2]
            group += some
            size += more_size
            channels += more_channels
            if len(group) == GROUP_MESSAGES or done + len(some) < len(waiting.drafts):
                break
        return group

    def _hand_out(self, results: list[Stored | Conflict | BusUnavailable]) -> None:
        given = 0
        while given < len(results):
            waiting = self._waiting[0]
            wanted = len(waiting.drafts) - len(waiting.results)
            waiting.results.extend(results[given : given + wanted])
            given += wanted
            if len(waiting.results) == len(waiting.drafts):
                self._waiting.popleft()
                if not waiting.done.done():
                    waiting.done.set_result(None)

    def _refuse(self, error: BusUnavailable) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            waiting.results.extend([error] * (len(waiting.drafts) - len(waiting.results)))
            if not waiting.done.done():
                waiting.done.set_result(None)

    async def _commit(self, group: list[Draft]) -> list[Stored | Conflict | BusUnavailable]:
        tag, until = new_tag(), time.monotonic() + TIMEOUT
        keys, args = self._plan(group, tag)
        answer, *confirmed = await self._ask_until(until, keys, args)
        while answer[0] == b"open":
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    await self._mend()
            except TimeoutError:
                raise BusUnavailable(HALFWAY) from None
            answer, *confirmed = await self._ask_until(until, keys, args)
        if answer[0] != b"ok":
            self._doubt = True
            raise BusUnavailable(
                "the log has begun anew, or has lost its end: this instance is finding out which"
            )
        self.length = answer[3]
        self._tell_broken(keys[2 * -number] for number in answer[4::2] if number < 0)
        results = _results(group, answer)
        if confirmed and confirmed[0] < self._wait_replicas:
            raise BusUnavailable(
                f"only {confirmed[0]} of {self._wait_replicas} replicas have confirmed the message"
            )
        stored = [
            each.position for each in results if isinstance(each, Stored) and not each.duplicate
        ]
        if stored:
            self._chain.written(EntryRef(stored[-1], tag))
        return results

    async def _ask_until(self, until: float, keys: list[str], args: list[bytes]) -> list[Any]:
        delay = RetryDelay()
        # Over the same connection, or it would wait for nothing.
        wait: list[RedisCommand] = (
            [("WAIT", self._wait_replicas, WAIT_MS)] if self._wait_replicas else []
        )
        refused: NotExecuted | None = None
        try:
            async with asyncio.timeout(until - time.monotonic()):
                while True:
                    try:
                        return await self._writer.try_script(self._append_script, keys, args, *wait)
                    except NotExecuted as error:
                        refused = (
                            error  # it wasn't done, so it may be sent again, while there is time
                        )
                    await delay.pause()
        except TimeoutError:
            raise refused or BusUnavailable(
                f"Redis ({self._target}) doesn't answer", public="Redis doesn't answer"
            ) from None

    def _plan(self, group: list[Draft], tag: bytes) -> tuple[list[str], list[bytes]]:
        channels: dict[str, int] = {}
        ids: dict[str, int] = {}
        messages: list[object] = []
        for draft in group:
            number = 0
            if draft.digest is not None:
                number = ids.setdefault(f"{HASH_TAG}:id:{draft.service}:{draft.id}", len(ids) + 1)
            mine = [channels.setdefault(channel, len(channels) + 1) for channel in draft.channels]
            digest, name = (
                ("", "")
                if draft.digest is None
                else (draft.digest.hex(), f"{draft.service}:{draft.id}")
            )
            messages.append((draft.ttl * 1000, number, digest, draft.timestamp, mine, name))
        keys = [HEAD, LOG]
        for channel in channels:
            keys += _keys_of(channel)
        keys += ids
        known = self._chain.known
        lengths = (self._log_length, self._history_length)
        now = self._now_ms()
        # All of it text: Redis's MessagePack knows no binary.
        head = (self.epoch, tag.decode(), known.position.ms, known.position.seq, known.tag.decode())
        # Commands, without which a full Redis would keep whoever fills it from being stopped.
        urgent = any(draft.channels == (CHANNEL,) for draft in group)
        plan = (*head, *lengths, now, self._wait_replicas > 0, urgent, messages)
        return keys, [_pack(plan), *(payload(tag, draft) for draft in group)]

    def _now_ms(self) -> int:
        return 0 if self._clock is None else int(self._clock() * 1000)

    # Reading

    async def history(
        self, channels: Sequence[str], after: Position | None, limit: int
    ) -> list[Page]:
        start = "-" if after is None else f"({id_of(after)}"
        # The newest position first: what comes in between is then among the entries.
        commands: list[RedisCommand] = [("TIME",)]
        for channel in channels:
            history, last = _keys_of(channel)
            commands.append(("GET", last))
            commands.append(("XRANGE", history, start, "+", "COUNT", limit + 1))
            commands.append(("XLEN", history))
        (seconds, _), *replies = await self._reader.calls(commands)
        now = self._now_ms() or int(seconds) * 1000
        forgotten = Position(max(0, now - DAY_MS), 0)
        return [
            self._page(limit, forgotten, *replies[n : n + 3]) for n in range(0, len(replies), 3)
        ]

    def _page(
        self, limit: int, forgotten: Position, last: bytes | None, items: list[Any], length: int
    ) -> Page:
        entries = self._decoder.history(items[:limit])
        newest = forgotten if last is None else position_of(last)
        # A history that isn't full has been trimmed by nobody: what it lacks went with its ttl.
        lost: Reason = "trimmed" if length >= self._history_length else "expired"
        return Page(entries, newest, len(items) > limit, lost)

    async def end(self) -> Position:
        state = await self._state()
        if not self._tailing:
            state = await self._begin_at(state)
        elif state.epoch != self.epoch:
            self._doubt = True
            raise BusUnavailable("the log has begun anew: this instance is finding out where")
        return state.end.position

    async def _state(self) -> _State:
        fields, length = await self._ask(
            ("HMGET", HEAD, "epoch", "number", "previous", "cut", "ms", "seq", "tag", "open"),
            ("XLEN", LOG),
        )
        self.length = length
        epoch, number, previous, cut, ms, seq, tag, open = fields
        end = EntryRef(Position(int(ms), int(seq)), tag) if ms is not None else ORIGIN
        before = Cursor(previous.decode(), position_of(cut)) if previous else None
        return _State((epoch or b"").decode(), int(number or 0), before, end, Unfinished.read(open))

    async def _ask(self, *commands: RedisCommand) -> list[Any]:
        return await self._asker.calls(commands)

    # The tail

    async def tail(self, after: Position) -> AsyncGenerator[Sequence[Entry] | Cut, None]:
        self._tailing = True
        delay = RetryDelay()
        self._chain.begin(await self._ref_at(after, delay))
        self._doubt = True
        broken = False
        while True:
            try:
                if self._doubt:
                    self._doubt = False
                    cut = await self._reconcile(broken)
                    broken = False
                    if not self._failures:
                        self._find()
                    if cut is not None:
                        yield cut
                entries, broken = await self._next()
            except BusUnavailable as error:
                self._lose(error)
                await delay.pause()
                continue
            except Exception:
                # Delivery must outlive a mistake, or an entry that someone else has written.
                log.exception("the log can't be read")
                self._lose(BusUnavailable("the log can't be read"))
                await delay.pause()
                continue
            delay.reset()
            self._failures = 0
            self.trouble = None
            self._find()
            if entries:
                yield entries

    def _find(self) -> None:
        if not self.reachable:
            self.reachable = True
            log.info("reading the log of Redis (%s)", self._target)

    def _lose(self, error: BusUnavailable) -> None:
        # Whatever it comes back as has to be looked at first. A connection that is merely cut is no
        # word about Redis.
        self._doubt = True
        self._failures += 1
        self.trouble = error.public
        self._count = max(1, self._count // 2)  # it may have been too much to be read in time
        if self.reachable and self._failures > 1:
            self.reachable = False
            log.warning("%s; streams stay open, and continue when it is back", error)

    async def _ref_at(self, position: Position, delay: RetryDelay) -> EntryRef:
        while True:
            try:
                (found,) = await self._ask(("XRANGE", LOG, id_of(position), id_of(position)))
            except BusUnavailable as error:
                self._lose(error)
                await delay.pause()
                continue
            return EntryRef(position, fields_of(found[0][1])[1][:TAG] if found else NO_TAG)

    async def _next(self) -> tuple[list[Entry], bool]:
        """The next entries; and whether they, or their lack, show that the log isn't what this
        instance has seen.
        """
        chain = self._chain
        unread = chain.unread
        head = chain.head
        # After a failure the question is whether it answers at all.
        wait = 1 if self._failures else int(BLOCK * 1000)
        reply = await self._tail_link.call(
            "XREAD", "COUNT", self._count, "BLOCK", wait, "STREAMS", LOG, id_of(chain.at)
        )
        if not reply:
            if unread:
                # What we have written isn't here: this server isn't the one that we write to, or it
                # has lost it.
                self._expire()
                self._doubt = True
            return [], False
        items = reply[0][1]
        entries, refs, before = self._decoder.log(items, head)
        self._fit_count(entries)
        if before.position <= head.position and not head.names(before):
            self._doubt = True
            return [], True
        trimmed = before.position > head.position
        # Where the log was trimmed past us, the word of a new epoch may have been in what is gone.
        if (trimmed or any(map(self._is_news, entries))) and (
            await self._state()
        ).epoch != self.epoch:
            self._doubt = True
            return [], False
        if trimmed:
            chain.skip(before)
        if not chain.read(refs):
            self._doubt = True
            return [], True
        chain.at = position_of(items[-1][0])
        return entries, False

    def _is_news(self, entry: Entry) -> bool:
        return not entry.channels and entry.type == EPOCH and entry.service != self.epoch

    def _fit_count(self, entries: Sequence[Entry]) -> None:
        # XREAD counts entries, whatever their size.
        if len(entries) < self._count:
            self._count = min(READ, 2 * self._count)
        else:
            size = sum(len(entry.body) for entry in entries)
            self._count = max(1, min(READ, READ_BYTES * len(entries) // max(size, 1)))

    # Epochs

    async def _begin_at(self, state: _State) -> _State:
        while not state.epoch:
            await self._begin("", "", ZERO)
            state = await self._state()
        self._enter(state)
        self._chain.begin(state.end)
        self._find()
        return state

    def _enter(self, state: _State) -> None:
        self.epoch, self._number, self.cut = state.epoch, state.number, state.cut

    async def _reconcile(self, broken: bool) -> Cut | None:
        """Compare what this instance has seen with what the log says of itself; None where they
        agree.
        """
        if broken:
            self._expire()
        while True:
            with contextlib.suppress(
                BusUnavailable
            ):  # who writes finds out; what there is can be read all the same
                await self._mend()
            state = await self._state()
            chain = self._chain
            common = await self._newest_common(state)
            if state.epoch == self.epoch:
                unread = chain.unread
                whole = (
                    not broken
                    and common == chain.head
                    and await self._holding(unread, state) == len(unread)
                )
                if whole:
                    return None
            # Where it has an earlier name, it has lost its end, and the word of the later one with
            # it: cursors of the earlier one can't be trusted either.
            if state.epoch == self.epoch or state.number <= self._number:
                if not await self._begin(state.epoch, self.epoch, common.position):
                    continue
                state = await self._state()
            return self._adopt(state, common)

    def _adopt(self, state: _State, common: EntryRef) -> Cut:
        cut = ZERO
        if state.cut is not None and state.cut.epoch == self.epoch:
            cut = state.cut.position
        end = common if common.position <= cut else EntryRef(cut, NO_TAG)
        log.warning(
            "the log goes on as epoch %s after %s: what this instance knew after that is lost, or"
            " may be",
            state.epoch,
            id_of(end.position),
        )
        self._enter(state)
        self._chain.begin(end)
        return Cut(state.epoch, end.position)

    def _expire(self) -> None:
        # They may lead to different servers, one of which is no longer the master.
        for link in self._links:
            link.expire()

    async def _begin(self, seen: str, previous: str, cut: Position) -> bool:
        name = new_epoch()
        args = (
            seen,
            name,
            self._number,
            previous,
            id_of(cut),
            new_tag(),
            self._now_ms(),
            self._log_length,
        )
        return bool(await self._asker.script(self._begin_script, [HEAD, LOG], args))

    async def _mend(self) -> None:
        """Complete calls that were stopped halfway.

        Raises:
            BusUnavailable: what is missing can't be written now either.
        """
        for _ in range(MENDED_AT_MOST):
            # The newest first: what comes in between has moved the head when that is read.
            (newest,) = await self._ask(("XREVRANGE", LOG, "+", "-", "COUNT", 1))
            state = await self._state()
            ahead = bool(newest) and position_of(newest[0][0]) > state.end.position
            if not state.epoch or not (ahead or state.unfinished):
                return
            end, call = state.end.position, state.unfinished
            first = (
                Position(end.ms, end.seq + 1)
                if call is None
                else min(call.first, Position(end.ms, end.seq + 1))
            )
            (items,) = await self._ask(("XRANGE", LOG, id_of(first), "+", "COUNT", GROUP_MESSAGES))
            left = [
                each
                for each in self._decoder.stored(items)
                if each.ref.position > end or (call is not None and each.ref.tag == call.tag)
            ]
            if not left and call is None:
                return  # somebody else has written there
            await self._complete(end, call, left)
        raise BusUnavailable(HALFWAY)

    async def _complete(
        self, end: Position, call: Unfinished | None, messages: Sequence[StoredMessage]
    ) -> None:
        channels: dict[str, int] = {}
        ids: dict[str, int] = {}
        plan = []
        for ref, ttl, service, names, id in messages:
            accepted = None if call is None else call.accepted.get(f"{service}:{id}")
            number, value = 0, ""
            if accepted is not None:
                number = ids.setdefault(f"{HASH_TAG}:id:{service}:{id}", len(ids) + 1)
                value = f"{accepted[0]}{id_of(ref.position)} {accepted[1]}"
            mine = [channels.setdefault(channel, len(channels) + 1) for channel in names]
            place = (id_of(ref.position), ref.position.ms, ref.position.seq, ref.tag.decode())
            plan.append((*place, ttl * 1000, number, value, mine))
        keys = [HEAD, LOG, *(key for channel in channels for key in _keys_of(channel)), *ids]
        seen = (end.ms, end.seq, "" if call is None else call.name)
        answer = await self._asker.script(
            self._mend_script, keys, [_pack((*seen, self._now_ms(), plan))]
        )
        if not answer:
            return  # another instance was first
        if answer[0]:
            log.warning(
                "Redis had stopped a call halfway; it has been completed, with %d messages",
                answer[0],
            )
        self._tell_broken(_keys_of([*channels][number - 1])[0] for number in answer[1:])

    def _tell_broken(self, histories: Iterable[str]) -> None:
        for history in histories:
            if history not in self._broken and len(self._broken) < BROKEN_TOLD:
                self._broken.add(history)
                log.error("a history can't be written, since its key is no stream: %s", history)

    async def _newest_common(self, state: _State) -> EntryRef:
        """The newest entry that this instance has read and the log still holds, or has trimmed
        since.
        """
        refs = self._chain.refs()
        number = await self._holding(refs, state)
        return refs[number - 1] if number else ORIGIN

    async def _holding(self, refs: Sequence[EntryRef], state: _State) -> int:
        """How many of these entries, which follow one another, the log still holds, or has trimmed
        since.
        """
        low, high = 0, len(refs)  # it holds refs[:low], and doesn't hold refs[high:]
        while low < high:
            middle = (low + high) // 2
            if await self._holds(refs[middle], state):
                low = middle + 1
            else:
                high = middle
        return low

    async def _holds(self, ref: EntryRef, state: _State) -> bool:
        if ref.names(state.end):
            return True
        # In this order: what is trimmed between the two isn't taken for lost.
        found, oldest = await self._ask(
            ("XRANGE", LOG, id_of(ref.position), id_of(ref.position)),
            ("XRANGE", LOG, "-", "+", "COUNT", 1),
        )
        if found:
            return ref.names(EntryRef(ref.position, fields_of(found[0][1])[1][:TAG]))
        if oldest:
            # What stands before the oldest was trimmed only where that follows it: else it was
            # never in this log.
            before = ref_of(fields_of(oldest[0][1])[0])
            return before is None or ref.names(before) or ref.position < before.position
        return bool(state.epoch)  # all of it trimmed; or all of it gone, head and all


def _keys_of(channel: str) -> tuple[str, str]:
    """A channel's history, and its newest position."""
    return f"{HASH_TAG}:history:{channel}", f"{HASH_TAG}:last:{channel}"


def _results(group: list[Draft], answer: list[Any]) -> list[Stored | Conflict | BusUnavailable]:
    _, ms, seq, _, *known = answer
    before = dict(zip(known[::2], known[1::2], strict=True))
    results: list[Stored | Conflict | BusUnavailable] = []
    for number, draft in enumerate(group, 1):
        found = before.get(number)
        if found is None:
            results.append(Stored(Position(ms, seq), draft.timestamp, False))
            seq += 1
        elif found:
            id, _, timestamp = found.partition(b" ")
            results.append(Stored(position_of(id), timestamp.decode(), True))
        else:
            results.append(Conflict(draft.service, draft.id))
    return results
