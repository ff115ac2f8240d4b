"""Registries that tests start themselves, on free ports: a real etcd, a gateway, and a Consul agent.

There is no Consul to install from Debian. `ConsulAgent` answers as its documentation says of the
parts that are used here (https://developer.hashicorp.com/consul/api-docs/agent): registration with
checks, HTTP checks that it really makes, TTLs that run out, ACLs."""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import pytest

from msgpush.adapters.registry.consul import Consul
from msgpush.adapters.registry.etcd import Etcd
from msgpush.adapters.registry.gateway import Gateway
from msgpush.adapters.registry.ports import Registry
from tests.support.redis_servers import free_port
from tests.support.service import eventually

Records = dict[str, dict[str, Any]]


class HttpRegistry:
    """A server in threads of the test's process. A subclass says what it answers.

    Attributes:
        stalls: it takes requests, and doesn't answer while this is true.
        token: what it asks for.
        requests: of each request the moment, the method and the path.
    """

    def __init__(self, token: str | None = None, port: int | None = None) -> None:
        self.token, self.port = token, port or free_port()
        self.stalls = False
        self.redirect: str | None = None
        self.requests: list[tuple[float, str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.RLock()
        self._server: ThreadingHTTPServer | None = None
        self._go = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with registry.lock:
                    registry.requests.append((time.monotonic(), self.command, self.path))
                    registry.headers.append(dict(self.headers))
                if registry.stalls:
                    registry._go.wait(30)
                    return
                if registry.redirect is not None:
                    self.send_response(307)
                    self.send_header("Location", registry.redirect + self.path)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                with registry.lock:
                    status, answer = registry.answer(
                        self.command, self.path, dict(self.headers), body
                    )
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            do_GET = do_PUT = do_DELETE = do_POST = handle_any

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *_: object) -> None:
                pass  # who asked has gone

        self._go.clear()
        self._server = Quiet(("127.0.0.1", self.port), Handler)
        threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True, name="registry"
        ).start()

    def kill(self) -> None:
        self._go.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def restart(self) -> None:
        """It comes back, with nothing."""
        self.kill()
        self.empty()
        self.start()

    def times(self, method: str, path: str) -> list[float]:
        """When it was asked so; the path is a regular expression."""
        with self.lock:
            return [
                at for at, how, where in self.requests if how == method and re.search(path, where)
            ]

    def answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, bytes]:
        raise NotImplementedError

    def empty(self) -> None:
        raise NotImplementedError


class GatewayServer(HttpRegistry):
    """A gateway that keeps what it is told for its ttl."""

    def __init__(self, token: str | None = None, port: int | None = None) -> None:
        super().__init__(token, port)
        self._known: dict[str, tuple[float, dict[str, Any]]] = {}

    def adapter(self, token: str | None = None) -> Registry:
        return Gateway(self.url, token or self.token)

    def settings(self) -> dict[str, str]:
        return {"GATEWAY_URL": self.url} | ({"GATEWAY_TOKEN": self.token} if self.token else {})

    def records(self, name: str = "msgpush") -> Records:
        """The instances of a service by their ids, as they were told."""
        with self.lock:
            now, prefix = time.monotonic(), f"{name}/"
            return {
                key.removeprefix(prefix): record
                for key, (until, record) in self._known.items()
                if key.startswith(prefix) and until > now
            }

    def empty(self) -> None:
        with self.lock:
            self._known.clear()

    def answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, bytes]:
        if self.token is not None and headers.get("Authorization") != f"Bearer {self.token}":
            # As a careless one does.
            return 403, f"not for {headers.get('Authorization')}".encode()
        found = re.fullmatch(r"/services/([^/]+)/instances/([^/]+)", path)
        if found is None:
            return 404, b"no such path"
        key = "/".join(map(unquote, found.groups()))
        if method == "PUT":
            record = json.loads(body)
            self._known[key] = (time.monotonic() + record["ttl"], record)
            return 200, b"{}"
        if method == "DELETE":
            return (204, b"") if self._known.pop(key, None) else (404, b"unknown")
        return 405, b""


