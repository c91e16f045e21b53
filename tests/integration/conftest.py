"""Fixtures of servers that share a store."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.programs import Programs
from tests.harness.servers.store_site import StoreSite

STORES = ["embedded", "redis"]


@pytest.fixture(params=STORES)
def store_site(request: Any, programs: Programs) -> StoreSite:
    return StoreSite(programs, programs.redis() if request.param == "redis" else None)


@pytest.fixture(scope="module", params=STORES)
def _module_store_site(request: Any, module_programs: Programs) -> StoreSite:
    redis = module_programs.redis() if request.param == "redis" else None
    return StoreSite(module_programs, redis, shared=True)


@pytest.fixture
def shared_store_site(_module_store_site: StoreSite) -> Iterator[StoreSite]:
    """Like `store_site`, but the module's tests share the servers; each finds an empty store."""
    yield _module_store_site
    _module_store_site.stores.store.clear(b"")
    _module_store_site.shared.check_unharmed()
