"""Servers whose workers share a store, embedded or Redis, and a look into that store."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores.handles import Stores
from tests.conftest import StartGunicorn, StartRedis
from tests.harness.clients.connection import Answer
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.servers.redis import Redis
from tests.harness.servers.redis_cluster import Cluster
from tests.harness.servers.redis_sentinel import Watched
from tests.harness.waiting import wait_until

STICKY = "gunicorn_cluster_ext.Sticky"
COOKIE = "gunicorn_session"


class Shared:
    """A kind of store, and servers that use it."""

    def __init__(
        self, gunicorn: StartGunicorn, directory: Path, redis: Redis | Watched | Cluster | None
    ) -> None:
        self._gunicorn = gunicorn
        self.redis = redis if isinstance(redis, Redis) else None
        self.settings: dict[str, Any] = {"store_path": str(directory)}
        if redis is not None:
            self.settings = {"store": redis.url}
        self.stores = Stores(lambda: Settings(**self.settings))

    def start(self, app: str, *args: str, workers: int = 4, **options: Any) -> Gunicorn:
        lines = [f"cluster_{name} = {value!r}" for name, value in self.settings.items()]
        config = "\n".join(["from gunicorn_cluster_ext.conf import *", *lines])
        # Gunicorn 25's asgi worker waits so long at its end for clients that keep their connection.
        args = ("-w", str(workers), "--graceful-timeout", "3", *args)
        return self._gunicorn(app, *args, config=config, serving=workers, **options)


@pytest.fixture(params=["embedded", "redis"])
def shared(
    request: Any,
    gunicorn: StartGunicorn,
    redis: StartRedis,
    new_directory: Callable[[], Path],
) -> Iterator[Shared]:
    started = redis() if request.param == "redis" else None
    made = Shared(gunicorn, new_directory(), started)
    yield made
    made.stores.store.close()


class Client:
    """A browser with one cookie jar, that asks as often at once as it likes."""

    def __init__(self, server: Gunicorn, name: str = COOKIE) -> None:
        self.server = server
        self.name = name
        self.cookie = ""

    def send(self, target: str) -> Answer:
        cookie = f"{self.name}={self.cookie}" if self.cookie else "none=0"
        return self.server.get(target, cookie=cookie)

    def get(self, target: str) -> Any:
        """What the application says. The cookie is kept, or forgotten, as a browser does."""
        answer = self.send(target)
        assert answer.status == 200, (answer.status, answer.body)
        self.take(answer)
        return answer.json()["said"]

    def take(self, answer: Answer) -> None:
        self.cookie = answer.cookies().get(self.name, self.cookie)

    def get_all(self, targets: list[str]) -> list[Answer]:
        """All at once."""
        with ThreadPoolExecutor(len(targets)) as crowd:
            return list(crowd.map(self.send, targets))

    def get_when_served(self, target: str) -> Any:
        """The store was away: each worker finds out by itself that it is back."""
        answer = wait_until(lambda: self._served(target), 10, f"an answer to {target}")
        return answer.json()["said"]

    def _served(self, target: str) -> Answer | None:
        answer = self.send(target)
        return answer if answer.status == 200 else None
