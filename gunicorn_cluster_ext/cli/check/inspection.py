"""Inspect a process that has loaded an application, without calling anything in it."""

from __future__ import annotations

import gc
import hashlib
import sys
from collections.abc import Iterator
from typing import Any

from gunicorn_cluster_ext import compat, stores
from gunicorn_cluster_ext.cli.check.findings import AppFacts
from gunicorn_cluster_ext.logs import one_line
from gunicorn_cluster_ext.routing import rule_syntax
from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores import contract

_SIMPLE_CACHES = ("SimpleCache", "simple", "flask_caching.backends.simple")
_WEBSOCKETS = ("flask_socketio", "socketio", "flask_sock", "simple_websocket", "channels")


def look(app: Any, settings: Settings) -> AppFacts:
    """Return facts about ``app``, which this process has loaded."""
    return AppFacts(
        is_asgi=compat.is_asgi(app),
        # Digests suffice to compare them: a secret must not leave this process.
        secrets={
            name: hashlib.sha256(repr(secret).encode()).hexdigest()
            for name, secret in _secrets()
            if secret
        },
        websockets=[name for name in _WEBSOCKETS if name in sys.modules],
        in_memory=list(_in_memory()),
        unmanaged_socketio=_has_unmanaged_socketio(),
        broken_rules=dict(_broken_rules(settings)),
        store_error=_store_error(settings),
    )


def _every(module: str, name: str) -> Iterator[Any]:
    """Yield all objects of a class in this process, if its module is imported.

    ``isinstance`` would ask each object for its class, which evaluates lazy objects.
    """
    kind = getattr(sys.modules.get(module), name, None)
    if kind is not None:
        yield from (each for each in gc.get_objects() if issubclass(type(each), kind))


def _django() -> Any:
    """Return Django's settings, or None if Django is not set up."""
    settings = getattr(sys.modules.get("django.conf"), "settings", None)
    return settings if settings is not None and settings.configured else None


def _secrets() -> Iterator[tuple[str, Any]]:
    for app in _every("flask", "Flask"):
        yield f"secret_key of the Flask application {app.name}", app.secret_key
    for each in _every("starlette.middleware", "Middleware"):
        yield f"secret_key of {each.cls.__name__}", each.kwargs.get("secret_key")
    if (django := _django()) is not None:
        yield "Django's SECRET_KEY", django.SECRET_KEY


def _in_memory() -> Iterator[str]:
    for app in _every("flask", "Flask"):
        if app.config.get("CACHE_TYPE") in _SIMPLE_CACHES:
            yield "Flask-Caching's SimpleCache"
        if app.config.get("SESSION_TYPE") == "memory":
            yield "Flask-Session's data"
    if (django := _django()) is not None:
        cache = django.CACHES.get(django.SESSION_CACHE_ALIAS, {}).get("BACKEND", "")
        if django.SESSION_ENGINE.endswith(".backends.cache") and "locmem" in cache:
            yield "Django's session (a LocMemCache)"


def _broken_rules(settings: Settings) -> Iterator[tuple[str, str]]:
    context = rule_syntax.RuleContext(settings.cookie, _nothing, _nothing, _nothing)
    for words in settings.sticky:
        try:
            rule_syntax.build_rule(words, context)
        except Exception as error:
            yield words, one_line(error)


def _nothing(*_: Any) -> None: ...


def _has_unmanaged_socketio() -> bool:
    """Return whether a Socket.IO server knows only the clients of its own worker."""
    managers = (type(each.manager) for each in _every("socketio.base_server", "BaseServer"))
    return any(kind.__name__ in ("Manager", "AsyncManager") for kind in managers)


def _store_error(settings: Settings) -> str:
    """Return why Redis does not reply, or "". Opening the embedded store would create it."""
    if settings.store == "embedded":
        return ""
    try:
        store = stores.open_store(settings)
        store.get(b"gunicorn-cluster check")
        store.close()
    except contract.StoreError as error:
        return str(error)
    return ""
