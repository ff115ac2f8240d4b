"""`POST /api/v1/messages/...`: from a body to messages in the bus, and back to receipts."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from math import ceil
from typing import NamedTuple

from msgspec import Struct
from starlette.types import Receive, Scope, Send

from msgpush.adapters.http.batch import NDJSON_TYPES, instead_of_one, split
from msgpush.adapters.http.callers import Authenticator
from msgpush.adapters.http.operation import (
    GUARDED,
    Json,
    Operation,
    content,
    fields,
    json_answer,
    parameter,
    problem_answer,
    ref,
)
from msgpush.adapters.http.problems import (
    TYPES,
    Problem,
    challenge,
    encode,
    problem,
    rate_headers,
    raw_headers,
    respond,
)
from msgpush.adapters.http.requests import body_headers, body_parts, read_body
from msgpush.adapters.http.tracing import IDLE, Tracing
from msgpush.domain.errors import (
    BusUnavailable,
    Invalid,
    MailboxFull,
    Malformed,
    MsgpushError,
    PendingFull,
    RateExceeded,
    Rejection,
    TooLarge,
)
from msgpush.domain.grant import Grant
from msgpush.domain.json_text import without_bom
from msgpush.domain.message import ID_PATTERN, ID_RULE, Draft, Message, is_id, parse, parse_all
from msgpush.domain.ports import Limiter
from msgpush.domain.quoting import short_repr
from msgpush.domain.service import Push, Receipt

MAX_ITEMS = 10_000
MESSAGES = "messages"  # what a rate's headers call it
FULL = PendingFull()  # as a whole batch is told of it
TURN = 0.005  # seconds of a batch after which the loop gets its turn
STORED_AT_ONCE = 256  # messages of a batch that are stored before others get their turn
READ_AT_ONCE = 1024 * 1024  # bytes of them: a few milliseconds


EXAMPLE: Json = {
    "type": "progress",
    "service": "knowledge-service",
    "source": "document_processing",
    "target": {"user_id": "user123", "session_id": "session456", "kb_id": "kb789"},
    "channels": ["imports"],
    "data": {
        "task_id": "task_abc123",
        "progress": 65,
        "stage": "embedding",
        "details": {"processed_chunks": 13, "total_chunks": 20, "current_file": "document.pdf"},
    },
    "metadata": {"priority": "normal", "ttl": 3600},
}
BROADCAST_EXAMPLE: Json = {
    "type": "warning",
    "service": "gateway",
    "data": {"message": "Maintenance at 22:00 UTC"},
}


_REFUSED = {
    409: problem_answer(
        409,
        "The service has published the id before, with other content; or, of the type"
        f" `{TYPES[MailboxFull]}`, the user has as many messages of the service to acknowledge as"
        " may wait.",
    ),
    503: problem_answer(
        503,
        "The bus is away: nothing is stored, and a message with an id may be sent again safely. Of"
        f" the type `{TYPES[PendingFull]}`: there is no room now for one more message that waits"
        " for an acknowledgement.",
    ),
}


def _publishes_one(path: str, id: str, summary: str, schema: Json, example: Json) -> Operation:
    key = parameter(
        "Idempotency-Key",
        "The message's id, where the body has none.",
        "header",
        pattern=f'^("{ID_PATTERN}"|{ID_PATTERN})$',
    )
    return Operation(
        "POST",
        path,
        tag="Publish",
        id=id,
        summary=summary,
        answers={202: json_answer("Stored: readable by all, from here on.", Receipt), **_REFUSED},
        problems=(*GUARDED, 413, 415, 422, 429),
        parameters=[key],
        body=content("application/json", schema, example=example),
    )


SEND = _publishes_one("/api/v1/messages/send", "send", "Publish a message", ref(Message), EXAMPLE)
BROADCAST = _publishes_one(
    "/api/v1/messages/broadcast",
    "broadcast",
    "Publish a message, without target, to every stream",
    {"allOf": [ref(Message), {"properties": {"target": {"maxProperties": 0}}}]},
    BROADCAST_EXAMPLE,
)


class Publish:
    """`/send` and `/broadcast`: one message a request."""

    def __init__(
        self,
        push: Push,
        auth: Authenticator,
        *,
        max_bytes: int,
        limiter: Limiter | None = None,
        tracing: Tracing = IDLE,
        broadcast: bool = False,
    ) -> None:
        self._push, self._auth = push, auth
        self._tracing = None if tracing.idle else tracing
        self._limiter = limiter
        self._max_bytes, self._broadcast = max_bytes, broadcast

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        draft: Draft | None = None
        try:
            grant = await self._auth.authenticate(scope)
            headers = body_headers(scope, self._max_bytes, "the message")
            message = _parse(await read_body(receive, self._max_bytes, "the message"))
            self._push.check(grant)  # a body may take long
            if message.id is None and headers.idempotency_key is not None:
                message.id = _id_of(headers.idempotency_key)
            tracing, traceparent, told = self._tracing, None, None
            if tracing is not None:
                traceparent = tracing.of(scope) or traceparent_of(message)
                told = tracing.told(traceparent)
            draft = self._push.draft(message, broadcast=self._broadcast, traceparent=told)
            grant.check_publish(draft.channels)
            rate = () if self._limiter is None else await take_one(self._limiter, grant)
        except MsgpushError as error:
            self._push.rejected(error, draft)
            raise
        result = await store_one(self._push, draft, tracing, traceparent)
        await respond(send, 202, encode(result), headers=rate)


def traceparent_of(message: Message) -> str | None:
    """Where the trace goes on that a message itself names."""
    return message.metadata.traceparent or None if message.metadata else None


async def store_one(
    push: Push, draft: Draft, tracing: Tracing | None, traceparent: str | None
) -> Receipt:
    """Store a message; raises what it is refused for."""
    if tracing is None:
        (result,) = await push.store([draft])
    else:
        with tracing.publish(traceparent, [draft]) as failed:
            (result,) = await push.store([draft])
            if isinstance(result, MsgpushError):
                failed.append(type(result).__name__)
    if isinstance(result, MsgpushError):
        raise result
    return result


async def take_one(limiter: Limiter, grant: Grant) -> Iterable[tuple[bytes, bytes]]:
    """Take one message of a subject's rate; returns the headers that tell it what is left.

    Raises:
        RateExceeded: there is none now.
        BusUnavailable: that can't be found out now.
    """
    allowance = await limiter.take(grant.subject or "", 1)
    if not allowance.granted:
        raise RateExceeded(MESSAGES, allowance)
    return raw_headers(rate_headers(MESSAGES, allowance))


class Failed(Struct):
    """An item of a batch that was not accepted, with what `/send` would have answered."""

    error: Problem


class BatchResult(Struct, kw_only=True):
    """The answer to a batch; where nothing was accepted it is a problem (RFC 9457) as well."""

    accepted: int
    rejected: int
    results: list[Receipt | Failed]


class BatchProblem(Problem, kw_only=True):
    accepted: int
    rejected: int
    results: list[Receipt | Failed]


SCHEMAS: Json = {
    # msgspec describes no unions of structs without tags.
    "BatchResult": fields(
        accepted={"type": "integer", "minimum": 0},
        rejected={"type": "integer", "minimum": 0},
        results={
            "description": "In the batch's order.",
            "type": "array",
            "items": {
                "anyOf": [
                    ref(Receipt),
                    fields(error=ref(Problem))
                    | {"description": "Not accepted: what `send` would have answered."},
                ]
            },
        },
    ),
    "BatchProblem": {
        "description": "A problem, with what became of the items so far.",
        "allOf": [ref(Problem), ref(BatchResult)],
    },
}


def _either(status: int, description: str) -> Json:
    """A problem of the whole request, or of all its items."""
    return problem_answer(status, description, "BatchProblem")


_BATCH: Json = {"type": "array", "minItems": 1, "maxItems": MAX_ITEMS, "items": ref(Message)}
_BATCH_EXAMPLE = [EXAMPLE, BROADCAST_EXAMPLE]
BATCH = Operation(
    "POST",
    "/api/v1/messages/batch",
    tag="Publish",
    id="batch",
    summary="Publish many messages, each by itself, in their order",
    answers={
        202: json_answer("One is stored, or more: see the results.", BatchResult),
        403: _either(403, "None may be published."),
        413: _either(413, "Too large, or too many. Lines that had come before are stored."),
        422: _either(422, "None is valid, or there was none."),
        429: _either(429, "More than this subject may publish now; none is stored."),
        503: _either(503, "The bus is away, and took none."),
    },
    problems=(*GUARDED, 415),
    body={
        **content(
            "application/json",
            {"anyOf": [_BATCH, {**fields(messages=_BATCH), "additionalProperties": False}]},
            example=_BATCH_EXAMPLE,
        ),
        **content(
            NDJSON_TYPES[0],
            {
                "type": "string",
                "description": "A message a line (NDJSON), stored as they arrive. Also as "
                f"{', '.join(NDJSON_TYPES[1:])}.",
            },
            example="".join(f"{encode(each).decode()}\n" for each in _BATCH_EXAMPLE),
        ),
    },
)
OPERATIONS = (SEND, BROADCAST, BATCH)


class _Source(NamedTuple):
    """Who has sent a batch, and where its trace goes on."""

    grant: Grant
    traceparent: str | None


class PublishBatch:
    """`/batch`: many messages a request, each by itself, in their order."""

    def __init__(
        self,
        push: Push,
        auth: Authenticator,
        *,
        max_message_bytes: int,
        max_batch_bytes: int,
        limiter: Limiter | None = None,
        tracing: Tracing = IDLE,
    ) -> None:
        self._push, self._auth = push, auth
        self._tracing = None if tracing.idle else tracing
        self._limiter = limiter
        self._max_message_bytes, self._max_batch_bytes = max_message_bytes, max_batch_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        results: list[Receipt | Failed] = []
        try:
            limit = await self._publish(scope, receive, results)
        except MsgpushError as error:
            self._push.rejected(error)
            raise
        await self._respond(send, results, limit)

    async def _publish(
        self, scope: Scope, receive: Receive, results: list[Receipt | Failed]
    ) -> Problem | None:
        """Store the batch; what comes back is the limit that has ended it early, if one has."""
        grant = await self._auth.authenticate(scope)
        source = _Source(grant, None if self._tracing is None else self._tracing.of(scope))
        headers = body_headers(scope, None, "the batch")
        if headers.idempotency_key is not None:
            raise Malformed(
                "the header Idempotency-Key names one message: in a batch each message carries its"
                " own id"
            )
        if headers.content_type in NDJSON_TYPES:
            try:
                await self._store_lines(receive, source, results)
            except TooLarge as error:
                self._push.rejected(error)
                return Problem.of(error)
            return None
        body_headers(scope, self._max_batch_bytes, "the batch")
        items = await split(await read_body(receive, self._max_batch_bytes, "the batch"))
        if len(items) > MAX_ITEMS:
            raise TooLarge("the batch", MAX_ITEMS, "messages")
        await self._store(items, source, results)
        return None

    async def _store_lines(
        self, receive: Receive, source: _Source, results: list[Receipt | Failed]
    ) -> None:
        # Lines are stored as they arrive: those whose newline has come stay accepted, whatever
        # becomes of the rest.
        rest = b""
        async for part in body_parts(receive):
            *lines, rest = (rest + part).split(b"\n")
            await self._store_some(lines, source, results)
            if len(rest) > self._max_message_bytes:
                raise TooLarge("a line of the batch", self._max_message_bytes)
        await self._store_some([rest], source, results)

    async def _store_some(
        self, lines: Sequence[bytes], source: _Source, results: list[Receipt | Failed]
    ) -> None:
        lines = [line for line in lines if without_bom(line).strip()]
        fitting = lines[: MAX_ITEMS - len(results)]
        too_long = next(
            (i for i, line in enumerate(fitting) if len(line) > self._max_message_bytes), None
        )
        await self._store(fitting[:too_long], source, results)
        if too_long is not None:
            raise TooLarge("a line of the batch", self._max_message_bytes)
        if len(lines) > len(fitting):
            raise TooLarge("the batch", MAX_ITEMS, "messages")

    async def _store(
        self, items: Sequence[bytes], source: _Source, results: list[Receipt | Failed]
    ) -> None:
        for start in range(0, len(items), STORED_AT_ONCE):
            await self._store_slice(items[start : start + STORED_AT_ONCE], source, results)
            await asyncio.sleep(0)

    async def _store_slice(
        self, items: Sequence[bytes], source: _Source, results: list[Receipt | Failed]
    ) -> None:
        """Store some messages of a batch together, and add what became of each."""
        outcomes = await self._drafts(items, source)
        if self._limiter is not None:
            outcomes = await self._within_rate(self._limiter, source.grant, outcomes)
        drafts = [each for each in outcomes if isinstance(each, Draft)]
        answers = await self._store_drafts(drafts, source) if drafts else []
        receipts = [answer for answer in answers if isinstance(answer, Receipt)]
        if len(receipts) == len(outcomes):
            results += receipts
            return
        remaining = iter(answers)
        for outcome in outcomes:
            if isinstance(outcome, Draft):
                answer = next(remaining)
                results.append(answer if isinstance(answer, Receipt) else _failed(answer))
            else:
                self._push.rejected(outcome)
                results.append(_failed(outcome))

    async def _store_drafts(
        self, drafts: Sequence[Draft], source: _Source
    ) -> list[Receipt | Rejection]:
        if self._tracing is None:
            return await self._push.store(drafts)
        with self._tracing.publish(source.traceparent, drafts) as failed:
            answers = await self._push.store(drafts)
            failed += [type(each).__name__ for each in answers if isinstance(each, MsgpushError)]
        return answers

    async def _within_rate(
        self, limiter: Limiter, grant: Grant, outcomes: Sequence[Draft | MsgpushError]
    ) -> list[Draft | MsgpushError]:
        """The same, with an error in the place of the last ones, if they are too many now."""
        wanted = sum(isinstance(each, Draft) for each in outcomes)
        if not wanted:
            return list(outcomes)
        try:
            allowance = await limiter.take(grant.subject or "", wanted)
        except BusUnavailable as error:
            return [error if isinstance(each, Draft) else each for each in outcomes]
        left = allowance.granted
        kept: list[Draft | MsgpushError] = []
        for each in outcomes:
            if isinstance(each, Draft):
                left -= 1
            kept.append(
                RateExceeded(MESSAGES, allowance) if isinstance(each, Draft) and left < 0 else each
            )
        return kept

    async def _drafts(self, items: Sequence[bytes], source: _Source) -> list[Draft | MsgpushError]:
        """The drafts of some items, with an error in the place of each that can't be published."""
        try:
            self._push.check(source.grant)  # since the last ones came
        except MsgpushError as error:
            return [error] * len(items)
        sizes = [*map(len, items)]
        if max(sizes) <= self._max_message_bytes and sum(sizes) <= READ_AT_ONCE:
            messages = parse_all(items)
            if messages is not None:
                drafts = self._push.drafts(messages, self._told(source))
                return _allowed(drafts, source.grant)
        outcomes: list[Draft | MsgpushError] = []
        until = time.monotonic() + TURN
        for item in items:
            outcomes.append(self._draft(item, self._told(source)))
            if time.monotonic() >= until:
                await asyncio.sleep(0)
                until = time.monotonic() + TURN
        return _allowed(outcomes, source.grant)

    def _told(self, source: _Source) -> str | None:
        return None if self._tracing is None else self._tracing.told(source.traceparent)

    def _draft(self, item: bytes, traceparent: str | None) -> Draft | MsgpushError:
        try:
            if len(item) > self._max_message_bytes:
                raise TooLarge("the message", self._max_message_bytes)
            return self._push.draft(parse(item), traceparent=traceparent)
        except MsgpushError as error:
            return error.as_value()

    async def _respond(
        self, send: Send, results: list[Receipt | Failed], limit: Problem | None = None
    ) -> None:
        """Answer with the results; where nothing was accepted, with a problem that has them."""
        errors = [result.error for result in results if isinstance(result, Failed)]
        rejected, accepted = len(errors), len(results) - len(errors)
        if limit is None and accepted:
            await respond(
                send,
                202,
                encode(BatchResult(accepted=accepted, rejected=rejected, results=results)),
            )
            return
        told = limit or _none_accepted(errors)
        body = BatchProblem(
            type=told.type,
            title=told.title,
            status=told.status,
            detail=told.detail,
            accepted=accepted,
            rejected=rejected,
            results=results,
        )
        headers = [(b"connection", b"close")] if limit else []
        if told.status in (401, 403):
            code = "invalid_token" if told.status == 401 else "insufficient_scope"
            headers += raw_headers({"WWW-Authenticate": challenge(code, told.detail)})
        if told.status == 503:
            seconds = FULL.retry_after if told.type == TYPES[PendingFull] else 1
            headers.append((b"retry-after", b"%d" % seconds))
        elif told.status == 429 and self._limiter is not None:
            headers.append((b"retry-after", b"%d" % ceil(1 / self._limiter.rate)))
        await respond(send, told.status, encode(body), b"application/problem+json", headers)


