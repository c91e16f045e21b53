"""Django, whose session all workers share. See shared_state.py."""

import os
from typing import Any

import barrier
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="tests",
    SESSION_COOKIE_NAME="gunicorn_session",
    SESSION_ENGINE="gunicorn_cluster_ext.django.sessions",
    MIDDLEWARE=["gunicorn_cluster_ext.django.middleware.SessionMiddleware"],
)


def said(what: Any) -> JsonResponse:
    return JsonResponse({"said": what, "pid": os.getpid()})


def plain(request: HttpRequest) -> JsonResponse:
    return said("plain")


def read(request: HttpRequest) -> JsonResponse:
    return said(dict(request.session))


def put(request: HttpRequest) -> JsonResponse:
    seen = len(request.session.keys())
    barrier.wait(request.GET.dict())
    request.session[request.GET["key"]] = {"value": request.GET["value"]}
    return said(seen)


def logout(request: HttpRequest) -> JsonResponse:
    request.session.flush()
    return said("out")


urlpatterns = [path("", plain), path("read", read), path("put", put), path("logout", logout)]
app = get_wsgi_application()
asgi = get_asgi_application()
