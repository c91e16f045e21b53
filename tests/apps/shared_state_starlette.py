"""Starlette, whose session all workers share. See shared_state.py."""

import os
from typing import Any

import barrier
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gunicorn_cluster_ext.session.asgi import ASGISessionMiddleware


def said(what: Any) -> JSONResponse:
    return JSONResponse({"said": what, "pid": os.getpid()})


async def plain(request: Request) -> JSONResponse:
    return said("plain")


def read(request: Request) -> JSONResponse:
    """Not asynchronous: Starlette calls it in a thread."""
    return said(dict(request.session))


async def put(request: Request) -> JSONResponse:
    seen = len(request.session)
    await barrier.await_(request.query_params)
    request.session[request.query_params["key"]] = {"value": request.query_params["value"]}
    return said(seen)


async def logout(request: Request) -> JSONResponse:
    request.session.clear()
    return said("out")


views = {"/": plain, "/read": read, "/put": put, "/logout": logout}
app = Starlette(routes=[Route(path, view) for path, view in views.items()])
app.add_middleware(ASGISessionMiddleware)
