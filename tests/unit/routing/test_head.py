"""The scanner on its own; test_head_agreement.py compares it with gunicorn."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_cluster_ext.routing.head import (
    NEED_MORE,
    OPAQUE,
    Head,
    Partial,
    decode,
    scan,
    unreadable_head,
)
from gunicorn_cluster_ext.routing.proxy_protocol import NO_PROXY_HEADER, scan_proxy
from tests.harness import grammar


def head(*lines: bytes, target: bytes = b"/") -> Head:
    scanned = scan(b"\r\n".join([b"GET " + target + b" HTTP/1.1", *lines, b"", b""]))
    assert isinstance(scanned, Head)
    return scanned


# --- bytes -> Head | NEED_MORE | OPAQUE -------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"", b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n", b"\x16\x03\x01"]
)
def test_half_a_head_needs_more(data: bytes) -> None:
    assert scan(data) is NEED_MORE


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1 ",
        b"GET  / HTTP/1.1",
        b"get / HTTP/1.1",
        b"GE / HTTP/1.1",
        b"G" * 21 + b" / HTTP/1.1",
        b"GET * HTTP/1.1",
        b"GET http://host/ HTTP/1.1",
        b"CONNECT host:80 HTTP/1.1",
        b"GET /\xe9 HTTP/1.1",
        b"GET /a\tb HTTP/1.1",
        b"GET / HTTP/2.0",
        b"GET / HTTP/1.1\nHost: a",
        b"GET /",
        b"PRI * HTTP/2.0",
        b"\x16\x03\x01\x02\x00",
        b"\r\nGET / HTTP/1.1",
        b"",
    ],
)
def test_what_is_no_plain_request_is_left_to_gunicorn(line: bytes) -> None:
    assert scan(line + b"\r\nHost: a\r\n\r\n") is OPAQUE


def test_a_head_knows_its_request_line_and_client() -> None:
    scanned = scan(b"POST /a/b?c=d#e?f HTTP/1.0\r\n\r\nbody", "192.0.2.1")
    assert isinstance(scanned, Head)
    assert scanned.method == b"POST"
    assert (scanned.path, scanned.query_string) == (b"/a/b", b"c=d")
    assert scanned.client == "192.0.2.1"
    assert repr(scanned) == "<Head POST /a/b>"


def test_a_question_mark_in_the_fragment_begins_no_query() -> None:
    assert head(target=b"/a#b?sid=1").query_string == b""


def test_an_unreadable_head_knows_only_the_client() -> None:
    unseen = unreadable_head("192.0.2.1")
    assert unseen.client == "192.0.2.1"
    assert unseen.query(b"sid") is None
    assert unseen.cookie(b"gunicorn_worker") is None
    assert unseen.header(b"x-forwarded-for") is None


# --- headers ----------------------------------------------------------------------------------


def test_a_header_is_found_in_any_case_and_without_blanks_around_it() -> None:
    assert head(b"x-KEY: \t value \t").header(b"x-key") == b"value"


def test_a_header_that_is_not_there_is_none() -> None:
    assert head(b"X-Key2: 1", b"Ex-Key: 1", b"Other: X-Key: 1").header(b"x-key") is None


def test_an_empty_header_is_there() -> None:
    assert head(b"X-Key:").header(b"x-key") == b""


def test_repeated_headers_are_joined_in_order() -> None:
    several = head(b"X-Key: 1", b"Other: 2", b"x-key: 3")
    assert several.header_lines(b"x-key") == [b"1", b"3"]
    assert several.header(b"x-key") == b"1,3"


@pytest.mark.parametrize(
    "line", [b"X-Key : 1", b"X-Key\t: 1", b"X-Key: 1\r\n 2", b"X-Key: 1\r\n\t2", b"X_Key: 1"]
)
def test_a_header_that_may_be_read_in_two_ways_is_not_read(line: bytes) -> None:
    for lines in ([line], [line, b"X-Key: 9"], [b"X-Key: 9", line]):
        assert head(*lines).header(b"x-key") is None


def test_the_odd_spelling_of_another_header_does_no_harm() -> None:
    assert head(b"Other: 1\r\n 2", b"Some : 3", b"Any_Key: 4", b"X-Key: 5").header(b"x-key") == b"5"


# --- cookies ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"Cookie: session=1", b"1"),
        (b"Cookie: a=b; session=1", b"1"),
        (b"Cookie: a=b;session=1;c=d", b"1"),
        (b"Cookie: a=b;\t session= 1 ; c=d", b"1"),
        (b"Cookie: session=", b""),
        (b"Cookie: session=a=b", b"a=b"),
        (b'Cookie: session="1"', b'"1"'),
        (b"Cookie: session=\xe9", b"\xe9"),
        (b"Cookie: session=1; session=1", b"1"),
        (b"Cookie: session=1; session=2", None),
        (b"Cookie: session=1\r\nCookie: session=1", None),
        (b"Cookie: session", None),
        (b"Cookie: xsession=1", None),
        (b"Cookie: a=session=1", None),
        (b"Cookie: Session=1", None),
        (b"Cookie:", None),
        (b"Set-Cookie: session=1", None),
    ],
)
def test_a_cookie_is_found_when_it_is_certain(line: bytes, value: bytes | None) -> None:
    assert head(line).cookie(b"session") == value


def test_a_cookie_name_is_taken_literally() -> None:
    assert head(b"Cookie: s.*=1; session=2").cookie(b"s.*") == b"1"
    assert head(b"Cookie: session=2").cookie(b"s.*") is None


# --- the query --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "value"),
    [
        (b"sid=1", b"1"),
        (b"EIO=4&sid=1&t=x", b"1"),
        (b"sid=", b""),
        (b"sid=a=b", b"a=b"),
        (b"sid=a%3Db+c", b"a%3Db+c"),
        (b"sid=1&sid=1", b"1"),
        (b"sid=1&sid=2", None),
        (b"sid=1&%73id=2", None),
        (b"ssid=1&sidd=2", None),
        (b"a;sid=1", None),
        (b"", None),
    ],
)
def test_a_parameter_is_found_when_it_is_certain(query: bytes, value: bytes | None) -> None:
    assert head(target=b"/?" + query).query(b"sid") == value


def test_a_parameter_is_decoded_on_request() -> None:
    assert decode(b"a%2Fb+c%20d%") == b"a/b c d%"


# --- no bytes do harm -------------------------------------------------------------------------


@given(grammar.anything | st.binary(max_size=200))
def test_no_bytes_make_the_scanner_fail(data: bytes) -> None:
    scanned = scan(data)
    if isinstance(scanned, Head):
        assert repr(scanned).startswith("<Head ")
        for name in (b"cookie", b"x-key", b"x-forwarded-for"):
            scanned.header(name)
        scanned.cookie(b"session")
        scanned.query(b"sid")
        decode(scanned.query_string)
    for mode in ("v1", "v2", "auto"):
        scan_proxy(data, mode)


SIZE = 64 * 1024
ADVERSARIES = {
    "semicolons": head(b"Cookie: " + b";" * SIZE),
    "blanks in a cookie": head(b"Cookie: a;" + b" " * SIZE + b"b"),
    "blanks everywhere": head(b"Cookie: " + b"; \t" * SIZE),
    "equals signs": head(b"Cookie: " + b"=" * SIZE, target=b"/?" + b"=" * SIZE),
    "nearly our cookie": head(b"Cookie: " + b"session" * (SIZE // 7)),
    "our cookie without a value": head(b"Cookie: " + b"session ;" * (SIZE // 9)),
    "our cookie often": head(b"Cookie: " + b"session=1;" * (SIZE // 10)),
    "many cookie headers": head(*[b"Cookie: session=1"] * (SIZE // 17)),
    "nearly our header": head(*[b"X-Key"] * (SIZE // 7)),
    "our header often": head(*[b"X-Key: 1"] * (SIZE // 8)),
    "ten thousand parameters": head(target=b"/?" + b"&".join(b"s%d=1" % n for n in range(10_000))),
    "our parameter often": head(target=b"/?" + b"sid=1&" * 10_000),
    "our parameter without a value": head(target=b"/?" + b"sid&" * 10_000),
    "ampersands": head(target=b"/?" + b"&" * SIZE),
    "escapes": head(target=b"/?" + b"%" * SIZE),
    "escaped names": head(target=b"/?" + b"%73%69d=1&" * (SIZE // 10)),
}


@pytest.mark.parametrize("adversary", ADVERSARIES.values(), ids=ADVERSARIES)
def test_no_head_takes_long_to_read(adversary: Head) -> None:
    """Quadratic time would take minutes for one of these."""
    began = time.process_time()
    adversary.header(b"x-key")
    adversary.cookie(b"session")
    adversary.cookie(b"gunicorn_worker")
    adversary.query(b"sid")
    decode(adversary.query_string)
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "data", [b"\r\n" * SIZE, b"G" * SIZE, b"GET /" + b" " * SIZE, b"\r" * SIZE]
)
def test_no_bytes_take_long_to_scan(data: bytes) -> None:
    began = time.process_time()
    scan(data)
    scan(data + b"\r\n\r\n")
    assert time.process_time() - began < 1


# --- the PROXY protocol -----------------------------------------------------------------------

V2 = b"\r\n\r\n\x00\r\nQUIT\n"
TCP4 = b"\x00\x0c" + bytes([192, 0, 2, 1, 10, 0, 0, 1]) + b"\x1f\x90\x00\x50"


def test_the_first_version_is_a_line_of_text() -> None:
    line = b"PROXY TCP4 192.0.2.1 10.0.0.1 8080 80\r\n"
    assert scan_proxy(line + b"GET", "v1") == (len(line), "192.0.2.1")
    assert scan_proxy(line[:-1], "auto") is NEED_MORE
    assert scan_proxy(b"PROXY UNKNOWN\r\n", "v1") is OPAQUE


def test_the_second_version_is_binary() -> None:
    header = V2 + b"\x21\x11" + TCP4
    assert scan_proxy(header + b"GET", "v2") == (len(header), "192.0.2.1")
    assert scan_proxy(header[:-1], "auto") is NEED_MORE
    assert scan_proxy(header[:15], "auto") is NEED_MORE


def test_a_health_check_of_the_proxy_names_no_client() -> None:
    assert scan_proxy(V2 + b"\x20\x00\x00\x00", "v2") == (16, None)


def test_addresses_that_do_not_fit_are_left_to_gunicorn() -> None:
    assert scan_proxy(V2 + b"\x21\x21" + TCP4, "v2") is OPAQUE


@pytest.mark.parametrize(("mode", "data"), [("v2", b"PROXY TCP4 1.2.3.4"), ("v1", V2 + b"\x21")])
def test_only_the_versions_that_are_wanted_are_read(mode: str, data: bytes) -> None:
    assert scan_proxy(data, mode) is NO_PROXY_HEADER


def test_twelve_bytes_are_wanted_before_anything_is_decided() -> None:
    assert scan_proxy(b"GET / HTTP/", "auto") is NEED_MORE
    assert scan_proxy(b"GET / HTTP/1", "auto") is NO_PROXY_HEADER


def test_partial_results_say_why() -> None:
    assert {partial.value for partial in Partial} == {
        "the head is not complete",
        "the head cannot be read: the request is served where it arrived",
    }
