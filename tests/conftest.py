"""What every test shares: async tests run on asyncio, the loop that the domain is written for."""

import hypothesis.core
import hypothesis.vendor.pretty
import pytest

# Schemathesis has it print nothing, for its own speed; but a property that fails has to tell with
# what.
hypothesis.core.RepresentationPrinter = hypothesis.vendor.pretty.RepresentationPrinter  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
