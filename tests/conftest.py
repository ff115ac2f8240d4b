"""What every test shares: async tests run on asyncio, the loop that the domain is written for."""

import signal

import hypothesis.core
import hypothesis.vendor.pretty
import pytest

# A shell that starts the tests in the background has them ignore SIGINT, and all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Schemathesis has it print nothing, for its own speed; but a property that fails has to tell with
# what.
hypothesis.core.RepresentationPrinter = hypothesis.vendor.pretty.RepresentationPrinter  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
