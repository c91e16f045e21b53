"""Answers what it was sent: method, and length and SHA-1 of the body.

/sleep?s=SECONDS   answers late
/stream?n=COUNT    answers in COUNT chunks of unknown total length
/noread            answers without reading the body
/big?bytes=COUNT   answers with that many bytes
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs

from wsgi_and_asgi import Both

Environ = dict[str, Any]


@Both
def app(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    path = environ["PATH_INFO"]
    if path == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return stream(int(query.get("n", "3")))
    if path == "/big":
        return answer(b"x" * int(query.get("bytes", "100000")), start_response)
    if path == "/sleep":
        time.sleep(float(query.get("s", "1")))
    body = b"" if path == "/noread" else environ["wsgi.input"].read()
    return answer(json.dumps(describe(environ, body)).encode(), start_response)


def describe(environ: Environ, body: bytes) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "worker": environ.get("gunicorn_cluster.worker_id"),
        "method": environ["REQUEST_METHOD"],
        "path": environ["PATH_INFO"],
        "length": len(body),
        "sha1": hashlib.sha1(body).hexdigest(),
    }


def answer(body: bytes, start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def stream(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield f"chunk {number}\n".encode()
