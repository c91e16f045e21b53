"""HTTP/2, over TLS and without, on the worker classes that have gunicorn's own way with it.

Its requests cannot be routed each by itself: a connection stays with the worker that it came to,
or that `hash:ip` names.
"""

import asyncio
import signal
import ssl
from pathlib import Path
from typing import Any

import gunicorn as stock
import httpx
import pytest

from gunicorn_cluster_ext.routing.rules import rendezvous
from gunicorn_cluster_ext.runtime.board.layout import State
from tests.harness.clients.upgraded import Upgraded
from tests.harness.programs import StartGunicorn
from tests.harness.servers.certificate import Certificate
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.view import ASGI, GEVENT, PATIENCE_S, STICKY, View
from tests.harness.waiting import wait_until

KINDS = [STICKY, GEVENT, ASGI]
WORKERS = 3
STREAMS = 24
#: gunicorn has HTTP/2 without TLS from then on.
CLEARTEXT = stock.version_info >= (26, 2)


class Served:
    """A server, and clients for it."""

    def __init__(self, server: Gunicorn, certificate: Certificate | None) -> None:
        self.server, self.view = server, View(server)
        self.view.wait_slots(WORKERS)
        self._certificate = certificate
        self.scheme = "https" if certificate else "http"

    def client(self) -> httpx.AsyncClient:
        trusted: Any = True
        if self._certificate:
            trusted = ssl.create_default_context(cafile=str(self._certificate.path))
        url = f"{self.scheme}://127.0.0.1:{self.server.port}"
        # Without TLS, one that knows.
        known = self._certificate is not None
        return httpx.AsyncClient(
            base_url=url, verify=trusted, http1=known, http2=True, timeout=PATIENCE_S
        )


def ways() -> list[str]:
    return ["tls", "cleartext"] if CLEARTEXT else ["tls"]


@pytest.fixture(params=[(kind, way) for kind in KINDS for way in ways()], ids="-".join)
def served(
    request: pytest.FixtureRequest, gunicorn: StartGunicorn, certificate: Certificate
) -> Served:
    kind, way = request.param
    args = ["-k", kind, "-w", str(WORKERS), "--http-protocols", "h2,h1", "--keep-alive", "20"]
    if way == "tls":
        args += certificate.gunicorn_options
    else:
        args += ["--http2-cleartext", "prior-knowledge"]
    config = "cluster_sticky = ['hash:ip']\ncluster_roll_surge = '100%'\n"
    server = gunicorn("whoami:app", *args, config=config, wait=False)
    return Served(server, certificate if way == "tls" else None)


async def ask(client: httpx.AsyncClient, target: str, **options: Any) -> dict[str, Any]:
    answer = await client.get(target, **options)
    assert (answer.status_code, answer.http_version) == (200, "HTTP/2"), answer
    found: dict[str, Any] = answer.json()
    return found


def test_all_streams_go_to_one_worker(served: Served) -> None:
    """Whichever worker accepts their connections."""

    async def talk() -> set[int]:
        async with served.client() as client:
            await ask(client, "/")
            asked = [ask(client, f"/?sleep=0.05&number={i}") for i in range(STREAMS)]
            answers = await asyncio.gather(*asked)
        numbers = [answer["query"].partition("number=")[2] for answer in answers]
        assert numbers == [str(i) for i in range(STREAMS)]
        assert {answer["scheme"] for answer in answers} == {served.scheme}
        return {answer["worker"] for answer in answers}

    async def talk_at_once() -> list[set[int]]:
        return await asyncio.gather(*(talk() for _ in range(6)))

    def is_handed_over() -> bool:
        assert asyncio.run(talk_at_once()) == [{owner}] * 6
        return served.view.total("handed_in") > 0

    owner = rendezvous(b"127.0.0.1", range(WORKERS))
    wait_until(is_handed_over, PATIENCE_S, "a connection that another worker accepts")
    wait_until(lambda: served.view.total("connections") == 0, PATIENCE_S, "no connections")
    served.server.stop()
    assert "Traceback" not in served.server.log_text()


def test_a_roll_lets_streams_end(served: Served, tmp_path: Path) -> None:
    until = tmp_path / "until"

    def is_draining() -> bool:
        return State.DRAINING in {row.state for row in served.view.rows}

    async def talk() -> tuple[dict[str, Any], dict[str, Any]]:
        async with served.client() as client:
            before = await ask(client, "/")
            long = asyncio.ensure_future(ask(client, f"/?until={until}"))
            await asyncio.to_thread(wait_until, until.exists, PATIENCE_S, "a stream")
            try:
                served.server.signal(signal.SIGHUP)
                await asyncio.to_thread(served.view.wait_roll, 1)
                await asyncio.to_thread(wait_until, is_draining, PATIENCE_S, "who drains")
            finally:
                until.unlink()
            assert (await long)["pid"] == before["pid"]
        async with served.client() as client:
            return before, await ask(client, "/")

    before, after = asyncio.run(talk())
    served.view.wait_slots(WORKERS, generation=2)
    assert before["worker"] == after["worker"]
    assert before["pid"] != after["pid"]
    served.server.stop()
    assert "Traceback" not in served.server.log_text()


@pytest.mark.skipif(not CLEARTEXT, reason="gunicorn before 26.2 has no HTTP/2 without TLS")
@pytest.mark.parametrize("kind", KINDS)
def test_an_upgrade_is_routed_by_its_head(gunicorn: StartGunicorn, kind: str) -> None:
    """It is a request of HTTP/1, so all rules work; what follows stays there."""
    args = ("-w", str(WORKERS), "--http-protocols", "h2,h1", "--http2-cleartext", "upgrade")
    server = gunicorn("whoami:app", "-k", kind, *args, wait=False)
    view = View(server)
    view.wait_slots(WORKERS)

    def is_handed_over() -> bool:
        for slot in (0, 0, 1, 1, 2, 2):  # workers may accept in turn
            with server.connect(timeout=PATIENCE_S) as connection:
                upgraded = Upgraded(connection, {"Cookie": f"gunicorn_worker={slot}"})
                answers = [upgraded.answer(1), upgraded.get("/second"), upgraded.get("/third")]
                assert [answer.count(b'"worker": %d,' % slot) for answer in answers] == [1, 1, 1]
        return view.total("handed_in") > 0

    wait_until(is_handed_over, PATIENCE_S, "a connection that another worker accepts")
    server.stop()
    assert "Traceback" not in server.log_text()
