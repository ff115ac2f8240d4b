"""`make fuzz`: texts that try the parsers, for as long as somebody likes.

Each target has its share of the time. It is given examples in rounds; a round's seed decides them
all."""

import argparse
import sys
import time
import traceback

from tests.fuzz.targets import TARGETS, fuzz

ROUND = 500  # examples


def play(name: str, number: int, seconds: float) -> bool:
    """Fuzz one target from a seed on; whether all went well."""
    until = time.monotonic() + seconds
    first, examples, accepted = number, 0, 0
    while True:
        try:
            tally = fuzz(TARGETS[name], number, ROUND)
        except Exception as error:
            print(f"{name}: seed {number} fails, after {examples} examples that didn't:")
            traceback.print_exception(error, limit=-4, file=sys.stdout)
            print(f"to see it again: make fuzz TARGET={name} SEED={number} SECONDS=1")
            return False
        examples += tally.examples
        accepted += tally.accepted
        if time.monotonic() >= until:
            break
        number += 1
    print(
        f"{name}: seeds {first} to {number}, {examples} examples, {accepted} of them accepted",
        flush=True,
    )
    return True


def main() -> int:
    """Fuzz for the time that is given; 1 where something has failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", choices=["", *TARGETS], default="")
    options = parser.parse_args()
    names = [options.target] if options.target else list(TARGETS)
    went_well = [play(name, options.seed, options.seconds / len(names)) for name in names]
    return 0 if all(went_well) else 1


if __name__ == "__main__":
    sys.exit(main())
