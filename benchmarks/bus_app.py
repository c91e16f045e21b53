"""Workers that send each other messages over the bus or Redis. Worker 0 sends, the others receive.

    /flood?way=&count=&size=          worker 0 sends as fast as it can; returns the seconds until
                                      all have received everything
    /paced?way=&count=&size=&pause=   worker 0 sends one every ``pause`` seconds; returns the time
                                      of each call
    /back?way=&count=&size=           worker 0 sends the next when worker 1 has answered the last;
                                      returns the round-trip times
    /heard                            the others: returns and clears the one-way times of the paced
                                      messages

Responses are JSON. With Redis each worker subscribes only to what it needs: worker 0 would
otherwise get back everything that it sends, as the workers of an application do.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qsl

import redis

from gunicorn_cluster_ext import bus, worker_id

HEAD = struct.Struct(
    "<cQQ"
)  # its kind, its number among how many, when it was sent (monotonic, ns)
FLOOD, PACED, ASKED, ANSWER = b"f", b"p", b"q", b"a"
PATIENCE_S = 60.0

Receive = Callable[[bytes], None]


class OverBus:
    publish = staticmethod(bus.publish)
    subscribe = staticmethod(bus.subscribe)


class OverRedis:
    """Redis as python-socketio uses it: a thread with a connection to receive, another to send."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)
        self.publish = self._client.publish

    def subscribe(self, channel: str, receive: Receive) -> None:
        pubsub = self._client.pubsub(ignore_subscribe_messages=True)
        pubsub.subscribe(channel)
        threading.Thread(target=self._listen, args=(pubsub, receive), daemon=True).start()

    @staticmethod
    def _listen(pubsub: Any, receive: Receive) -> None:
        for message in pubsub.listen():
            receive(message["data"])


class End:
    """One worker's end of one contender."""

    def __init__(self, name: str, way: Any) -> None:
        self.way = way
        self.messages, self.answers = f"{name}-messages", f"{name}-answers"
        self.count = 0
        self.delays: list[float] = []
        self.answers_heard = threading.Semaphore(0)
        way.subscribe(self.answers if worker_id() == 0 else self.messages, self.hear)

    def hear(self, data: bytes) -> None:
        kind, number, sent = HEAD.unpack_from(data)
        if kind == ANSWER:
            self.answers_heard.release()
        elif kind == ASKED:
            if worker_id() == 1:
                self.way.publish(self.answers, HEAD.pack(ANSWER, 0, 0))
        elif kind == PACED:
            self.delays.append((time.monotonic_ns() - sent) / 1e9)
        else:
            self.count += 1
            if self.count == number:
                self.count = 0
                self.way.publish(self.answers, HEAD.pack(ANSWER, 0, 0))

    def send(self, kind: bytes, number: int, padding: bytes) -> None:
        self.way.publish(self.messages, HEAD.pack(kind, number, time.monotonic_ns()) + padding)


def flood(query: dict[str, str]) -> float:
    end, count, padding = ENDS[query["way"]], int(query["count"]), bytes(int(query["size"]))
    begun = time.monotonic()
    for _ in range(count):
        end.send(FLOOD, count, padding)
    for _ in range(int(query["listeners"])):
        if not end.answers_heard.acquire(timeout=PATIENCE_S):
            raise TimeoutError("not all messages were heard")
    return time.monotonic() - begun


def paced(query: dict[str, str]) -> list[float]:
    end, padding = ENDS[query["way"]], bytes(int(query["size"]))
    times = []
    for _ in range(int(query["count"])):
        begun = time.monotonic()
        end.send(PACED, 0, padding)
        times.append(time.monotonic() - begun)
        time.sleep(float(query["pause"]))
    return times


def back(query: dict[str, str]) -> list[float]:
    end, padding = ENDS[query["way"]], bytes(int(query["size"]))
    times = []
    for _ in range(int(query["count"])):
        begun = time.monotonic()
        end.send(ASKED, 0, padding)
        end.answers_heard.acquire(timeout=PATIENCE_S)
        times.append(time.monotonic() - begun)
    return times


def heard(query: dict[str, str]) -> list[float]:
    end = ENDS[query["way"]]
    delays, end.delays = end.delays, []
    return delays


VIEWS: dict[str, Callable[[dict[str, str]], Any]] = {
    "/flood": flood,
    "/paced": paced,
    "/back": back,
    "/heard": heard,
    "/": lambda query: worker_id(),
}
WAYS = {
    "bus": OverBus,
    "redis": lambda: OverRedis(os.environ["REDIS_URL"]),
    "redis-unix": lambda: OverRedis(os.environ["REDIS_UNIX_URL"]),
}
ENDS = {name: End(name, make()) for name, make in WAYS.items()}


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    said = VIEWS[environ["PATH_INFO"]](dict(parse_qsl(environ["QUERY_STRING"])))
    body = json.dumps({"said": said, "worker": worker_id()}).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]
