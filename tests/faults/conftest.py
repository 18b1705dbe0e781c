import os
from collections.abc import Iterator

import pytest

from openline.testing.lab.netns import Feature, TwoHosts, availability


def require_lab(feature: Feature = "hosts") -> None:
    """Skip where the lab cannot be had, but fail where somebody counts on it."""
    if here := availability(feature):
        return
    if os.environ.get("OPENLINE_REQUIRE_FAULTS") == "1":
        pytest.fail(f"OPENLINE_REQUIRE_FAULTS=1, but: {here.reason}")
    pytest.skip(here.reason)


@pytest.fixture
def lab() -> Iterator[TwoHosts]:
    require_lab()
    with TwoHosts() as hosts:
        yield hosts
