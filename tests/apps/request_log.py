"""Notes every request that it begins and ends, with its process, in files of the directory.

/?id=NAME&sleep=SECONDS
"""

import json
import os
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

from wsgi_and_asgi import Both


@Both
def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    note("begun", query.get("id", "-"))
    time.sleep(float(query.get("sleep", "0")))
    worker = environ.get("gunicorn_cluster.worker_id")
    body = json.dumps({"worker": worker, "pid": os.getpid(), "id": query.get("id")}).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    note("ended", query.get("id", "-"))
    return [body]


def note(what: str, request: str) -> None:
    """One write, so that processes and threads do not mix their lines."""
    file = os.open("diary.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{what} {request} {os.getpid()}\n".encode())
    os.close(file)
