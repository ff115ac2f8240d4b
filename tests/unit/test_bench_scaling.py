"""The bench's autoscaler decides as the documentation of Kubernetes says, and its streams ramp."""

from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench.scaling.__main__ import parse, print_outcomes
from bench.scaling.autoscaler import Autoscaler, Policy, Rules
from bench.scaling.curves import draw_balance, draw_run
from bench.scaling.run import Outcome, Sample, Scenario

AT_ONCE = (Policy("percent", 1000, 15),)


def rules(**changes: object) -> Rules:
    usual = {"target": 100.0, "least": 1, "most": 100, "down_window": 0.0, "up": AT_ONCE}
    return Rules(**(usual | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("current", "metric", "desired"),
    [
        # The documentation's own: twice the target doubles, half of it halves.
        (2, 400, 4),
        (4, 200, 2),
        (3, 301, 3),
        (3, 329, 3),
        (3, 331, 4),
        (10, 911, 10),
        (10, 890, 9),
        (1, 0, 1),
        (5, 100_000, 55),
    ],
)
def test_the_number_follows_the_ratio_outside_the_tolerance(
    current: int, metric: float, desired: int
) -> None:
    assert Autoscaler(rules()).decide(0, current, metric) == desired


def test_the_limits_hold() -> None:
    autoscaler = Autoscaler(rules(least=2, most=6))
    assert autoscaler.decide(0, 4, 4000) == 6
    assert autoscaler.decide(15, 6, 0) == 2


def test_it_grows_by_the_policy_that_allows_most_within_its_period() -> None:
    autoscaler = Autoscaler(rules(up=(Policy("percent", 100, 30), Policy("pods", 2, 30))))
    assert autoscaler.decide(0, 1, 5000) == 3
    assert autoscaler.decide(15, 3, 5000) == 3, "two within 30 seconds"
    assert autoscaler.decide(30, 3, 5000) == 6
    assert autoscaler.decide(45, 6, 5000) == 6
    assert autoscaler.decide(60, 6, 5000) == 12


def test_it_shrinks_only_to_the_most_of_its_window_and_one_at_a_time() -> None:
    autoscaler = Autoscaler(rules(down_window=300.0, down=(Policy("pods", 1, 120),)))
    assert autoscaler.decide(0, 5, 500) == 5
    numbers, current = [], 5
    for second in range(15, 700, 15):
        current = autoscaler.decide(second, current, 50)
        numbers.append((second, current))
    assert next(second for second, n in numbers if n < 5) == 315
    changes = [b[0] for a, b in pairwise(numbers) if b[1] < a[1]]
    assert changes == [315, 435, 555, 675]


def test_a_dip_within_the_window_costs_no_instance() -> None:
    autoscaler = Autoscaler(rules(down_window=300.0))
    assert [autoscaler.decide(15 * n, 4, 40 if n % 10 else 400) for n in range(60)] == [4] * 60


def test_all_its_times_are_compressed_alike() -> None:
    faster = Scenario().rules()
    assert (faster.down_window, faster.down) == (30.0, (Policy("pods", 1, 12),))
    assert faster.up == (Policy("percent", 100, 3), Policy("pods", 2, 3))
    assert faster.tolerance == 0.1


def test_streams_ramp_up_stay_and_go() -> None:
    scenario = Scenario(least=50, most=3050, ramp=10, hold=5, fall=30)
    moments = (0, 5, 10, 14, 15, 30, 45, 99)
    assert [scenario.streams(at) for at in moments] == [50, 1550, 3050, 3050, 3050, 1550, 50, 50]


def outcome(*numbers: tuple[int, ...]) -> Outcome:
    """A run whose instances had so many streams, every half second."""
    made = Outcome(Scenario(ramp=2, hold=2, fall=2))
    for n, each in enumerate(numbers):
        streams = {f"instance {number}": value for number, value in enumerate(each, 1)}
        made.samples.append(Sample(n / 2, sum(each), streams, {}, len(each), {"reopened": n * 5}))
    return made


def test_time_to_balance_is_counted_from_when_an_instance_takes_streams() -> None:
    run = outcome((200,), (200, 0), (180, 20), (150, 50), (115, 85), (100, 100), (90, 90))
    run.joined = [0.5]
    assert run.balancing_times() == [1.5]
    assert run.held_imbalance() == 1.0
    assert max(n for _, n in run.reconnects()) == 10


def test_balance_that_is_never_reached_is_said_to_be_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = outcome((200,), (200, 0), *[(150, 50)] * 8)
    run.joined = [0.5]
    run.counts.update({"stream 503": 1, "publish 502": 2, "publish 503": 4, "gaps": 1})
    assert run.balancing_times() == [None]
    assert (run.bad_gateways, run.lost) == (3, 1)
    print_outcomes([run])
    assert "not reached" in capsys.readouterr().out


def test_the_curves_are_well_formed(tmp_path: Path) -> None:
    run = outcome((200,), (200, 0), (180, 20), (150, 50))
    draw_run(run, tmp_path / "run.svg")
    draw_balance([run, run], tmp_path / "balance.svg")
    for name in ("run", "balance"):
        text = (tmp_path / f"{name}.svg").read_text()
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert "prefers-color-scheme: dark" in text


def test_scenarios_are_chosen_by_number(capsys: pytest.CaptureFixture[str]) -> None:
    (chosen,) = parse(["--scenarios", "4", "--quick"]).scenarios
    assert (chosen.balancing, chosen.rebalance, chosen.most) == ("least_conn", 10, 400)
    with pytest.raises(SystemExit):
        parse(["--scenarios", "5"])
    assert "--scenarios takes numbers from 1 to 4" in capsys.readouterr().err
