"""How many changes of one session are lost when concurrent requests change it.

    python -m benchmarks.lost_updates [--rounds 100] [--pause 20] [--only WORD] [--markdown]

Run it in the root of a checkout, with the test dependencies and ``flask-session`` installed, and
redis-server, which it starts on loopback. Each contender is a stock gunicorn with 4 gthread
workers of 4 threads; all of them run all the time, and take turns. A round of each contender:

    no pause    8 concurrent requests read the session, then each sets a separate key
    pause       the same, but they wait for --pause milliseconds before they set it
    nested      the same with a pause; each changes a separate dictionary inside the session, and
                none sets a ``modified`` flag
    logout      a request with that pause begins, then another one ends the session; a logout is
                undone if the old cookie leads to a session with data afterwards

The exit status is 1 if one of ours has lost anything.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from tests.harness.clients.connection import Answer
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.servers.redis import Redis

from . import machine, report
from .session_sites import KEYS
from .timings import versions

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 4
CONFIG = f"""\
worker_class = "gthread"
workers = {WORKERS}
threads = 4
preload_app = True
"""
SITES = "benchmarks.session_sites"
KINDS = ("no pause", "pause", "nested")
PACKAGES = ("flask", "flask-session", "django", "redis", "lmdb")


@dataclass(frozen=True)
class Contender:
    name: str
    site: str
    #: The value of ``cluster_store``; empty for a contender that is not ours.
    store: str = ""


CONTENDERS = (
    Contender("SessionMiddleware, embedded", "middleware()", "embedded"),
    Contender("SessionMiddleware, Redis", "middleware()", "redis"),
    Contender("Flask: ClusterSession, embedded", "flask_ours()", "embedded"),
    Contender("Flask: ClusterSession, Redis", "flask_ours()", "redis"),
    Contender("Django: our engine, embedded", "django_ours()", "embedded"),
    Contender("Django: our engine, Redis", "django_ours()", "redis"),
    Contender("Flask-Session, Redis", "flask_session({url!r})"),
    Contender("Django: cache, Redis", "django_own('cache', {url!r})"),
    Contender("Django: cached_db, Redis and SQLite", "django_own('cached_db', {url!r})"),
)


@dataclass
class Seen:
    """The outcome of a contender's requests: lost changes, and all changes, by kind."""

    lost: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    all: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    undone: int = 0
    logouts: int = 0
    errors: int = 0
    #: The number of workers that served the requests, in each round with a pause.
    workers: list[int] = field(default_factory=list)


def main() -> int:
    options = arguments()
    chosen = [each for each in CONTENDERS if options.only in each.name]
    seen = {contender: Seen() for contender in chosen}
    with servers(chosen) as (running, left_out), ThreadPoolExecutor(len(KEYS)) as crowd:
        for number in range(options.rounds):
            print(f"round {number + 1}/{options.rounds}", file=sys.stderr)
            for contender, server in running.items():
                Visit(server, crowd, seen[contender], options.pause / 1e3).round(number)
    print(as_report(seen, left_out, options))
    return 1 if any(fails(contender, its) for contender, its in seen.items()) else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lost_updates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--pause", type=float, default=20, help="pause in milliseconds")
    parser.add_argument("--only", default="", help="contenders whose name contains this")
    parser.add_argument("--markdown", action="store_true")
    return parser.parse_args()


Running = dict[Contender, Gunicorn]


@contextmanager
def servers(chosen: list[Contender]) -> Iterator[tuple[Running, dict[Contender, str]]]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gce-")))
        redis = Redis(directory)
        stack.callback(redis.stop)
        redis.wait_ready()
        running: Running = {}
        left_out: dict[Contender, str] = {}
        for number, contender in enumerate(chosen):
            server = start(contender, directory / str(number), redis.url)
            stack.callback(server.stop)
            server.wait_serving(WORKERS)
            answer = server.get("/begin")
            if answer.status == 200:
                running[contender] = server
            else:
                left_out[contender] = f"/begin is answered {answer.status}: {last_line(server)}"
        yield running, left_out


def start(contender: Contender, directory: Path, url: str) -> Gunicorn:
    directory.mkdir()
    env = {"PYTHONPATH": str(ROOT), "GUNICORN_CLUSTER_STORE_PATH": str(directory)}
    if contender.store:
        env["GUNICORN_CLUSTER_STORE"] = url if contender.store == "redis" else contender.store
    site = f"{SITES}:{contender.site.format(url=url)}"
    return Gunicorn(directory, site, config=CONFIG, env=env)


