"""A WSGI application whose workers tell each other things over the bus. Answers are JSON."""

import hashlib
import itertools
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
            bus.publish("echo", message(thread, number, sizes[number % len(sizes)]))
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


def listen(query: Query) -> Any:
    if not ends:
        ends.append(bus.subscribe("echo", hear))
        ends.append(bus.subscribe("slow", lambda data: time.sleep(float(data))))
    return True


def end(query: Query) -> Any:
    while ends:
        ends.pop()()
    return True


def said(query: Query) -> Any:
    return heard


def publish(query: Query) -> Any:
    return bus.publish(query["channel"], query["message"].encode())


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
    f"/{view.__name__}": view for view in (tell, listen, end, said, publish, fds, threads, plain)
}
VIEWS["/"] = plain


def write(line: str) -> None:
    with open(f"chatter-{os.getpid()}", "a") as file:
        file.write(line + "\n")


def note(data: bytes) -> None:
    """Write it down: the worker may be gone when somebody asks."""
    pid, number, _ = data.split(b" ", 2)
    write(f"heard {int(pid)} {int(number)}")


def chatter() -> None:
    """Say something all the time, and write down what was said and heard."""
    bus.subscribe("chatter", note)
    write(f"listens {time.monotonic()}")
    for number in itertools.count():
        size = 70_000 if number % 10 == 0 else 100
        if number == 0:
            write(f"begins {time.monotonic()}")
        # A process that ends says nothing more.
        if bus.publish("chatter", b"%d %d %s" % (os.getpid(), number, bytes(size))):
            write(f"said {number}")
        time.sleep(0.005)


match os.environ.get("BUS_ECHO"):
    case "listen":
        listen({})
    case "chatter":
        threading.Thread(target=chatter, daemon=True).start()


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
