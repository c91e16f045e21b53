"""One kept-alive connection that carries many clients, as a reverse proxy's does."""

import pytest

from tests.harness.clients.connection import request_bytes
from tests.harness.clients.jars import fill_jars
from tests.harness.programs import StartGunicorn

pytestmark = pytest.mark.one_gunicorn

JARS = 12
ROUNDS = 5


def test_every_request_reaches_the_worker_of_its_jar(gunicorn: StartGunicorn) -> None:
    server = gunicorn("whoami:app", "-k", "gunicorn_cluster_ext.Sticky", "-w", "4", serving=4)
    jars = fill_jars(server.connect, JARS, workers=3)
    assert len({worker for worker, _ in jars}) >= 3
    with server.connect() as connection:
        for turn in range(ROUNDS):
            for worker, cookie in jars:
                answer = connection.get(f"/{turn}", cookie=cookie)
                who = answer.json()
                assert (who["worker"], who["path"]) == (worker, f"/{turn}")
                assert who["headers"]["Cookie"] == cookie
                # Its cookie is right, so it is not set again.
                assert answer.cookies() == {}


def test_pipelined_requests_are_answered_in_order_by_their_workers(
    gunicorn: StartGunicorn,
) -> None:
    server = gunicorn("whoami:app", "-k", "gunicorn_cluster_ext.Sticky", "-w", "4", serving=4)
    jars = fill_jars(server.connect, JARS, workers=3)
    with server.connect() as connection:
        heads = [
            request_bytes("GET", f"/{number}", {"Cookie": cookie})
            for number, (_, cookie) in enumerate(jars)
        ]
        connection.send(b"".join(heads))
        answers = [connection.answer().json() for _ in jars]
    assert [who["path"] for who in answers] == [f"/{number}" for number in range(JARS)]
    assert [who["worker"] for who in answers] == [worker for worker, _ in jars]


def test_stock_gthread_cannot(gunicorn: StartGunicorn) -> None:
    """One connection stays with one process there, whatever it carries."""
    server = gunicorn("whoami:app", "-k", "gthread", "-w", "4", serving=4)
    with server.connect() as connection:
        assert len({connection.get("/", cookie=f"jar={n}").json()["pid"] for n in range(12)}) == 1
