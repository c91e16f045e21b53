"""Counts its requests with prometheus_client; /metrics has the server's and its own."""

import json
import os
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

from prometheus_client import Counter, Gauge

from gunicorn_cluster_ext import cache
from gunicorn_cluster_ext.metrics import wsgi_app

GREETINGS = Counter("greetings", "Requests that were greeted", ["kind"])
GUESTS = Gauge("guests", "Those who are in", multiprocess_mode="livesum")


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/metrics":
        answer: Iterable[bytes] = wsgi_app(environ, start_response)
        return answer
    query = parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
    GREETINGS.labels("any").inc()
    if "stay" in query:
        GUESTS.inc()
    if "cache" in query:
        cache.get("nothing")
    time.sleep(float(query.get("sleep", ["0"])[0]))
    body = json.dumps({"pid": os.getpid(), "worker": environ["gunicorn_cluster.worker_id"]})
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body.encode()]
