"""Keeps a megabyte for every request, for ever."""

from collections.abc import Callable, Iterable
from typing import Any

import whoami
from wsgi_and_asgi import Both

KEPT: list[bytes] = []


@Both
def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    # Written to, or the kernel would not count it.
    KEPT.append(b"x" * 1_000_000)
    return whoami.app(environ, start_response)
