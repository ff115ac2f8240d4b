"""CORS: the things that pages of other origins may send, and read (Fetch, section 3.3)."""

from collections.abc import Awaitable, Iterable, Mapping

from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msgpush.adapters.http.origins import Origins
from msgpush.adapters.http.problems import ProblemResponse, problem, raw_headers
from msgpush.adapters.http.request_ids import Sent
from msgpush.adapters.http.requests import header
from msgpush.domain.quoting import short_repr

METHODS = ("GET", "HEAD", "POST", "DELETE")
# Those that CORS always allows, where their values are plain; ours; and what tools add to the
# requests of a page.
HEADERS = (
    *("Accept", "Accept-Language", "Content-Language", "Content-Type"),
    *("Authorization", "Idempotency-Key", "Last-Event-ID"),
    *("Baggage", "Cache-Control", "Pragma", "Sentry-Trace", "Traceparent", "Tracestate"),
    "X-Request-Id",
)
EXPOSED = ("Retry-After", "RateLimit", "RateLimit-Policy", "WWW-Authenticate", "X-Request-Id")
MAX_AGE = 600  # seconds for which a browser needn't ask again
PREFLIGHT_VARY = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"


class CorsRules:
    """Which pages may use the service, and what an answer must say so that a browser lets them.

    Args:
        headers: names of headers that they may send, beside `HEADERS`.
    """

    def __init__(self, origins: Origins, headers: Iterable[str] = ()) -> None:
        self.origins = origins
        self.headers = (*HEADERS, *headers)
        self._may_send = frozenset(name.lower() for name in self.headers)

    def answer(self, origin: str | None) -> Mapping[str, str]:
        """The headers that belong into every answer to a request with this `Origin` header.

        Never `*`: with credentials it would mean nothing, and each origin gets an answer of its
        own."""
        if not self.origins:
            return {}
        if origin is None or origin not in self.origins:
            return {"Vary": "Origin"}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Credentials": "true",
            "Access-Control-Expose-Headers": ", ".join(EXPOSED),
            "Vary": "Origin",
        }

    def preflight(self, origin: str, method: str, headers: str) -> Response:
        """The answer to a browser that asks whether a page may send such a request.

        Args:
            headers: what `Access-Control-Request-Headers` says.
        """
        asked = filter(None, (name.strip() for name in headers.lower().split(",")))
        refused = [name for name in asked if name not in self._may_send]
        faults = []
        if origin not in self.origins:
            faults.append(
                f"origin {short_repr(origin)}: CORS_ORIGINS has those whose pages may use the"
                " service"
            )
        if method not in METHODS:
            faults.append(f"method {short_repr(method)}: allowed are {', '.join(METHODS)}")
        if refused:
            names = ", ".join(map(short_repr, refused))
            faults.append(
                f"headers {names}: allowed are {', '.join(self.headers)}; CORS_HEADERS adds to them"
            )
        told = {
            **self.answer(origin),
            "Access-Control-Allow-Methods": ", ".join(METHODS),
            "Access-Control-Allow-Headers": ", ".join(self.headers),
            "Access-Control-Max-Age": str(MAX_AGE),
            "Vary": PREFLIGHT_VARY,
        }
        if faults:
            return ProblemResponse(problem(400, f"Disallowed CORS {'; '.join(faults)}"), told)
        return PlainTextResponse("OK", headers=told)


class Cors:
    """Answers preflights, and adds to all other answers what lets pages of the origins that may
    read them.
    """

    def __init__(self, app: ASGIApp, rules: CorsRules) -> None:
        self._app, self._rules = app, rules
        self._unasked = raw_headers(rules.answer(None))  # for requests that no page has made

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # Not a coroutine of its own: that would cost every open stream half a kilobyte.
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        origin = header(scope, b"origin")
        if scope["method"] == "OPTIONS" and origin is not None:
            method = header(scope, b"access-control-request-method")
            if method is not None:
                headers = header(scope, b"access-control-request-headers") or ""
                return self._rules.preflight(origin, method, headers)(scope, receive, send)
        added = self._unasked if origin is None else raw_headers(self._rules.answer(origin))

        def send_with_headers(message: Message) -> Sent:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *added]
            return send(message)

        return self._app(scope, receive, send_with_headers)
