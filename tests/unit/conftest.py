from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, settings

from .clock import Passed, hurry

# No time limit for one example: a busy machine is not a failure.
settings.register_profile("openline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("openline")


@pytest.fixture
async def hurried() -> AsyncIterator[Passed]:
    """Nothing in this test waits for time to pass; a function: how much has passed."""
    with hurry() as passed:
        yield passed
