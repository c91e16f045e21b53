"""Everything that an application may do to its server; see HANDLERS for the paths.

Other paths are those of echo.
"""

import io
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import echo
import simple_websocket
import whoami

Environ = dict[str, Any]
Start = Callable[..., Any]

FILE = b"0123456789abcdef" * 20_000


def plain(start_response: Start, body: bytes, status: str = "200 OK") -> list[bytes]:
    start_response(status, [("Content-Length", str(len(body)))])
    return [body]


def raising(environ: Environ, start_response: Start) -> list[bytes]:
    raise RuntimeError("the application fails")


def raising_late(environ: Environ, start_response: Start) -> Iterator[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"so far so good"
    raise RuntimeError("the application fails late")


def no_content(environ: Environ, start_response: Start) -> list[bytes]:
    start_response("204 No Content", [])
    return []


def not_modified(environ: Environ, start_response: Start) -> list[bytes]:
    start_response("304 Not Modified", [("ETag", '"1"')])
    return []


def real_file(environ: Environ, start_response: Start) -> Any:
    """Gunicorn sends it with sendfile()."""
    path = f"file-{os.getpid()}"
    if not os.path.exists(path):
        with open(path, "wb") as made:
            made.write(FILE)
    start_response("200 OK", [("Content-Length", str(len(FILE)))])
    return environ["wsgi.file_wrapper"](open(path, "rb"))


def file_like(environ: Environ, start_response: Start) -> Any:
    start_response("200 OK", [("Content-Length", str(len(FILE)))])
    return environ["wsgi.file_wrapper"](io.BytesIO(FILE))


def first_byte(environ: Environ, start_response: Start) -> list[bytes]:
    """Reads a part of the body only."""
    return plain(start_response, environ["wsgi.input"].read(1))


def flags(environ: Environ, start_response: Start) -> list[bytes]:
    """What the server says of itself."""
    names = ("wsgi.multithread", "wsgi.multiprocess", "wsgi.run_once", "SERVER_PROTOCOL")
    return plain(start_response, repr([environ[name] for name in names]).encode())


def together(environ: Environ, start_response: Start) -> list[bytes]:
    """Answers when four requests are in this process at the same time."""
    try:
        _FOUR.wait(20)
    except threading.BrokenBarrierError:
        return plain(start_response, b"alone", "500 Alone")
    return plain(start_response, b"together")


_FOUR = threading.Barrier(4)


def taking(environ: Environ, start_response: Start) -> list[bytes]:
    """Answers by itself, on a socket that gunicorn is left without."""
    fd = environ["gunicorn.socket"].detach()
    os.write(fd, b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\ntaken")
    os.close(fd)
    raise StopIteration


def websocket(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Says who it is, then echoes."""
    connection = simple_websocket.Server(environ)
    try:
        connection.send(json.dumps({"worker": environ.get("gunicorn_cluster.worker_id")}))
        while True:
            connection.send(connection.receive())
    except simple_websocket.ConnectionClosed:
        pass
    # The connection has had its answer: this is how frameworks tell gunicorn so.
    raise StopIteration


HANDLERS: dict[str, Callable[[Environ, Start], Iterable[bytes]]] = {
    "/who": whoami.app,
    "/raise": raising,
    "/raise-late": raising_late,
    "/204": no_content,
    "/304": not_modified,
    "/file": real_file,
    "/file-like": file_like,
    "/first-byte": first_byte,
    "/flags": flags,
    "/together": together,
    "/take": taking,
    "/websocket": websocket,
}


def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
    return HANDLERS.get(environ["PATH_INFO"], echo.app)(environ, start_response)
