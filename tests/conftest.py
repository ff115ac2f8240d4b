"""What every test shares: async tests run on asyncio, the loop that the domain is written for."""

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
