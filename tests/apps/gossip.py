"""A WSGI application whose workers tell each other things over the bus. Answers are JSON."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qsl

from gunicorn_cluster_ext import bus

Query = dict[str, str]

#: Sender's pid, sender's thread, number, size, whether it is whole.
heard: list[tuple[int, int, int, int, bool]] = []
ends: list[Callable[[], None]] = []


def message(thread: int, number: int, size: int) -> bytes:
    """So many bytes, of which the first say who sends them, if there is room for that."""
    body = bytes([number % 251]) * size
    head = json.dumps([os.getpid(), thread, number, hashlib.md5(body).hexdigest()]).encode()
    return head.ljust(100) + body


def hear(data: bytes) -> None:
    pid, thread, number, digest = json.loads(data[:100])
    body = data[100:]
    whole = hashlib.md5(body).hexdigest() == digest
    heard.append((pid, thread, number, len(body), whole))


def tell(query: Query) -> Any:
    """Publish messages of the given sizes, one after the other, over and over, in some threads."""
    sizes = [int(size) for size in query["sizes"].split(",")]
    count = int(query.get("count", len(sizes)))
    sent: dict[int, list[int]] = {}

    def run(thread: int) -> None:
        sent[thread] = [
            bus.publish("gossip", message(thread, number, sizes[number % len(sizes)]))
            for number in range(count)
        ]

    begun = time.monotonic()
    threads = [
        threading.Thread(target=run, args=(number,)) for number in range(int(query["threads"]))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"sent": sent, "seconds": time.monotonic() - begun}


def timed(query: Query) -> Any:
    """Publish so many messages, and how long each took, in seconds."""
    body = message(0, 0, int(query["size"]))
    times = []
    for _ in range(int(query["count"])):
        begun = time.monotonic()
        bus.publish("other", body)
        times.append(time.monotonic() - begun)
    return times


def raw(query: Query) -> Any:
    """Publish zeros."""
    return bus.publish("raw", bytes(int(query["size"])))


raw_sizes: list[int] = []


def listen(query: Query) -> Any:
    if not ends:
        ends.append(bus.subscribe("gossip", hear))
        ends.append(bus.subscribe("raw", lambda data: raw_sizes.append(len(data))))
        ends.append(bus.subscribe("failing", lambda data: 1 / 0))
    return True


def end(query: Query) -> Any:
    while ends:
        ends.pop()()
    return True


def said(query: Query) -> Any:
    return {"heard": heard, "raw": raw_sizes}


def forget(query: Query) -> Any:
    heard.clear()
    raw_sizes.clear()
    return True


def fail(query: Query) -> Any:
    return bus.publish("failing", b"")


def fds(query: Query) -> Any:
    """What this process has open."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # the one that lists
            pass
    return links


def threads(query: Query) -> Any:
    return [thread.name for thread in threading.enumerate()]


def plain(query: Query) -> Any:
    return "plain"


VIEWS: dict[str, Callable[[Query], Any]] = {
    f"/{view.__name__}": view
    for view in (tell, timed, raw, listen, end, said, forget, fail, fds, threads, plain)
}
VIEWS["/"] = plain

if "LISTEN_AT_IMPORT" in os.environ:
    listen({})


def is_for_me(query: Query) -> bool:
    """A request for one worker may come to another."""
    return int(query.get("pid", os.getpid())) == os.getpid()


def wrapped(said: Any) -> bytes:
    return json.dumps({"said": said, "pid": os.getpid()}).encode()


def answer(path: str, query: Query) -> bytes:
    return wrapped(VIEWS[path](query) if is_for_me(query) else None)


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    body = answer(environ["PATH_INFO"], dict(parse_qsl(environ["QUERY_STRING"])))
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]
