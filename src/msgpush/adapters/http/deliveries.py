"""What became of messages that asked for acknowledgements, for those who published them."""

from typing import Literal

from msgspec import Raw, Struct
from starlette.requests import Request
from starlette.responses import Response

from msgpush.adapters.http.callers import Authenticator
from msgpush.adapters.http.operation import (
    GUARDED,
    Json,
    Operation,
    json_answer,
    limit,
    parameter,
    problem_answer,
)
from msgpush.adapters.http.problems import Acknowledged, NotFound
from msgpush.adapters.http.requests import Query
from msgpush.adapters.http.responses import json_response
from msgpush.domain.channel import USER
from msgpush.domain.errors import Malformed, NotDue
from msgpush.domain.grant import Grant
from msgpush.domain.message import ID_PATTERN, SERVICE_PATTERN, SERVICE_RULE, format_ms, is_service
from msgpush.domain.outbox import DEAD_PLACE, Reason, Record, check_dead_place
from msgpush.domain.quoting import short_repr
from msgpush.domain.service import ANSWER_BYTES, Push

SERVICE = f"^{SERVICE_PATTERN}$"


class Delivery(Struct):
    """What became of a message that asked for an acknowledgement, so far."""

    key: str
    state: Literal["accepted", "written", "acknowledged", "withdrawn", "dead"]
    reason: Reason | None
    user_id: str
    deliveries: int
    accepted_at: str
    written_at: str | None
    acknowledged_at: str | None
    next_at: str | None


class DeadLetter(Struct):
    """A message that was given up: written as often as it might be, or its time ran out."""

    message: Raw
    reason: Reason | None
    deliveries: int
    died_at: str


class DeadLetterList(Struct):
    """A page of dead letters, the oldest first; `next` continues it where it isn't null."""

    dead_letters: list[DeadLetter]
    next: str | None


class Redelivered(Struct):
    """A dead letter that waits again, and the cursor after its new delivery."""

    key: str
    cursor: str


_SERVICE = parameter("service", "The service that has published it.", "path", pattern=SERVICE)
_ID = parameter("id", "The message's id.", "path", pattern=f"^{ID_PATTERN}$")
_DELIVERY = "/api/v1/messages/{service}/{id}/delivery"
_DEAD = "/api/v1/dead-letters"


def _operation(
    method: str, path: str, id: str, summary: str, answers: dict[int, Json]
) -> Operation:
    """An operation on one message."""
    return Operation(
        method,
        path,
        tag="Publish",
        id=id,
        summary=summary,
        answers=answers,
        problems=(*GUARDED, 404, 503),
        parameters=[_SERVICE, _ID],
    )


OPERATIONS = (
    _operation(
        "GET",
        _DELIVERY,
        "delivery",
        "What became of a message that asked for an acknowledgement",
        {200: json_answer("So far.", Delivery)},
    ),
    _operation(
        "DELETE",
        _DELIVERY,
        "withdraw",
        "Take a message back: it is never delivered again",
        {
            204: {"description": "It is withdrawn, and the user's streams are told."},
            409: problem_answer(409, "A client has acknowledged it."),
        },
    ),
    Operation(
        "GET",
        _DEAD,
        tag="Publish",
        id="deadLetters",
        summary="The messages of a service that were given up",
        answers={200: json_answer("A page of them, the oldest first.", DeadLetterList)},
        problems=(*GUARDED, 503),
        parameters=[
            {
                **parameter("service", "The service that has published them.", pattern=SERVICE),
                "required": True,
            },
            limit("Messages"),
            parameter(
                "next",
                "Where the last answer said that the list goes on.",
                pattern=f"^{DEAD_PLACE}$",
            ),
        ],
    ),
    _operation(
        "POST",
        _DEAD + "/{service}/{id}/redeliver",
        "redeliver",
        "Deliver a dead letter again, at once, as often as a new message",
        {
            202: json_answer("It is delivered again.", Redelivered),
            409: problem_answer(409, "Its user has too many messages to acknowledge."),
        },
    ),
    _operation(
        "DELETE",
        _DEAD + "/{service}/{id}",
        "deleteDeadLetter",
        "Throw a dead letter away",
        {204: {"description": "It is gone."}},
    ),
)


