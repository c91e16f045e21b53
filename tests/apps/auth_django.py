"""Django with its users in a database, and a session that all workers share.

``python auth_django.py`` makes the database, in the working directory, with two users.
"""

import os
from typing import Any

import barrier
import django
from django.conf import settings
from django.contrib import auth
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="tests",
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "users.db"}},
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    SESSION_COOKIE_NAME="gunicorn_session",
    SESSION_ENGINE="gunicorn_cluster_ext.django.sessions",
    MIDDLEWARE=[
        "gunicorn_cluster_ext.django.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
)
django.setup()


def answer(request: HttpRequest) -> JsonResponse:
    own = {key: value for key, value in request.session.items() if not key.startswith("_auth")}
    said = {"user": request.user.username, "session": own}
    return JsonResponse({"said": said, "pid": os.getpid()})


def read(request: HttpRequest) -> JsonResponse:
    return answer(request)


def put(request: HttpRequest) -> JsonResponse:
    """Looks at the session, which it may have to wait for, and changes it."""
    request.session.get("anything")
    barrier.wait(request.GET.dict())
    request.session[request.GET["key"]] = request.GET["value"]
    return answer(request)


def login(request: HttpRequest) -> JsonResponse:
    user = auth.authenticate(request, username=request.GET["user"], password="secret")
    auth.login(request, user)
    return answer(request)


def logout(request: HttpRequest) -> JsonResponse:
    auth.logout(request)
    return answer(request)


def new_password(request: HttpRequest) -> JsonResponse:
    """Whoever knew the old one is logged out; this session is not."""
    request.user.set_password("secret")
    request.user.save()
    auth.update_session_auth_hash(request, request.user)
    return answer(request)


views: dict[str, Any] = {
    "": read, "read": read, "put": put, "login": login, "logout": logout,
    "new_password": new_password,
}  # fmt: skip
urlpatterns = [path(name, view) for name, view in views.items()]

if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    for name in ("ada", "bob"):
        auth.get_user_model().objects.create_user(name, password="secret")
else:
    app = get_wsgi_application()
