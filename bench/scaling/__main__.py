"""`python -m bench.scaling`: does an autoscaled service lose anything, and how long is it out of
balance?

Exits with 1 when a message was lost or came twice, or a proxy answered 5xx. No speed is asserted.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

from bench.__main__ import open_files
from bench.report import about, number, print_about, say, write_json
from bench.scaling.curves import draw_balance, draw_run
from bench.scaling.fleet import NoProxy
from bench.scaling.run import BALANCED, Outcome, Scenario, play

SCENARIOS = (
    Scenario(balancing="round_robin"),
    Scenario(balancing="least_conn"),
    Scenario(balancing="round_robin", rebalance=30),
    Scenario(balancing="least_conn", rebalance=30),
)
_QUICK = {
    "least": 20,
    "most": 400,
    "ramp": 10.0,
    "hold": 12.0,
    "fall": 20.0,
    "target": 100,
    "limit": 200,
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.scaling",
        description="Ramp streams up and down before an autoscaler; count what is lost.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer streams, a minute a scenario")
    parser.add_argument(
        "--scenarios", default="1,2,3,4", help="which, by number (default: 1,2,3,4, about 20 min)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    parser.add_argument("--curves", type=Path, metavar="DIRECTORY", help="draw the curves there")
    options = parser.parse_args(arguments)
    try:
        options.scenarios = [SCENARIOS[int(each) - 1] for each in options.scenarios.split(",")]
    except (ValueError, IndexError):
        parser.error(f"--scenarios takes numbers from 1 to {len(SCENARIOS)}, separated by commas")
    if options.quick:
        options.scenarios = [quick(each) for each in options.scenarios]
    return options


def quick(scenario: Scenario) -> Scenario:
    """The same with fewer streams, and in less time."""
    rebalance = 10 if scenario.rebalance else 0
    return Scenario(balancing=scenario.balancing, rebalance=rebalance, **_QUICK)  # type: ignore[arg-type]


def print_outcomes(outcomes: list[Outcome]) -> None:
    """A column for each run."""
    width = max(14, *(len(each.scenario.name) + 2 for each in outcomes))

    def row(name: str, *values: str) -> None:
        print(f"{name:44}" + "".join(f"{each:>{width}}" for each in values))

    def seconds(value: float | None) -> str:
        return "not reached" if value is None else number(value, "s")

    row("", *(each.scenario.name for each in outcomes))
    row("messages published", *(number(each.counts["published"], digits=0) for each in outcomes))
    row("deliveries", *(number(each.counts["received"], digits=0) for each in outcomes))
    row("lost, or a gap told", *(str(each.lost) for each in outcomes))
    row("doubled", *(str(each.doubled) for each in outcomes))
    row("5xx of the proxy", *(str(each.bad_gateways) for each in outcomes))
    row("publishes answered 503", *(str(each.counts["publish 503"]) for each in outcomes))
    row("streams told `overload`", *(str(each.overloads) for each in outcomes))
    row("instances, at most", *(str(each.most_instances) for each in outcomes))
    row("drains; exits other than 0", *(_exits(each) for each in outcomes))
    row("reconnects", *(number(each.counts["reopened"], digits=0) for each in outcomes))
    row(
        "reconnects a second, at most",
        *(number(max(n for _, n in each.reconnects()), digits=0) for each in outcomes),
    )
    row(
        "max/mean at the end of the plateau",
        *(number(each.held_imbalance(), digits=2) for each in outcomes),
    )
    row(f"last scale-out to max/mean {BALANCED}", *(seconds(_last(each)) for each in outcomes))


def _exits(outcome: Outcome) -> str:
    bad = sum(each != 0 for each in outcome.statuses)
    return f"{len(outcome.statuses)}; {bad}"


def _last(outcome: Outcome) -> float | None:
    times = outcome.balancing_times()
    return times[-1] if times else None


def main() -> int:
    """Run, print, draw; the exit code tells whether anything was lost."""
    options = parse()
    open_files()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began = time.monotonic()
    outcomes: list[Outcome] = []
    try:
        for scenario in options.scenarios:
            say(f"{scenario.name} ...")
            outcomes.append(play(scenario))
    except NoProxy as error:
        say(f"python -m bench.scaling: error: {error}")
        return 2
    on = about() | {"command": " ".join(["python -m bench.scaling", *sys.argv[1:]])}
    print_about(on)
    print_outcomes(outcomes)
    print(f"\nover Redis: {outcomes[0].redis}; {time.monotonic() - began:.0f} s")
    if options.json:
        write_json(options.json, on | {"runs": [each.content() for each in outcomes]})
    if options.curves:
        draw_balance(outcomes, options.curves / "scaling-balance.svg")
        draw_run(outcomes[-1], options.curves / "scaling-run.svg")
    return 1 if any(each.lost or each.doubled or each.bad_gateways for each in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