class DeliveriesApi:
    """Serves what became of messages, and dead letters."""

    def __init__(self, push: Push, auth: Authenticator) -> None:
        self._push, self._auth = push, auth

    async def delivery(self, request: Request) -> Response:
        """Tell what became of a message, or withdraw it."""
        grant, service, id = await self._of_message(request)
        if request.method == "DELETE":
            _check_publisher(grant, service)
            return await self._withdraw(service, id)
        if not grant.admin:
            _check_publisher(grant, service)
        return json_response(_told(await self._found(service, id)))

    async def _withdraw(self, service: str, id: str) -> Response:
        outcome = await self._push.redelivery.withdraw(await self._found(service, id))
        if outcome.result == "acknowledged":
            raise Acknowledged("it can't be withdrawn: a client has acknowledged it")
        if outcome.result == "unknown":
            raise _not_found(service, id)
        return Response(status_code=204)

    async def dead_letters(self, request: Request) -> Response:
        query = Query(request.scope)
        service = query.one("service")
        limit = query.integer("limit", 100, 1, 1000)
        text = query.one("next")
        query.done()
        if service is None:
            raise Malformed("the parameter service is missing: whose dead letters are asked for")
        if not is_service(service):
            raise Malformed(f"the parameter service is {short_repr(service)}: {SERVICE_RULE}")
        after = None if text is None else check_dead_place(text)
        grant = await self._auth.authenticate(request.scope)
        grant.check_listen([f"service:{service}"])
        page = await self._push.redelivery.dead_letters(service, after, limit, ANSWER_BYTES)
        letters = [
            DeadLetter(
                Raw(each.message), each.reason, each.deliveries, format_ms(each.ended_at or 0)
            )
            for each in page.records
        ]
        return json_response(DeadLetterList(letters, page.next))

    async def revive(self, request: Request) -> Response:
        grant, service, id = await self._of_message(request)
        _check_publisher(grant, service)
        record = await self._found(service, id, dead=True)
        grant.check_publish([USER + record.user])
        try:
            stored = await self._push.redelivery.revive(record)
        except NotDue:
            raise _not_found(service, id, dead=True) from None
        return json_response(Redelivered(record.key, self._push.cursor(stored.position)), 202)

    async def forget(self, request: Request) -> Response:
        grant, service, id = await self._of_message(request)
        _check_publisher(grant, service)
        outcome = await self._push.redelivery.forget(await self._found(service, id, dead=True))
        if outcome.result == "unknown":
            raise _not_found(service, id, dead=True)
        return Response(status_code=204)

    async def _of_message(self, request: Request) -> tuple[Grant, str, str]:
        """Who asks, and of which service's message with which id."""
        Query(request.scope).done()
        grant = await self._auth.authenticate(request.scope)
        return grant, request.path_params["service"], request.path_params["id"]

    async def _found(self, service: str, id: str, *, dead: bool = False) -> Record:
        """The record of a message; with `dead`, of a dead letter."""
        record = await self._push.redelivery.find(service, id)
        if record is None or (dead and record.state != "dead"):
            raise _not_found(service, id, dead=dead)
        return record


def _check_publisher(grant: Grant, service: str) -> None:
    grant.check_publish([f"service:{service}"])


def _not_found(service: str, id: str, *, dead: bool = False) -> NotFound:
    key = short_repr(f"{service}/{id}")
    if dead:
        return NotFound(f"there is no dead letter {key}")
    return NotFound(f"nothing is known of {key}: it asked for nothing, or that was too long ago")


def _told(record: Record) -> Delivery:
    """What is told of a record."""
    status = record.status()
    return Delivery(
        status.key,
        status.state,
        status.reason,
        status.user_id,
        status.deliveries,
        format_ms(status.accepted_at),
        _moment(status.written_at),
        _moment(status.acknowledged_at),
        _moment(status.next_at),
    )


def _moment(ms: int | None) -> str | None:
    return None if ms is None else format_ms(ms)
