"""HTTP responses of Flask and Django as values of the codec, for caches of whole pages.

The adapters for such frameworks import this module. It imports no framework before one of its
responses is stored or loaded. Of a subclass it stores what is sent: body, status and headers.
"""

from __future__ import annotations

from typing import Any

from gunicorn_cluster_ext import codec
from gunicorn_cluster_ext.codec import Extension

_FLASK, _DJANGO = 32, 33


def _pack_flask(response: Any) -> bytes:
    parts = [response.get_data(), response.status, list(response.headers)]
    return codec.encode(parts, "a response")


def _unpack_flask(data: bytes) -> Any:
    from flask import Response

    return Response(*codec.decode(data))


def _pack_django(response: Any) -> bytes:
    cookies = [[name, morsel.value, dict(morsel)] for name, morsel in response.cookies.items()]
    parts = [
        response.content,
        response.status_code,
        response.reason_phrase,
        response.charset,
        list(response.headers.items()),
        cookies,
    ]
    return codec.encode(parts, "a response")


def _unpack_django(data: bytes) -> Any:
    from django.http import HttpResponse

    content, status, reason, charset, headers, cookies = codec.decode(data)
    response = HttpResponse(content, None, status, reason, charset, dict(headers))
    for name, value, attributes in cookies:
        response.cookies[name] = value
        response.cookies[name].update(attributes)
    return response


codec.register(Extension(_FLASK, "flask.wrappers.Response", _pack_flask, _unpack_flask))
codec.register(
    Extension(_DJANGO, "django.http.response.HttpResponse", _pack_django, _unpack_django)
)
