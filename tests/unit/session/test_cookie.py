"""The session cookie: found in a request, set in a response."""

import re
from http.cookies import SimpleCookie
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_cluster_ext.session.cookie import SessionCookie, is_id, new_id
from gunicorn_cluster_ext.settings import SettingError, Settings

COOKIE = SessionCookie("gunicorn_session", 3600)
# The same in every process of a test run, which names tests by their parameters.
SID = "oOD12cm7hOmRpMG7B2kqwVCjqyXbBLUukR1GfneWcKg"
OTHER = SID[::-1]


def test_an_id_has_256_random_bits() -> None:
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100 and all(map(is_id, ids))
    assert all(re.fullmatch(r"[\w-]{43}", each) for each in ids)


@pytest.mark.parametrize(
    "header",
    [
        f"gunicorn_session={SID}",
        f"a=b; gunicorn_session={SID}; c=d",
        f"a=b;gunicorn_session={SID}",
        f"a=b; gunicorn_session = {SID}\t",
        f"gunicorn_session=; gunicorn_session={SID}",
        f"gunicorn_session={SID}; gunicorn_session={OTHER}",
    ],
)
def test_an_id_is_found(header: str) -> None:
    assert COOKIE.find(header) == SID


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        ("", 1),
        (SID[:-1], 1),
        (SID + "A", 1),
        (SID * 1000, 1),
        (SID[:-1] + "=", 1),
        (SID[:-1] + "\n", 1),
        (SID[:-1] + "é", 1),
        (f'"{SID}"', 1),
        ("../../etc/passwd".ljust(43, "x"), 1),
        ("null", 1),
    ],
)
def test_what_we_cannot_have_set_is_none_and_a_line_without_it(
    value: str, lines: int, caplog: Any
) -> None:
    with caplog.at_level("DEBUG", "gunicorn.error"):
        assert COOKIE.find(f"gunicorn_session={value}") is None
    assert len(caplog.records) == lines
    assert len(value) < 2 or value not in caplog.text


@pytest.mark.parametrize("header", ["a=b", f"xgunicorn_session={SID}", f"a=gunicorn_session={SID}"])
def test_another_cookie_is_not_ours(header: str, caplog: Any) -> None:
    with caplog.at_level("DEBUG", "gunicorn.error"):
        assert COOKIE.find(header) is None
    assert caplog.records == []


@given(st.text('gunicorn_session=;, \t"\\é', max_size=80))
def test_no_header_makes_it_fail(header: str) -> None:
    assert COOKIE.find(header) is None


# --- what is set ------------------------------------------------------------------------------


def attributes(text: str) -> dict[str, Any]:
    jar: SimpleCookie = SimpleCookie(text)
    (morsel,) = jar.values()
    return {"value": morsel.value, **{name: value for name, value in morsel.items() if value}}


def test_its_attributes() -> None:
    assert attributes(COOKIE.put(SID, "http")) == {
        "value": SID, "max-age": "3600", "path": "/", "httponly": True, "samesite": "Lax",
    }  # fmt: skip
    assert attributes(COOKIE.put(SID, "https"))["secure"] is True
    assert attributes(COOKIE.put(SID, "wss"))["secure"] is True


def test_what_removes_it_has_the_same() -> None:
    removed = attributes(COOKIE.remove("https"))
    assert removed.pop("expires").startswith("Thu, 01 Jan 1970")
    assert removed == {
        "value": "", "max-age": "0", "path": "/", "httponly": True, "samesite": "Lax",
        "secure": True,
    }  # fmt: skip


def of(**values: Any) -> SessionCookie:
    return SessionCookie.of(Settings(**{f"session_{name}": v for name, v in values.items()}))


def test_it_is_as_the_settings_want_it() -> None:
    cookie = of(cookie="mine", lifetime=0, domain=".example.com", path="/app", samesite="Strict")
    assert attributes(cookie.put(SID, "http")) == {
        "value": SID, "domain": ".example.com", "path": "/app", "httponly": True,
        "samesite": "Strict",
    }  # fmt: skip
    assert attributes(of(secure="always").put(SID, "http"))["secure"] is True
    assert attributes(of().put(SID, "http"))["max-age"] == str(14 * 86_400)


@pytest.mark.parametrize(
    "values", [{"cookie": "__Host-s"}, {"cookie": "__Secure-s"}, {"samesite": "None"}]
)
def test_what_browsers_want_secure_is_secure(values: dict[str, Any]) -> None:
    assert "; Secure" in of(**values).put(SID, "http")


@pytest.mark.parametrize("values", [{"path": "/app"}, {"domain": "example.com"}])
def test_what_browsers_refuse_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="__Host-"):
        of(cookie="__Host-s", **values)


@pytest.mark.parametrize(
    "values",
    [
        {"cookie": "a b"},
        {"domain": "a;b"},
        {"domain": "exa mple"},
        {"path": "app"},
        {"path": "/;x"},
        {"samesite": "lax"},
        {"secure": "never"},
        {"idle": 0},
        {"lifetime": -1},
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="cluster_session_"):
        of(**values)