def last_line(server: Gunicorn) -> str:
    return (server.log_text().splitlines() or [""])[-1]


class Visit:
    """One round at one server."""

    def __init__(
        self, server: Gunicorn, crowd: ThreadPoolExecutor, seen: Seen, pause: float
    ) -> None:
        self._server = server
        self._crowd = crowd
        self._seen = seen
        self._pause = pause
        self._cookie = ""

    def round(self, number: int) -> None:
        self._begin()
        for kind in KINDS:
            self._change(kind, f"{kind} {number}".replace(" ", "-"))
        self._begin()
        self._log_out()

    def _begin(self) -> None:
        cookies = self._get("/begin").cookies()
        self._cookie = "; ".join(f"{name}={value}" for name, value in cookies.items())

    def _change(self, kind: str, value: str) -> None:
        path = "/nested" if kind == "nested" else "/set"
        pause = 0 if kind == "no pause" else self._pause
        answers = list(
            self._crowd.map(
                lambda key: self._get(f"{path}?key={key}&value={value}&pause={pause}"), KEYS
            )
        )
        self._seen.all[kind] += len(KEYS)
        self._seen.lost[kind] += len(KEYS) - self._kept(kind, value)
        if kind == "pause":
            pids = {answer.json()["pid"] for answer in answers if answer.status == 200}
            self._seen.workers.append(len(pids))

    def _kept(self, kind: str, value: str) -> int:
        session = self._show()
        if kind == "nested":
            return sum(session.get(f"nested-{key}", {}).get("value") == value for key in KEYS)
        return sum(session.get(key) == value for key in KEYS)

    def _log_out(self) -> None:
        slow = self._crowd.submit(
            self._get, f"/set?key={KEYS[0]}&value=late&pause={self._pause}", may_fail=True
        )
        time.sleep(self._pause / 2)
        self._get("/logout")
        slow.result()
        self._seen.logouts += 1
        self._seen.undone += bool(self._show())

    def _show(self) -> dict[str, Any]:
        answer = self._get("/show")
        session: dict[str, Any] = answer.json()["session"] if answer.status == 200 else {}
        # Flask-Session leaves this in an empty session.
        session.pop("_permanent", None)
        return session

    def _get(self, target: str, *, may_fail: bool = False) -> Answer:
        """Send a request; with ``may_fail`` an error does not count: the session may have ended."""
        answer = self._server.get(target, cookie=self._cookie)
        self._seen.errors += answer.status != 200 and not may_fail
        return answer


# --- the report -------------------------------------------------------------------------------


def fails(contender: Contender, seen: Seen) -> bool:
    return bool(contender.store) and bool(sum(seen.lost.values()) or seen.undone or seen.errors)


def as_report(
    seen: dict[Contender, Seen], left_out: dict[Contender, str], options: argparse.Namespace
) -> str:
    as_table = report.markdown_table if options.markdown else report.text_table
    as_list = report.markdown_list if options.markdown else report.text_list
    setup = (
        f"{WORKERS} gthread workers x 4 threads, {options.rounds} interleaved rounds,"
        f" pauses of {options.pause:g} ms"
    )
    measured = {each: its for each, its in seen.items() if each not in left_out}
    rows = [row(contender, its) for contender, its in measured.items()]
    parts = [
        as_list([*machine.describe(), versions(PACKAGES), setup]),
        as_table("Changes lost, of all", columns(), rows),
        as_list(
            [
                *(f"LEFT OUT: {each.name}: {why}" for each, why in left_out.items()),
                *(verdict(each, its) for each, its in measured.items() if each.store),
            ]
        ),
    ]
    return "\n\n".join(parts)


def columns() -> report.Row:
    return ("", *KINDS, "logouts undone", "errors", "workers per round")


def row(contender: Contender, seen: Seen) -> report.Row:
    return (
        contender.name,
        *(f"{seen.lost[kind]} of {seen.all[kind]}" for kind in KINDS),
        f"{seen.undone} of {seen.logouts}",
        str(seen.errors),
        f"{mean(seen.workers or [0]):.1f}",
    )


def verdict(contender: Contender, seen: Seen) -> str:
    word = "FAIL" if fails(contender, seen) else "PASS"
    return f"{word}  {contender.name}: nothing lost, nothing undone, no error"


if __name__ == "__main__":
    sys.exit(main())
