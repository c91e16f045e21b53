"""Flask's session, over the store: what Flask's own session promises, and what it does not."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask, Response, redirect, session, stream_with_context

from gunicorn_cluster_ext.flask import ClusterSession
from gunicorn_cluster_ext.session.session import SessionLifetime, store_key
from tests.harness.fakes.store import MemoryStore, MemoryStores


@pytest.fixture
def app(stores: MemoryStores) -> Flask:
    app = Flask(__name__)
    ClusterSession(app, stores=stores)

    @app.get("/visit")
    def visit() -> str:
        session["visits"] = session.get("visits", 0) + 1
        return str(session["visits"])

    @app.get("/nested")
    def nested() -> str:
        session.setdefault("cart", []).append("item")
        return str(len(session["cart"]))

    @app.get("/plain")
    def plain() -> str:
        return "plain"

    @app.get("/logout")
    def logout() -> Any:
        session.clear()
        return redirect("/plain")

    @app.get("/login")
    def login() -> str:
        session.regenerate()  # type: ignore[attr-defined]
        session["user"] = "me"
        return "in"

    @app.get("/permanent")
    def permanent() -> str:
        session.permanent = True
        return "for long"

    @app.get("/public")
    def public() -> Response:
        session["a"] = 1
        response = Response("public")
        response.cache_control.public = True
        return response

    @app.get("/stream")
    def stream() -> Response:
        session["a"] = 1

        def parts() -> Iterator[str]:
            yield "part"

        return Response(stream_with_context(parts()))

    return app


def sid_of(client: Any) -> str:
    cookie = client.get_cookie("session")
    return cookie.value if cookie else ""


def test_a_session_goes_from_request_to_request(app: Flask) -> None:
    client = app.test_client()
    assert [client.get("/visit").text for _ in range(3)] == ["1", "2", "3"]
    assert app.test_client().get("/visit").text == "1"


def test_nested_changes_are_kept_without_a_word(app: Flask) -> None:
    """With Flask's own session this needs `session.modified = True`."""
    client = app.test_client()
    assert [client.get("/nested").text for _ in range(3)] == ["1", "2", "3"]


def test_an_untouched_session_costs_nothing(app: Flask, memory: MemoryStore) -> None:
    client = app.test_client()
    client.get("/visit")
    memory.calls.clear()
    response = client.get("/plain")
    assert memory.calls == []
    assert "Set-Cookie" not in response.headers and "Vary" not in response.headers


def test_the_cookie_is_as_flask_is_configured(app: Flask) -> None:
    text = app.test_client().get("/visit").headers["Set-Cookie"]
    assert text.endswith("; HttpOnly; Path=/; SameSite=Lax") and text.startswith("session=")
    secure = app.test_client().get("/visit", base_url="https://localhost").headers["Set-Cookie"]
    assert "; Secure" in secure
    app.config |= {
        "SESSION_COOKIE_NAME": "mine",
        "SESSION_COOKIE_PATH": "/app",
        "SESSION_COOKIE_SAMESITE": "Strict",
        "SESSION_COOKIE_SECURE": True,
    }
    text = app.test_client().get("/visit").headers["Set-Cookie"]
    assert text.startswith("mine=")
    assert all(part in text for part in ("Path=/app", "SameSite=Strict", "Secure"))


def test_a_logout_ends_it(app: Flask, memory: MemoryStore) -> None:
    client = app.test_client()
    client.get("/visit")
    old = sid_of(client)
    response = client.get("/logout")
    assert response.headers["Set-Cookie"].startswith("session=;")
    assert memory.items == {} and sid_of(client) == ""
    client.set_cookie("session", old)
    assert client.get("/visit").text == "1"
    assert sid_of(client) != old


def test_a_login_gives_a_new_id(app: Flask, memory: MemoryStore) -> None:
    client = app.test_client()
    client.get("/visit")
    old = sid_of(client)
    client.get("/login")
    assert sid_of(client) != old
    assert client.get("/visit").text == "2"
    assert list(memory.items) == [store_key(sid_of(client))]


