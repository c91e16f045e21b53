"""The middleware: what a response gets, and what a client sees when the store is away."""

import asyncio
import sys
from collections.abc import Callable, Iterable, Iterator
from http.cookies import SimpleCookie
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from gunicorn_cluster_ext.codec import UnknownType
from gunicorn_cluster_ext.session import Session, SessionAway
from gunicorn_cluster_ext.session.asgi import ASGISessionMiddleware
from gunicorn_cluster_ext.session.wsgi import SessionMiddleware
from gunicorn_cluster_ext.settings import SettingError
from tests.harness.fakes.store import MemoryStore, MemoryStores

Headers = list[tuple[str, str]]
App = Callable[..., Iterable[bytes]]
NAME = "gunicorn_session"


class Answer:
    """The response of a WSGI application. Calling it is `start_response`."""

    def __init__(
        self,
        app: App,
        cookie: str | None = None,
        method: str = "GET",
        scheme: str = "http",
        name: str = NAME,
    ) -> None:
        environ: dict[str, Any] = {"QUERY_STRING": "", "REQUEST_METHOD": method}
        environ["wsgi.url_scheme"] = scheme
        if cookie:
            environ["HTTP_COOKIE"] = f"{name}={cookie}"
        setup_testing_defaults(environ)
        self.status = 0
        self.headers: Headers = []
        self.written: list[bytes] = []
        self.name = name
        result = app(environ, self)
        self.body = b"".join(result)
        if hasattr(result, "close"):
            result.close()

    def __call__(self, status: str, headers: Headers, exc_info: Any = None) -> Any:
        assert exc_info or not self.status
        self.status, self.headers = int(status[:3]), headers
        return self.written.append

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    @property
    def cookie(self) -> str | None:
        """The session cookie that was set; empty if it was removed."""
        (text,) = self.header("Set-Cookie") or [""]
        return SimpleCookie(text)[self.name].value if text else None


