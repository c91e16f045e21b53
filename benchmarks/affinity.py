"""Which cookie leads to which worker: found from outside, then verified."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from http.cookies import SimpleCookie

from .app import ANYONE, PAUSE_PATH
from .contenders import THREADS, WORKERS, Contender, Server
from .failure import Failure

COOKIE = "gunicorn_worker"
TRIES = 20
# Enough to occupy all threads of one worker, so that the others get some too.
AT_ONCE = 2 * WORKERS * THREADS
# Also warms the worker up, before it is measured.
VERIFY_REQUESTS = 400


@dataclass(frozen=True)
class Route:
    """A cookie value, and the worker (a process id) that it should lead to."""

    cookie: str
    worker: str
    checked: bool

    @property
    def expect(self) -> str:
        return self.worker if self.checked else ANYONE


def routes(contender: Contender, server: Server) -> list[Route]:
    """Return one route to each worker, by worker."""
    if contender.sets_cookie:
        cookies = issued_cookies(server.port)
    elif contender.sticky:
        cookies = hashed_cookies(server.port)
    else:
        found = sorted(workers(server.port))
        cookies = {worker: str(number) for number, worker in enumerate(found)}
    if len(cookies) != WORKERS:
        raise Failure(f"{contender.name}: found {len(cookies)} of {WORKERS} workers")
    return [Route(cookie, worker, contender.sticky) for worker, cookie in sorted(cookies.items())]


def issued_cookies(port: int) -> dict[str, str]:
    """Return the cookies that the server sets on new connections without a cookie."""
    cookies: dict[str, str] = {}
    for response in many_answers(port):
        jar = SimpleCookie("; ".join(response.headers.get_all("Set-Cookie", [])))
        if COOKIE not in jar:
            raise Failure(f"no {COOKIE} cookie in an answer to a request without one")
        cookies[worker_of(response)] = jar[COOKIE].value
    return cookies


def hashed_cookies(port: int) -> dict[str, str]:
    """Return cookie values that a hash happens to spread over the workers."""
    cookies: dict[str, str] = {}
    for number in range(100):
        value = f"value{number}"
        cookies.setdefault(worker_of(answer(connect(port), "/", value)), value)
        if len(cookies) == WORKERS:
            break
    return cookies


def workers(port: int) -> set[str]:
    return {worker_of(response) for response in many_answers(port)}


def many_answers(port: int) -> list[HTTPResponse]:
    """Return responses to concurrent slow requests, each on its own connection."""
    found: list[HTTPResponse] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in range(TRIES):
            connections = [connect(port) for _ in range(AT_ONCE)]
            found += pool.map(lambda c: answer(c, PAUSE_PATH), connections)
            if len({worker_of(response) for response in found}) == WORKERS:
                break
    return found


def verify(server: Server, chosen: list[Route]) -> None:
    """Check that every request reaches its worker, on a keep-alive connection and on new ones."""
    kept = connect(server.port)
    for number in range(VERIFY_REQUESTS):
        route = chosen[number % len(chosen)]
        connection = connect(server.port) if number % 4 > 1 else kept
        response = answer(connection, "/", route.cookie)
        if response.status != 200:
            raise Failure(f"status {response.status} while stickiness was verified")
        if route.checked and worker_of(response) != route.worker:
            raise Failure(f"cookie {route.cookie!r} led to {worker_of(response)}")
        if connection is not kept:
            connection.close()
    kept.close()


def connect(port: int) -> HTTPConnection:
    return HTTPConnection("127.0.0.1", port, timeout=10)


def answer(connection: HTTPConnection, path: str, cookie: str = "") -> HTTPResponse:
    headers = {"Cookie": f"{COOKIE}={cookie}"} if cookie else {}
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    response.read()
    return response


def worker_of(response: HTTPResponse) -> str:
    worker = response.headers["X-Worker"]
    if worker is None:
        raise Failure(f"an answer without X-Worker, status {response.status}")
    return str(worker)
