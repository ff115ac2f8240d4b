"""Clients of others do what docs/clients.md says of them, each with its workaround: nothing is lost
and nothing doubled.
"""

import asyncio
import os

import pytest

from tests.interop.programs import build, missing
from tests.interop.registry import REGISTRY
from tests.interop.report import row, written
from tests.interop.scenario import try_all


@pytest.mark.long
def test_clients_of_others_do_what_the_page_says() -> None:
    lacking = {each.kind: missing(each.kind) for each in REGISTRY}
    assert not os.environ.get("CI") or not any(lacking.values()), lacking
    clients = [each for each in REGISTRY if not lacking[each.kind]]
    build({each.kind for each in clients})

    outcomes, trials = asyncio.run(try_all(clients))

    page = written().splitlines()
    wrong = [line for line in map(row, clients, outcomes) if line not in page]
    seen = "\n".join(map(str, trials))
    assert not wrong, f"`python -m tests.interop --write` writes the page anew\n{seen}"
    assert len(page) == len(REGISTRY) + 2, "the page has a client that isn't in the registry"
