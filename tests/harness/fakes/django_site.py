"""Django, configured for tests in this process. Its stores are those that a test puts there."""

from collections.abc import Iterator
from typing import Any

import django
import pytest
from django.conf import settings
from django.core.cache import caches
from django.core.signals import request_finished
from django.db import close_old_connections

from gunicorn_cluster_ext.stores import handles
from tests.harness.fakes.store import MemoryStores

BACKEND = "gunicorn_cluster_ext.django.cache.ClusterCache"


def configure() -> None:
    if settings.configured:
        return
    settings.configure(
        SECRET_KEY="tests",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="tests.harness.fakes.django_urls",
        MIDDLEWARE=[
            "gunicorn_cluster_ext.django.middleware.SessionMiddleware",
            "tests.harness.fakes.django_urls.curious",
        ],
        SESSION_ENGINE="gunicorn_cluster_ext.django.sessions",
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
        CACHES={
            "default": {"BACKEND": BACKEND},
            "prefix": {"BACKEND": BACKEND, "KEY_PREFIX": "cacheprefix"},
            "v2": {"BACKEND": BACKEND, "VERSION": 2},
            "custom_key": {
                "BACKEND": BACKEND,
                "KEY_FUNCTION": f"{__name__}.key_func",
            },
            "other": {"BACKEND": BACKEND, "OPTIONS": {"namespace": "other"}, "TIMEOUT": None},
        },
    )
    django.setup()
    request_finished.disconnect(close_old_connections)


def forget() -> None:
    """The caches that were made; they keep their stores."""
    for alias in settings.CACHES:
        if hasattr(caches._connections, alias):
            del caches[alias]


def key_func(key: str, key_prefix: str, version: int) -> str:
    """A customized cache key function."""
    return "CUSTOM-" + "-".join([key_prefix, str(version), key])


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryStores]:
    configure()
    stores = MemoryStores()
    monkeypatch.setattr(handles, "default", stores)
    forget()
    yield stores
    forget()


def cache_of(alias: str = "default") -> Any:
    return caches[alias]
