"""What tests on real servers share."""

import pytest

from msgpush.domain import delivery


@pytest.fixture
def probe_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second probe would complete what a test leaves halfway."""
    monkeypatch.setattr(delivery, "PROBE_INTERVAL", 3600)
