"""The servers that are compared, each with 2 workers of 4 threads."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .failure import Failure
from .process import TICKS_PER_SECOND, Process

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 2
THREADS = 4
# More requests than any run sends on one connection: a limit would measure reconnects.
KEEP_ALIVE_SECONDS = 30
KEEP_ALIVE_REQUESTS = 10_000_000
START_SECONDS = 20.0

NGINX = """\
daemon off;
worker_processes auto;
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/nginx-body;
    proxy_temp_path {directory}/nginx-proxy;
    fastcgi_temp_path {directory}/nginx-fastcgi;
    uwsgi_temp_path {directory}/nginx-uwsgi;
    scgi_temp_path {directory}/nginx-scgi;
    keepalive_requests {requests};
    upstream workers {{
        hash $cookie_gunicorn_worker consistent;
        {servers}
        keepalive 32;
        keepalive_requests {requests};
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://workers;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
}}
"""

HAPROXY = """\
global
    maxconn 1024
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    option http-keep-alive
    http-reuse always
frontend clients
    bind 127.0.0.1:{port}
    default_backend workers
backend workers
    balance hash req.cook(gunicorn_worker)
    hash-type consistent
    {servers}
"""


class Room:
    """A private directory, and the processes of one contender that run in it."""

    def __init__(self, directory: Path, stack: ExitStack):
        self.directory = directory
        self.stack = stack
        self.processes: list[Process] = []

    def run(self, *command: str) -> Process:
        env = {"HOME": str(self.directory), "PYTHONPATH": str(ROOT)}
        process = Process(list(command), self.directory, {**os.environ, **env})
        self.stack.callback(process.stop)
        self.processes.append(process)
        return process


@dataclass(frozen=True)
class Server:
    """A running contender: its port and its CPU time."""

    port: int
    processes: list[Process]

    def cpu_ticks(self) -> dict[int, int]:
        ticks: dict[int, int] = {}
        for process in self.processes:
            process.check()
            ticks.update(process.cpu_ticks())
        return ticks

    def cpu_seconds_since(self, before: dict[int, int]) -> float:
        after = self.cpu_ticks()
        if after.keys() != before.keys():
            raise Failure("a server process ended or was replaced while measured")
        return (sum(after.values()) - sum(before.values())) / TICKS_PER_SECOND


@dataclass(frozen=True)
class Contender:
    """A server to compare.

    ``sets_cookie``: it tells clients by a cookie which worker is theirs. ``base``: the contender
    that it is compared with.
    """

    name: str
    start: Callable[[Room], int]
    sticky: bool = True
    sets_cookie: bool = False
    base: str = "gthread"

    def run(self, directory: Path, stack: ExitStack) -> Server:
        directory.mkdir()
        directory.chmod(0o755)  # nginx drops root and still has to enter it
        room = Room(directory, stack)
        port = self.start(room)
        for process in room.processes:
            process.check()
        return Server(port, room.processes)


def gunicorn(
    room: Room,
    worker_class: str,
    workers: int = WORKERS,
    threads: int = THREADS,
    app: str = "app",
) -> int:
    port = free_port()
    process = room.run(
        sys.executable,
        *("-m", "gunicorn", f"benchmarks.app:{app}"),
        *("--bind", f"127.0.0.1:{port}"),
        *("--worker-class", worker_class),
        *("--workers", str(workers)),
        *("--threads", str(threads)),
        *("--keep-alive", str(KEEP_ALIVE_SECONDS)),
        "--no-control-socket",
    )
    wait_until_it_listens(port, process)
    return port


def gthread(room: Room) -> int:
    return gunicorn(room, "gthread")


def sync(room: Room) -> int:
    # With more than one thread gunicorn uses gthread instead.
    return gunicorn(room, "sync", threads=1)


def sticky(room: Room) -> int:
    return gunicorn(room, "gunicorn_cluster_ext.Sticky")


def gevent(room: Room) -> int:
    return gunicorn(room, "gevent", threads=1)


def sticky_gevent(room: Room) -> int:
    return gunicorn(room, "gunicorn_cluster_ext.StickyGevent", threads=1)


def asgi(room: Room) -> int:
    return gunicorn(room, "asgi", threads=1, app="asgi")


def sticky_asgi(room: Room) -> int:
    return gunicorn(room, "gunicorn_cluster_ext.StickyASGI", threads=1, app="asgi")


def nginx(room: Room) -> int:
    port = free_port()
    configuration = NGINX.format(
        directory=room.directory,
        port=port,
        requests=KEEP_ALIVE_REQUESTS,
        servers=" ".join(f"server 127.0.0.1:{p};" for p in single_workers(room)),
    )
    path = room.directory / "nginx.conf"
    path.write_text(configuration)
    log = str(room.directory / "nginx-error.log")
    process = room.run(which("nginx"), "-e", log, "-c", str(path))
    wait_until_it_listens(port, process)
    return port


def haproxy(room: Room) -> int:
    port = free_port()
    servers = [f"server w{number} 127.0.0.1:{p}" for number, p in enumerate(single_workers(room))]
    path = room.directory / "haproxy.cfg"
    path.write_text(HAPROXY.format(port=port, servers="\n    ".join(servers)))
    process = room.run(which("haproxy"), "-db", "-f", str(path))
    wait_until_it_listens(port, process)
    return port


def single_workers(room: Room) -> list[int]:
    """Start one gunicorn per worker, which a proxy needs to tell workers apart."""
    return [gunicorn(room, "gthread", workers=1) for _ in range(WORKERS)]


def which(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise Failure(f"{program} is not installed")
    return path


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_until_it_listens(port: int, process: Process) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        process.check()
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise Failure(f"nothing listens after {START_SECONDS:g} s:\n{process.tail()}")


GTHREAD = Contender("gthread", gthread, sticky=False)
SYNC = Contender("sync", sync, sticky=False)
STICKY = Contender("Sticky", sticky, sets_cookie=True)
GEVENT = Contender("gevent", gevent, sticky=False, base="gevent")
STICKY_GEVENT = Contender("StickyGevent", sticky_gevent, sets_cookie=True, base="gevent")
ASGI = Contender("asgi", asgi, sticky=False, base="asgi")
STICKY_ASGI = Contender("StickyASGI", sticky_asgi, sets_cookie=True, base="asgi")
NGINX_HASH = Contender("nginx", nginx)
HAPROXY_HASH = Contender("HAProxy", haproxy)
#: The worker classes without threads, each of ours after the one that it is compared with.
OTHERS = (GEVENT, STICKY_GEVENT, ASGI, STICKY_ASGI)
ALL = (GTHREAD, STICKY, NGINX_HASH, HAPROXY_HASH, SYNC, *OTHERS)
