"""Says what it knows of its worker, and when it knew it."""

import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from wsgi_and_asgi import Both

import gunicorn_cluster_ext
from gunicorn_cluster_ext import current_worker, worker_id

AT_IMPORT = {"worker_id": worker_id(), "current": current_worker(), "pid": os.getpid()}


@Both
def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    print("printed by the application")
    print("complained by the application", file=sys.stderr)
    environ["wsgi.errors"].write("noted by the application\n")
    worker = gunicorn_cluster_ext.current_worker()
    body = json.dumps(
        {
            "worker_id": gunicorn_cluster_ext.worker_id(),
            "current": worker and worker._asdict(),
            "environment": os.environ.get("GUNICORN_WORKER_ID"),
            "environ": environ.get("gunicorn_cluster.worker_id"),
            "pid": os.getpid(),
            "at_import": AT_IMPORT,
        }
    ).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