class ConsulAgent(HttpRegistry):
    """The agent's API, as far as it is used here.

    Args:
        least_deregister: seconds; Consul itself takes 60 as the least.
    """

    def __init__(
        self, token: str | None = None, port: int | None = None, least_deregister: float = 60.0
    ) -> None:
        super().__init__(token, port)
        self._services: dict[str, dict[str, Any]] = {}
        self._checks: dict[str, dict[str, Any]] = {}
        self._least = least_deregister
        self._stop = threading.Event()
        self._checker: threading.Thread | None = None

    def __enter__(self) -> Self:
        super().__enter__()
        self._checker = threading.Thread(target=self._check, daemon=True, name="consul checks")
        self._checker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        assert self._checker is not None
        self._checker.join(10)
        super().__exit__()

    def adapter(self, token: str | None = None) -> Registry:
        return Consul(self.url, token or self.token)

    def settings(self) -> dict[str, str]:
        return {"CONSUL_URL": self.url} | ({"CONSUL_TOKEN": self.token} if self.token else {})

    def empty(self) -> None:
        with self.lock:
            self._services.clear()
            self._checks.clear()

    def records(self, name: str = "msgpush") -> Records:
        """The healthy instances, in the form of the other registries."""
        with self.lock:
            return {
                id: {
                    "address": service["Address"],
                    "port": service["Port"],
                    "scheme": service["Meta"]["scheme"],
                    "health": service["Meta"]["health"],
                    "routes": service["Meta"]["routes"].split(","),
                    "weight": service["Weights"]["Passing"],
                    "version": service["Meta"]["version"],
                }
                for id, service in self._services.items()
                if service["Name"] == name and set(self.states(id).values()) == {"passing"}
            }

    def states(self, id: str) -> dict[str, str]:
        """The states of an instance's checks, by their names."""
        with self.lock:
            return {
                each["Name"]: each["State"]
                for each in self._checks.values()
                if each["ServiceID"] == id
            }

    def answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, bytes]:
        if self.token is not None and headers.get("X-Consul-Token") != self.token:
            if headers.get("X-Consul-Token"):
                return 403, b"ACL not found"
            return 403, b"Permission denied: anonymous token lacks permission 'service:write'"
        parts = urlsplit(path)
        if method != "PUT":
            return 405, b"method not allowed"
        if parts.path == "/v1/agent/service/register":
            return self._register(json.loads(body), "replace-existing-checks" in parts.query)
        if found := re.fullmatch(r"/v1/agent/service/deregister/(.+)", parts.path):
            return self._deregister(unquote(found[1]))
        if found := re.fullmatch(r"/v1/agent/check/pass/(.+)", parts.path):
            id = unquote(found[1])
            check = self._checks.get(id)
            if check is None:
                return 404, f'Unknown check ID "{id}". Ensure that the check ID is passed'.encode()
            if "TTL" not in check:
                return 500, f"CheckID {id!r} does not have associated TTL".encode()
            check["State"], check["until"] = "passing", time.monotonic() + _seconds(check["TTL"])
            return 200, b""
        return 404, b"no such path"

    def _register(self, service: dict[str, Any], replace: bool) -> tuple[int, bytes]:
        unknown = service.keys() - {
            *("ID", "Name", "Address", "Port", "Tags", "Meta", "Weights", "Checks"),
        }
        assert not unknown, unknown
        assert all(isinstance(each, str) for each in service["Meta"].values())
        assert all(re.fullmatch("[A-Za-z0-9_-]{1,128}", each) for each in service["Meta"])
        self._services[service["ID"]] = service
        if replace:
            self._forget_checks(service["ID"])
        now = time.monotonic()
        for check in service["Checks"]:
            assert ("TTL" in check) != ("HTTP" in check)
            dead = max(self._least, _seconds(check["DeregisterCriticalServiceAfter"]))
            if self._least < 60:
                dead = self._least
            self._checks[check["CheckID"]] = check | {
                "ServiceID": service["ID"],
                "State": check.get("Status", "critical"),
                "until": now + _seconds(check["TTL"]) if "TTL" in check else 0.0,
                "next": now,
                "dead": dead,
                "critical": None,
            }
        return 200, b""

    def _deregister(self, id: str) -> tuple[int, bytes]:
        if self._services.pop(id, None) is None:
            return 404, f'Unknown service ID "{id}". Ensure that the service ID is passed'.encode()
        self._forget_checks(id)
        return 200, b""

    def _forget_checks(self, id: str) -> None:
        self._checks = {key: each for key, each in self._checks.items() if each["ServiceID"] != id}

    def _check(self) -> None:
        while not self._stop.wait(0.02):
            now = time.monotonic()
            with self.lock:
                checks = list(self._checks.values())
            for check in checks:
                state = check["State"]
                if "TTL" in check and now >= check["until"]:
                    state = "critical"
                elif "HTTP" in check and now >= check["next"]:
                    check["next"] = now + _seconds(check["Interval"])
                    state = self._ask(check)
                with self.lock:
                    if "HTTP" in check or state == "critical":
                        check["State"] = state
                    if check["State"] == "passing":
                        check["critical"] = None
                    elif check["critical"] is None:
                        check["critical"] = now
                    elif now - check["critical"] >= check["dead"]:
                        self._deregister(check["ServiceID"])

    def _ask(self, check: dict[str, Any]) -> str:
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                check["HTTP"], timeout=_seconds(check["Timeout"])
            ) as response:
                return "passing" if 200 <= response.status < 300 else "critical"
        except urllib.error.HTTPError as error:
            error.close()
            return "warning" if error.code == 429 else "critical"
        except OSError:
            return "critical"


