"""`python -m bench`: measure the service, and the floors that its figures are read against.

The server under test has one core, the load client the other. Exits with 1 when a message was lost,
came twice or was refused: then the figures mean nothing. No speed is asserted."""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from bench import load
from bench.redis_server import NoServer, memory_costs, redis_process
from bench.tokens import token_costs

_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "TMPDIR")
_START_SECONDS = 20.0
_SPARE_FILES = 200  # what a process opens beside its streams
_BUSY = 0.95

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Plan:
    """The extent of the measurements."""

    only: frozenset[str]
    seconds: float
    streams: int
    idle_streams: int
    rounds: int
    connections: int = 64
    batch: int = 100
    missed: int = 20
    live_rate: float = 100.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table."""

    what: str
    value: float
    floor: float | None = None
    unit: str = ""

    @property
    def ratio(self) -> float | None:
        """The service's figure over the floor's."""
        return self.value / self.floor if self.floor else None


@dataclass(slots=True)
class Report:
    """Figures, what to know about them, and what makes them worthless."""

    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Server:
    """A server process that answers on this port."""

    pid: int
    port: int


class Bench:
    """Starts servers and the load client, each on its cores, and writes down what they give."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.report = Report()
        cores = sorted(os.sched_getaffinity(0))
        self._server_cores = {cores[0]} if len(cores) > 1 else set(cores)
        self._client_cores = {cores[1]} if len(cores) > 1 else set(cores)
        if len(cores) == 1:
            self.report.notes.append(
                "one core: the servers and the load client share it, so every figure is low"
            )
        self._cursor = "k3Jd9s.1753859400123-12"

    def run(self) -> None:
        """Measure everything planned; one that fails becomes a fault, and the others go on."""
        parts: list[tuple[str, Callable[[], None]]] = [
            ("a", self._fanout),
            ("bc", self._burst),
            ("d", self._single),
            ("e", self._batch),
            ("fghi", self._over_redis),
            ("j", self._redis_memory),
            ("k", self._tokens),
            ("l", self._resume),
        ]
        for name, measure in parts:
            if not self.plan.only & set(name):
                continue
            try:
                measure()
            except NoServer as error:
                self.report.notes.append(f"{name}: not measured: {error}")
            except (load.Spoiled, BrokenProcessPool, OSError) as error:
                self.report.faults.append(f"{name}: {error}")

    def _fanout(self) -> None:
        """Measure deliveries to many streams on one channel."""
        count, connections = self.plan.streams, self.plan.connections
        say(f"a: {count:,} streams on one channel, {connections} publishers flat out")
        with self._service(count) as service:
            self._cursor = self._load(load.probe, service.port)
            ours = self._load(load.fanout, service.port, count, connections, self.plan.seconds)
        with self._bare_loop() as loop:
            floor = self._load(load.fanout, loop.port, count, connections, self.plan.seconds)
        what = f"a  deliveries/s, {count:,} streams, {connections} publishers"
        self._figure(what, ours.deliveries_per_second, floor.deliveries_per_second)
        for name, result in (("a", ours), ("a, floor", floor)):
            self._keep(name, result, result.busy)
            self._check(name, result.missing, result.surplus, result.refused, result.refusal)
            if result.gaps:
                self.report.notes.append(
                    f"{name}: the server announced {result.gaps} gaps to the first stream"
                )

    def _burst(self) -> None:
        """Measure one message at a time to many streams, and what an idle one takes."""
        count, rounds = self.plan.idle_streams, self.plan.rounds if "b" in self.plan.only else 0
        say(f"b, c: {count:,} streams, one message at a time to all of them")
        with self._service(count) as service:
            self._cursor = self._load(load.probe, service.port)
            ours = self._load(load.burst, service.port, count, rounds, service.pid)
        self._keep("b, c", ours, ours.busy)
        self._check("b", ours.missing, ours.surplus)
        if "b" in self.plan.only:
            with self._bare_loop() as loop:
                floor = self._load(load.burst, loop.port, count, rounds, loop.pid)
            self._keep("b, floor", floor, floor.busy)
            self._check("b, floor", floor.missing, floor.surplus)
            self._figure(f"b  one message to {count:,} streams, p50", ours.p50, floor.p50, "ms")
            self._figure("   p99", ours.p99, floor.p99, "ms")
            self._figure("   max", ours.max, floor.max, "ms")
        if "c" in self.plan.only:
            self._figure(
                f"c  memory per idle stream at {count:,}", ours.rss_per_stream / 1024, None, "KiB"
            )

    def _single(self) -> None:
        connections, seconds = self.plan.connections, self.plan.seconds
        say(f"d: single-message publishes, {connections} connections")
        with self._service(16) as service:
            ours = self._load(load.publish, service.port, connections, 1, seconds)
        with self._bare_app() as app:
            floor = self._load(load.publish, app.port, connections, 1, seconds)
        what = f"d  single publishes/s, {connections} connections"
        self._figure(what, ours.messages_per_second, floor.messages_per_second)
        for name, result in (("d", ours), ("d, floor", floor)):
            self._keep(name, result, result.busy)
            self._check(name, 0, 0, result.refused, result.refusal)

    def _batch(self) -> None:
        connections, batch = self.plan.connections, self.plan.batch
        say(f"e: batches of {batch}, {connections} connections")
        with self._service(16) as service:
            ours = self._load(load.publish, service.port, connections, batch, self.plan.seconds)
        self._figure(f"e  messages/s in batches of {batch}", ours.messages_per_second)
        self._keep("e", ours, ours.busy)
        self._check("e", 0, 0, ours.refused, ours.refusal)

    def _over_redis(self) -> None:
        """Measure publishes over Redis, and an instance that has no readers."""
        connections, batch, seconds = self.plan.connections, self.plan.batch, self.plan.seconds
        say("f, g, h, i: over Redis, which shares the load client's core")
        with redis_process(free_port()) as redis:
            os.sched_setaffinity(redis.pid, self._client_cores)
            self.report.notes.append(f"f to j: {redis.version}, without persistence")
            with self._service(16, redis.url) as service:
                if "f" in self.plan.only:
                    ours = self._load(load.publish, service.port, connections, batch, seconds, 1)
                    self._figure(
                        f"f  Redis: messages/s in batches of {batch}, delivered",
                        ours.messages_per_second,
                    )
                    self._keep("f", ours, 0.0)
                    self._check("f", ours.missing, ours.surplus, ours.refused, ours.refusal)
                if "g" in self.plan.only:
                    ours = self._load(load.publish, service.port, connections, 1, seconds, 1)
                    self._figure(
                        f"g  Redis: single publishes/s, {connections} connections",
                        ours.messages_per_second,
                    )
                    self._keep("g", ours, 0.0)
                    self._check("g", ours.missing, ours.surplus, ours.refused, ours.refusal)
                if "h" in self.plan.only:
                    self._idle(service)
                if "i" in self.plan.only:
                    self._bystander(service.port, redis.url)

    def _idle(self, service: Server) -> None:
        rounds = 50 * self.plan.rounds
        ours = self._load(load.burst, service.port, 1, rounds, service.pid, 0.005)
        with self._service(16) as embedded:
            floor = self._load(load.burst, embedded.port, 1, rounds, embedded.pid, 0.005)
        self._figure("h  Redis: publish to receive when idle, p50", ours.p50, floor.p50, "ms")
        self._figure("   p99", ours.p99, floor.p99, "ms")
        for name, result in (("h", ours), ("h, floor", floor)):
            self._keep(name, result, 0.0)
            self._check(name, result.missing, result.surplus)

    def _bystander(self, port: int, redis: str) -> None:
        """Measure what messages cost an instance that has no readers."""
        # It shares the core of the one that is published at: what it is charged for is what counts.
        with self._service(16, redis) as other:
            before = cpu_seconds(other.pid)
            ours = self._load(
                load.publish, port, self.plan.connections, self.plan.batch, self.plan.seconds
            )
            spent = cpu_seconds(other.pid) - before
        self._figure(
            "i  Redis: CPU of an instance without readers, a message",
            1e6 * spent / ours.accepted,
            None,
            "us",
        )
        self._check("i", 0, 0, ours.refused, ours.refusal)

    def _redis_memory(self) -> None:
        say("j: what messages cost Redis's memory")
        with redis_process(free_port()) as redis:
            costs = memory_costs(redis.url)
        self._figure(f"j  Redis: bytes of a message of {costs.body}", costs.message)
        self._figure("   in one more channel", costs.further)
        self._figure("   in a channel that has nothing else", costs.channel)
        self._figure("   an id that a publisher chose, for 10 minutes", costs.id)

    def _resume(self) -> None:
        """Measure streams that come back to an instance that has just begun."""
        count, each = self.plan.idle_streams, self.plan.missed
        say(f"l: {count:,} streams come back to an instance that has just begun, over Redis")
        with redis_process(free_port()) as redis:
            os.sched_setaffinity(redis.pid, self._client_cores)
            with self._service(16, redis.url) as before:
                cursor = self._load(load.fill, before.port, count, each)
            with self._service(count, redis.url) as service:
                ours = self._load(
                    load.resume, service.port, cursor, count, each, self.plan.live_rate
                )
        self._figure(
            f"l  Redis: {count:,} streams resume {each} messages each", ours.seconds, None, "s"
        )
        self._keep("l", ours, 0.0)
        self._check("l", ours.missing, ours.surplus)

    def _tokens(self) -> None:
        say("k: what a token costs")
        for algorithm, first, again in token_costs():
            self._figure(f"k  CPU of a token by {algorithm}, the first time", first, None, "us")
            self._figure("   again", again, None, "us")

    def _figure(self, what: str, value: float, floor: float | None = None, unit: str = "") -> None:
        self.report.figures.append(Figure(what, value, floor, unit))

    def _keep(
        self,
        name: str,
        result: load.Fanout | load.Burst | load.Published | load.Resumed,
        busy: float,
    ) -> None:
        self.report.details[name] = asdict(result)
        if busy > _BUSY:
            self.report.notes.append(
                f"{name}: the load client was {busy:.0%} busy; the server may be faster"
            )

    def _check(
        self, name: str, missing: int, surplus: int, refused: int = 0, refusal: str = ""
    ) -> None:
        if missing:
            self.report.faults.append(
                f"{name}: {missing:,} deliveries of accepted messages are MISSING"
            )
        if surplus:
            self.report.faults.append(f"{name}: {surplus:,} deliveries TOO MANY")
        if refused:
            first = f", the first with {refusal!r}" if refusal else ""
            self.report.faults.append(f"{name}: {refused:,} messages refused{first}")

    def _load(self, measure: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            1, context, initializer=load.prepare, initargs=(self._client_cores,)
        ) as client:
            return client.submit(measure, *args, **kwargs).result()

    @contextmanager
    def _service(self, streams: int, redis: str = "") -> Iterator[Server]:
        port = free_port()
        settings = {
            "SERVICE_HOST": "127.0.0.1",
            "SERVICE_PORT": str(port),
            "ENABLE_AUTH": "false",
            "MAX_CONNECTIONS": str(streams + 16),
            "LOG_LEVEL": "error",
            "REDIS_URL": redis,
        }
        with serving(
            [sys.executable, "-m", "msgpush", "serve"], port, self._server_cores, settings
        ) as server:
            yield server

    @contextmanager
    def _bare_loop(self) -> Iterator[Server]:
        port = free_port()
        command = [sys.executable, "-m", "bench.floors", "loop", str(port), self._cursor]
        with serving(command, port, self._server_cores) as server:
            yield server

    @contextmanager
    def _bare_app(self) -> Iterator[Server]:
        port = free_port()
        with serving(
            [sys.executable, "-m", "bench.floors", "app", str(port)], port, self._server_cores
        ) as server:
            yield server


