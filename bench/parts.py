"""The parts of a run: each starts servers and the load client, and writes down what they give.

The server under test has one core, the load client the other."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple, ParamSpec, TypeVar

from bench import clients, load, pushing, scraping
from bench.counting import counting_costs
from bench.redis_server import NoServer, RedisProcess, memory_costs, redis_process, used_memory
from bench.report import Figure, Report, say
from bench.servers import Server, free_port, serving
from bench.tokens import SECRET, publisher_token, token_costs

ROOT = Path(__file__).parents[1]

_BUSY = 0.95

P = ParamSpec("P")
R = TypeVar("R", bound=load.Result)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts to measure, by their letters, and how much of each."""

    parts: frozenset[str]
    seconds: float
    streams: int
    idle_streams: int
    rounds: int
    connections: int = 64
    batch: int = 100
    missed: int = 20
    live_rate: float = 100.0
    turns: int = 3
    """Of WebSockets and SSE each."""
    note: str = ""
    """To be read with the figures."""


class Bench:
    """One run of what is planned.

    Args:
        source: where the package of the service under test is.
        floors: whether to measure those too.
    """

    def __init__(self, plan: Plan, source: Path = ROOT / "src", *, floors: bool = True) -> None:
        self.plan = plan
        self.report = Report()
        if plan.note:
            self.report.note(plan.note)
        self._source, self._floors = source, floors
        cores = sorted(os.sched_getaffinity(0))
        self._server_cores = {cores[0]} if len(cores) > 1 else set(cores)
        self._client_cores = {cores[1]} if len(cores) > 1 else set(cores)
        if len(cores) == 1:
            self.report.note(
                "one core: the servers and the load client share it, so every figure is low"
            )

    def run(self) -> Report:
        """Measure everything planned.

        A part that fails becomes a fault, one whose server isn't installed a note; the others go
        on.
        """
        for part in PARTS:
            if not self.plan.parts & set(part.letters):
                continue
            say(f"{part.name}: {part.does}".format(plan=self.plan))
            try:
                part.measure(self)
            except NoServer as error:
                self.report.note(f"{part.name}: not measured: {error}")
            except (load.Spoiled, BrokenProcessPool, OSError) as error:
                self.report.faults.append(f"{part.name}: {error}")
        return self.report

    def fanout(self) -> None:
        """Deliveries to streams on one channel."""
        count, connections = self.plan.streams, self.plan.connections
        arguments = count, connections, self.plan.seconds
        with self._service(count) as service:
            cursor = self._client(load.probe, service.port)
            ours = self._measure("a", load.fanout, service.port, *arguments)
        floor = None
        if self._floors:
            with self._bare("loop", cursor) as loop:
                floor = self._measure("a, floor", load.fanout, loop.port, *arguments)
        self._figure(
            f"a  deliveries/s, {count:,} streams, {connections} publishers",
            ours.deliveries_per_second,
            floor.deliveries_per_second if floor else None,
        )
        for name, result in (("a", ours), ("a, floor", floor)):
            if result and result.gaps:
                self.report.note(
                    f"{name}: the server announced {result.gaps} gaps to the first stream"
                )

    def burst(self) -> None:
        """The time that one message takes to many streams, and the memory that they take."""
        count, timed = self.plan.idle_streams, "b" in self.plan.parts
        rounds = self.plan.rounds if timed else 0
        with self._service(count) as service:
            cursor = self._client(load.probe, service.port)
            ours = self._measure("b, c", load.burst, service.port, count, rounds, service.pid)
        floor = None
        if timed and self._floors:
            with self._bare("loop", cursor) as loop:
                floor = self._measure("b, floor", load.burst, loop.port, count, rounds, loop.pid)
        if timed:
            what = f"b  one message to {count:,} streams, p50"
            self._figure(what, ours.p50, floor.p50 if floor else None, "ms")
            self._figure("   p99", ours.p99, floor.p99 if floor else None, "ms")
            self._figure("   max", ours.max, floor.max if floor else None, "ms")
        if "c" in self.plan.parts:
            what = f"c  memory per idle stream at {count:,}"
            self._figure(what, ours.rss_per_stream / 1024, unit="KiB")

    def single(self) -> None:
        """Single publishes, by anyone and by one whose token has been seen before."""
        connections = self.plan.connections
        arguments = connections, 1, self.plan.seconds
        with self._service(16) as service:
            ours = self._measure("d", load.publish, service.port, *arguments)
        with self._service(16, ENABLE_AUTH="true", JWT_SECRET=SECRET) as service:
            with_token = self._measure(
                "d, token", load.publish, service.port, *arguments, token=publisher_token()
            )
        floor = None
        if self._floors:
            with self._bare("app") as app:
                floor = self._measure("d, floor", load.publish, app.port, *arguments)
        rate = floor.messages_per_second if floor else None
        what = f"d  single publishes/s, {connections} connections"
        self._figure(what, ours.messages_per_second, rate)
        self._figure("   by an HS256 token seen before", with_token.messages_per_second, rate)

    def batches(self) -> None:
        """Batches, on the embedded bus."""
        with self._service(16) as service:
            ours = self._batches("e", service)
        self._figure(f"e  messages/s in batches of {self.plan.batch}", ours.messages_per_second)

    def batches_over_redis(self) -> None:
        """Batches that nobody receives, over Redis."""
        with self._redis() as redis, self._service(16, REDIS_URL=redis.url) as service:
            ours = self._batches("e, Redis", service)
        self._figure("   over Redis", ours.messages_per_second)

    def over_redis(self) -> None:
        """Publishes that are received, and those that are none of an instance's business."""
        parts, connections = self.plan.parts, self.plan.connections
        with self._redis() as redis, self._service(16, REDIS_URL=redis.url) as service:
            if "f" in parts:
                ours = self._batches("f", service, streams=1)
                what = f"f  Redis: messages/s in batches of {self.plan.batch}, delivered"
                self._figure(what, ours.messages_per_second)
            if "g" in parts:
                ours = self._measure(
                    "g", load.publish, service.port, connections, 1, self.plan.seconds, 1
                )
                what = f"g  Redis: single publishes/s, {connections} connections"
                self._figure(what, ours.messages_per_second)
            if "h" in parts:
                self._idle(service)
            if "i" in parts:
                self._bystander(service, redis)

    def _idle(self, service: Server) -> None:
        arguments = 1, 50 * self.plan.rounds
        ours = self._measure(
            "h", load.burst, service.port, *arguments, server=service.pid, pause=0.005
        )
        floor = None
        if self._floors:
            with self._service(16) as embedded:
                floor = self._measure(
                    "h, floor",
                    load.burst,
                    embedded.port,
                    *arguments,
                    server=embedded.pid,
                    pause=0.005,
                )
        what = "h  Redis: publish to receive when idle, p50"
        self._figure(what, ours.p50, floor.p50 if floor else None, "ms")
        self._figure("   p99", ours.p99, floor.p99 if floor else None, "ms")

    def _bystander(self, service: Server, redis: RedisProcess) -> None:
        # It shares the core of the one that is published at: what it is charged for is what counts.
        with self._service(16, REDIS_URL=redis.url) as other:
            before = other.cpu_seconds()
            ours = self._batches("i", service)
            spent = other.cpu_seconds() - before
        what = "i  Redis: CPU of an instance without readers, a message"
        self._figure(what, 1e6 * spent / ours.accepted, unit="us")

    def redis_memory(self) -> None:
        """The memory that messages take in Redis."""
        with self._redis() as redis:
            costs = memory_costs(redis.url)
        self._figure(f"j  Redis: bytes of a message of {costs.body}", costs.message)
        self._figure("   in one more channel", costs.further)
        self._figure("   in a channel that has nothing else", costs.channel)
        self._figure("   an id that a publisher chose, for 10 minutes", costs.id)

    def tokens(self) -> None:
        """The CPU that tokens take."""
        for algorithm, first, again in token_costs():
            self._figure(f"k  CPU of a token by {algorithm}, the first time", first, unit="us")
            self._figure("   again", again, unit="us")

    def resume(self) -> None:
        """The time that streams take to come back to a fresh instance."""
        count, each = self.plan.idle_streams, self.plan.missed
        with self._redis() as redis:
            with self._service(16, REDIS_URL=redis.url) as before:
                cursor = self._client(load.fill, before.port, count, each)
            with self._service(count, REDIS_URL=redis.url) as service:
                ours = self._measure(
                    "l", load.resume, service.port, cursor, count, each, self.plan.live_rate
                )
        what = f"l  Redis: {count:,} streams resume {each} messages each"
        self._figure(what, ours.seconds, unit="s")

    def asking(self) -> None:
        """Publishes that ask for acknowledgements, and acknowledgements, on both buses."""
        room = {"MEMORY_BUS_BYTES": str(1 << 30), "PENDING_BYTES": str(1 << 30), "ACK_RATE": "0"}
        with self._service(16, **room) as service:
            self._asking("m", service)
            self._weighed("m, memory", service, service.resident)
        with (
            self._redis() as redis,
            self._service(16, REDIS_URL=redis.url, **room) as service,
        ):
            self._asking("m, Redis", service)
            self._weighed("m, Redis' memory", service, lambda: used_memory(redis.url))

    def _asking(self, name: str, service: Server) -> None:
        connections, seconds = self.plan.connections, self.plan.seconds
        arguments = service.port, connections, seconds
        without = self._measure(f"{name}, without", load.publish_asking, *arguments, False)
        ours = self._measure(name, load.publish_asking, *arguments, True)
        told = self._measure(f"{name}, told", load.told, service.port, 10 * self.plan.rounds)
        # A new range of numbers: the users of those before have their mailboxes full.
        given = self._measure(f"{name}, acknowledged", load.acknowledge, *arguments)
        self._figure(
            f"{name}  publishes/s with ack; floor: without",
            ours.messages_per_second,
            without.messages_per_second,
        )
        self._figure("   acknowledgements/s, one a request", given.messages_per_second)
        self._figure("   from acknowledging to the other device, p50", told.p50, unit="ms")
        self._figure("   p99", told.p99, unit="ms")

    def _weighed(self, name: str, service: Server, weigh: Callable[[], int]) -> None:
        """Bytes that one message costs more that waits, two for each of 10,000 users."""
        number, connections = 2 * self.plan.idle_streams, self.plan.connections
        weights = [weigh()]
        for ack in (False, True):
            self._client(load.publish_asking, service.port, connections, 0.0, ack, number)
            weights.append(weigh())
        more = (weights[2] - weights[1]) - (weights[1] - weights[0])
        self._figure(f"{name}: bytes of a message more that waits", more / number)

    def sockets(self) -> None:
        """WebSockets, and SSE in turn: what else the machine does slows both alike."""
        plan = self.plan
        kinds = (load.SSE, load.WHOLE, load.WS) if self._floors else (load.WS,)
        rates: dict[load.Kind, list[float]] = {kind: [] for kind in kinds}
        others: dict[load.Kind, list[tuple[float, ...]]] = {kind: [] for kind in kinds}
        for turn in range(plan.turns):
            for kind in kinds if turn % 2 == 0 else kinds[::-1]:
                name = f"n, {kind.name}, {turn + 1}"
                rates[kind].append(self._flat_out(name, kind))
                if kind != load.WHOLE:
                    others[kind].append(self._one_at_a_time(f"{name}, one at a time", kind))
        rate = {kind: median(each) for kind, each in rates.items()}
        what = f"n  deliveries/s, {plan.streams:,} WebSockets, {plan.connections} publishers"
        self._figure(what, rate[load.WS], rate.get(load.SSE))
        if load.WHOLE in rate:
            self._figure("   floor: SSE with whole messages", rate[load.WS], rate[load.WHOLE])
        many = f"{plan.idle_streams:,}"
        for n, (what, unit) in enumerate(
            (
                (f"   one message to {many} WebSockets, p50", "ms"),
                ("   p99", "ms"),
                ("   max", "ms"),
                (f"   memory per idle WebSocket at {many}", "KiB"),
            )
        ):
            middle = {kind: median(row[n] for row in rows) for kind, rows in others.items() if rows}
            self._figure(what, middle[load.WS], middle.get(load.SSE), unit)

    def python_client(self) -> None:
        """What the Python client publishes and hears, and what a job's reports cost it."""
        plan = self.plan
        with self._service(16) as service:
            sent = self._measure("o", clients.publish_buffered, service.port, plan.seconds)
        self._figure("o  Python publisher, buffered, messages/s", sent.messages_per_second)
        number = int(plan.seconds * 20_000)
        kept = {"HISTORY_LENGTH": str(number), "MEMORY_BUS_BYTES": str(1 << 30)}
        with self._service(16, **kept) as service:
            self._client(clients.fill, service.port, number)
            heard = self._measure("o, Listener", clients.hear, service.port, number)
            twin = self._measure("o, SyncListener", clients.hear_in_thread, service.port, number)
        self._figure("   Listener, messages/s", heard.messages_per_second)
        self._figure("   SyncListener, messages/s", twin.messages_per_second)
        with self._service(16) as service:
            job = self._measure("o, job", clients.job, service.port)
        what = (
            f"   a job of {clients.STEPS:,} steps that reports each, seconds (floor: says nothing)"
        )
        self._figure(what, job.reporting_seconds, job.silent_seconds)

    def metrics(self) -> None:
        """What counting costs, of publishes and deliveries."""
        for cost in counting_costs():
            self._figure(f"p  CPU of {cost.what}", 1e6 * cost.counted, 1e6 * cost.uncounted, "us")
            self.report.note(f"p: {cost.what}: counted over not, median by turn: {cost.ratio:.3f}")

    def scraping(self) -> None:
        """The time that a scrape takes, and for which it holds others up."""
        count = self.plan.idle_streams
        with self._service(count) as service:
            ours = self._measure("q", scraping.scrape, service.port, count, 2 * self.plan.rounds)
        what = f"q  a scrape at {count:,} streams, {ours.lines:,} lines, median"
        self._figure(what, ours.p50, unit="ms")
        self._figure("   a request beside it; floor: without it", ours.beside, ours.alone, "ms")

    def pushes(self) -> None:
        """Web Pushes to many devices at once, over Redis, and the streams beside them."""
        devices, streams = self.plan.idle_streams, min(100, self.plan.streams)
        with (
            TemporaryDirectory() as directory,
            pushing.push_service(Path(directory), self._client_cores) as (push_port, telling),
            self._redis() as redis,
        ):
            settings = pushing.settings(Path(directory), push_port)
            with self._service(streams, REDIS_URL=redis.url, **settings) as service:
                before = used_memory(redis.url)
                self._client(pushing.register, service.port, push_port, devices)
                weight = (used_memory(redis.url) - before) / devices
                used = service.cpu_seconds()
                arguments = service.port, telling, devices, streams, self.plan.seconds
                ours = self._measure("r", pushing.burst, *arguments)
                used = service.cpu_seconds() - used
        self._figure(f"r  Web Pushes/s, {devices:,} devices at once", ours.per_second)
        self._figure("   for a second of CPU, with all else that it did", devices / used)
        names = ("p50", "p99", "max")
        for name, floor, during in zip(names, ours.quiet, ours.during, strict=True):
            what = f"   a message to {streams} streams, {name}; floor: before"
            self._figure(what, during, floor, "ms")
        self._figure("   p99 while the burst is published", ours.publishing[1], unit="ms")
        self._figure("   bytes of a device in Redis", weight)

    def _flat_out(self, name: str, kind: load.Kind) -> float:
        """Deliveries a second to many streams of a kind."""
        plan = self.plan
        with self._fresh(plan.streams, kind) as service:
            arguments = service.port, plan.streams, plan.connections, plan.seconds
            return self._measure(name, load.fanout, *arguments, kind=kind).deliveries_per_second

    def _one_at_a_time(self, name: str, kind: load.Kind) -> tuple[float, ...]:
        """Latencies of one message to streams of a kind, in ms; KiB that an idle one takes."""
        count = self.plan.idle_streams
        with self._fresh(count, kind) as service:
            arguments = service.port, count, self.plan.rounds, service.pid
            got = self._measure(name, load.burst, *arguments, kind=kind)
        return got.p50, got.p99, got.max, got.rss_per_stream / 1024

    @contextmanager
    def _fresh(self, streams: int, kind: load.Kind) -> Iterator[Server]:
        """A server that has served one of these, and sends neither pings nor heartbeats."""
        with self._service(streams, HEARTBEAT_INTERVAL="3600") as service:
            self._client(load.probe, service.port, kind)
            yield service

    def _batches(self, name: str, service: Server, streams: int = 0) -> load.Published:
        plan = self.plan
        return self._measure(
            name, load.publish, service.port, plan.connections, plan.batch, plan.seconds, streams
        )

    def _figure(self, what: str, value: float, floor: float | None = None, unit: str = "") -> None:
        self.report.figures.append(Figure(what, value, floor, unit))

    def _measure(
        self, name: str, measure: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """The load client's result, after it is written down with all that speaks against it."""
        result = self._client(measure, *args, **kwargs)
        report = self.report
        report.details[name] = asdict(result)
        if result.busy > _BUSY:
            report.note(
                f"{name}: the load client was {result.busy:.0%} busy; the server may be faster"
            )
        if result.missing:
            report.faults.append(
                f"{name}: {result.missing:,} deliveries of accepted messages are MISSING"
            )
        if result.surplus:
            report.faults.append(f"{name}: {result.surplus:,} deliveries TOO MANY")
        if result.refused:
            first = f", the first with {result.refusal!r}" if result.refusal else ""
            report.faults.append(f"{name}: {result.refused:,} messages refused{first}")
        return result

    def _client(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call this in the load client, a process of its own."""
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            1, context, initializer=load.prepare, initargs=(self._client_cores,)
        ) as client:
            return client.submit(work, *args, **kwargs).result()

    @contextmanager
    def _service(self, streams: int, **settings: str) -> Iterator[Server]:
        port = free_port()
        path = [str(self._source), os.environ.get("PYTHONPATH", "")]
        usual = {
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "SERVICE_HOST": "127.0.0.1",
            "SERVICE_PORT": str(port),
            "ENABLE_AUTH": "false",
            "MAX_CONNECTIONS": str(streams + 16),
            "LOG_LEVEL": "error",
        }
        command = [sys.executable, "-m", "msgpush", "serve"]
        with serving(command, port, self._server_cores, usual | settings) as server:
            yield server

    @contextmanager
    def _bare(self, floor: str, *arguments: str) -> Iterator[Server]:
        port = free_port()
        command = [sys.executable, "-m", "bench.floors", floor, str(port), *arguments]
        with serving(command, port, self._server_cores, {}) as server:
            yield server

    @contextmanager
    def _redis(self) -> Iterator[RedisProcess]:
        """A Redis that shares the load client's core."""
        with redis_process() as redis:
            os.sched_setaffinity(redis.pid, self._client_cores)
            self.report.note(f"over Redis: {redis.version}, without persistence")
            yield redis


class Part(NamedTuple):
    """Figures that are measured together.

    Attributes:
        letters: theirs.
        does: said when it begins.
        takes: seconds that it takes without its floors, about; None: it measures this process.
    """

    letters: str
    name: str
    does: str
    measure: Callable[[Bench], None]
    takes: Callable[[Plan], float] | None


PARTS = (
    Part(
        "a",
        "a",
        "{plan.streams:,} streams on one channel, {plan.connections} publishers flat out",
        Bench.fanout,
        lambda plan: plan.seconds + 3,
    ),
    Part(
        "bc",
        "b, c",
        "{plan.idle_streams:,} streams, one message at a time to all of them",
        Bench.burst,
        lambda plan: 4 + plan.idle_streams / 5000 + plan.rounds / 5,
    ),
    Part(
        "d",
        "d",
        "single-message publishes, {plan.connections} connections",
        Bench.single,
        lambda plan: 2 * (plan.seconds + 1.2),
    ),
    Part(
        "e",
        "e",
        "batches of {plan.batch}, {plan.connections} connections",
        Bench.batches,
        lambda plan: plan.seconds + 1.2,
    ),
    Part(
        "e",
        "e, Redis",
        "the same over Redis, which shares the load client's core",
        Bench.batches_over_redis,
        lambda plan: plan.seconds + 1.5,
    ),
    Part(
        "fghi",
        "f, g, h, i",
        "over Redis, which shares the load client's core",
        Bench.over_redis,
        lambda plan: 3 * (plan.seconds + 1.2) + 2 + plan.rounds / 2,
    ),
    Part("j", "j", "what messages cost Redis's memory", Bench.redis_memory, None),
    Part("k", "k", "what a token costs", Bench.tokens, None),
    Part(
        "l",
        "l",
        "{plan.idle_streams:,} streams come back to an instance that has just begun, over Redis",
        Bench.resume,
        lambda plan: 4 + plan.idle_streams / 1500,
    ),
    Part(
        "m",
        "m",
        "messages that ask for acknowledgements, on both buses",
        Bench.asking,
        lambda plan: 2 * (3 * (plan.seconds + 1.2) + 12 + plan.idle_streams / 1500),
    ),
    Part(
        "n",
        "n",
        "WebSockets and SSE in turn: {plan.streams:,} and {plan.idle_streams:,} of each",
        Bench.sockets,
        lambda plan: plan.turns * (plan.seconds + plan.idle_streams / 3000 + plan.rounds / 4 + 6),
    ),
    Part(
        "o",
        "o",
        "the Python client: a publisher, listeners, a job that reports its steps",
        Bench.python_client,
        lambda plan: 10 * plan.seconds + 30,
    ),
    Part(
        "p",
        "p",
        "what the metrics cost: two services in this process, one of which counts, in turn",
        Bench.metrics,
        None,
    ),
    Part(
        "q",
        "q",
        "scrapes, with {plan.idle_streams:,} streams open",
        Bench.scraping,
        lambda plan: 5 + plan.idle_streams / 3000 + plan.rounds / 4,
    ),
    Part(
        "r",
        "r",
        "Web Pushes to {plan.idle_streams:,} devices at once, over Redis",
        Bench.pushes,
        None,
    ),
)
"""In the order in which they run."""
