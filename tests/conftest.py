"""What every test shares: async tests run on asyncio, the loop that the domain is written for."""

import signal

import hypothesis.core
import hypothesis.vendor.pretty
import pytest

# Who starts the tests in the background, or by nohup, has them ignore these, and all that they
# start. A handler isn't passed on.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)

# Schemathesis has it print nothing, for its own speed; but a property that fails has to tell with
# what.
hypothesis.core.RepresentationPrinter = hypothesis.vendor.pretty.RepresentationPrinter  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
