"""Keeps each visit in the memory of one process, and knows no other's.

/begin answers with a new visit's id, in a header and a cookie; other paths count the calls of the
visit that the request names in the header X-Visit or the cookie VISIT, or answer 404.
"""

import json
import os
import uuid
from collections.abc import Callable, Iterable
from http.cookies import SimpleCookie
from typing import Any

from wsgi_and_asgi import Both

visits: dict[str, int] = {}


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    headers = []
    if environ["PATH_INFO"] == "/begin":
        name = uuid.uuid4().hex
        visits[name] = 0
        headers = [("X-Visit", name), ("Set-Cookie", f"VISIT={name}; Path=/; HttpOnly")]
    else:
        name = visit_of(environ)
        if name in visits:
            visits[name] += 1
    who = {
        "visit": name,
        "calls": visits.get(name),
        "pid": os.getpid(),
        "worker": environ["gunicorn_cluster.worker_id"],
        "client_port": environ.get("REMOTE_PORT"),
    }
    body = json.dumps(who).encode()
    status = "200 OK" if name in visits else "404 Not Found"
    start_response(status, [*headers, ("Content-Length", str(len(body)))])
    return [body]


def visit_of(environ: dict[str, Any]) -> str:
    cookie = SimpleCookie(environ.get("HTTP_COOKIE", "")).get("VISIT")
    return str(environ.get("HTTP_X_VISIT") or (cookie.value if cookie else ""))


app = Both(wsgi)
