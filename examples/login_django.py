"""A login and three counters on several workers, with Django.

    gunicorn -k gunicorn_cluster_ext.Sticky -w 4 --chdir examples login_django:application

Open the page in several browsers: every worker has its own (wrong) counter, while the session and
the right counter are shared by all workers. They are stored on this machine; for several machines
give the address of a Redis: GUNICORN_CLUSTER_STORE=redis://host:port/0.
"""

import os

from django.conf import settings
from django.core.cache import cache
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template import engines
from django.urls import path
from django.views.decorators.http import require_POST

from gunicorn_cluster_ext import worker_id

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    # One for all workers: with a random one in each, no form would be accepted.
    SECRET_KEY=os.environ.get("SECRET_KEY", "for this example only"),
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
    CACHES={"default": {"BACKEND": "gunicorn_cluster_ext.django.cache.ClusterCache"}},
    SESSION_ENGINE="gunicorn_cluster_ext.django.sessions",
    MIDDLEWARE=[
        "gunicorn_cluster_ext.django.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
    ],
)

wrong = 0

PAGE = """<!doctype html>
<title>Login and counters</title>
<p>Worker <b id="worker">{{ worker }}</b> greets <b id="user">{{ user }}</b>.
<p>Your visits: <b id="mine">{{ mine }}</b>
<p>All visits: <b id="right">{{ right }}</b>
<p>All visits, counted wrong: <b id="wrong">{{ wrong }}</b>
<form method="post" action="/login">{% csrf_token %}<input name="user" placeholder="name">
<button>Log in</button></form>
<form method="post" action="/logout">{% csrf_token %}<button>Log out</button></form>
"""


def page(request: HttpRequest) -> HttpResponse:
    global wrong
    wrong += 1  # WRONG: only what this worker has seen, and forgotten when it is replaced
    cache.add("visits", 0, timeout=None)
    right = cache.incr("visits")  # right: atomic, for all workers
    session = request.session
    session["visits"] = session.get("visits", 0) + 1
    context = {
        "worker": worker_id(),
        "user": session.get("user", "nobody"),
        "mine": session["visits"],
        "right": right,
        "wrong": wrong,
    }
    return HttpResponse(engines["django"].from_string(PAGE).render(context, request))


@require_POST
def login(request: HttpRequest) -> HttpResponse:
    request.session.cycle_key()  # a new id: nobody can have planted it
    request.session["user"] = request.POST["user"][:50]
    return HttpResponseRedirect("/")


@require_POST
def logout(request: HttpRequest) -> HttpResponse:
    request.session.flush()  # for good: no request that began before brings it back
    return HttpResponseRedirect("/")


urlpatterns = [path("", page), path("login", login), path("logout", logout)]
application = get_wsgi_application()
