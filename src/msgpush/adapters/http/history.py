"""`GET /api/v1/channels/{channel}/messages`: a channel's history, without a stream."""

from starlette.requests import Request
from starlette.responses import Response

from msgpush.adapters.auth.authenticator import Authenticator
from msgpush.adapters.http.web import Query, encode, segment
from msgpush.domain.channel import NAME_RULE, is_channel, shown
from msgpush.domain.errors import Malformed
from msgpush.domain.service import Push


class Channels:
    """What is retained of a channel."""

    def __init__(self, push: Push, auth: Authenticator) -> None:
        self._push, self._auth = push, auth

    async def messages(self, request: Request) -> Response:
        channel = segment(request.scope, "/api/v1/channels/", "/messages")
        if not is_channel(channel):
            raise Malformed(f"{shown(channel)} is no channel name: {NAME_RULE}")
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
