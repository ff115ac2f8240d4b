"""`python -m bench`: measure the service beside floors, or against another version of it.

Exits with 1 when a message was lost, came twice or was refused: then the figures mean nothing. No
speed is asserted."""

import argparse
import resource
import signal
import sys
import time
from pathlib import Path

from bench.against import (
    COMPARABLE,
    BadRevision,
    checked_out,
    compare,
    current,
    expected_seconds,
)
from bench.parts import PARTS, Bench, Plan
from bench.report import about, content, print_table, say, write_json

_LETTERS = frozenset("".join(part.letters for part in PARTS))
_COMPARED = frozenset("ade")
_SPARE_FILES = 200  # what a process opens beside its streams


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure msgpush beside bare floors, or against another version of it.",
    )
    parser.add_argument(
        "--parts",
        help="parts to measure, as in a,b (default: all; with --against: a,d,e)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        help="how long each throughput is measured (default: 5; with --against: 3; quick: 1)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    parser.add_argument(
        "--quick", action="store_true", help="fewer streams, about 40 s: does it run?"
    )
    parser.add_argument(
        "--against",
        metavar="REV",
        help="a git revision: run its service and this tree's in turn, and compare the two",
    )
    parser.add_argument("--rounds", type=int, help="how often both run (default: 5)")
    options = parser.parse_args(arguments)

    compared = options.against is not None
    if options.parts is None:
        options.parts = _COMPARED if compared else _LETTERS
    else:
        options.parts = frozenset(filter(None, options.parts.replace(" ", "").split(",")))
    if not options.parts or options.parts - _LETTERS:
        parser.error(
            f"--parts takes letters from {min(_LETTERS)} to {max(_LETTERS)}, separated by commas"
        )
    if compared and (alone := options.parts - COMPARABLE):
        parser.error(f"--parts: {', '.join(sorted(alone))} can't be compared: no server runs there")
    if options.seconds is None:
        options.seconds = 1.0 if options.quick else 3.0 if compared else 5.0
    if not 0 < options.seconds <= 600:
        parser.error("--seconds takes a number up to 600")
    if options.rounds is None:
        options.rounds = 5
    elif not compared:
        parser.error("--rounds goes with --against")
    if not 1 <= options.rounds <= 100:
        parser.error("--rounds takes a number from 1 to 100")
    return options


def planned(options: argparse.Namespace, files: int) -> Plan:
    """The plan that the options ask for, as far as the open files go."""
    streams, idle, rounds = (200, 1_000, 5) if options.quick else (1_000, 10_000, 20)
    most = max(1, files - _SPARE_FILES)
    return Plan(
        parts=options.parts,
        seconds=options.seconds,
        streams=min(streams, most),
        idle_streams=min(idle, most),
        rounds=rounds,
        turns=1 if options.quick else 3,
        note=f"fewer streams than usual: this system lets a process open {files:,} files"
        if idle > most
        else "",
    )


def open_files() -> int:
    """Raise the limit of open files as far as it goes, for this process and all that it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def run(plan: Plan, json: Path | None) -> bool:
    """Measure beside the floors, and print; False: the figures can't be believed."""
    began = time.monotonic()
    report = Bench(plan).run()
    on = about()
    print_table(on, report, time.monotonic() - began)
    if json:
        write_json(json, content(on, report))
    return not report.faults


def run_against(revision: str, plan: Plan, rounds: int, json: Path | None) -> bool:
    """Measure against a revision, and print; False: the figures can't be believed."""
    began = time.monotonic()
    this = current()
    with checked_out(revision) as other:
        minutes = expected_seconds(plan, rounds) / 60
        say(f"{this.name} against {other.name}, rounds: {rounds}, minutes: about {minutes:.1f}")
        result = compare(this, other, plan, rounds)
    on = about()
    result.print(on, time.monotonic() - began)
    if json:
        write_json(json, result.content(on))
    return not result.faults


def main() -> int:
    """Measure, print, and tell by the exit code whether the figures can be believed."""
    options = parse()
    plan = planned(options, open_files())
    # So that what was started ends, and what was checked out goes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if options.against is None:
            believed = run(plan, options.json)
        else:
            believed = run_against(options.against, plan, options.rounds, options.json)
    except BadRevision as error:
        say(f"python -m bench: error: --against: {error}")
        return 2
    except KeyboardInterrupt:
        say("interrupted")
        return 128 + signal.SIGINT
    return 0 if believed else 1


if __name__ == "__main__":
    sys.exit(main())
