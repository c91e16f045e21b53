from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_cluster_ext.routing.head import Head, scan
from gunicorn_cluster_ext.routing.responses import WORKER_ID, Affinity, is_public
from gunicorn_cluster_ext.routing.rules import Cookie
from gunicorn_cluster_ext.routing.wsgi import AffinityMiddleware

Headers = list[tuple[str, str]]

#: Slots 0 to 3 serve; this worker is 2.
OURS = 2


def serving(slot: int) -> int | None:
    return 2 * slot if slot < 4 else None


AFFINITY = Affinity(OURS, "gunicorn_worker", serving)


class Everybody:
    """The board that goes with `serving`."""

    def slots(self) -> list[int]:
        return [0, 1, 2, 3]

    def seat_of_slot(self, slot: int) -> int | None:
        return serving(slot)

    def seat_of_process(self, slot: int, generation: int) -> int | None:
        return serving(slot)


def app_with(*headers: tuple[str, str]) -> Callable[..., Iterable[bytes]]:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), *headers])
        return [b"body"]

    return app


class Answer:
    """Collects the response of a WSGI application. Calling it is `start_response`."""

    headers: Headers

    def __init__(
        self, app: Callable[..., Iterable[bytes]], cookie: str = "", scheme: str = "http"
    ) -> None:
        self.environ: dict[str, Any] = {"wsgi.url_scheme": scheme, "QUERY_STRING": ""}
        if cookie:
            self.environ["HTTP_COOKIE"] = cookie
        setup_testing_defaults(self.environ)
        self.calls: list[tuple[Any, ...]] = []
        self.written: list[bytes] = []
        self.result = app(self.environ, self.start)

    def start(self, *arguments: Any) -> Callable[[bytes], Any]:
        self.calls.append(arguments)
        self.headers = arguments[1]
        return self.written.append

    @property
    def cookies(self) -> list[str]:
        return [value for name, value in self.headers if name == "Set-Cookie"]


def tagged(*headers: tuple[str, str], cookie: str | None = "gunicorn_worker") -> AffinityMiddleware:
    return AffinityMiddleware(app_with(*headers), Affinity(OURS, cookie, serving))


# --- the worker id ----------------------------------------------------------------------------


def test_the_application_and_the_access_log_know_the_worker() -> None:
    assert Answer(tagged()).environ["gunicorn_cluster.worker_id"] == OURS
    assert Answer(tagged(cookie=None)).environ[WORKER_ID] == OURS


# --- when the cookie is set -------------------------------------------------------------------


def test_a_request_without_our_cookie_gets_it() -> None:
    answer = Answer(tagged())
    assert answer.cookies == ["gunicorn_worker=2; Path=/; HttpOnly; SameSite=Lax"]
    assert list(answer.result) == [b"body"]


def test_a_request_by_https_gets_a_secure_cookie() -> None:
    answer = Answer(tagged(), scheme="https")
    assert answer.cookies == ["gunicorn_worker=2; Path=/; HttpOnly; SameSite=Lax; Secure"]


@pytest.mark.parametrize(
    "cookie",
    [
        "gunicorn_worker=2",
        "gunicorn_worker=0",
        "session=x; gunicorn_worker=3",
        "session=x;gunicorn_worker=3;a=b",
        "session=x; \tgunicorn_worker=3 ; a=b",
    ],
)
def test_a_request_that_names_a_slot_that_serves_gets_no_cookie(cookie: str) -> None:
    assert Answer(tagged(), cookie).cookies == []


@pytest.mark.parametrize(
    "cookie",
    [
        "session=x",
        "gunicorn_worker=9",
        "gunicorn_worker=9999",
        "gunicorn_worker=",
        "gunicorn_worker",
        "gunicorn_worker=02",
        "gunicorn_worker=two",
        'gunicorn_worker="2"',
        "gunicorn_worker=\xe9",
        "xgunicorn_worker=2",
        "Gunicorn_Worker=2",
        "a=gunicorn_worker=2",
        ";;;",
    ],
)
def test_a_request_that_names_no_slot_that_serves_gets_a_cookie(cookie: str) -> None:
    assert len(Answer(tagged(), cookie).cookies) == 1


@given(st.text('gunicorn_worker=;, \t0123456789"\\\xe9', max_size=60))
def test_no_cookie_header_makes_it_fail(cookie: str) -> None:
    assert len(Answer(tagged(), cookie).cookies) <= 1


@given(
    st.lists(
        st.sampled_from(("gunicorn_worker=1", " gunicorn_worker=\t2", "gunicorn_worker=9", "a=b")),
        max_size=3,
    ).map(";".join)
)
def test_a_client_whose_cookie_finds_no_owner_gets_a_cookie(cookie: str) -> None:
    """The rule and the response agree: a client that is not routed gets a cookie."""
    line = f"Cookie: {cookie}\r\n".encode()
    head = scan(b"GET / HTTP/1.1\r\n" + line + b"\r\n")
    assert isinstance(head, Head)
    if Cookie(b"gunicorn_worker").owner(head, Everybody()) is None:
        assert len(Answer(tagged(), cookie.strip(" \t")).cookies) == 1