def _seconds(text: str) -> float:
    found = re.fullmatch(r"([0-9]+)(s|m)", text)
    assert found is not None, text
    return int(found[1]) * {"s": 1, "m": 60}[found[2]]


class EtcdServer:
    """Debian's etcd, with data of its own. Without it the test is skipped, but for CI.

    Args:
        password: that of the user `msgpush`, who may write /services/ alone; None: anybody may
            write.
    """

    def __init__(self, password: str | None = None) -> None:
        found = shutil.which("etcd")
        if found is None:
            assert not os.environ.get("CI"), "etcd is not installed"
            pytest.skip("etcd is not installed")
        self._binary, self._password = found, password
        self.port, self._peer_port = free_port(), free_port()
        self._directory = Path(tempfile.mkdtemp(prefix="msgpush-etcd-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._root: dict[str, str] = {}

    def __enter__(self) -> Self:
        try:
            self.start()
            if self._password is not None:
                self._protect(self._password)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def adapter(self, password: str | None = None) -> Registry:
        if self._password is None:
            return Etcd([self.url])
        return Etcd([self.url], "msgpush", password or self._password)

    def settings(self) -> dict[str, str]:
        own = {"ETCD_URL": self.url}
        if self._password is not None:
            own |= {"ETCD_USER": "msgpush", "ETCD_PASSWORD": self._password}
        return own

    def start(self) -> None:
        peer = f"http://127.0.0.1:{self._peer_port}"
        options = ["--data-dir", str(self._directory / "data")]
        options += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url]
        options += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        options += ["--initial-cluster", f"default={peer}", "--log-level", "error"]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen([self._binary, *options], stdout=log, stderr=log)
        eventually(self._answers, 20)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """It comes back, with nothing."""
        self.kill()
        shutil.rmtree(self._directory / "data")
        self._root = {}
        self.start()

    def pause(self) -> None:
        """It takes connections, and doesn't answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def ask(self, path: str, body: object) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.url}/v3{path}", json.dumps(body).encode(), self._root
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=5) as response:
            answer: dict[str, Any] = json.loads(response.read())
            return answer

    def records(self, name: str = "msgpush") -> Records:
        """The instances of a service by their ids."""
        prefix = f"/services/{name}/"
        found = self.ask("/kv/range", _prefix(prefix)).get("kvs", [])
        return {
            base64.b64decode(each["key"]).decode().removeprefix(prefix): json.loads(
                base64.b64decode(each["value"])
            )
            for each in found
        }

    def empty(self) -> None:
        """Delete all keys; the leases stay."""
        self.ask("/kv/deleterange", _prefix("/services/"))

    def revisions(self, name: str = "msgpush") -> list[int]:
        """How often each of the keys was written."""
        found = self.ask("/kv/range", _prefix(f"/services/{name}/")).get("kvs", [])
        return [int(each["version"]) for each in found]

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._directory / "log").read_text()
        try:
            self.ask("/lease/leases", {})
        except OSError:
            return False
        return True

    def _protect(self, password: str) -> None:
        self.ask("/auth/user/add", {"name": "root", "password": "root"})
        self.ask("/auth/role/add", {"name": "root"})
        self.ask("/auth/user/grant", {"user": "root", "role": "root"})
        self.ask("/auth/user/add", {"name": "msgpush", "password": password})
        self.ask("/auth/role/add", {"name": "services"})
        permission = {"permType": "READWRITE"} | _prefix("/services/")
        self.ask("/auth/role/grant", {"name": "services", "perm": permission})
        self.ask("/auth/user/grant", {"user": "msgpush", "role": "services"})
        self.ask("/auth/enable", {})
        token = self.ask("/auth/authenticate", {"name": "root", "password": "root"})["token"]
        self._root = {"Authorization": token}


def _prefix(text: str) -> dict[str, str]:
    last = text[:-1] + chr(ord(text[-1]) + 1)
    return {"key": _text(text), "range_end": _text(last)}


def _text(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


RegistryServer = GatewayServer | ConsulAgent | EtcdServer
SERVERS: dict[str, Callable[[], RegistryServer]] = {
    "gateway": lambda: GatewayServer("gateway-token"),
    "consul": lambda: ConsulAgent("consul-token", least_deregister=1.0),
    "etcd": EtcdServer,
}
