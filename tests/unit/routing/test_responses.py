import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_cluster_ext.routing import asgi, wsgi
from gunicorn_cluster_ext.routing.responses import Affinity, Learner

HEADER, COOKIE = "learn:header:X-Key", "learn:cookie:key"


class Recorder(set[tuple[str, bytes]]):
    """Stands for LearnedSessions and keeps the pairs that were learned."""

    def __init__(self) -> None:
        self.started = 0
        self.learner = Learner([HEADER, COOKIE], self.learn, self.start_session)

    def learn(self, rule: str, value: bytes) -> bool:
        is_news = (rule, value) not in self
        self.add((rule, value))
        return is_news

    def start_session(self) -> None:
        self.started += 1


def learned_from(*headers: tuple[str, str]) -> Recorder:
    recorder = Recorder()
    recorder.learner.read(headers)
    return recorder


@pytest.mark.parametrize(
    ("header", "learned"),
    [
        (("X-Key", "abc"), (HEADER, b"abc")),
        (("x-key", ' "abc"\t'), (HEADER, b"abc")),
        (("X-Key", "caf\xe9"), (HEADER, b"caf\xe9")),
        (("X-Key", "\u20ac"), (HEADER, b"?")),  # gunicorn refuses it
        (("Set-Cookie", "key=abc"), (COOKIE, b"abc")),
        (("set-cookie", 'key="abc"; Path=/; HttpOnly'), (COOKIE, b"abc")),
        (("Set-Cookie", " key = abc ;Secure"), (COOKIE, b"abc")),
        (("Set-Cookie", "key=a=b"), (COOKIE, b"a=b")),
        (("X-Key", ""), None),
        (("X-Keys", "abc"), None),
        (("Key", "abc"), None),
        (("Set-Cookie", "Key=abc"), None),
        (("Set-Cookie", "x=key=abc"), None),
        (("Set-Cookie", "key"), None),
        (("Set-Cookie", 'key=""; Max-Age=0'), None),
        (("Set-Cookie", "key=; expires=Thu, 01 Jan 1970 00:00:00 GMT"), None),
    ],
)
def test_what_is_learned(header: tuple[str, str], learned: tuple[str, bytes] | None) -> None:
    recorder = learned_from(("Content-Type", "text/plain"), header)
    assert recorder == ({learned} if learned else set())
    assert recorder.started == len(recorder)


def test_every_value_is_learned() -> None:
    recorder = learned_from(
        ("Set-Cookie", "key=a; Path=/a"), ("Set-Cookie", "key=b"), ("X-Key", "c")
    )
    assert recorder == {(COOKIE, b"a"), (COOKIE, b"b"), (HEADER, b"c")}


def test_a_known_value_starts_no_session() -> None:
    recorder = Recorder()
    for _ in range(3):
        recorder.learner.read([("X-Key", "abc")])
    assert recorder.started == 1


@given(st.lists(st.tuples(st.sampled_from(("X-Key", "Set-Cookie")), st.text(max_size=30))))
def test_no_header_makes_it_fail(headers: list[tuple[str, str]]) -> None:
    assert all(value for _, value in learned_from(*headers))


# --- what the wrappers tell it ----------------------------------------------------------------


@pytest.mark.parametrize("cookie", [None, "gunicorn_worker"])
def test_wsgi_responses_are_learned_from_before_they_are_sent(cookie: str | None) -> None:
    recorder = Recorder()
    sent: list[tuple[Any, ...]] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("X-Key", "abc")])
        start_response("500 Error", [("X-Key", "abd")], "why")(b"written")
        return [b"body"]

    def start_response(*arguments: Any) -> Any:
        sent.append((*arguments, set(recorder)))
        return [].append

    tagged = wsgi.AffinityMiddleware(app, Affinity(2, cookie, lambda slot: None, recorder.learner))
    assert tagged({"wsgi.url_scheme": "http"}, start_response) == [b"body"]
    assert [(one[0], one[1][0]) for one in sent] == [
        ("200 OK", ("X-Key", "abc")),
        ("500 Error", ("X-Key", "abd")),
    ]
    assert [len(one[1]) for one in sent] == [1 + bool(cookie)] * 2
    assert sent[1][2] == "why"
    assert [one[-1] for one in sent] == [{(HEADER, b"abc")}, {(HEADER, b"abc"), (HEADER, b"abd")}]


@pytest.mark.parametrize("cookie", [None, "gunicorn_worker"])
@pytest.mark.parametrize(
    "kind", ["http.response.start", "websocket.accept", "websocket.http.response.start"]
)
def test_asgi_responses_are_learned_from_before_they_are_sent(
    kind: str, cookie: str | None
) -> None:
    recorder = Recorder()
    sent: list[tuple[Any, set[tuple[str, bytes]]]] = []

    async def app(scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        await send({"type": kind, "headers": iter([(b"x-key", b"abc"), (b"a", b"\xff")])})
        await send({"type": "http.response.body", "headers": [(b"x-key", b"no")]})

    async def send(message: asgi.Message) -> None:
        sent.append((message["headers"], set(recorder)))

    async def receive() -> asgi.Message:
        raise AssertionError

    tagged = asgi.AffinityMiddleware(app, Affinity(2, cookie, lambda slot: None, recorder.learner))
    asyncio.run(tagged({"type": "http", "headers": []}, receive, send))
    start, body = sent
    assert start[0][:2] == [(b"x-key", b"abc"), (b"a", b"\xff")]
    assert len(start[0]) == 2 + bool(cookie)
    assert start[1] == {(HEADER, b"abc")}
    assert body == ([(b"x-key", b"no")], {(HEADER, b"abc")})
