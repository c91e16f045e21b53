"""The workloads, each with the contenders that it compares."""

from __future__ import annotations

from dataclasses import dataclass

from .contenders import ALL, GTHREAD, HAPROXY_HASH, NGINX_HASH, OTHERS, STICKY, Contender
from .load import CONNECTIONS, Load


@dataclass(frozen=True)
class Workload:
    key: str
    title: str
    load: Load
    contenders: tuple[Contender, ...]


PINNED = Workload(
    "pinned",
    "keep-alive, each connection keeps one cookie",
    Load("pinned", "keep-alive", wrk_threads=2),
    (GTHREAD, STICKY, *OTHERS),
)
# Two threads with 8 connections each: about half of the requests arrive at the worker that does
# not own them, as behind a proxy that mixes its clients.
MIXED = Workload(
    "mixed",
    "keep-alive, the cookie changes on about every second request",
    Load("alternate", "keep-alive", wrk_threads=2),
    (GTHREAD, STICKY, *OTHERS),
)
# One thread per connection: see load.lua.
ALTERNATE = Workload(
    "alternate",
    "keep-alive, the cookie alternates on every request (the worst case)",
    Load("alternate", "keep-alive", wrk_threads=CONNECTIONS),
    (GTHREAD, STICKY, NGINX_HASH, HAPROXY_HASH, *OTHERS),
)
NEW = Workload(
    "new",
    "a new connection for each request, the cookie alternates",
    Load("alternate", "close", wrk_threads=2),
    (GTHREAD, STICKY, NGINX_HASH, HAPROXY_HASH, *OTHERS),
)
NEW_WITHOUT_COOKIE = Workload(
    "new-without-cookie",
    "a new connection for each request, no cookie",
    Load("none", "close", wrk_threads=2),
    ALL,
)
WORKLOADS = (PINNED, MIXED, ALTERNATE, NEW, NEW_WITHOUT_COOKIE)
