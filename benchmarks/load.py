"""One run of wrk against one server."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .affinity import Route
from .contenders import Server, which
from .failure import Failure
from .neighbours import Neighbours

SCRIPT = Path(__file__).with_name("load.lua")
CONNECTIONS = 16


@dataclass(frozen=True)
class Load:
    """What the clients do; ``cookies`` and ``connection`` are arguments of load.lua."""

    cookies: str
    connection: str
    wrk_threads: int

    def arguments(self, routes: list[Route]) -> list[str]:
        pairs = [word for route in routes for word in (route.cookie, route.expect)]
        return [self.cookies, self.connection, *pairs]


@dataclass(frozen=True)
class Sample:
    """The result of one run of wrk."""

    requests: int
    seconds: float
    cpu_seconds: float
    errors: dict[str, int]
    p50: float
    p99: float
    others: float

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds

    @property
    def cpu_us(self) -> float:
        return self.cpu_seconds * 1e6 / self.requests

    @property
    def bad(self) -> int:
        return sum(self.errors.values())


def measure(load: Load, server: Server, routes: list[Route], seconds: int) -> Sample:
    neighbours = Neighbours()
    before = server.cpu_ticks()
    answer = wrk(load, server.port, load.arguments(routes), seconds)
    spent = server.cpu_seconds_since(before)
    if not answer["requests"]:
        raise Failure("wrk completed no request at all")
    return Sample(
        requests=answer["requests"],
        seconds=answer["microseconds"] / 1e6,
        cpu_seconds=spent,
        errors={kind: answer[kind] for kind in ("connect", "read", "write", "status", "timeout")},
        p50=answer["p50"] / 1000,
        p99=answer["p99"] / 1000,
        others=neighbours.share(spent),
    )


def wrk(load: Load, port: int, arguments: list[str], seconds: int) -> dict[str, int]:
    command = [
        which("wrk"),
        f"--threads={load.wrk_threads}",
        f"--connections={CONNECTIONS}",
        f"--duration={seconds}s",
        f"--script={SCRIPT}",
        f"http://127.0.0.1:{port}/",
        "--",
        *arguments,
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    answer = run.stdout.rstrip().rpartition("\n")[2]
    if run.returncode or not answer.startswith("{"):
        raise Failure(f"wrk failed:\n{run.stdout}{run.stderr}")
    figures: dict[str, int] = json.loads(answer)
    return figures
