"""Flask, whose session all workers share. See shared_state.py."""

import os
from typing import Any

import barrier
from flask import Flask, request, session

from gunicorn_cluster_ext.flask import ClusterSession

app = Flask(__name__)
app.config["SESSION_COOKIE_NAME"] = "gunicorn_session"
ClusterSession(app)


def said(what: Any) -> dict[str, Any]:
    return {"said": what, "pid": os.getpid()}


@app.get("/")
def plain() -> dict[str, Any]:
    return said("plain")


@app.get("/read")
def read() -> dict[str, Any]:
    return said(dict(session))


@app.get("/put")
def put() -> dict[str, Any]:
    seen = len(session)
    barrier.wait(request.args)
    session[request.args["key"]] = {"value": request.args["value"]}
    return said(seen)


@app.get("/logout")
def logout() -> dict[str, Any]:
    session.clear()
    return said("out")