def test_a_planted_id_is_not_used(app: Flask) -> None:
    client = app.test_client()
    client.set_cookie("session", "a" * 43)
    client.get("/visit")
    assert sid_of(client) not in ("", "a" * 43)


def test_a_cookie_of_flasks_own_session_is_a_new_session(app: Flask, caplog: Any) -> None:
    client = app.test_client()
    client.set_cookie("session", "eyJhIjoxfQ.aGVsbG8.c2lnbmF0dXJl")
    with caplog.at_level("DEBUG", "gunicorn.error"):
        assert client.get("/visit").text == "1"
    assert len(caplog.records) == 1 and "eyJ" not in caplog.text


def test_a_permanent_session_lives_as_flask_says(
    app: Flask, stores: MemoryStores, memory: MemoryStore
) -> None:
    app.permanent_session_lifetime = timedelta(days=60)
    client = app.test_client()
    client.get("/visit")
    assert memory.ttl(store_key(sid_of(client))) == pytest.approx(86_400, abs=5)
    response = client.get("/permanent")
    assert "Expires=" in response.headers["Set-Cookie"]
    assert memory.ttl(store_key(sid_of(client))) == pytest.approx(60 * 86_400, abs=5)
    assert "Expires=" in client.get("/visit").headers["Set-Cookie"]
    assert "Set-Cookie" not in client.get("/plain").headers


def test_tests_can_look_inside(app: Flask) -> None:
    client = app.test_client()
    with client.session_transaction() as inside:
        inside["visits"] = 41
    assert client.get("/visit").text == "42"
    with client.session_transaction() as inside:
        assert inside["visits"] == 42
        assert not inside.new


def test_a_cookie_is_kept_out_of_shared_caches(app: Flask) -> None:
    response = app.test_client().get("/public")
    assert "Set-Cookie" in response.headers and response.cache_control.private


def test_a_session_that_streams(app: Flask) -> None:
    client = app.test_client()
    assert client.get("/stream").text == "part"
    assert sid_of(client)


# --- the store is away ------------------------------------------------------------------------


def check_unavailable(response: Any) -> None:
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "2"
    assert "Set-Cookie" not in response.headers
    assert response.text.startswith("The sessions cannot be reached")


@pytest.mark.parametrize("testing", [False, True])
@pytest.mark.parametrize("path", ["/visit", "/nested", "/logout", "/login", "/permanent"])
def test_a_request_that_needs_the_session_is_told(
    app: Flask, memory: MemoryStore, path: str, testing: bool
) -> None:
    app.testing = testing
    client = app.test_client()
    client.get("/visit")
    memory.away = True
    check_unavailable(client.get(path))
    assert client.get("/plain").text == "plain"
    memory.away = False
    assert client.get("/visit").text == "2"


@pytest.mark.parametrize("path", ["/visit", "/stream", "/public"])
def test_so_is_one_whose_session_cannot_be_saved(
    app: Flask, memory: MemoryStore, path: str
) -> None:
    memory.before = lambda name: setattr(memory, "away", name == "change")
    check_unavailable(app.test_client().get(path))


def test_an_error_page_of_the_application_becomes_a_503(app: Flask, memory: MemoryStore) -> None:
    @app.get("/catches")
    def catches() -> tuple[str, int]:
        try:
            session.get("a")
        except Exception:
            return "something is wrong", 500
        return "fine", 200

    client = app.test_client()
    client.get("/visit")
    memory.away = True
    check_unavailable(client.get("/catches"))


def test_an_application_is_given_later_as_well(stores: MemoryStores) -> None:
    app, sessions = Flask(__name__), ClusterSession(stores=stores)
    sessions.init_app(app)
    with app.test_request_context():
        assert session._lifetime == SessionLifetime(86_400, 1_209_600)  # type: ignore[attr-defined]
        assert dict(session) == {}
