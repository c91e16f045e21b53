"""The views of the Django site that tests use."""

import time
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.cache import cache_page


def curious(get_response: Any) -> Any:
    """A middleware that looks at sessions."""

    def look(request: HttpRequest) -> HttpResponse:
        if request.path == "/curious":
            request.session.get("user")
        return get_response(request)

    return look


def visit(request: HttpRequest) -> HttpResponse:
    request.session["visits"] = request.session.get("visits", 0) + 1
    return HttpResponse(str(request.session["visits"]))


def nested(request: HttpRequest) -> HttpResponse:
    request.session.setdefault("cart", []).append("item")
    return HttpResponse(str(len(request.session["cart"])))


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("plain")


def login(request: HttpRequest) -> HttpResponse:
    request.session.cycle_key()
    request.session["user"] = "me"
    return HttpResponse(request.session.session_key)


def logout(request: HttpRequest) -> HttpResponse:
    request.session.flush()
    return HttpResponse("out")


@cache_page(60)
def page(request: HttpRequest) -> HttpResponse:
    response = JsonResponse({"now": time.time()}, status=200, headers={"X-Own": "yes"})
    response.set_cookie("flavour", "oat", max_age=60, samesite="Lax")
    return response


urlpatterns = [
    path(view.__name__, view) for view in (visit, nested, plain, login, logout, page)
] + [path("curious", plain)]
