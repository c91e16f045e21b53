"""Fixtures for tests of what a server does over time."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import StartGunicorn
from tests.harness.servers.site import StartSite


@pytest.fixture
def site(gunicorn: StartGunicorn, new_directory: Callable[[], Path], kind: str) -> StartSite:
    """Starts a server of three workers (see Site), and waits until all serve."""
    return StartSite(gunicorn, new_directory, kind)
