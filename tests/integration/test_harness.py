"""The harness itself, on stock gunicorn: what it promises to every other test."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.process import Process
from tests.harness.processes import session
from tests.harness.programs import StartGunicorn, StartHaproxy, StartNginx, StartRedis
from tests.harness.servers.haproxy import Haproxy
from tests.harness.servers.nginx import Nginx
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn


def test_a_server_answers_and_names_its_workers(gunicorn: StartGunicorn) -> None:
    server = gunicorn("whoami:app", "-w", "2", "-k", "gthread")
    wait_until(lambda: len(server.worker_pids()) == 2, 10, "two workers")
    answer = server.get("/path?a=1", x_key="v").json()
    assert answer["pid"] in server.worker_pids()
    assert (answer["path"], answer["query"]) == ("/path", "a=1")
    assert answer["headers"]["X-Key"] == "v"


def test_a_unix_socket(gunicorn: StartGunicorn, new_directory: Callable[[], Path]) -> None:
    path = new_directory() / "app.sock"
    server = gunicorn("whoami:app", bind=f"unix:{path}")
    assert server.address == str(path)
    assert server.get("/").status == 200


def test_a_config_file_and_environment(gunicorn: StartGunicorn) -> None:
    server = gunicorn(
        "whoami:app", config="import os\nworkers = int(os.environ['N'])", env={"N": "3"}
    )
    wait_until(lambda: len(server.worker_pids()) == 3, 10, "three workers")


def test_one_connection_carries_many_requests(gunicorn: StartGunicorn) -> None:
    server = gunicorn("echo:app", "-k", "gthread")
    with server.connect() as connection:
        assert connection.request("POST", "/", body=b"abc").json()["length"] == 3
        assert connection.get("/stream?n=2").body == b"chunk 0\nchunk 1\n"
        assert connection.get("/").json()["method"] == "GET"
        connection.socket.shutdown(1)
        assert connection.closed_by_peer()


def test_a_failed_start_reports_the_log(gunicorn: StartGunicorn) -> None:
    with pytest.raises(AssertionError, match="ModuleNotFoundError: No module named 'nowhere'"):
        gunicorn("nowhere:app")


def test_a_survivor_is_found_and_ended(new_directory: Callable[[], Path]) -> None:
    server = Process("survivor", ["sh", "-c", "sleep 60 & wait"], new_directory())
    wait_until(lambda: len(session(server.pid)) == 2, 5, "the sleeping child")
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(AssertionError, match=r"left behind: \[.*sleep"):
        server.stop()
    wait_until(lambda: not session(server.pid), 5, "nobody")


def test_redis_answers(redis: StartRedis) -> None:
    server = redis()
    asked = subprocess.run(
        ["redis-cli", "-u", server.url, "ping"], capture_output=True, text=True, check=True
    )
    assert asked.stdout == "PONG\n"


def test_proxies_pass_requests_on(
    gunicorn: StartGunicorn, nginx: StartNginx, haproxy: StartHaproxy
) -> None:
    server = gunicorn("whoami:app")
    proxies: list[Nginx | Haproxy] = [
        nginx(f"server {{ LISTEN location / {{ proxy_pass {server.url}; }} }}"),
        haproxy(f"listen web\n    BIND\n    server one 127.0.0.1:{server.port}\n"),
    ]
    for proxy in proxies:
        with proxy.connect() as connection:
            assert connection.get("/through").json()["path"] == "/through"
