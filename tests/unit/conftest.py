"""The profile of the property tests, and fixtures that several modules use."""

import pytest
from hypothesis import HealthCheck, settings

from tests.harness.fakes.store import MemoryStore, MemoryStores

# No test depends on the time that it takes: machines are busy.

settings.register_profile(
    "unit",
    deadline=None,
    max_examples=100,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("unit")


@pytest.fixture
def stores() -> MemoryStores:
    return MemoryStores()


@pytest.fixture
def memory(stores: MemoryStores) -> MemoryStore:
    return stores.memory
