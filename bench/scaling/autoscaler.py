"""How many instances there should be, by the algorithm of Kubernetes' HorizontalPodAutoscaler.

https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/, "Algorithm
details" and "Configurable scaling behavior". It decides, and does nothing: time is given to it."""

from collections import deque
from dataclasses import dataclass
from math import ceil, floor
from typing import Literal, NamedTuple


class Policy(NamedTuple):
    """How much may change in `period` seconds: so many instances, or so many per cent of them."""

    kind: Literal["pods", "percent"]
    value: int
    period: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the manifest says.

    Attributes:
        target: the metric's average over instances that is aimed at.
        tolerance: what it may be off by before anything changes, as a part of it.
        up_window, down_window: seconds; the least that was recommended in the one is what there is
            more, the most in the other what there is less.
        up, down: of several policies the one that allows most decides.
    """

    target: float
    least: int
    most: int
    tolerance: float = 0.1
    up_window: float = 0.0
    down_window: float = 300.0
    up: tuple[Policy, ...] = (Policy("percent", 100, 15), Policy("pods", 4, 15))
    down: tuple[Policy, ...] = (Policy("percent", 100, 15),)

    def faster(self, factor: float) -> "Rules":
        """The same with all times divided by `factor`."""
        up, down = (
            tuple(each._replace(period=each.period / factor) for each in policies)
            for policies in (self.up, self.down)
        )
        return Rules(
            target=self.target,
            least=self.least,
            most=self.most,
            tolerance=self.tolerance,
            up_window=self.up_window / factor,
            down_window=self.down_window / factor,
            up=up,
            down=down,
        )


class Autoscaler:
    """Decides by what instances say of themselves."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._recommended: deque[tuple[float, int]] = deque()
        self._changes: deque[tuple[float, int]] = deque()

    def decide(self, now: float, current: int, metric: float) -> int:
        """The number of instances from now on.

        Args:
            now: seconds, by a clock that never goes back.
            current: how many there are; those that only start are among them, those that drain
                aren't.
            metric: the sum over all of them; one that only starts has 0.
        """
        rules = self._rules
        desired = self._stable(now, current, self._proportional(current, metric))
        if desired > current:
            desired = min(desired, self._limit(now, current, rules.up, 1))
        elif desired < current:
            desired = max(desired, self._limit(now, current, rules.down, -1))
        desired = min(max(desired, rules.least), rules.most)
        if desired != current:
            self._changes.append((now, desired - current))
        return desired

    def _proportional(self, current: int, metric: float) -> int:
        # desiredReplicas = ceil[currentReplicas * (currentMetricValue / desiredMetricValue)]
        ratio = metric / current / self._rules.target
        if abs(ratio - 1) <= self._rules.tolerance:
            return current
        # What 0.1 + 0.2 is more than 0.3 makes no instance.
        return min(max(ceil(current * ratio - 1e-9), self._rules.least), self._rules.most)

    def _stable(self, now: float, current: int, recommended: int) -> int:
        rules, kept = self._rules, self._recommended
        kept.append((now, recommended))
        while now - kept[0][0] > max(rules.up_window, rules.down_window):
            kept.popleft()
        most = max(n for at, n in kept if now - at <= rules.down_window)
        least = min(n for at, n in kept if now - at <= rules.up_window)
        return min(max(current, least), most)

    def _limit(self, now: float, current: int, policies: tuple[Policy, ...], sign: int) -> int:
        """How far it may go, upwards or downwards."""
        limits = []
        for kind, value, period in policies:
            changed = sum(
                n for at, n in self._changes if now - at < period and (n > 0) == (sign > 0)
            )
            before = current - changed
            if kind == "pods":
                limits.append(before + sign * value)
            elif sign > 0:
                limits.append(ceil(before * (1 + value / 100)))
            else:
                limits.append(floor(before * (1 - value / 100)))
        longest = max(each.period for each in (*self._rules.up, *self._rules.down))
        while self._changes and now - self._changes[0][0] > longest:
            self._changes.popleft()
        return max(limits) if sign > 0 else min(limits)
