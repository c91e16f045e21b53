import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette

from gunicorn_cluster_ext.compat import is_asgi
from gunicorn_cluster_ext.routing.asgi import AffinityMiddleware, Message, Receive, Scope, Send
from gunicorn_cluster_ext.routing.responses import Affinity

OURS = 2
COOKIE = b"gunicorn_worker=2; Path=/; HttpOnly; SameSite=Lax"

Lines = list[tuple[bytes, bytes]]


def serving(slot: int) -> int | None:
    return 2 * slot if slot < 4 else None


class Answer:
    """Collects the response of an ASGI application that sends `messages`."""

    def __init__(
        self,
        *messages: Message,
        cookie: str | None = "gunicorn_worker",
        headers: Lines | None = None,
        **scope: Any,
    ) -> None:
        self.scope: Scope = {"type": "http", "scheme": "http", "headers": headers or [], **scope}
        self.sent: list[Message] = []
        self.mine = messages
        tagged = AffinityMiddleware(self.app, Affinity(OURS, cookie, serving))
        asyncio.run(tagged(self.scope, self.receive, self.send))

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope is self.scope
        self.had_its_own_send = send == self.send
        for message in self.mine:
            await send(message)

    async def receive(self) -> Message:
        raise AssertionError

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def cookies(self) -> list[bytes]:
        return [
            value
            for message in self.sent
            for name, value in message.get("headers", ())
            if name == b"set-cookie"
        ]


def start(*headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": 200, "headers": headers}


BODY = {"type": "http.response.body", "body": b"body"}


def test_the_application_knows_the_worker() -> None:
    assert Answer(start()).scope["gunicorn_cluster.worker_id"] == OURS
    assert Answer(start(), cookie=None).scope["gunicorn_cluster.worker_id"] == OURS


def test_a_lifespan_is_left_alone() -> None:
    answer = Answer({"type": "lifespan.startup.complete"}, type="lifespan")
    assert "gunicorn_cluster.worker_id" not in answer.scope
    assert answer.had_its_own_send


@pytest.mark.parametrize(
    "kind", ["http.response.start", "websocket.accept", "websocket.http.response.start"]
)
@pytest.mark.parametrize("headers", [{}, {"headers": []}, {"headers": [(b"x-key", b"v")]}])
def test_a_request_without_our_cookie_gets_it(kind: str, headers: dict[str, Lines]) -> None:
    message = {"type": kind, **headers}
    answer = Answer(message, BODY)
    assert answer.sent[0]["headers"] == [*headers.get("headers", []), (b"set-cookie", COOKIE)]
    assert answer.sent[1] is BODY
    assert message == {"type": kind, **headers}  # the application's own is not changed


@pytest.mark.parametrize("scheme", ["https", "wss"])
def test_a_request_by_tls_gets_a_secure_cookie(scheme: str) -> None:
    assert Answer(start(), scheme=scheme).cookies == [COOKIE + b"; Secure"]


@pytest.mark.parametrize(
    "headers",
    [
        [(b"cookie", b"gunicorn_worker=2")],
        [(b"cookie", b"session=x; gunicorn_worker=3")],
        [(b"cookie", b"session=x"), (b"host", b"a"), (b"cookie", b"gunicorn_worker=0")],
    ],
)
def test_a_request_that_names_a_slot_that_serves_costs_nothing(headers: Lines) -> None:
    answer = Answer(start(), headers=headers)
    assert answer.cookies == []
    assert answer.had_its_own_send


@pytest.mark.parametrize("value", [b"gunicorn_worker=9", b"gunicorn_worker", b"\xff=\xfe"])
def test_a_request_that_names_no_slot_that_serves_gets_a_cookie(value: bytes) -> None:
    assert Answer(start(), headers=[(b"cookie", value)]).cookies == [COOKIE]


def test_without_the_rule_there_is_no_cookie_and_no_cost() -> None:
    answer = Answer(start(), cookie=None)
    assert answer.cookies == []
    assert answer.had_its_own_send


def test_what_a_shared_cache_may_keep_has_no_cookie() -> None:
    assert Answer(start((b"Cache-Control", b"public, max-age=60"))).cookies == []
    assert Answer(start((b"cache-control", b"private"))).cookies == [COOKIE]


def test_headers_that_can_be_read_once_are_kept() -> None:
    answer = Answer({"type": "http.response.start", "headers": iter([(b"x-key", b"v")])})
    assert answer.sent[0]["headers"] == [(b"x-key", b"v"), (b"set-cookie", COOKIE)]


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=40)), max_size=4))
def test_no_header_makes_it_fail(headers: Lines) -> None:
    Answer(start(*headers), headers=[(b"cookie", value) for _, value in headers])


def test_an_asgi_application_is_known_by_its_call() -> None:
    async def function(scope: Scope, receive: Receive, send: Send) -> None: ...

    def wsgi(environ: Any, start_response: Any) -> None: ...

    tagged = AffinityMiddleware(function, Affinity(OURS, None, serving))
    for app in (function, tagged, tagged.__call__, Starlette()):
        assert is_asgi(app)
    for app in (wsgi, print, object, type("App", (), {"__call__": wsgi})()):
        assert not is_asgi(app)
