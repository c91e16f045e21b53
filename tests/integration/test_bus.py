"""The bus between real workers of every class."""

import pytest

from tests.integration.gossip import Gossip, Start, StartGossip, in_order
from tests.integration.site import StartSite

STICKY = "gunicorn_cluster_ext.Sticky"
KINDS = [STICKY, "gthread", "sync", "gevent", "asgi"]
#: Small and large ones mix.
SIZES = (0, 300_000, 1, 60_000, 1_000, 70_000, 20)


@pytest.fixture
def start(site: StartSite) -> Start:
    return StartGossip(site)


@pytest.fixture(params=KINDS)
def gossip(request: pytest.FixtureRequest, start: Start) -> Gossip:
    return start(request.param, workers=4)


def test_every_message_comes_to_every_other_worker_once_and_in_order(gossip: Gossip) -> None:
    sizes, threads = ",".join(map(str, SIZES)), 3
    for pid in gossip.pids:
        told = gossip.ask(pid, "tell", sizes=sizes, threads=threads, count=70)
        assert {count for sent in told["sent"].values() for count in sent} == {3}
    for pid in gossip.pids:
        heard = gossip.wait_heard(pid, 3 * threads * 70)
        assert all(message.whole for message in heard)
        assert {message.size for message in heard} == set(SIZES)
        others = {(other, n) for other in gossip.pids if other != pid for n in range(threads)}
        assert in_order(heard) == {sender: list(range(70)) for sender in others}
    assert gossip.view.total("bus_sent") == gossip.view.total("bus_received") == 4 * 9 * 70
    assert gossip.view.total("bus_lost") == 0
