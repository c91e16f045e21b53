"""Servers whose workers share a store, embedded or Redis, and a client of theirs."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores.handles import Stores
from tests.harness.clients.connection import Answer
from tests.harness.programs import Programs, Shared
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.servers.redis import Redis
from tests.harness.servers.redis_cluster import Cluster
from tests.harness.servers.redis_sentinel import Watched
from tests.harness.waiting import wait_until

STICKY = "gunicorn_cluster_ext.Sticky"
COOKIE = "gunicorn_session"


class StoreSite:
    """A store, and servers that use it.

    `start` starts one of them. With `shared`, calls with the same arguments get the
    same server.
    """

    def __init__(
        self,
        programs: Programs,
        redis: Redis | Watched | Cluster | None = None,
        *,
        shared: bool = False,
    ) -> None:
        self.redis = redis if isinstance(redis, Redis) else None
        self.directory = programs.new_directory()
        self.settings: dict[str, Any] = {"store_path": str(self.directory)}
        if redis is not None:
            self.settings = {"store": redis.url}
        self.stores = Stores(lambda: Settings(**self.settings))
        programs.at_exit.callback(lambda: self.stores.store.close())
        self._programs = programs
        self.shared = Shared(self._start)
        self.start = self.shared if shared else self._start

    def _start(self, app: str, *args: str, workers: int = 4, **options: Any) -> Gunicorn:
        lines = [f"cluster_{name} = {value!r}" for name, value in self.settings.items()]
        config = "\n".join(["from gunicorn_cluster_ext.conf import *", *lines])
        # Gunicorn 25's asgi worker waits so long at its end for clients that keep their connection.
        args = ("-w", str(workers), "--graceful-timeout", "3", *args)
        return self._programs.gunicorn(app, *args, config=config, serving=workers, **options)


class Client:
    """A browser with one cookie jar; it may send several requests at once."""

    def __init__(self, server: Gunicorn, name: str = COOKIE) -> None:
        self.server = server
        self.name = name
        self.cookie = ""

    def send(self, target: str) -> Answer:
        cookie = f"{self.name}={self.cookie}" if self.cookie else "none=0"
        return self.server.get(target, cookie=cookie)

    def get(self, target: str) -> Any:
        """Return what the application says; keep or forget the cookie as a browser does."""
        answer = self.send(target)
        assert answer.status == 200, (answer.status, answer.body)
        self.take(answer)
        return answer.json()["said"]

    def take(self, answer: Answer) -> None:
        self.cookie = answer.cookies().get(self.name, self.cookie)

    def get_all(self, targets: list[str]) -> list[Answer]:
        """Send all requests at once."""
        with ThreadPoolExecutor(len(targets)) as crowd:
            return list(crowd.map(self.send, targets))

    def get_when_served(self, target: str) -> Any:
        """Wait until the store is found to be back, which each worker finds out by itself."""
        answer = wait_until(lambda: self._served(target), 10, f"an answer to {target}")
        return answer.json()["said"]

    def _served(self, target: str) -> Answer | None:
        answer = self.send(target)
        return answer if answer.status == 200 else None
