"""Instances that come and go, and the proxy that is told of it: Caddy, over its admin API."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

from bench.servers import free_port

Balancing = Literal["round_robin", "least_conn"]
_ANSWER_SECONDS = 5.0
_STREAMS = re.compile(r"^message_push_connections_total\{[^}]*\} (\S+)$", re.MULTILINE)


class NoProxy(Exception):
    """There is no Caddy on this machine."""


def get(port: int, path: str) -> tuple[int, str]:
    """The answer to a GET over a connection of its own; status 0: there was none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


class Instance:
    """One process of the service, from its start to the end of its drain."""

    def __init__(self, name: str, directory: Path, settings: dict[str, str]) -> None:
        self.name, self.port = name, free_port()
        self.streams = 0
        self.ready = False
        self.removed_at: float | None = None
        self.signalled = False
        kept = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG")}
        own = {"SERVICE_HOST": "127.0.0.1", "SERVICE_PORT": str(self.port), "ENABLE_AUTH": "false"}
        with (directory / f"{name}.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "msgpush", "serve"],
                env={**kept, "LOG_LEVEL": "error", "LOG_FORMAT": "json", **own, **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def look(self) -> None:
        """Ask it how many streams it has, as Prometheus would."""
        if not self.ready:
            self.ready = get(self.port, "/health/ready")[0] == 200
        status, text = get(self.port, "/metrics")
        if status == 200:
            self.streams = int(sum(float(each) for each in _STREAMS.findall(text)))

    def drain(self) -> None:
        self.signalled = True
        self._process.send_signal(signal.SIGTERM)

    def ended(self) -> int | None:
        """Its exit status; None: it runs."""
        return self._process.poll()

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


class Proxy:
    """Caddy before the instances. It is configured anew as they come and go; streams stay."""

    def __init__(self, directory: Path, balancing: Balancing) -> None:
        program = shutil.which("caddy")
        if program is None:
            raise NoProxy("no caddy: apt install caddy, or https://caddyserver.com")
        self.port, self._admin = free_port(), free_port()
        self._directory, self._balancing = directory, balancing
        file = directory / "caddy.json"
        file.write_text(json.dumps(self._configuration(())))
        home = {"XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
        with (directory / "caddy.out").open("wb") as log:
            self._process = subprocess.Popen(
                [program, "run", "--config", str(file)],
                env={"PATH": os.environ.get("PATH", ""), "HOME": str(directory), **home},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Self:
        until = time.monotonic() + 2 * _ANSWER_SECONDS
        while get(self._admin, "/config/")[0] != 200:
            if self._process.poll() is not None or time.monotonic() > until:
                self.__exit__()
                raise NoProxy((self._directory / "caddy.out").read_text())
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        self._process.kill()
        self._process.wait()

    def lead_to(self, ports: tuple[int, ...]) -> None:
        """New requests go to these from now on."""
        connection = http.client.HTTPConnection("127.0.0.1", self._admin, timeout=_ANSWER_SECONDS)
        try:
            body = json.dumps(self._configuration(ports))
            connection.request("POST", "/load", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise NoProxy(response.read().decode())
        finally:
            connection.close()

    def _configuration(self, ports: tuple[int, ...]) -> dict[str, Any]:
        passing = {
            "handler": "reverse_proxy",
            "upstreams": [{"dial": f"127.0.0.1:{port}"} for port in ports],
            "load_balancing": {
                "selection_policy": {"policy": self._balancing},
                "try_duration": "2s",
            },
            # Less than the 75 s after which msgpush closes an idle connection.
            "transport": {"protocol": "http", "keep_alive": {"idle_timeout": "60s"}},
        }
        server = {
            "listen": [f"127.0.0.1:{self.port}"],
            "automatic_https": {"disable": True},
            "routes": [{"handle": [passing]}],
        }
        return {
            "admin": {"listen": f"127.0.0.1:{self._admin}"},
            "logging": {"logs": {"default": {"level": "ERROR"}}},
            "apps": {"http": {"grace_period": "10m", "servers": {"push": server}}},
        }


class Fleet:
    """The instances, those that take new streams and those that drain."""

    def __init__(self, directory: Path, proxy: Proxy, settings: dict[str, str]) -> None:
        self.serving: list[Instance] = []
        self.draining: list[Instance] = []
        self.statuses: list[int] = []
        self._directory, self._proxy, self._settings = directory, proxy, settings
        self._started = 0
        self._led: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (*self.serving, *self.draining):
            each.kill()

    def scale(self, number: int, now: float) -> None:
        """Start what is too few, and begin to take away what is too many.

        Those with the fewest streams go, as `controller.kubernetes.io/pod-deletion-cost` has it."""
        while len(self.serving) < number:
            self._started += 1
            name = f"instance {self._started}"
            self.serving.append(Instance(name, self._directory, self._settings))
        while len(self.serving) > number:
            # What isn't ready goes before what is, as in a ReplicaSet.
            gone = min(self.serving, key=lambda each: (each.ready, each.streams))
            self.serving.remove(gone)
            gone.removed_at = now
            self.draining.append(gone)
        self._lead()

    def look(self, now: float, pre_stop: float) -> list[Instance]:
        """Ask all, and go on with what drains; returns those that take streams from now on.

        Args:
            pre_stop: seconds between leaving the proxy and SIGTERM.
        """
        before = {each.name for each in self.serving if each.ready}
        for each in (*self.serving, *self.draining):
            each.look()
        for each in list(self.draining):
            assert each.removed_at is not None
            if not each.signalled and now - each.removed_at >= pre_stop:
                each.drain()
            if (status := each.ended()) is not None:
                self.statuses.append(status)
                self.draining.remove(each)
        self._lead()
        return [each for each in self.serving if each.ready and each.name not in before]

    def _lead(self) -> None:
        ports = tuple(each.port for each in self.serving if each.ready)
        if ports != self._led:
            self._proxy.lead_to(ports)
            self._led = ports
