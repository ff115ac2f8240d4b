"""`python -m tests.interop`: try all clients, or those that are named, and print the table; with
`--write` put it into docs/clients.md.
"""

import asyncio
import sys
import time

from tests.interop.programs import build
from tests.interop.registry import REGISTRY
from tests.interop.report import table, write
from tests.interop.scenario import try_all


def main(arguments: list[str]) -> None:
    names = [each for each in arguments if each != "--write"]
    clients = [each for each in REGISTRY if not names or each.name in names]
    build({each.kind for each in clients})
    began = time.monotonic()
    outcomes, trials = asyncio.run(try_all(clients))
    text = table(clients, outcomes)
    sys.stderr.write("".join(f"{each}\n" for each in trials))
    sys.stderr.write(f"{time.monotonic() - began:.0f} seconds\n")
    if "--write" in arguments:
        assert not names, "the page has all of them"
        write(text)
    sys.stdout.write(text + "\n")


main(sys.argv[1:])
