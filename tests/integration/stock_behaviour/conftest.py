"""What gunicorn's own workers do, Sticky and StickyGevent do too, also with a request handed over.

Each test runs five times: on gthread; on Sticky and StickyGevent; and on these with every request
sent to a worker that does not have its connection, so that it must be handed over.
"""

from collections.abc import Iterator

import pytest

from tests.harness.programs import Programs
from tests.harness.servers.stock import ARGS, MODES, Subject, subject_of


@pytest.fixture(scope="package", params=MODES, ids=str)
def shared_subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """One server of each mode, for the tests that leave it as it was."""
    programs = Programs()
    try:
        server = programs.gunicorn("misbehaving:app", "-k", request.param.kind, *ARGS, wait=False)
        yield subject_of(server, request.param)
    finally:
        programs.close()


@pytest.fixture
def subject(shared_subject: Subject) -> Iterator[Subject]:
    """A shared server, which must be unharmed afterwards, and must have handed over if it is to."""
    server, view = shared_subject.server, shared_subject.view
    pids = server.worker_pids()
    before = view.total("handed_in") if view else 0
    yield shared_subject
    assert server.worker_pids() == pids
    assert server.get("/").status == 200
    if view and shared_subject.mode.hands_over:
        assert view.total("handed_in") > before
