"""Is not well at /health in those processes, or "all", that the file "ill" names."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import whoami
from wsgi_and_asgi import Both


@Both
def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if environ["PATH_INFO"] != "/health":
        return whoami.app(environ, start_response)
    file = Path("ill")
    ill = file.read_text().split() if file.exists() else []
    status = "500 Ill" if {"all", str(os.getpid())} & {*ill} else "200 Well"
    start_response(status, [("Content-Length", "0")])
    return [b""]
