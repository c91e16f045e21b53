"""Says which process answers, and what it was asked.

?sleep=SECONDS takes its time, ?burn=SECONDS the processor's; ?until=PATH makes that file, and
takes until it has gone; ?header=Name:Value (repeatable) adds to the answer's headers;
?status=CODE answers so.
"""

import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from wsgi_and_asgi import Both, Receive, Scope, Send, answer, environ

Environ = dict[str, Any]


def wsgi(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    query = parse_qs(environ["QUERY_STRING"])
    burn(float(query.get("burn", ["0"])[0]))
    for path in files(query):
        while path.exists():
            time.sleep(0.01)
    time.sleep(float(query.get("sleep", ["0"])[0]))
    body = json.dumps(describe(environ)).encode()
    headers = [*wanted(query), ("Content-Length", str(len(body)))]
    start_response(f"{query.get('status', ['200'])[0]} Whoami", headers)
    return [body]


async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
    import asyncio  # as in wsgi_and_asgi

    if scope["type"] != "http":
        raise ValueError(f"nothing is here for {scope['type']}")
    query = parse_qs(scope["query_string"].decode())
    for path in files(query):
        while path.exists():
            await asyncio.sleep(0.01)
    await asyncio.sleep(float(query.get("sleep", ["0"])[0]))
    body = json.dumps(describe(environ(scope))).encode()
    headers = [(name.lower().encode(), value.encode()) for name, value in wanted(query)]
    await answer(send, body, int(query.get("status", ["200"])[0]), headers)


def files(query: dict[str, list[str]]) -> list[Path]:
    """So that a test knows that the request has begun, and says when it is to end."""
    paths = [Path(name) for name in query.get("until", [])]
    for path in paths:
        path.touch()
    return paths


def burn(seconds: float) -> None:
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        pass


def wanted(query: dict[str, list[str]]) -> list[tuple[str, str]]:
    """The headers of the answer."""
    headers = [("Content-Type", "application/json")]
    for line in query.get("header", []):
        name, _, value = line.partition(":")
        headers.append((name, value.strip()))
    return headers


def describe(environ: Environ) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "worker": environ.get("gunicorn_cluster.worker_id"),
        "method": environ["REQUEST_METHOD"],
        "path": environ["PATH_INFO"],
        "query": environ["QUERY_STRING"],
        "scheme": environ["wsgi.url_scheme"],
        "client": environ.get("REMOTE_ADDR"),
        "client_port": environ.get("REMOTE_PORT"),
        "headers": {
            name.removeprefix("HTTP_").replace("_", "-").title(): value
            for name, value in environ.items()
            if name.startswith("HTTP_")
        },
    }


app = Both(wsgi, asgi)