def app(
    use: Callable[[Session], object],
    headers: Iterable[tuple[str, str]] = (),
    status: str = "200 OK",
    late: bool = False,
) -> App:
    """An application that uses its session and answers."""

    def whole(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        data = str(use(environ["gunicorn_cluster.session"])).encode()
        start_response(status, [("Content-Type", "text/plain"), *headers])
        return [data]

    def generated(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        yield from whole(environ, start_response)

    return generated if late else whole


def visit(session: Session) -> int:
    session["visits"] = session.get("visits", 0) + 1
    return int(session["visits"])


# --- WSGI -------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True])
def test_a_session_goes_from_request_to_request(stores: MemoryStores, late: bool) -> None:
    site = SessionMiddleware(app(visit, late=late), stores=stores)
    first = Answer(site)
    assert first.body == b"1" and first.cookie
    second = Answer(site, first.cookie)
    assert second.body == b"2" and second.cookie is None
    assert Answer(site).body == b"1"


def test_it_keeps_to_wsgi(stores: MemoryStores) -> None:
    site = validator(SessionMiddleware(validator(app(visit)), stores=stores))
    answer = Answer(site)
    assert answer.body == b"1"
    assert Answer(site, answer.cookie).body == b"2"


def test_an_untouched_session_leaves_no_trace(stores: MemoryStores, memory: MemoryStore) -> None:
    cookie = Answer(SessionMiddleware(app(visit), stores=stores)).cookie
    memory.calls.clear()
    answer = Answer(SessionMiddleware(app(lambda session: 1), stores=stores), cookie)
    assert answer.headers == [("Content-Type", "text/plain")]
    assert memory.calls == []


def test_a_read_one_makes_the_response_vary(stores: MemoryStores) -> None:
    answer = Answer(SessionMiddleware(app(lambda session: session.get("a")), stores=stores))
    assert answer.header("Vary") == ["Cookie"] and answer.cookie is None


def test_a_logout_removes_the_cookie(stores: MemoryStores, memory: MemoryStore) -> None:
    cookie = Answer(SessionMiddleware(app(visit), stores=stores)).cookie
    answer = Answer(SessionMiddleware(app(Session.clear), stores=stores), cookie)
    assert answer.cookie == "" and memory.items == {}
    assert "Max-Age=0" in answer.header("Set-Cookie")[0]


def test_the_cookie_is_as_it_was_chosen(stores: MemoryStores) -> None:
    site = SessionMiddleware(
        app(visit), stores=stores, cookie="__Host-id", lifetime=60, samesite="Strict"
    )
    answer = Answer(site, scheme="https", name="__Host-id")
    assert answer.cookie
    (text,) = answer.header("Set-Cookie")
    assert text == (
        f"__Host-id={answer.cookie}; Max-Age=60; Path=/; HttpOnly; SameSite=Strict; Secure"
    )
    assert Answer(site, answer.cookie, name="__Host-id").body == b"2"


def test_what_is_chosen_badly_is_refused_at_once(stores: MemoryStores) -> None:
    with pytest.raises(SettingError, match="cluster_session_idle"):
        SessionMiddleware(app(visit), stores=stores, idle=0)
    with pytest.raises(TypeError, match="session_colour"):
        SessionMiddleware(app(visit), stores=stores, colour="blue")
    with pytest.raises(SettingError, match="__Host-"):
        SessionMiddleware(app(visit), stores=stores, cookie="__Host-id", path="/app")


@pytest.mark.parametrize("given", [("Cache-Control", "public, max-age=60"), ("Expires", "ahead")])
def test_a_cookie_is_kept_out_of_shared_caches(
    stores: MemoryStores, given: tuple[str, str]
) -> None:
    if given[1] == "ahead":
        given = ("Expires", "Fri, 01 Jan 2100 00:00:00 GMT")
    site = SessionMiddleware(app(visit, headers=[given]), stores=stores)
    answer = Answer(site)
    assert ("Cache-Control", "private") in answer.headers
    assert ("Cache-Control", "private") not in Answer(site, answer.cookie).headers


@pytest.mark.parametrize(
    "value", ["x", "a" * 43, "a" * 100_000, "é" * 43, "%00" * 14 + "a", "' OR 1=1 --".ljust(43)]
)
def test_a_forged_cookie_is_a_new_session(
    stores: MemoryStores, memory: MemoryStore, value: str, caplog: Any
) -> None:
    with caplog.at_level("DEBUG", "gunicorn.error"):
        answer = Answer(SessionMiddleware(app(visit), stores=stores), value)
    assert answer.status == 200 and answer.body == b"1"
    assert answer.cookie and answer.cookie != value
    assert len(caplog.records) == 1
    assert value == "x" or value not in caplog.text


def test_an_error_after_the_start_keeps_the_cookie(stores: MemoryStores) -> None:
    def failing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        visit(environ["gunicorn_cluster.session"])
        start_response("200 OK", [])
        try:
            raise ValueError("no luck")
        except ValueError:
            start_response("500 Error", [], sys.exc_info())
        return [b"sorry"]

    answer = Answer(SessionMiddleware(failing, stores=stores))
    assert answer.status == 500 and answer.body == b"sorry" and answer.cookie


def test_what_cannot_be_stored_deep_inside_is_an_error(stores: MemoryStores) -> None:
    def use(session: Session) -> None:
        session["user"] = {}
        session["user"]["object"] = object()

    with pytest.raises(UnknownType, match="'user'"):
        Answer(SessionMiddleware(app(use), stores=stores))


def test_the_applications_iterable_is_passed_through(stores: MemoryStores) -> None:
    """A file for sendfile is one, for instance."""
    body = [b"body"]

    def simple(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return body

    answer = SessionMiddleware(simple, stores=stores)({}, lambda *arguments: None)
    assert answer is body


# --- the store is away, WSGI ------------------------------------------------------------------


def check_unavailable(answer: Answer) -> None:
    assert answer.status == 503
    assert answer.header("Retry-After") == ["2"]
    assert answer.header("Cache-Control") == ["no-store"]
    assert answer.cookie is None
    assert answer.body.startswith(b"The sessions cannot be reached")
    assert answer.header("Content-Length") == [str(len(answer.body))]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("use", [visit, lambda session: session.get("a"), Session.clear, len])
def test_a_request_that_needs_the_session_is_told(
    stores: MemoryStores, memory: MemoryStore, use: Any, late: bool
) -> None:
    cookie = Answer(SessionMiddleware(app(visit), stores=stores)).cookie
    memory.away = True
    check_unavailable(Answer(SessionMiddleware(app(use, late=late), stores=stores), cookie))
    memory.away = False
    site = SessionMiddleware(app(visit), stores=stores)
    assert Answer(site, cookie).body == b"2"  # nobody was logged out


@pytest.mark.parametrize("late", [False, True])
def test_so_is_one_whose_session_cannot_be_saved(
    stores: MemoryStores, memory: MemoryStore, late: bool
) -> None:
    site = SessionMiddleware(app(visit, late=late), stores=stores)
    cookie = Answer(site).cookie
    memory.before = lambda name: setattr(memory, "away", name == "change")
    check_unavailable(Answer(site, cookie))
    check_unavailable(Answer(site))
    memory.before = lambda name: setattr(memory, "away", False)
    assert Answer(site, cookie).body == b"2"


def test_one_that_does_not_need_it_is_answered(stores: MemoryStores, memory: MemoryStore) -> None:
    cookie = Answer(SessionMiddleware(app(visit), stores=stores)).cookie
    memory.away = True
    assert Answer(SessionMiddleware(app(lambda s: "ok"), stores=stores), cookie).body == b"ok"


def catching(status: str) -> App:
    """A framework that turns any exception into a response."""

    def catch(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        try:
            visit(environ["gunicorn_cluster.session"])
        except SessionAway:
            pass
        start_response(status, [("Content-Type", "text/plain")])
        return [b"the framework's"]

    return catch


def test_an_error_page_of_the_framework_becomes_a_503(
    stores: MemoryStores, memory: MemoryStore
) -> None:
    cookie = Answer(SessionMiddleware(app(visit), stores=stores)).cookie
    memory.away = True
    check_unavailable(Answer(SessionMiddleware(catching("500 Error"), stores=stores), cookie))
    own = Answer(SessionMiddleware(catching("200 OK"), stores=stores), cookie)
    assert own.status == 200 and own.body == b"the framework's" and own.cookie is None


def test_an_answer_to_head_has_no_body(stores: MemoryStores, memory: MemoryStore) -> None:
    cookie = Answer(SessionMiddleware(app(visit), stores=stores)).cookie
    memory.away = True
    for late in (False, True):
        site = SessionMiddleware(app(visit, late=late), stores=stores)
        answer = Answer(site, cookie, method="HEAD")
        assert answer.status == 503 and answer.body == b""


def test_what_the_application_writes_then_is_dropped(
    stores: MemoryStores, memory: MemoryStore
) -> None:
    def writing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["gunicorn_cluster.session"]["a"] = 1
        start_response("200 OK", [])(b"early")
        return [b"late"]

    memory.away = True
    answer = Answer(SessionMiddleware(writing, stores=stores))
    check_unavailable(answer)
    assert answer.written == []


def test_the_applications_body_is_closed_all_the_same(
    stores: MemoryStores, memory: MemoryStore
) -> None:
    closed = []

    class Body(list[bytes]):
        def close(self) -> None:
            closed.append(True)

    def closing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["gunicorn_cluster.session"]["a"] = 1
        start_response("200 OK", [])
        return Body([b"body"])

    memory.away = True
    check_unavailable(Answer(SessionMiddleware(closing, stores=stores)))
    assert closed == [True]


def test_other_exceptions_pass_through(stores: MemoryStores) -> None:
    def failing(session: Session) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        Answer(SessionMiddleware(app(failing), stores=stores))


def test_after_the_response_began_the_exception_passes(
    stores: MemoryStores, memory: MemoryStore
) -> None:
    cookie = Answer(SessionMiddleware(app(visit), stores=stores)).cookie
    memory.away = True

    def streaming(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"begun"
        visit(environ["gunicorn_cluster.session"])

    def starting(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        visit(environ["gunicorn_cluster.session"])
        return []

    for late in (streaming, starting):
        with pytest.raises(SessionAway):
            Answer(SessionMiddleware(late, stores=stores), cookie)


# --- ASGI -------------------------------------------------------------------------------------


class Exchange:
    """One request or WebSocket of an ASGI application."""

    def __init__(
        self,
        site: Any,
        cookie: str | None = None,
        kind: str = "http",
        method: str = "GET",
        split: bool = False,
    ) -> None:
        headers = [(b"host", b"localhost")]
        if split:
            headers.append((b"cookie", b"a=b"))
        if cookie:
            headers.append((b"cookie", f"{NAME}={cookie}".encode()))
        scope = {"type": kind, "headers": headers, "scheme": "http", "method": method}
        self.sent: list[dict[str, Any]] = []
        asyncio.run(site(scope, self._receive, self._send))
        self.headers = [(k.decode(), v.decode()) for k, v in self.sent[0].get("headers", ())]

    async def _receive(self) -> dict[str, Any]:
        return {"type": "http.request"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        assert [each["type"] for each in self.sent] == ["http.response.start", "http.response.body"]
        return bytes(self.sent[1]["body"])

    @property
    def cookie(self) -> str | None:
        texts = [value for name, value in self.headers if name == "set-cookie"]
        return SimpleCookie(texts[0])[NAME].value if texts else None


def asgi(use: Callable[[Session], object], status: int = 200, headers: Any = ()) -> Any:
    async def site(scope: dict[str, Any], receive: Any, send: Any) -> None:
        data = str(use(scope["session"])).encode()
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        await send({"type": "http.response.body", "body": data})

    return site


@pytest.fixture(params=["local", "far"])
def kind(request: Any, stores: MemoryStores, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the store is asked when it is needed, or before the application runs."""
    monkeypatch.setattr(MemoryStores, "is_local", request.param == "local", raising=False)
    return str(request.param)


def test_a_session_goes_from_request_to_request_asgi(stores: MemoryStores, kind: str) -> None:
    site = ASGISessionMiddleware(asgi(visit), stores=stores)
    first = Exchange(site)
    assert first.body == b"1" and first.cookie
    second = Exchange(site, first.cookie, split=True)
    assert second.body == b"2" and second.cookie is None
    assert ("vary", "Cookie") in second.headers


def test_when_the_store_is_asked(stores: MemoryStores, memory: MemoryStore, kind: str) -> None:
    cookie = Exchange(ASGISessionMiddleware(asgi(visit), stores=stores)).cookie
    memory.calls.clear()
    site = ASGISessionMiddleware(asgi(lambda session: 1), stores=stores)
    assert Exchange(site, cookie).headers == []
    assert Exchange(site).headers == []
    assert memory.calls == ([] if kind == "local" else ["fields"])


def test_a_logout_removes_the_cookie_asgi(
    stores: MemoryStores, memory: MemoryStore, kind: str
) -> None:
    cookie = Exchange(ASGISessionMiddleware(asgi(visit), stores=stores)).cookie
    answer = Exchange(ASGISessionMiddleware(asgi(Session.clear), stores=stores), cookie)
    assert answer.cookie == "" and memory.items == {}


@pytest.mark.parametrize("use", [visit, lambda session: session.get("a"), Session.clear])
def test_a_request_that_needs_the_session_is_told_asgi(
    stores: MemoryStores, memory: MemoryStore, kind: str, use: Any
) -> None:
    cookie = Exchange(ASGISessionMiddleware(asgi(visit), stores=stores)).cookie
    memory.away = True
    site = ASGISessionMiddleware(asgi(use), stores=stores)
    answer = Exchange(site, cookie)
    assert answer.status == 503 and ("retry-after", "2") in answer.headers
    assert answer.body.startswith(b"The sessions") and answer.cookie is None
    assert Exchange(site, cookie, method="HEAD").body == b""
    assert Exchange(ASGISessionMiddleware(asgi(lambda s: 1), stores=stores), cookie).status == 200
    broken = ASGISessionMiddleware(asgi(lambda s: 1, status=500), stores=stores)
    assert Exchange(broken, cookie).status == 500  # not because of the session


def test_an_error_page_of_the_framework_becomes_a_503_asgi(
    stores: MemoryStores, memory: MemoryStore, kind: str
) -> None:
    def use(session: Session) -> None:
        with pytest.raises(SessionAway):
            visit(session)

    cookie = Exchange(ASGISessionMiddleware(asgi(visit), stores=stores)).cookie
    memory.away = True
    for status, becomes in ((500, 503), (200, 200)):
        site = ASGISessionMiddleware(asgi(use, status=status), stores=stores)
        assert Exchange(site, cookie).status == becomes


def test_a_session_that_cannot_be_saved_asgi(
    stores: MemoryStores, memory: MemoryStore, kind: str
) -> None:
    memory.before = lambda name: setattr(memory, "away", name == "change")
    answer = Exchange(ASGISessionMiddleware(asgi(visit), stores=stores))
    assert answer.status == 503 and answer.body.startswith(b"The sessions")


def test_prefetch_can_be_left_to_the_application(
    stores: MemoryStores, memory: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryStores, "is_local", False, raising=False)

    async def site(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await scope["session"].aload()
        await asgi(visit)(scope, receive, send)

    cookie = Exchange(ASGISessionMiddleware(asgi(visit), stores=stores)).cookie
    assert Exchange(ASGISessionMiddleware(site, stores=stores, prefetch=False), cookie).body == b"2"
    with pytest.raises(RuntimeError, match="aload"):
        Exchange(ASGISessionMiddleware(asgi(visit), stores=stores, prefetch=False), cookie)


def test_what_is_no_request_has_no_session(stores: MemoryStores) -> None:
    async def site(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert "session" not in scope
        await send({"type": "lifespan.startup.complete"})

    exchange = Exchange(ASGISessionMiddleware(site, stores=stores), kind="lifespan")
    assert len(exchange.sent) == 1


def test_a_cookie_is_kept_out_of_shared_caches_asgi(stores: MemoryStores, kind: str) -> None:
    headers = [(b"Cache-Control", b"public"), (b"X-\xe9", b"\xe9")]
    answer_headers = []

    async def catch(message: dict[str, Any]) -> None:
        answer_headers.extend(message.get("headers", ()))

    site = ASGISessionMiddleware(asgi(visit, headers=headers), stores=stores)
    asyncio.run(site({"type": "http", "headers": [], "method": "GET"}, None, catch))
    assert (b"cache-control", b"private") in answer_headers


# --- WebSockets -------------------------------------------------------------------------------


def test_a_websocket_has_a_session_until_its_end(stores: MemoryStores, kind: str) -> None:
    async def chat(scope: dict[str, Any], receive: Any, send: Any) -> None:
        visit(scope["session"])
        await send({"type": "websocket.accept"})
        scope["session"]["said"] = ["hello"]
        await send({"type": "websocket.send", "text": "hello"})
        scope["session"]["said"].append("bye")
        await send({"type": "websocket.close"})

    exchange = Exchange(ASGISessionMiddleware(chat, stores=stores), kind="websocket")
    assert [each["type"].split(".")[1] for each in exchange.sent] == ["accept", "send", "close"]
    seen = Exchange(ASGISessionMiddleware(asgi(dict), stores=stores), exchange.cookie)
    assert seen.body == b"{'visits': 1, 'said': ['hello', 'bye']}"


def test_a_websocket_without_its_session_is_refused(
    stores: MemoryStores, memory: MemoryStore, kind: str
) -> None:
    async def chat(scope: dict[str, Any], receive: Any, send: Any) -> None:
        visit(scope["session"])
        await send({"type": "websocket.accept"})

    memory.away = True
    exchange = Exchange(ASGISessionMiddleware(chat, stores=stores), kind="websocket")
    assert exchange.sent == [{"type": "websocket.close", "code": 1013, "reason": ""}]


def test_what_a_websocket_cannot_save_in_the_end_is_said(
    stores: MemoryStores, memory: MemoryStore, kind: str, caplog: Any
) -> None:
    async def chat(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        visit(scope["session"])
        memory.away = True

    Exchange(ASGISessionMiddleware(chat, stores=stores), kind="websocket")
    assert "are lost" in caplog.text
