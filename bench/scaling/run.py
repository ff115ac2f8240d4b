"""One run: streams ramp up and down, the autoscaler acts, and everything is written down."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench.redis_server import redis_process
from bench.scaling.autoscaler import Autoscaler, Policy, Rules
from bench.scaling.fleet import Balancing, Fleet, Proxy

REBALANCE = Path(__file__).parents[2] / "deploy" / "kubernetes" / "autoscaling" / "rebalance.py"
BALANCED = 1.2
"""The fullest instance has at most so many times the streams of the average."""
_TICK = 0.5
_SYNC = 15.0  # the HorizontalPodAutoscaler's own period, before it is compressed
_PRE_STOP = 2.0
_LAST_SECONDS = 90.0
_FEW = 100  # streams of which it means nothing how they are spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What a run does.

    Attributes:
        least, most: streams at the start and the end, and in the middle.
        ramp, hold, fall: seconds that it takes to get there, that it stays, and that the way back
            takes.
        target: streams an instance that the autoscaler aims at.
        limit: `MAX_CONNECTIONS` of each.
        rebalance: streams a second that are moved from instances that have too many; 0: none.
        factor: the autoscaler's times are divided by this; nothing else is.
    """

    balancing: Balancing = "least_conn"
    rebalance: int = 0
    least: int = 50
    most: int = 3000
    ramp: float = 45.0
    hold: float = 40.0
    fall: float = 100.0
    target: int = 600
    limit: int = 1000
    instances: int = 8
    factor: float = 10.0
    drain: float = 10.0

    @property
    def name(self) -> str:
        name = self.balancing.replace("_", " ")
        return f"{name}, {self.rebalance} a second moved" if self.rebalance else name

    def rules(self) -> Rules:
        """As in deploy/kubernetes/autoscaling/hpa.yaml."""
        return Rules(
            target=self.target,
            least=1,
            most=self.instances,
            up=(Policy("percent", 100, 30), Policy("pods", 2, 30)),
            down=(Policy("pods", 1, 120),),
        ).faster(self.factor)

    def streams(self, seconds: float) -> int:
        """How many clients there are by then."""
        up, down = seconds / self.ramp, (seconds - self.ramp - self.hold) / self.fall
        part = min(1.0, up) - min(1.0, max(0.0, down))
        return self.least + round((self.most - self.least) * part)

    @property
    def ramps(self) -> float:
        return self.ramp + self.hold + self.fall


class Sample(NamedTuple):
    """What was there at one moment."""

    at: float
    wanted: int
    streams: dict[str, int]
    """By instance, for those that take new ones."""
    draining: dict[str, int]
    desired: int
    crowd: dict[str, int]

    @property
    def imbalance(self) -> float | None:
        """The fullest over the average; None where there are too few to tell."""
        values = list(self.streams.values())
        total = sum(values)
        return max(values) * len(values) / total if total >= _FEW and values else None


@dataclass(slots=True)
class Outcome:
    """A run, written down."""

    scenario: Scenario
    samples: list[Sample] = field(default_factory=list)
    joined: list[float] = field(default_factory=list)
    """When instances began to take streams."""
    counts: Counter[str] = field(default_factory=Counter)
    statuses: list[int] = field(default_factory=list)
    redis: str = ""

    @property
    def lost(self) -> int:
        return self.counts["lost"] + self.counts["gaps"]

    @property
    def doubled(self) -> int:
        return self.counts["doubled"]

    @property
    def bad_gateways(self) -> int:
        """5xx that a client got from the proxy, but for the 503 that msgpush says itself."""
        return sum(
            n
            for name, n in self.counts.items()
            if name.split(" ")[-1] in ("500", "502", "504") or name == "stream 503"
        )

    @property
    def overloads(self) -> int:
        return self.counts["closed overload"]

    @property
    def most_instances(self) -> int:
        return max(len(each.streams) for each in self.samples)

    def reconnects(self) -> list[tuple[float, float]]:
        """Reconnects a second, by moment."""
        pairs = zip(self.samples, self.samples[2:], strict=False)
        return [
            (
                b.at,
                (b.crowd.get("reopened", 0) - a.crowd.get("reopened", 0)) / (b.at - a.at),
            )
            for a, b in pairs
        ]

    def balancing_times(self) -> list[float | None]:
        """From when an instance began to take streams until all had about as many, in seconds.

        None: not before the first one was taken away. Only those that joined before are counted."""
        ends = next((each.at for each in self.samples if each.draining), float("inf"))
        times: list[float | None] = []
        for joined in self.joined:
            after = [each for each in self.samples if joined <= each.at < ends]
            if any(len(each.streams) > 1 for each in after):
                times.append(next((each.at - joined for each in after if _balanced(each)), None))
        return times

    def held_imbalance(self) -> float | None:
        """The fullest over the average as the clients began to go."""
        ends = self.scenario.ramp + self.scenario.hold
        return [each.imbalance for each in self.samples if each.at <= ends][-1]

    def content(self) -> dict[str, Any]:
        """For programs."""
        return {
            "name": self.scenario.name,
            "counts": dict(self.counts),
            "exit_statuses": self.statuses,
            "joined": self.joined,
            "balancing_seconds": self.balancing_times(),
            "imbalance_held": self.held_imbalance(),
            "samples": [each._asdict() for each in self.samples],
        }