def test_without_the_rule_there_is_no_cookie() -> None:
    assert Answer(tagged(cookie=None)).cookies == []


def test_the_cookie_has_the_name_that_was_chosen() -> None:
    assert Answer(tagged(cookie="mine")).cookies[0].startswith("mine=2;")
    assert Answer(tagged(cookie="mine"), "gunicorn_worker=2").cookies != []


# --- the application's response stays its own -------------------------------------------------


def test_the_applications_own_headers_stay() -> None:
    own = [("Set-Cookie", "session=1"), ("Set-Cookie", "a=b"), ("X-Key", "v")]
    answer = Answer(tagged(*own))
    assert answer.headers[1:-1] == own
    assert answer.headers[-1][1].startswith("gunicorn_worker=2;")


def test_the_applications_own_list_is_not_changed() -> None:
    mine: Headers = [("Content-Type", "text/plain")]

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", mine)
        return []

    Answer(AffinityMiddleware(app, AFFINITY))
    assert len(mine) == 1


def test_the_applications_iterable_is_passed_through() -> None:
    """It keeps its close(), and stays a file for sendfile."""

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            yield b"body"

    body = Body()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return body

    assert Answer(AffinityMiddleware(app, AFFINITY)).result is body


def test_an_error_response_gets_the_cookie_and_keeps_its_exception() -> None:
    raised = (RuntimeError, RuntimeError("no luck"), None)

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        start_response("500 Error", [], raised)
        return []

    answer = Answer(AffinityMiddleware(app, AFFINITY))
    assert [len(call) for call in answer.calls] == [2, 3]
    assert answer.calls[1][2] is raised
    assert all(len(call[1]) == 1 for call in answer.calls)


def test_what_the_application_writes_is_passed_through() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [])
        write(b"early")
        return []

    assert Answer(AffinityMiddleware(app, AFFINITY)).written == [b"early"]


@pytest.mark.parametrize("error", [RuntimeError, StopIteration, SystemExit])
def test_an_exception_passes_through(error: type[BaseException]) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        raise error("no luck")

    with pytest.raises(error, match="no luck"):
        Answer(AffinityMiddleware(app, AFFINITY))


def test_it_keeps_to_wsgi() -> None:
    """The validator of the standard library accepts both sides."""
    inner = validator(app_with(("X-Key", "v")))
    answer = Answer(validator(AffinityMiddleware(inner, AFFINITY)))
    assert b"".join(answer.result) == b"body"
    answer.result.close()  # type: ignore[attr-defined]
    assert len(answer.cookies) == 1


# --- what a shared cache may keep -------------------------------------------------------------


def http_date(days: int) -> str:
    return format_datetime(datetime.now(timezone.utc) + timedelta(days=days), usegmt=True)


AHEAD, PAST = ("Expires", http_date(1)), ("Expires", http_date(-1))


@pytest.mark.parametrize(
    ("headers", "public"),
    [
        ([], False),
        ([("Content-Type", "text/html")], False),
        ([("Cache-Control", "public")], True),
        ([("Cache-Control", "max-age=60")], True),
        ([("cache-control", "Public, Max-Age=60")], True),
        ([("Cache-Control", "s-maxage=60")], True),
        ([("Cache-Control", "no-cache, s-maxage=60")], True),
        ([("Cache-Control", "max-age=60"), ("Cache-Control", "must-revalidate")], True),
        ([("Cache-Control", "must-revalidate"), ("Cache-Control", "public")], True),
        ([("Cache-Control", "private")], False),
        ([("Cache-Control", "private, max-age=60")], False),
        ([("Cache-Control", 'private="X-Key", max-age=60')], False),
        ([("Cache-Control", "max-age=60"), ("Cache-Control", "private")], False),
        ([("Cache-Control", "no-store")], False),
        ([("Cache-Control", "no-store, public")], False),
        ([("Cache-Control", "no-cache")], False),
        ([("Cache-Control", "no-cache, max-age=60")], False),
        ([("Cache-Control", "must-revalidate")], False),
        ([("Cache-Control", "")], False),
        ([("Cache-Control", "publicity")], False),
        ([("Pragma", "public")], False),
        ([AHEAD], True),
        ([PAST], False),
        ([("expires", AHEAD[1].lower())], True),
        ([("Expires", "0")], False),
        ([("Expires", "-1")], False),
        ([("Expires", "")], False),
        ([("Expires", "Thu, 01 Jan 1970 00:00:00 GMT")], False),
        ([("Expires", "99 Foo 9999 99:99:99 GMT")], False),
        ([AHEAD, ("Cache-Control", "private")], False),
        ([AHEAD, ("Cache-Control", "no-store")], False),
        ([PAST, ("Cache-Control", "max-age=60")], True),
    ],
)
def test_what_a_shared_cache_may_keep(headers: Headers, public: bool) -> None:
    assert is_public(headers) is public
    assert Answer(tagged(*headers)).cookies == [] if public else Answer(tagged(*headers)).cookies


@given(st.text('abcdefgimnoprstuvwxy-=, "0123456789:GMTJan\x00\xe9', max_size=40))
def test_no_value_makes_it_fail(value: str) -> None:
    is_public([("Cache-Control", value)])
    is_public([("Expires", value)])
