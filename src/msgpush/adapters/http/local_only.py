"""Local mode: without keys the service serves this machine, and nobody else."""

from collections.abc import Awaitable

from starlette.types import ASGIApp, Receive, Scope, Send

from msgpush.adapters.http.cors import CorsRules
from msgpush.adapters.http.origins import Strangers, is_local_host
from msgpush.adapters.http.problems import deny, error_response
from msgpush.adapters.http.requests import header
from msgpush.domain.errors import Denied

_PROXY_HEADERS = frozenset((b"forwarded", b"x-real-ip", b"via"))
_ADVICE = (
    "the service is in local mode, without authentication, and serves this machine alone; to serve"
    " others, set a key for tokens (JWT_SECRET, JWT_PUBLIC_KEY, JWKS_URL or JWT_ISSUER), or"
    " ENABLE_AUTH=false behind something that protects it"
)


class LocalOnly:
    """Refuses what came through a proxy, or under another name than this machine's: DNS rebinding,
    pages of others.

    Args:
        rules: has the origins whose pages may use the service.
    """

    def __init__(self, app: ASGIApp, rules: CorsRules) -> None:
        self._app, self._rules = app, rules
        self._strangers = Strangers()

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # Not a coroutine of its own: that would cost every open stream half a kilobyte.
        if scope["type"] in ("http", "websocket") and (reason := self._stranger(scope)):
            refused = (
                Denied(f"{reason}; {_ADVICE}")
                if scope["type"] == "http"
                else self._strangers.refuse(reason, _ADVICE)
            )
            refusal = error_response(refused)
            refusal.headers.update(self._rules.answer(header(scope, b"origin")))
            return deny(refusal, scope, receive, send)
        return self._app(scope, receive, send)

    def _stranger(self, scope: Scope) -> str | None:
        if scope["http_version"] == "1.0":
            return "the request came over HTTP/1.0, as from a proxy"
        hosts = []
        for name, value in scope["headers"]:
            if name == b"host":
                hosts.append(value.decode("latin-1"))
            elif name in _PROXY_HEADERS or name.startswith(b"x-forwarded-"):
                return f"the request came through a proxy ({name.decode('latin-1')} header)"
            elif name == b"origin" and value.decode("latin-1") not in self._rules.origins:
                return "the request came from another origin's page"
        if len(hosts) != 1 or not is_local_host(hosts[0]):
            return "the request came under another name than localhost (Host header)"
        return None
