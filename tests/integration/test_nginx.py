"""A real nginx that keeps its connections to gunicorn and mixes clients on them."""

from concurrent.futures import ThreadPoolExecutor

from tests.harness.clients.jars import fill_jars
from tests.harness.programs import StartGunicorn, StartNginx
from tests.harness.servers.nginx import in_front_of

JARS = 12
ROUNDS = 10


def test_jars_in_turn_share_one_upstream_connection(
    gunicorn: StartGunicorn, nginx: StartNginx
) -> None:
    server = gunicorn("whoami:app", "-k", "gunicorn_cluster_ext.Sticky", "-w", "4", serving=4)
    jars = fill_jars(server.connect, JARS, workers=3)
    proxy = nginx(in_front_of(server.port, keepalive=16))
    upstream: set[str] = set()
    for _ in range(ROUNDS):
        for worker, cookie in jars:
            with proxy.connect() as browser:
                who = browser.get("/", cookie=cookie).json()
            assert who["worker"] == worker
            assert who["headers"]["Cookie"] == cookie
            upstream.add(who["client_port"])
    # nginx opens another connection only when the server has closed the one it had.
    assert len(upstream) == 1


def test_jars_at_once_share_kept_connections(gunicorn: StartGunicorn, nginx: StartNginx) -> None:
    server = gunicorn("whoami:app", "-k", "gunicorn_cluster_ext.Sticky", "-w", "4", serving=4)
    jars = fill_jars(server.connect, JARS, workers=3)
    proxy = nginx(in_front_of(server.port, keepalive=16))

    def browse(jar: tuple[int, str]) -> set[str]:
        worker, cookie = jar
        ports = set()
        with proxy.connect() as browser:
            for _ in range(ROUNDS):
                who = browser.get("/", cookie=cookie).json()
                assert who["worker"] == worker
                assert who["headers"]["Cookie"] == cookie
                ports.add(who["client_port"])
        return ports

    with ThreadPoolExecutor(JARS) as crowd:
        ports_of_jars = list(crowd.map(browse, jars))
    # Never more than one for each client at a time, and none was ever replaced.
    assert len(set.union(*ports_of_jars)) <= JARS


def test_a_new_browser_through_nginx_keeps_its_worker(
    gunicorn: StartGunicorn, nginx: StartNginx
) -> None:
    server = gunicorn("whoami:app", "-k", "gunicorn_cluster_ext.Sticky", "-w", "4", serving=4)
    proxy = nginx(in_front_of(server.port, keepalive=4))
    with proxy.connect() as browser:
        first = browser.get("/")
        jar = "; ".join(f"{name}={value}" for name, value in first.cookies().items())
        workers = {browser.get("/", cookie=jar).json()["worker"] for _ in range(12)}
    assert workers == {first.json()["worker"]}
