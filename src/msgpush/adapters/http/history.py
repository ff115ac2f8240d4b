"""`GET /api/v1/channels/{channel}/messages`: a channel's history, without a stream."""

from starlette.requests import Request
from starlette.responses import Response

from msgpush.adapters.http.callers import Authenticator
from msgpush.adapters.http.problems import encode
from msgpush.adapters.http.requests import Query, path_tail
from msgpush.domain.channel import check_channel
from msgpush.domain.service import Push


class Channels:
    """What is retained of a channel."""

    def __init__(self, push: Push, auth: Authenticator) -> None:
        self._push, self._auth = push, auth

    async def messages(self, request: Request) -> Response:
        channel = path_tail(request.scope, "/api/v1/channels/", "/messages")
        check_channel(channel)
        query = Query(request.scope)
        after = query.one("after")
        limit = query.integer("limit", 100, 1, 1000)
        query.done()
        grant = await self._auth.authenticate(request.scope)
        grant.check_listen([channel])
        history = await self._push.history(channel, after, limit)
        return Response(
            encode(history), media_type="application/json", headers={"Cache-Control": "no-store"}
        )
