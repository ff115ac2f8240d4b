"""Responses of the endpoints that are asked seldom."""

from starlette.responses import Response

from msgpush.adapters.http.problems import encode


def json_response(content: object, status: int = 200) -> Response:
    """A value in JSON, which is true of this moment alone: nobody may keep it."""
    return Response(encode(content), status, {"Cache-Control": "no-store"}, "application/json")