def _failed(error: MsgpushError) -> Failed:
    return Failed(Problem.of(error))


def _allowed(drafts: list[Draft | MsgpushError], grant: Grant) -> list[Draft | MsgpushError]:
    """The same, with an error in the place of those that the grant doesn't allow."""
    denied: dict[tuple[str, ...], MsgpushError] = {}
    for channels in {each.channels for each in drafts if isinstance(each, Draft)}:
        try:
            grant.check_publish(channels)
        except MsgpushError as error:
            denied[channels] = error.as_value()
    if not denied:
        return drafts
    return [denied.get(each.channels, each) if isinstance(each, Draft) else each for each in drafts]


def _parse(body: bytes) -> Message:
    try:
        return parse(body)
    except (Malformed, Invalid) as error:
        raise instead_of_one(body, error) from None


def _none_accepted(errors: Sequence[Problem]) -> Problem:
    statuses = {error.status for error in errors}
    if 503 in statuses:
        if {error.type for error in errors if error.status == 503} == {TYPES[PendingFull]}:
            return Problem.of(FULL)
        return problem(503, "the bus took none of the messages")
    if 429 in statuses:
        return problem(429, "no more messages of this subject are taken now")
    if statuses == {401}:
        return problem(401, "the token is accepted no longer")
    if statuses == {403}:
        return problem(403, "none of the messages may be published")
    if statuses == {409}:
        return problem(422, "none of the messages can be stored: each result says why")
    return problem(422, "none of the messages is valid" if statuses else "the batch is empty")


def _id_of(key: str) -> str:
    # A structured header's string stands in quotes; both ways are in use.
    id = key[1:-1] if len(key) > 1 and key[0] == key[-1] == '"' else key
    if not is_id(id):
        raise Malformed(f"the header Idempotency-Key is {short_repr(key)}: it must be {ID_RULE}")
    return id
