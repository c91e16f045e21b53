"""WSGI applications with different kinds of sessions, called in this process."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import redis
from flask import Flask, session
from flask.sessions import SecureCookieSession, SessionInterface
from flask_session.redis import RedisSessionInterface

from gunicorn_cluster_ext.flask import ClusterSession
from gunicorn_cluster_ext.session.middleware import ENVIRON_KEY
from gunicorn_cluster_ext.session.wsgi import SessionMiddleware
from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores.handles import Stores

from .failure import Failure
from .session_acts import ACTS, CONTENTS

BODY = b"hello, world\n"

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass(frozen=True)
class Place:
    directory: Path
    redis: str


class Client:
    """Sends the same cookies with each request, and ignores those that are set later."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._headers: list[tuple[str, str]] = []
        self._status = ""
        self._environ = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "QUERY_STRING": "",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "HTTP_HOST": "localhost",
            "HTTP_ACCEPT": "*/*",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
        }

    def begin(self) -> None:
        self.get("/begin")
        jar = SimpleCookie()
        for name, value in self._headers:
            if name.lower() == "set-cookie":
                jar.load(value)
        pairs = (f"{name}={morsel.value}" for name, morsel in jar.items())
        self._environ["HTTP_COOKIE"] = "; ".join(pairs)

    def get(self, path: str) -> None:
        environ = {**self._environ, "PATH_INFO": path, "wsgi.input": io.BytesIO()}
        body = self._app(environ, self._start_response)
        data = b"".join(body)
        close = getattr(body, "close", None)
        if close is not None:
            close()
        if data != BODY or self._status[:3] != "200":
            raise Failure(f"{path} is answered {self._status}: {data!r}")

    def _start_response(self, status: str, headers: list[tuple[str, str]], _: Any = None) -> None:
        self._status, self._headers = status, headers


# --- applications -----------------------------------------------------------------------------


def plain(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    ACTS[environ["PATH_INFO"]](environ[ENVIRON_KEY])
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
    return [BODY]


def plain_without(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    environ[ENVIRON_KEY] = dict(CONTENTS)
    return plain(environ, start_response)


def flask_app() -> Flask:
    app = Flask(__name__)
    app.secret_key = "benchmark"

    def view(path: str) -> bytes:
        ACTS[path](session)
        return BODY

    for path in ACTS:
        app.add_url_rule(path, path, partial(view, path))
    return app


class WithoutSession(SessionInterface):
    """A session that is not stored, to measure what Flask itself costs."""

    def open_session(self, app: Flask, request: Any) -> SecureCookieSession:
        return SecureCookieSession(CONTENTS)

    def save_session(self, app: Flask, session: Any, response: Any) -> None:
        pass


def flask_without(_: Place) -> App:
    app = flask_app()
    app.session_interface = WithoutSession()
    return app.wsgi_app


def flask_signed_cookie(_: Place) -> App:
    return flask_app().wsgi_app


def flask_session(place: Place, *, lean: bool) -> App:
    """Flask-Session; ``lean`` keeps it from writing unchanged sessions, which is its default."""
    app = flask_app()
    app.config["SESSION_REFRESH_EACH_REQUEST"] = not lean
    app.session_interface = RedisSessionInterface(app, redis.Redis.from_url(place.redis))
    return app.wsgi_app


# --- ours -------------------------------------------------------------------------------------


def embedded(place: Place) -> Stores:
    settings = Settings(store_path=str(place.directory / "embedded"))
    return Stores(lambda: settings)


def on_redis(place: Place) -> Stores:
    settings = Settings(store=place.redis)
    return Stores(lambda: settings)


def middleware(place: Place, stores: Callable[[Place], Stores]) -> App:
    return SessionMiddleware(plain, stores=stores(place))


def flask_ours(place: Place, stores: Callable[[Place], Stores]) -> App:
    app = flask_app()
    ClusterSession(app, stores=stores(place))
    return app.wsgi_app


# --- contenders -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    name: str
    make: Callable[[Place], App]
    #: The name of the same application without a session.
    base: str


WSGI, FLASK = "WSGI, no session", "Flask, no session"
OURS = Contender("ClusterSession, Redis", partial(flask_ours, stores=on_redis), FLASK)
RIVAL = Contender("Flask-Session, Redis", partial(flask_session, lean=False), FLASK)
LEAN_RIVAL = Contender("Flask-Session, Redis, no refresh", partial(flask_session, lean=True), FLASK)
ALL = (
    Contender(WSGI, lambda _: plain_without, WSGI),
    Contender("SessionMiddleware, embedded", partial(middleware, stores=embedded), WSGI),
    Contender("SessionMiddleware, Redis", partial(middleware, stores=on_redis), WSGI),
    Contender(FLASK, flask_without, FLASK),
    Contender("Flask's signed cookie", flask_signed_cookie, FLASK),
    Contender("ClusterSession, embedded", partial(flask_ours, stores=embedded), FLASK),
    OURS,
    RIVAL,
    LEAN_RIVAL,
)


def client(contender: Contender, place: Place) -> Client:
    """Return a client that has a session."""
    made = Client(contender.make(place))
    made.begin()
    for path in ACTS:
        if path != "/begin":
            made.get(path)
    return made
