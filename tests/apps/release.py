"""Says which RELEASE its environment named when it was loaded."""

import json
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from wsgi_and_asgi import Both

RELEASE = os.environ.get("RELEASE", "")
time.sleep(float(os.environ.get("IMPORT_S", "0")))


@Both
def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    worker = environ.get("gunicorn_cluster.worker_id")
    body = json.dumps({"release": RELEASE, "worker": worker, "pid": os.getpid()}).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]
