"""`/api/v1/users/{user_id}/...`: what waits for a user's acknowledgement, and giving it."""

from msgspec import Raw, Struct, structs
from starlette.requests import Request
from starlette.responses import Response

from msgpush.adapters.http.callers import Authenticator
from msgpush.adapters.http.operation import (
    GUARDED,
    Json,
    Operation,
    content,
    json_answer,
    limit,
    parameter,
)
from msgpush.adapters.http.requests import Query, no_field, path_tail, read_object
from msgpush.adapters.http.responses import json_response
from msgpush.domain.channel import NAME_CHARACTER, USER, encoding_advice, is_channel, no_channel
from msgpush.domain.errors import (
    Denied,
    Fault,
    Invalid,
    Malformed,
    MsgpushError,
    RateExceeded,
    Unauthorized,
)
from msgpush.domain.grant import Grant
from msgpush.domain.outbox import PLACE, Place
from msgpush.domain.ports import Limiter
from msgpush.domain.quoting import short_repr
from msgpush.domain.redelivery import Acknowledged
from msgpush.domain.service import ANSWER_BYTES, Push

USERS = "/api/v1/users/"
MAX_KEYS = 1_000
MAX_KEY = 64 + 1 + 128  # characters: a service, a slash and an id
MAX_BYTES = 512 * 1024
MAX_WORD_BYTES = 1_024  # of a request that only a word may let in
EXAMPLE = '{"keys": ["importer/42"]}'


class PendingList(Struct):
    """Messages that wait for a user's acknowledgement, the most urgent first, then the oldest.

    `total` counts all of the user's; `next` continues the list where it isn't null."""

    messages: list[Raw]
    total: int
    next: str | None


_USER = parameter("user_id", "The user.", "path", pattern=f"^{NAME_CHARACTER}{{1,195}}$")
_TOKEN = parameter("token", "A token or a ticket, for who can't send the header Authorization.")
_KEYS: Json = {
    "type": "object",
    "required": ["keys"],
    "properties": {
        "keys": {
            "description": "The messages, each `<service>/<id>`.",
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_KEYS,
            "items": {"type": "string", "minLength": 1, "maxLength": MAX_KEY},
        },
        "word": {
            "description": "What came with a Web Push: it acknowledges its key alone, and needs no"
            " token.",
            "type": "string",
        },
    },
    "additionalProperties": False,
}
OPERATIONS = (
    Operation(
        "POST",
        USERS + "{user_id}/acknowledgements",
        tag="Receive",
        id="acknowledge",
        summary="Acknowledge messages, for the user whom they are for",
        answers={
            200: json_answer(
                "Done, or done before: none of them is delivered again. Unknown are those of"
                " others, those that were withdrawn, and those of more than a day ago.",
                Acknowledged,
            )
        },
        problems=(*GUARDED, 413, 415, 422, 429, 503),
        parameters=[_USER, _TOKEN],
        body=content("application/json", _KEYS, example={"keys": ["importer/import-42-done"]}),
    ),
    Operation(
        "GET",
        USERS + "{user_id}/pending",
        tag="Receive",
        id="pending",
        summary="The messages that wait for a user's acknowledgement",
        answers={
            200: json_answer(
                "A page of them. After 4 MiB of messages it ends: `next` continues.", PendingList
            )
        },
        problems=(*GUARDED, 503),
        parameters=[
            _USER,
            limit("Messages"),
            parameter(
                "next", "Where the last answer said that the list goes on.", pattern=f"^{PLACE}$"
            ),
            _TOKEN,
        ],
    ),
)


