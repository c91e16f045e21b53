"""The proxies' configurations in docs/operations.md work, in front of a real server."""

import re
from pathlib import Path

import pytest

from tests.harness.programs import StartGunicorn, StartHaproxy, StartNginx
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.servers.haproxy import Haproxy
from tests.harness.servers.nginx import Nginx

pytestmark = pytest.mark.one_gunicorn

DOCUMENT = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


def block(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)
    return str(text)


@pytest.fixture
def server(gunicorn: StartGunicorn) -> Gunicorn:
    config = "cluster_sticky = ['cookie', 'hash:ip']\nkeepalive = 75\n"
    kind = ("-k", "gunicorn_cluster_ext.Sticky")
    return gunicorn("whoami:app", *kind, "-w", "3", config=config, serving=3)


def check(proxy: Nginx | Haproxy) -> None:
    """Requests reach the worker that they name, and say who asked."""
    ports = set()
    for _ in range(4):
        for slot in (0, 1, 2):
            with proxy.connect() as browser:
                who = browser.get("/", Cookie=f"gunicorn_worker={slot}").json()
            assert who["worker"] == slot
            ports.add(who["client_port"])
            assert who["headers"]["X-Forwarded-Proto"] == "http"
            assert who["headers"]["X-Forwarded-For"] == "127.0.0.1"
    assert len(ports) < 12, "connections to gunicorn are kept"


def test_nginx(server: Gunicorn, nginx: StartNginx) -> None:
    text = block("nginx").replace("listen 80;", "LISTEN")
    check(nginx(text.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")))


def test_haproxy(server: Gunicorn, haproxy: StartHaproxy) -> None:
    text = block("haproxy").replace("bind :80", "BIND")
    check(haproxy(text.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")))
