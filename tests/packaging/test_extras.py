"""Each extra by itself, as a user installs it: from the wheel, in an environment of its own.

The environment of the other tests has every extra, so it cannot show that one lacks something.
"""

import subprocess
import sys
import venv
from collections.abc import Callable
from importlib.metadata import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
from filelock import FileLock

from tests.conftest import StartGunicorn, StartRedis

ROOT = Path(__file__).parents[2]

WSGI = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
ASGI = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})
"""
REDIS = """
from gunicorn_cluster_ext import cache
def app(environ, start_response):
    cache.set("greeting", "ok")
    start_response("200 OK", [("Content-Length", "2")])
    return [cache.get("greeting").encode()]
"""
SOCKETIO = """
import socketio
from gunicorn_cluster_ext.socketio import ClusterManager
server = socketio.Server(async_mode="threading", client_manager=ClusterManager())
app = socketio.WSGIApp(server)
"""
FLASK = """
from flask import Flask, session
from gunicorn_cluster_ext.flask import ClusterSession
app = Flask(__name__)
ClusterSession(app)
@app.get("/")
def index():
    session["seen"] = True
    return "ok"
"""
FLASK_SOCKETIO = """
from flask import Flask
from flask_socketio import SocketIO
from gunicorn_cluster_ext.socketio import ClusterManager
app = Flask(__name__)
SocketIO(app, async_mode="threading", client_manager=ClusterManager())
"""
DJANGO = """
import django
from django.conf import settings
settings.configure(
    SECRET_KEY="x", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], USE_TZ=True,
    SESSION_ENGINE="gunicorn_cluster_ext.django.sessions",
    CACHES={"default": {"BACKEND": "gunicorn_cluster_ext.django.cache.ClusterCache"}},
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
)
django.setup()
from django.core.cache import cache
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
def index(request):
    request.session["seen"] = True
    cache.set("greeting", "ok")
    return HttpResponse(cache.get("greeting"))
urlpatterns = [path("", index)]
app = get_wsgi_application()
"""
FASTAPI = """
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from gunicorn_cluster_ext.session import ASGISessionMiddleware
api = FastAPI()
@api.get("/")
async def index():
    return PlainTextResponse("ok")
app = ASGISessionMiddleware(api)
"""
CACHELIB = """
from gunicorn_cluster_ext.cachelib import ClusterCache
cache = ClusterCache()
def app(environ, start_response):
    cache.set("greeting", "ok")
    start_response("200 OK", [("Content-Length", "2")])
    return [cache.get("greeting").encode()]
"""
METRICS = "from gunicorn_cluster_ext.metrics import wsgi_app as app\n"

HANDSHAKE = "/socket.io/?EIO=4&transport=polling"


class Case(NamedTuple):
    """What an extra is for: an application on a worker class, and what it answers."""

    extra: str
    app: str
    worker_class: str = "Sticky"
    target: str = "/"
    answer: str = "ok"


CASES = (
    Case("", WSGI),
    Case("", ASGI, "StickyASGI"),
    Case("redis", REDIS),
    Case("socketio", SOCKETIO, target=HANDSHAKE, answer='"sid"'),
    Case("flask", FLASK),
    Case("flask,socketio", FLASK_SOCKETIO, target=HANDSHAKE, answer='"sid"'),
    Case("django", DJANGO),
    Case("fastapi", FASTAPI, "StickyASGI"),
    Case("cachelib", CACHELIB),
    Case("gevent", WSGI, "StickyGevent"),
    Case("cli", WSGI),
    Case("metrics", METRICS, answer="gunicorn_cluster_workers"),
)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution. All runners share it."""
    directory = tmp_path_factory.getbasetemp().parent / "dist"
    with FileLock(f"{directory}.lock"):
        if not directory.exists():
            run(sys.executable, "-m", "build", "--outdir", str(directory), str(ROOT))
    (found,) = directory.glob("*.whl")
    return found


@pytest.fixture
def install(wheel: Path, tmp_path: Path) -> Callable[[str], str]:
    """Makes an environment that has one extra and nothing else. Returns its Python."""

    def make(extra: str) -> str:
        venv.create(tmp_path / "venv")
        python = str(tmp_path / "venv" / "bin" / "python")
        requirement = f"{wheel}[{extra}]" if extra else str(wheel)
        run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", requirement)
        return python

    return make


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def case_id(case: Case) -> str:
    return f"{case.extra or 'none'}-{case.worker_class}"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_an_extra_brings_what_it_is_for(
    case: Case,
    install: Callable[[str], str],
    new_directory: Callable[[], Path],
    gunicorn: StartGunicorn,
    redis: StartRedis,
) -> None:
    python, directory = install(case.extra), new_directory()
    (directory / "application.py").write_text(case.app)
    server = gunicorn(
        "application:app",
        *("-k", f"gunicorn_cluster_ext.{case.worker_class}", "--chdir", str(directory)),
        directory=directory,
        python=python,
        env={"GUNICORN_CLUSTER_STORE": redis().url} if case.extra == "redis" else None,
    )
    answer = server.get(case.target)
    assert answer.status == 200 and case.answer.encode() in answer.body, answer
    status = run(python, "-m", "gunicorn_cluster_ext", "status", "--dir", str(directory))
    assert "application:app" in status


def test_every_extra_is_tried() -> None:
    """[all] is the sum of the others."""
    declared = set(metadata("gunicorn-cluster-ext").get_all("Provides-Extra", ())) - {"all", "test"}
    assert declared == {name for case in CASES for name in case.extra.split(",") if name}
