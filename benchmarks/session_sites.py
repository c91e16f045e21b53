"""Sites for gunicorn whose concurrent requests change one session.

    /begin                     starts a new session
    /set?key=&value=&pause=    reads the session, pauses, sets a key
    /nested?key=&value=&pause= the same for a dictionary in the session, whose key exists
    /logout                    ends the session
    /show                      returns the contents

Every response is JSON with the worker's process id and the session's contents.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

import redis

KEYS = tuple(f"key{number}" for number in range(8))
EMPTY = {"value": None}

Session = MutableMapping[str, Any]


def act(path: str, query: Mapping[str, str], session: Session, end: Callable[[], None]) -> bytes:
    shown = None
    if path == "/begin":
        session.update({"begun": True, **{f"nested-{key}": dict(EMPTY) for key in KEYS}})
    elif path == "/logout":
        end()
    elif path == "/show":
        shown = dict(session.items())
    else:
        change(session, query, nested=path == "/nested")
    return json.dumps({"pid": os.getpid(), "session": shown}).encode()


def change(session: Session, query: Mapping[str, str], *, nested: bool) -> None:
    session.get("begun")
    time.sleep(float(query["pause"]))
    if nested:
        session[f"nested-{query['key']}"]["value"] = query["value"]
    else:
        session[query["key"]] = query["value"]


# --- ours, without a framework ----------------------------------------------------------------


def middleware() -> Any:
    from gunicorn_cluster_ext.session.middleware import ENVIRON_KEY
    from gunicorn_cluster_ext.session.wsgi import SessionMiddleware

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        session = environ[ENVIRON_KEY]
        query = dict(parse_qsl(environ["QUERY_STRING"]))
        body = act(environ["PATH_INFO"], query, session, session.clear)
        length = ("Content-Length", str(len(body)))
        start_response("200 OK", [("Content-Type", "application/json"), length])
        return [body]

    return SessionMiddleware(app)


# --- Flask ------------------------------------------------------------------------------------


def flask_site() -> Any:
    from flask import Flask, request, session

    app = Flask(__name__)

    @app.get("/<path:path>")
    def any_path(path: str) -> bytes:
        return act(f"/{path}", request.args, session, session.clear)

    return app


def flask_ours() -> Any:
    from gunicorn_cluster_ext.flask import ClusterSession

    app = flask_site()
    ClusterSession(app)
    return app


def flask_session(url: str) -> Any:
    from flask_session import Session

    app = flask_site()
    app.config.update(SESSION_TYPE="redis", SESSION_REDIS=redis.Redis.from_url(url))
    Session(app)
    return app


# --- Django -----------------------------------------------------------------------------------


def django_ours() -> Any:
    package = "gunicorn_cluster_ext.django"
    return django_site(f"{package}.sessions", f"{package}.middleware.SessionMiddleware")


def django_own(engine: str, url: str) -> Any:
    """A site with one of Django's own session engines."""
    cache = {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": url}
    middleware = "django.contrib.sessions.middleware.SessionMiddleware"
    return django_site(f"django.contrib.sessions.backends.{engine}", middleware, cache)


def django_site(engine: str, middleware: str, cache: dict[str, Any] | None = None) -> Any:
    import django
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application

    settings.configure(
        SECRET_KEY="benchmark",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        INSTALLED_APPS=["django.contrib.sessions"],
        MIDDLEWARE=[middleware],
        SESSION_ENGINE=engine,
        CACHES={"default": cache} if cache else {},
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "sessions.db"}},
    )
    django.setup()
    if engine.endswith("cached_db"):
        make_table()
    return get_wsgi_application()


def make_table() -> None:
    """Create the table before the fork, which the connection must not cross."""
    from django.core.management import call_command
    from django.db import connection

    call_command("migrate", verbosity=0)
    connection.close()


def django_view(request: Any, path: str) -> Any:
    from django.http import HttpResponse

    session = request.session
    return HttpResponse(act(f"/{path}", request.GET.dict(), session, session.flush))


def __getattr__(name: str) -> Any:
    """Provide ``urlpatterns``, which Django looks for here: only a Django site needs the import."""
    if name != "urlpatterns":
        raise AttributeError(name)
    from django.urls import path

    return [path("<path:path>", django_view)]
