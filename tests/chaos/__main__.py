"""`make chaos`: instances and Redis fail at random, under load, and the account must agree.

A run is made of rounds. Each has a Redis (a server, one with Sentinels, or a Cluster), instances,
publishers, subscribers that wander, and users who acknowledge; things go wrong for a while; then every subscriber must
have got all that was accepted, once and in order, or have been told. The seed decides everything
but the timing of the machine."""

import argparse
import contextlib
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

from msgpush.adapters.redis.link import HASH_TAG
from msgpush.adapters.redis.log import LOG
from tests.support.load import Load
from tests.support.redis_servers import ClusterGroup, RedisServer, SentinelGroup
from tests.support.service import ServiceProcess

INSTANCES = 3


class Round:
    """One Redis, its instances and their load, and what can go wrong with them."""

    def __init__(self, stack: ExitStack, url: str, chance: random.Random) -> None:
        self._stack, self._url, self.chance = stack, url, chance
        self.instances = [self._instance() for _ in range(INSTANCES)]
        self.load = stack.enter_context(
            Load(self._ports(), seed=chance.randrange(1 << 30), rate=60, subscribers=10, users=8)
        )

    def _instance(self) -> ServiceProcess:
        return self._stack.enter_context(
            ServiceProcess(REDIS_URL=self._url, DRAIN_SECONDS="1", LOG_LEVEL="info")
        )

    def _ports(self) -> list[int]:
        return [each.port for each in self.instances]

    def _replace(self, number: signal.Signals) -> None:
        gone = self.chance.choice(self.instances)
        gone.signal(number)
        self.load.run(self.chance.uniform(0, 1))
        gone.wait()
        self.instances[self.instances.index(gone)] = self._instance()
        self.load.ports = self._ports()

    def kill_an_instance(self) -> None:
        self._replace(signal.SIGKILL)

    def drain_an_instance(self) -> None:
        self._replace(signal.SIGTERM)

    def stop_an_instance(self) -> None:
        held = self.chance.choice(self.instances)
        held.signal(signal.SIGSTOP)
        self.load.run(self.chance.uniform(0.5, 4))
        held.signal(signal.SIGCONT)

    def nothing(self) -> None:
        self.load.run(self.chance.uniform(0.5, 2))


class ServerRound(Round):
    """One server that keeps what it has in a file."""

    def __init__(self, stack: ExitStack, chance: random.Random) -> None:
        self._redis = stack.enter_context(RedisServer(appendonly=True))
        super().__init__(stack, self._redis.url, chance)

    def restart_redis(self) -> None:
        self._redis.restart()

    def restart_redis_empty(self) -> None:
        self.load.asking.lossy = True
        self._redis.restart(empty=True)

    def leave_redis_down(self) -> None:
        self._redis.kill()
        self.load.run(self.chance.uniform(1, 6))
        self._redis.start()

    def pause_redis(self) -> None:
        self._redis.pause()
        self.load.run(self.chance.uniform(0.5, 5))
        self._redis.resume()

    def cut_connections(self) -> None:
        with self._redis.client() as client:
            for _ in range(20):
                mine = [each for each in client.client_list() if each["name"].startswith("msgpush")]
                for each in self.chance.sample(mine, min(3, len(mine))):
                    client.client_kill_filter(_id=each["id"])
                self.load.run(0.1)

    def trim_the_log(self) -> None:
        with self._redis.client() as client:
            for _ in range(20):
                client.xtrim(LOG, maxlen=0, approximate=False)
                self.load.run(0.05)

    def lose_the_head(self) -> None:
        with self._redis.client() as client:
            client.delete(f"{HASH_TAG}:head")


class SentinelRound(Round):
    """A master with a replica: one failover, which may lose what was accepted before it."""

    def __init__(self, stack: ExitStack, chance: random.Random) -> None:
        self._group = stack.enter_context(SentinelGroup())
        self._failed = False
        super().__init__(stack, self._group.url, chance)

    def fail_over(self) -> None:
        if not self._failed:
            self._failed = self.load.asking.lossy = True
            if self.chance.random() < 0.7:
                self._group.relay.cut()
                self.load.run(self.chance.uniform(0, 2))
            self._group.fail_over()


class ClusterRound(Round):
    """A Cluster whose slot moves, and whose primary dies once."""

    def __init__(self, stack: ExitStack, chance: random.Random) -> None:
        self._cluster = stack.enter_context(ClusterGroup(key=HASH_TAG))
        self._failed = False
        super().__init__(stack, self._cluster.url, chance)

    def fail_over(self) -> None:
        if not self._failed:
            self._failed = self.load.asking.lossy = True
            self._cluster.fail_over()

    def migrate_the_slot(self) -> None:
        if self._failed:
            self._cluster.migrate()


KINDS: tuple[type[Round], ...] = (ServerRound, ServerRound, SentinelRound, ClusterRound)


def disturbances(round: Round) -> list[Callable[[], None]]:
    """What can go wrong in a round: its methods, but for those that only make it."""
    names = [
        name for name in dir(round) if not name.startswith("_") and callable(getattr(round, name))
    ]
    return [getattr(round, name) for name in names]


def play(
    kind: Callable[[ExitStack, random.Random], Round], chance: random.Random, seconds: float
) -> Load:
    """One round; returns its account."""
    with ExitStack() as stack:
        round = kind(stack, chance)
        round.load.run(1)
        until = time.monotonic() + seconds
        while time.monotonic() < until and not round.load.violations:
            disturb = chance.choice(disturbances(round))
            print(f"  {disturb.__name__.replace('_', ' ')}", flush=True)
            disturb()
            round.load.run(chance.uniform(0.2, 2))
        with contextlib.suppress(AssertionError):  # the account has it
            round.load.settle(60)
        return round.load


def main() -> int:
    """Play rounds for the time that is given; 1 where one of them went wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    total: Counter[str] = Counter()
    gaps: Counter[str] = Counter()
    number = 0
    while (left := options.seconds - (time.monotonic() - began)) > 0:
        seed = options.seed + number
        kind = KINDS[seed % len(KINDS)]
        print(
            f"round {number + 1}, seed {seed}: {kind.__name__.removesuffix('Round').lower()}",
            flush=True,
        )
        load = play(kind, random.Random(seed), min(25.0, left))
        print("  " + load.report(), flush=True)
        number += 1
        gaps += load.gaps
        total.update(
            accepted=load.accepted, received=load.received, violations=len(load.violations)
        )
        total["asked"] += len(load.asking.accepted)
        total["acknowledged"] += sum(len(user.answered) for user in load.asking.users)
        total["given up"] += sum(state == "dead" for _, state in load.asking.ended)
        total["duplicates"] += sum(each.duplicates for each in load.subscribers)
        if load.violations:
            print(f"to see it again: make chaos SECONDS={options.seconds:.0f} SEED={seed}")
            break
    told = ", ".join(f"{name} {count}" for name, count in total.items())
    print(f"{number} rounds in {time.monotonic() - began:.0f} s: {told}, gaps told {dict(gaps)}")
    return 1 if total["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
