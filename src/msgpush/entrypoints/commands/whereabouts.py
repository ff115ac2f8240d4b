"""Where a msgpush is, as `msgpush doctor` finds out: at its URL, nearby, or not at all."""

from urllib.parse import urlsplit

import httpx2
import msgspec
from msgspec import Struct

from msgpush.client.errors import rejected
from msgpush.entrypoints.commands.findings import reason
from msgpush.entrypoints.commands.remote import Remote, shown_url

# Where proxies often serve it; where it is really, only its operator knows.
PREFIXES = ("/push", "/msgpush", "/api/push", "/realtime", "/events", "/sse")
PROBLEM = "application/problem+json"


class Health(Struct):
    status: str
    bus: str = ""
    reason: str = ""


def unreachable(remote: Remote, error: Exception, seconds: float) -> str:
    """Why nobody answers, and what to do."""
    why = reason(error)
    host = urlsplit(remote.url).hostname or ""
    if isinstance(error, httpx2.TimeoutException):
        return f"no answer in {seconds:g} s; is a firewall between, or the host down?"
    if "WRONG_VERSION_NUMBER" in why or "record layer" in why:
        return "it speaks no TLS there; use http:// instead of https://"
    if "CERTIFICATE" in why.upper():
        return (
            f"its certificate isn't accepted ({why}); have it renewed, or use the name that it was"
            " made for"
        )
    if "refused" in why:
        return f"nothing listens there ({why}); start the service, or correct the URL's port"
    if any(text in why for text in ("Name or service", "resolution", "nodename")):
        return f"the name {host} is not known ({why}); correct the URL"
    return f"{why}; correct the URL (https:// or http://, host, port)"


def elsewhere(client: httpx2.Client, remote: Remote, answer: httpx2.Response) -> str:
    """What it is that answers instead of msgpush; and where that is, if it can be found."""
    shown, status = remote.shown, answer.status_code
    path = urlsplit(remote.url).path
    if answer.is_redirect:
        target = answer.headers.get("location", "").removesuffix("/health")
        return f"{shown} redirects to {target}; use that URL: clients lose what they publish so"
    found = _find(client, remote, path)
    if found is not None:
        text = f"msgpush is at {shown_url(found)}, and not at {shown}: use that URL"
        is_above = len(found) < len(remote.url)
        instead = f"; or have a proxy strip {path}, or set ROOT_PATH={path}"
        return text + (instead if is_above else "")
    if _is_problem(answer):
        detail = rejected(status, answer.content).detail
        if status == 404 and path:
            return (
                f"a msgpush answers at {shown}, and doesn't know the prefix {path}; set"
                f" ROOT_PATH={path}, or have the proxy strip it"
            )
        return f"msgpush refuses: {status}, {detail}"
    if status in (502, 503, 504):
        return (
            f"a proxy answers for it, with {status}: it doesn't reach the service; start that, or"
            " correct where the proxy looks for it"
        )
    if status in (401, 403, 407):
        return f"something before it answers {status}: have it let {path}/health and the rest pass"
    return (
        f"what answers at {shown} is no msgpush ({status}, {_server(answer)}); correct the URL,"
        " and where a proxy serves it under a prefix (ROOT_PATH), give it with the prefix"
    )


def _find(client: httpx2.Client, remote: Remote, path: str) -> str | None:
    """The URL of a msgpush nearby: above that path, or where it often is."""
    root = remote.url.removesuffix(path)
    parts = path.strip("/").split("/") if path else []
    above = ["".join(f"/{part}" for part in parts[:number]) for number in range(len(parts))]
    for prefix in (*reversed(above), *(f"{path}{each}" for each in PREFIXES)):
        try:
            answer = client.get(f"{root}{prefix}/health")
        except httpx2.HTTPError:
            continue
        if health_of(answer) is not None:
            return f"{root}{prefix}"
    return None


def health_of(answer: httpx2.Response) -> Health | None:
    """What /health of a msgpush says; none, if it isn't one that has answered."""
    try:
        health = msgspec.json.decode(answer.content, type=Health)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    known = (200, "ok") if health.bus else (503, "unavailable")
    return health if (answer.status_code, health.status) == known else None


def _is_problem(answer: httpx2.Response) -> bool:
    return bool(answer.headers.get("content-type", "").startswith(PROBLEM))


def _server(answer: httpx2.Response) -> str:
    return answer.headers.get("server") or answer.headers.get("content-type") or "nobody's name"