@contextmanager
def serving(
    command: list[str], port: int, cores: set[int], settings: dict[str, str] | None = None
) -> Iterator[Server]:
    """A server process, on these cores, that answers; ended on leaving.

    Its settings are these alone."""
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ} | (
        settings or {}
    )
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            os.sched_setaffinity(process.pid, cores)
            if not answers(process, port):
                output.seek(0)
                last_words = output.read()[-2000:].decode(errors="replace").strip()
                raise load.Spoiled(f"{' '.join(command[1:])} did not start:\n{last_words}")
            yield Server(process.pid, port)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Tell whether the process answers on its port within the time that a start may take."""
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2) as sock:
                sock.sendall(
                    f"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
                )
                if sock.recv(4096).startswith(b"HTTP/1.1 2"):
                    return True
        except OSError:
            pass
        time.sleep(0.05)
    return False


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def say(text: str) -> None:
    """Progress, apart from the result."""
    print(text, file=sys.stderr, flush=True)


def open_files() -> int:
    """Raise the limit of open files as far as it goes, for this process and all that it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def machine() -> dict[str, str]:
    """The machine that the figures were measured on."""
    models = [
        line.split(":", 1)[1].strip()
        for line in _lines("/proc/cpuinfo")
        if line.startswith("model name")
    ]
    memory = next(
        (int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal:")),
        0,
    )
    packages = (
        "msgpush",
        "uvicorn",
        "uvloop",
        "httptools",
        "starlette",
        "msgspec",
        "redis",
        "hiredis",
    )
    return {
        "machine": (
            f"{models[0] if models else platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
            f"{memory / 2**20:.1f} GiB, {platform.system()} {platform.release()}"
        ),
        "versions": ", ".join(
            [
                f"python {platform.python_version()}",
                *(f"{name} {version(name)}" for name in packages),
            ]
        ),
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def number(value: float | None, unit: str) -> str:
    """A figure with three digits or so; a dash for none."""
    if value is None:
        return "-"
    digits = 0 if abs(value) >= 100 else 1
    return f"{value:,.{digits}f} {unit}".rstrip()


def print_table(about: dict[str, str], report: Report, took: float) -> None:
    """The result, for people."""
    for name, text in about.items():
        print(f"{name:10}{text}")
    print()
    print(f"{'':48}{'msgpush':>14}{'floor':>14}{'ratio':>9}")
    for figure in report.figures:
        value, floor = number(figure.value, figure.unit), number(figure.floor, figure.unit)
        ratio = "-" if figure.ratio is None else f"{figure.ratio:.2f}"
        print(f"{figure.what:48}{value:>14}{floor:>14}{ratio:>9}")
    print()
    print(
        "floors: a, b a bare epoll send loop in Python; d a bare uvicorn app that reads the body"
        " and answers 202;"
    )
    print("        h the embedded bus")
    for note in report.notes:
        print(f"note: {note}")
    for fault in report.faults:
        print(f"FAULT: {fault}")
    print(f"{'FAILED' if report.faults else 'complete'}, in {took:.0f} s")


def write_json(path: Path, about: dict[str, str], report: Report) -> None:
    """The result, for programs."""
    figures = [asdict(figure) | {"ratio": figure.ratio} for figure in report.figures]
    content = about | {
        "figures": figures,
        "notes": report.notes,
        "faults": report.faults,
        "details": report.details,
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure msgpush beside bare floors."
    )
    parser.add_argument(
        "--only",
        default="a,b,c,d,e,f,g,h,i,j,k,l",
        help="parts to measure, as in a,b (default: all)",
    )
    parser.add_argument(
        "--seconds", type=float, help="how long each throughput is measured (default: 5; quick: 1)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    parser.add_argument(
        "--quick", action="store_true", help="fewer streams, about 15 s: does it run?"
    )
    options = parser.parse_args(arguments)
    options.only = frozenset(filter(None, options.only.replace(" ", "").split(",")))
    if not options.only or options.only - set("abcdefghijkl"):
        parser.error("--only takes letters from a to l, separated by commas")
    if options.seconds is not None and not 0 < options.seconds <= 600:
        parser.error("--seconds takes a number up to 600")
    return options


def planned(options: argparse.Namespace, files: int) -> Plan:
    """The plan that the options ask for, as far as the open files go."""
    most = max(1, files - _SPARE_FILES)
    streams, idle, rounds, seconds = (
        (200, 1_000, 5, 1.0) if options.quick else (1_000, 10_000, 20, 5.0)
    )
    return Plan(
        only=options.only,
        seconds=options.seconds or seconds,
        streams=min(streams, most),
        idle_streams=min(idle, most),
        rounds=rounds,
    )


def main() -> int:
    """Measure, print, and tell by the exit code whether the figures can be believed."""
    options = parse()
    began = time.monotonic()
    files = open_files()
    plan = planned(options, files)
    bench = Bench(plan)
    if plan.idle_streams < (1_000 if options.quick else 10_000):
        bench.report.notes.append(
            f"fewer streams than usual: this system lets a process open {files:,} files"
        )
    bench.run()
    about = machine()
    print_table(about, bench.report, time.monotonic() - began)
    if options.json:
        write_json(options.json, about, bench.report)
    return 1 if bench.report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
