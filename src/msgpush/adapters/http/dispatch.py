"""From a request to its endpoint, and from an error that this raises to an answer."""

from collections.abc import Callable, Mapping, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send

from msgpush.adapters.http.problems import ProblemResponse, deny, error_response, problem
from msgpush.adapters.http.request_ids import identified
from msgpush.adapters.http.requests import ClientGone
from msgpush.domain.errors import MsgpushError


class Service(Starlette):
    """Starlette's application, with one layer of ours in the place of three of its own.

    Its layers for errors and its router cost a publish as much as all the rest of it: each wraps
    `send` anew, and routes are tried one after the other. Of an open stream they keep half a
    kilobyte each.

    Args:
        hot: the endpoints of POST requests that are found by their path alone, before the router
            is asked; it has them, too.
        on_error: told of each error that a request is answered with.
    """

    def __init__(
        self,
        routes: Sequence[BaseRoute],
        middleware: Sequence[Middleware],
        lifespan: Lifespan["Service"],
        *,
        hot: Mapping[str, ASGIApp],
        on_error: Callable[[MsgpushError], None],
    ) -> None:
        super().__init__(routes=routes, middleware=middleware, lifespan=lifespan)
        self.router.redirect_slashes = False
        self.router.default = _nowhere
        self._hot, self._on_error = hot, on_error
        self._entrance = self.build_middleware_stack()

    def build_middleware_stack(self) -> ASGIApp:
        app: ASGIApp = self._dispatch
        for cls, args, kwargs in reversed(self.user_middleware):
            app = cls(app, *args, **kwargs)
        return app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        if scope["type"] != "lifespan":
            send = identified(scope, send)
        await self._entrance(scope, receive, send)

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the endpoint of a request, and answer with what it raises."""
        if scope["type"] != "http":
            await self.router(scope, receive, send)
            return
        endpoint: ASGIApp = self.router
        if scope["method"] == "POST":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            endpoint = self._hot.get(path, endpoint)
        try:
            await endpoint(scope, receive, send)
        except MsgpushError as error:
            self._on_error(error)
            response = error_response(error)
        except HTTPException as error:
            response = _no_such_endpoint(error)
        except ClientGone:
            return
        except Exception:
            # The details go to the log alone: the server writes it. Where an answer has begun, it
            # ends the connection.
            await ProblemResponse(problem(500, "the server has made a mistake"))(
                scope, receive, send
            )
            raise
        else:
            return
        await response(scope, receive, send)


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request for a path that there isn't."""
    if scope["type"] == "websocket":
        response = ProblemResponse(problem(404, "there is no WebSocket here: it is /ws"))
        await deny(response, scope, receive, send)
        return
    raise HTTPException(404)


def _no_such_endpoint(error: HTTPException) -> ProblemResponse:
    """The answer where Starlette has found no such path, or no such method there."""
    headers = dict(error.headers or {})
    if allowed := headers.get("Allow"):
        headers["Allow"] = ", ".join(sorted(allowed.split(", ")))
    return ProblemResponse(problem(error.status_code, error.detail), headers)