class AcknowledgementsApi:
    """Serves what waits for users' acknowledgements.

    Args:
        limiter: how many a subject may acknowledge; None: as many as it likes.
    """

    def __init__(self, push: Push, auth: Authenticator, limiter: Limiter | None) -> None:
        self._push, self._auth, self._limiter = push, auth, limiter

    async def acknowledge(self, request: Request) -> Response:
        user = _user(request, "/acknowledgements")
        try:
            grant = await self._authenticate(request, user, Query(request.scope))
        except (Denied, Unauthorized) as error:
            keys = await self._by_word(request, user, error)
            if self._limiter is not None:  # one that is good may be said again and again
                await take_acknowledgements(self._limiter, user, len(keys))
            return json_response(await self._push.redelivery.acknowledge(user, keys))
        # Whatever the type says: a beacon can't choose it freely.
        given = await read_object(request, MAX_BYTES, EXAMPLE)
        for name in given:
            if name not in ("keys", "word"):
                raise no_field(name, "an acknowledgement: it has keys alone, or a word")
        if not isinstance(given.get("word", ""), str):
            raise Invalid(Fault("/word", "it must be text"))
        keys = read_keys(given.get("keys"), "/keys")
        self._push.check(grant)  # a body may take long
        if self._limiter is not None and grant.subject is not None:
            await take_acknowledgements(self._limiter, grant.subject, len(keys))
        return json_response(await self._push.redelivery.acknowledge(user, keys))

    async def _by_word(
        self, request: Request, user: str, refused: Denied | Unauthorized
    ) -> list[str]:
        """The one key that a word in the request's body acknowledges.

        Raises:
            Denied, Unauthorized: what the request was refused with, where it has no such word.
        """
        try:
            given = await read_object(request, MAX_WORD_BYTES)
        except MsgpushError:
            raise refused from None
        word, keys = given.get("word"), given.get("keys")
        if given.keys() != {"keys", "word"} or not isinstance(word, str):
            raise refused
        if not (isinstance(keys, list) and len(keys) == 1 and isinstance(keys[0], str)):
            raise refused
        if not self._push.takes_word(word, user, keys[0]):
            raise Unauthorized("the word is not good for this user and this one key, or no longer")
        return keys

    async def pending(self, request: Request) -> Response:
        user = _user(request, "/pending")
        query = Query(request.scope)
        limit = query.integer("limit", 100, 1, 1000)
        text = query.one("next")
        after = None if text is None else Place.parse(text)
        await self._authenticate(request, user, query)
        page = await self._push.redelivery.pending(user, after, limit, ANSWER_BYTES)
        messages = [Raw(record.message) for record in page.records]
        following = None if page.next is None else str(page.next)
        return json_response(PendingList(messages, page.total, following))

    async def _authenticate(self, request: Request, user: str, query: Query) -> Grant:
        """The permissions of one who may act for the user."""
        token = query.one("token")
        query.done()
        grant = await self._auth.authenticate(request.scope, token, by_ticket=True)
        grant.check_act(user)
        return grant


async def take_acknowledgements(limiter: Limiter, subject: str, wanted: int) -> None:
    """Take so many of a subject's rate, or none.

    Raises:
        RateExceeded: there are fewer now; it says when there are as many.
    """
    # Looked at first: if those that are refused used up what comes in, who asks again as they are
    # told would never get through.
    allowance = await limiter.take(subject, 0)
    if allowance.remaining >= wanted:
        allowance = await limiter.take(subject, wanted)
        if allowance.granted >= wanted:
            return
    wait = (wanted - allowance.remaining) / allowance.rate
    raise RateExceeded("acknowledgements", structs.replace(allowance, retry_after=wait))


def _user(request: Request, suffix: str) -> str:
    """The user whom the path names."""
    user = path_tail(request.scope, USERS, suffix)
    if not user or not is_channel(USER + user):
        raise Malformed(no_channel(USER + user, encoding_advice(user)))
    return user


def read_keys(keys: object, pointer: str) -> list[str]:
    """The keys that a request names; raises `Invalid`, which points there, where it doesn't."""
    if not isinstance(keys, list) or not 0 < len(keys) <= MAX_KEYS:
        raise Invalid(Fault(pointer, f"it must be a list of 1 to {MAX_KEYS} keys of messages"))
    for index, key in enumerate(keys):
        if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY:
            told = f"{short_repr(key)} is no key of a message: it must be <service>/<id>"
            raise Invalid(Fault(f"{pointer}/{index}", told))
    return keys
