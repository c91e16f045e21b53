"""Says which process answers, and what it was asked.

?sleep=SECONDS takes its time; ?header=Name:Value (repeatable) adds to the
answer's headers; ?status=CODE answers so.
"""

import json
import os
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

Environ = dict[str, Any]


def app(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    query = parse_qs(environ["QUERY_STRING"])
    time.sleep(float(query.get("sleep", ["0"])[0]))
    body = json.dumps(describe(environ)).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    for line in query.get("header", []):
        name, _, value = line.partition(":")
        headers.append((name, value.strip()))
    start_response(f"{query.get('status', ['200'])[0]} Whoami", headers)
    return [body]


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
