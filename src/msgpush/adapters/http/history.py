"""`GET /api/v1/channels/{channel}/messages`: a channel's history, without a stream."""

from starlette.requests import Request
from starlette.responses import Response

from msgpush.adapters.http.callers import Authenticator
from msgpush.adapters.http.operation import (
    CHANNEL,
    CURSOR,
    GUARDED,
    Operation,
    json_answer,
    limit,
    parameter,
)
from msgpush.adapters.http.requests import Query, path_tail
from msgpush.adapters.http.responses import json_response
from msgpush.domain.channel import NAME_RULE, check_channel
from msgpush.domain.errors import Malformed
from msgpush.domain.service import History, Push

OPERATIONS = (
    Operation(
        "GET",
        "/api/v1/channels/{channel}/messages",
        tag="Receive",
        id="history",
        summary="Read a channel's messages without a stream",
        answers={
            200: json_answer(
                "Messages, and the cursor after them. After 4 MiB of messages it ends: the cursor"
                " continues.",
                History,
            )
        },
        problems=(*GUARDED, 503),
        parameters=[
            parameter("channel", f"The channel: {NAME_RULE}.", "path", pattern=CHANNEL["pattern"]),
            parameter(
                "after",
                "A cursor; without one, from the earliest that is retained.",
                pattern=CURSOR,
            ),
            limit("Messages"),
            parameter(
                "last",
                "The newest so many instead, the oldest of them first; alone.",
                type="integer",
                minimum=1,
                maximum=1000,
            ),
        ],
    ),
)


class HistoryApi:
    """Serves what is retained of a channel."""

    def __init__(self, push: Push, auth: Authenticator) -> None:
        self._push, self._auth = push, auth

    async def messages(self, request: Request) -> Response:
        channel = path_tail(request.scope, "/api/v1/channels/", "/messages")
        check_channel(channel)
        query = Query(request.scope)
        alone = query.names <= {"last"}
        last = query.integer("last", 0, 1, 1000)
        after = query.one("after")
        limit = query.integer("limit", 100, 1, 1000)
        query.done()
        if last and not alone:
            raise Malformed("the parameter last stands alone: with neither after nor limit")
        grant = await self._auth.authenticate(request.scope)
        grant.check_listen([channel])
        if last:
            return json_response(await self._push.newest(channel, last))
        return json_response(await self._push.history(channel, after, limit))
