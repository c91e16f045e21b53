"""A WSGI application whose session and cache are shared by all workers. Answers are JSON."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qsl

from gunicorn_cluster_ext import cache
from gunicorn_cluster_ext.session import Session
from gunicorn_cluster_ext.session.wsgi import SessionMiddleware

Query = dict[str, str]


def read(session: Session, query: Query) -> Any:
    return dict(session)


def put(session: Session, query: Query) -> Any:
    """Read, work for a while, and set one key."""
    seen = len(session)
    time.sleep(float(query.get("sleep", 0)))
    session[query["key"]] = query["value"]
    return seen


def push(session: Session, query: Query) -> Any:
    """Change something deep inside."""
    lists = session.setdefault(query["key"], {"lists": {}})["lists"]
    time.sleep(float(query.get("sleep", 0)))
    lists.setdefault("items", []).append(query["value"])
    return lists


def login(session: Session, query: Query) -> Any:
    """Stops in the middle, if it is to, until somebody lets it go on."""
    session.regenerate()
    if "stop" in query:
        cache.set("stopped", True)
        while not cache.get("go on"):
            time.sleep(0.01)
    session["user"] = query["user"]
    return query["user"]


def logout(session: Session, query: Query) -> Any:
    session.clear()
    return "out"


def plain(session: Session, query: Query) -> Any:
    return "plain"


def costly(session: Session, query: Query) -> Any:
    def compute() -> str:
        with contextlib.suppress(cache.StoreAway):
            cache.incr("computed")
        time.sleep(float(query["sleep"]))
        return query["key"] * 3

    stale = float(query.get("stale", 0))
    return cache.get_or_set(query["key"], compute, float(query.get("ttl", 60)), stale=stale)


def dying(session: Session, query: Query) -> Any:
    """Whose worker dies in the middle; the second one computes it."""

    def compute() -> str:
        if cache.add("died", True):
            os.kill(os.getpid(), 9)
        return "alive"

    return cache.get_or_set("dying", compute, 60)


def count(session: Session, query: Query) -> Any:
    for _ in range(int(query.get("times", 1))):
        number = cache.incr("number")
    return number


def guarded(session: Session, query: Query) -> Any:
    """Adds one to a number with a read and a write, which only a lock makes right."""
    for _ in range(int(query["times"])):
        with cache.lock("guard", ttl=30):
            cache.set("guarded", cache.get("guarded", 0) + 1, ttl=None)
    return cache.get("guarded")


def value(session: Session, query: Query) -> Any:
    return cache.get(query["key"], "miss")


def keep(session: Session, query: Query) -> Any:
    return cache.set(query["key"], query["value"])


def stats(session: Session, query: Query) -> Any:
    return cache.stats()


def threads(session: Session, query: Query) -> Any:
    return [thread.name for thread in threading.enumerate()]


VIEWS: dict[str, Callable[[Session, Query], Any]] = {
    f"/{view.__name__}": view
    for view in (
        read, put, push, login, logout, plain, costly, dying, count, guarded, value, keep, stats,
        threads,
    )
}  # fmt: skip
VIEWS["/"] = plain


def site(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    query = dict(parse_qsl(environ["QUERY_STRING"]))
    said = VIEWS[environ["PATH_INFO"]](environ["gunicorn_cluster.session"], query)
    body = json.dumps({"said": said, "pid": os.getpid()}).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]


# With --preload this is the arbiter.
if "AT_IMPORT" in os.environ:
    cache.set("imported_by", os.getpid())

app = SessionMiddleware(site)