def _balanced(sample: Sample) -> bool:
    return sample.imbalance is not None and sample.imbalance <= BALANCED


class _Crowd:
    """The client process, and what it said last."""

    def __init__(self, stack: ExitStack, port: int) -> None:
        command = [sys.executable, "-m", "bench.scaling.crowd", str(port)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        stack.callback(self._end)
        self.said: dict[str, int] = {}
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")

    def finish(self, seconds: float) -> dict[str, int]:
        self.tell("finish")
        self._process.wait(seconds)
        self._reader.join()
        if not self.said.get("final"):
            raise RuntimeError("the client process has ended without a result")
        return self.said

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said = json.loads(line)

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        for each in (self._process.stdin, self._process.stdout):
            assert each is not None
            each.close()


def play(scenario: Scenario) -> Outcome:
    """Run a scenario, and write down what happens."""
    outcome = Outcome(scenario)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = stack.enter_context(redis_process())
        outcome.redis = redis.version
        proxy = stack.enter_context(Proxy(directory, scenario.balancing))
        settings = {
            "REDIS_URL": redis.url,
            "MAX_CONNECTIONS": str(scenario.limit),
            "DRAIN_SECONDS": str(scenario.drain),
        }
        fleet = stack.enter_context(Fleet(directory, proxy, settings))
        fleet.scale(1, 0.0)
        until = time.monotonic() + 20
        while not fleet.look(0.0, _PRE_STOP):
            if time.monotonic() > until:
                raise RuntimeError("the first instance did not start")
            time.sleep(0.1)
        crowd = _Crowd(stack, proxy.port)
        if scenario.rebalance:
            _start_rebalancing(stack, proxy.port, scenario.rebalance)
        _Run(scenario, fleet, crowd, outcome).run()
        outcome.counts = Counter({k: v for k, v in crowd.finish(40).items() if k != "final"})
        outcome.statuses = fleet.statuses
    return outcome


class _Run:
    def __init__(self, scenario: Scenario, fleet: Fleet, crowd: _Crowd, outcome: Outcome) -> None:
        self._scenario, self._fleet = scenario, fleet
        self._crowd, self._outcome = crowd, outcome
        self._autoscaler = Autoscaler(scenario.rules())

    def run(self) -> None:
        """To the end of the ramps, and on until one instance is left."""
        scenario, fleet = self._scenario, self._fleet
        began = time.monotonic()
        synced = float("-inf")
        while True:
            now = time.monotonic() - began
            self._crowd.tell(f"streams {scenario.streams(now)}")
            self._outcome.joined += [now for _ in fleet.look(now, _PRE_STOP)]
            if now - synced >= _SYNC / scenario.factor:
                synced = now
                total = sum(each.streams for each in fleet.serving)
                fleet.scale(self._autoscaler.decide(now, len(fleet.serving), total), now)
            self._sample(now)
            done = now > scenario.ramps and len(fleet.serving) == 1 and not fleet.draining
            if done or now > scenario.ramps + _LAST_SECONDS:
                return
            time.sleep(max(0.0, _TICK - (time.monotonic() - began - now)))

    def _sample(self, now: float) -> None:
        fleet = self._fleet
        self._outcome.samples.append(
            Sample(
                round(now, 2),
                self._scenario.streams(now),
                {each.name: each.streams for each in fleet.serving if each.ready},
                {each.name: each.streams for each in fleet.draining},
                len(fleet.serving),
                dict(self._crowd.said),
            )
        )


def _start_rebalancing(stack: ExitStack, port: int, rate: int) -> None:
    command = [sys.executable, str(REBALANCE), "--url", f"http://127.0.0.1:{port}"]
    process = subprocess.Popen(
        [*command, "--per-second", str(rate)],
        stdout=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin"},
    )

    def end() -> None:
        process.kill()
        process.wait()

    stack.callback(end)
