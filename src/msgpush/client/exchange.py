"""The exchange with the service: what to ask, when to try again, when to give up.

Nothing here waits or sends. Each exchange is a generator that *says* what is to be done next, a
`Call` or a `Wait`, is told what came of it, and returns its result. So the blocking publisher, the
async one and the buffer share every decision, and each does only the waiting in its own way.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct

from msgpush.client.errors import UNREADABLE, Problem, Rejected, Unavailable, rejected
from msgpush.client.messages import Item, Sent

# Ids are remembered for 10 minutes: half of it is surely safe for a retry, whatever it took.
PATIENCE = 300.0
FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0
LONGEST_ASKED = 60.0  # of what `Retry-After` asks for
BATCH_MESSAGES, BATCH_BYTES = 1000, 1 << 20

NDJSON = "application/x-ndjson"
JSON = "application/json"


class Call(Struct, frozen=True):
    """A request to make.

    Args:
        fresh: the token was refused, so this one is to be made with a new one.
    """

    method: str
    path: str
    body: bytes = b""
    content_type: str = JSON
    fresh: bool = False


class Wait(Struct, frozen=True):
    """Time to let pass before what comes next; `cause` is why."""

    seconds: float
    cause: str


class Answer(Struct, frozen=True):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Failure(Struct, frozen=True):
    """Nothing came back, or not all of it: the request may have been done, or not."""

    cause: str


T = TypeVar("T")
Exchange = Generator[Call | Wait, Answer | Failure, T]


class Backoff:
    """How long to wait before the next try: longer each time, and never in step with others.

    Args:
        chance: gives numbers from 0 to 1, of which each wait is made.
    """

    def __init__(
        self, longest: float = LONGEST_WAIT, chance: Callable[[], float] = random.random
    ) -> None:
        self._longest, self._chance = longest, chance
        self._next = FIRST_WAIT

    def reset(self) -> None:
        """It has worked: the next failure is a first one."""
        self._next = FIRST_WAIT

    def wait(self, at_least: float = 0.0, at_most: float = LONGEST_WAIT) -> float:
        """Seconds to wait now: the time that was asked for, and a little more by chance."""
        span, self._next = min(at_most, self._next), min(self._longest, self._next * 2)
        return at_least + span * (0.5 + self._chance() / 2)


class _Retries:
    """The tries of one thing: how long to wait before the next, and when there is none."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._backoff = clock, Backoff()
        self._since: float | None = None

    def reset(self) -> None:
        self._since = None
        self._backoff.reset()

    def next(self, again: _Again) -> Wait | None:
        """The wait before the next try; none when it has been tried for long enough."""
        now = self._clock()
        self._since = now if self._since is None else self._since
        seconds = self._backoff.wait(again.at_least)
        return Wait(seconds, again.cause) if now + seconds < self._since + PATIENCE else None


class _Again(Struct, frozen=True):
    """It may work later: why it didn't, and how long the service wants to be left alone."""

    cause: str
    at_least: float = 0.0


class _Result(Struct):
    id: str = ""
    timestamp: str = ""
    channels: tuple[str, ...] = ()
    cursor: str = ""
    duplicate: bool = False
    error: Problem | None = None


class _Results(Struct):
    results: list[_Result]


_decode_result = msgspec.json.Decoder(_Result).decode
_decode_results = msgspec.json.Decoder(_Results).decode


def ask(call: Call, clock: Callable[[], float], key: str = "") -> Exchange[Answer]:
    """Make a request until it is answered with a success.

    Raises:
        Rejected: by the service, for good.
        Unavailable: it was tried for `PATIENCE` seconds.
    """
    retries = _Retries(clock)
    fresh = False
    while True:
        answer = yield msgspec.structs.replace(call, fresh=fresh)
        if isinstance(answer, Answer) and answer.status < 300:
            return answer
        if isinstance(answer, Answer) and answer.status == 401 and not fresh:
            fresh = True
            continue
        again = _again(answer)
        if again is None:
            assert isinstance(answer, Answer)
            raise rejected(answer.status, answer.body, key)
        wait = retries.next(again)
        if wait is None:
            raise Unavailable(again.cause, (key,) if key else ())
        fresh = False
        yield wait


def publish(item: Item, clock: Callable[[], float]) -> Exchange[Sent]:
    """Publish one message; raises as `ask` does."""
    answer = yield from ask(_send(item), clock, item.key)
    verdict = _accepted(answer, item)
    if isinstance(verdict, Rejected):
        raise verdict
    return verdict


Verdict = Sent | Rejected | Unavailable


def publish_all(items: Sequence[Item], clock: Callable[[], float]) -> Exchange[list[Verdict]]:
    """Publish messages in their order; those that alone were not accepted, again.

    Each has a verdict of its own, in the same order. Nothing is raised.
    """
    verdicts: dict[int, Verdict] = {}
    left = list(range(len(items)))
    retries = _Retries(clock)
    fresh = False
    most = BATCH_MESSAGES
    while left:
        some = _batch(items, left[:most])
        answer = yield _batched([items[number] for number in some], fresh=fresh)
        if len(some) > 1 and _is_too_much(answer):
            most = len(some) // 2
            continue
        judged = _judge(answer, [items[number] for number in some])
        now: dict[int, Verdict] = {
            n: each for n, each in zip(some, judged, strict=True) if isinstance(each, Verdict)
        }
        unauthorized = [each for each in now.values() if _is_unauthorized(each)]
        if unauthorized and not fresh:
            # Nothing of these was stored: once more, with a new token.
            now = {n: each for n, each in now.items() if not _is_unauthorized(each)}
            verdicts |= now
            left = [number for number in left if number not in now]
            fresh = True
            continue
        fresh = False
        if now:
            retries.reset()
        if again := next((each for each in judged if isinstance(each, _Again)), None):
            wait = retries.next(again)
            if wait is not None:
                yield wait
            else:
                now |= {
                    n: Unavailable(each.cause, (items[n].key,))
                    for n, each in zip(some, judged, strict=True)
                    if isinstance(each, _Again)
                }
                retries.reset()
        verdicts |= now
        left = [number for number in left if number not in now]
    return [verdicts[number] for number in range(len(items))]


