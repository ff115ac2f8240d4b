"""What of the Kubernetes API the programs in deploy/kubernetes use, on a socket with TLS."""

import json
import ssl
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.redis_servers import Certificates
from tests.support.web import WebServer, answer

Pod = dict[str, Any]
PAGE = 2  # pods an answer has at most, whatever is asked for


def pod(name: str, ip: str, *, app: str = "msgpush", phase: str = "Running") -> Pod:
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": {"app.kubernetes.io/name": app}},
        "status": {"phase": phase, "podIP": ip},
    }


class KubernetesApi(WebServer):
    """Pods of one namespace: listed by a label and page by page, and changed by a merge patch.

    Attributes:
        refused: verbs that the account has no right to.
        patching: called with a pod's name before each change.
        patches: the changes that were made or tried, as pod and status.
    """

    namespace = "push"
    token = "a-service-account's"

    def __init__(self, directory: Path) -> None:
        self.pods: list[Pod] = []
        self.refused: set[str] = set()
        self.patches: list[tuple[str, int]] = []
        self.patching: Callable[[str], None] = lambda _: None
        self.account = directory
        certificates = Certificates(directory)
        certificates.authority.rename(directory / "ca.crt")
        (directory / "namespace").write_text(self.namespace)
        (directory / "token").write_text(self.token + "\n")
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificates.certificate, certificates.key)
        super().__init__(tls)

    def get(self, exchange: BaseHTTPRequestHandler) -> None:
        status, content = self._list(exchange.headers["Authorization"], exchange.path)
        answer(exchange, json.dumps(content).encode(), status=status)

    def patch(self, exchange: BaseHTTPRequestHandler) -> None:
        assert exchange.headers["Content-Type"] == "application/merge-patch+json"
        change = json.loads(exchange.rfile.read(int(exchange.headers["Content-Length"])))
        status, content = self._patch(exchange.headers["Authorization"], exchange.path, change)
        answer(exchange, json.dumps(content).encode(), status=status)

    @property
    def environment(self) -> dict[str, str]:
        port = str(self._server.server_port)
        return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": port}

    def _list(self, credentials: str, target: str) -> tuple[int, object]:
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query)
        if refusal := self._refusal(credentials, "list"):
            return refusal
        assert path == f"/api/v1/namespaces/{self.namespace}/pods"
        name, _, value = query["labelSelector"][0].partition("=")
        found = [each for each in self.pods if each["metadata"]["labels"].get(name) == value]
        start = int(query.get("continue", ["0"])[0])
        more = str(start + PAGE) if start + PAGE < len(found) else ""
        return 200, {"metadata": {"continue": more}, "items": found[start : start + PAGE]}

    def _patch(self, credentials: str, target: str, change: Pod) -> tuple[int, object]:
        name = unquote(target.rpartition("/")[2])
        self.patching(name)
        status, content = self._refusal(credentials, "patch") or self._merge(name, change)
        self.patches.append((name, status))
        return status, content

    def _merge(self, name: str, change: Pod) -> tuple[int, object]:
        there = next((each for each in self.pods if each["metadata"]["name"] == name), None)
        if there is None:
            return 404, problem(404, f'pods "{name}" not found')
        if change["metadata"]["uid"] != there["metadata"]["uid"]:
            return 409, problem(409, "Precondition failed: UID in precondition")
        there["metadata"].setdefault("annotations", {}).update(change["metadata"]["annotations"])
        return 200, there

    def _refusal(self, credentials: str, verb: str) -> tuple[int, object] | None:
        if credentials != f"Bearer {self.token}":
            return 401, problem(401, "Unauthorized")
        if verb in self.refused:
            return 403, problem(403, f'pods is forbidden: cannot {verb} resource "pods"')
        return None


def problem(code: int, message: str) -> Pod:
    return {"kind": "Status", "status": "Failure", "code": code, "message": message}