def _batch(items: Sequence[Item], left: Sequence[int]) -> list[int]:
    """The first of what is left that go in one request. A broadcast has a request to itself."""
    some: list[int] = []
    room = BATCH_BYTES
    for number in left:
        room -= len(items[number].text) + len(b"\n")
        if some and (items[number].broadcast or room < 0):
            break
        some.append(number)
        if items[number].broadcast:
            break
    return some


def _send(item: Item) -> Call:
    path = "broadcast" if item.broadcast else "send"
    return Call("POST", f"/api/v1/messages/{path}", item.text)


def _batched(items: Sequence[Item], *, fresh: bool) -> Call:
    if items[0].broadcast:
        return msgspec.structs.replace(_send(items[0]), fresh=fresh)
    lines = b"\n".join([each.text for each in items]) + b"\n"
    return Call("POST", "/api/v1/messages/batch", lines, NDJSON, fresh)


def _judge(
    answer: Answer | Failure, items: Sequence[Item]
) -> list[Sent | Rejected | _Again | None]:
    """What became of each message of a request; none, where it was not looked at."""
    results = _results(answer) if not items[0].broadcast else None
    if results is None:
        if (again := _again(answer)) is not None:
            return [again] * len(items)
        assert isinstance(answer, Answer)
        return [_accepted(answer, each) for each in items]
    assert isinstance(answer, Answer)
    judged: list[Sent | Rejected | _Again | None] = [None] * len(items)
    for number, (item, result) in enumerate(zip(items, results, strict=False)):
        error = result.error
        if error is None:
            judged[number] = _sent(item, result)
        elif passes(error.status):
            judged[number] = _Again(f"{error.status}, {error.detail}", retry_after(answer.headers))
        else:
            detail = error.detail or error.title
            judged[number] = Rejected(error.status, detail, error.errors, item.key)
    if len(results) < len(items):
        # The line after the last that has a result has ended the batch: it was too large.
        judged[len(results)] = rejected(answer.status, answer.body, items[len(results)].key)
    return judged


def _results(answer: Answer | Failure) -> list[_Result] | None:
    if isinstance(answer, Answer) and b'"results"' in answer.body:
        try:
            return _decode_results(answer.body).results
        except UNREADABLE:
            return None
    return None


def _is_too_much(answer: Answer | Failure) -> bool:
    """Whether somebody in between (a proxy has limits of its own) takes no batch of this size."""
    return isinstance(answer, Answer) and answer.status == 413 and _results(answer) is None


def _accepted(answer: Answer, item: Item) -> Sent | Rejected:
    """What an answer to this message alone says."""
    if answer.status == 202:
        result = read(answer, _decode_result)
        if isinstance(result, _Result) and result.id:
            return _sent(item, result)
    return rejected(answer.status, answer.body, item.key)


def _sent(item: Item, result: _Result) -> Sent:
    return Sent(item.key, result.timestamp, result.channels, result.cursor, result.duplicate)


def _again(answer: Answer | Failure) -> _Again | None:
    """Whether what came back may be another the next time, and how long to wait for that."""
    if isinstance(answer, Failure):
        return _Again(answer.cause)
    if not passes(answer.status):
        return None
    error = rejected(answer.status, answer.body)
    return _Again(f"{answer.status}, {error.detail}", retry_after(answer.headers))


def passes(status: int) -> bool:
    """Whether the same request may be answered otherwise another time."""
    return status in (408, 425, 429) or status >= 500


def read(answer: Answer, decode: Callable[[bytes], T]) -> T | Rejected:
    """What an answer says; an error, where it is not one of this service."""
    try:
        return decode(answer.body)
    except UNREADABLE:
        return rejected(answer.status, answer.body)


def retry_after(headers: Mapping[str, str]) -> float:
    """The seconds that `Retry-After` asks for (RFC 9110, section 10.2.3); at most a minute."""
    text = headers.get("retry-after", "")
    try:
        seconds = float(text) if text.isdecimal() else _until(text)
    except ValueError:
        return 0.0
    return max(0.0, min(seconds, LONGEST_ASKED))


def _until(date: str) -> float:
    if not date:
        return 0.0
    moment = parsedate_to_datetime(date)
    if moment.tzinfo is None:  # two of the three forms of a date need not say that it is GMT
        moment = moment.replace(tzinfo=UTC)
    return (moment - datetime.now(UTC)).total_seconds()


def _is_unauthorized(verdict: Verdict) -> bool:
    return isinstance(verdict, Rejected) and verdict.status == 401


def delivery_path(key: str) -> str:
    """The path of what became of a message, by its key.

    Raises:
        ValueError: it is no key.
    """
    service, slash, id = key.partition("/")
    if not (service and slash and id):
        raise ValueError(f"key is {key!r}: it must be <service>/<id>")
    return f"/api/v1/messages/{quote(service, safe='')}/{quote(id, safe='')}/delivery"
