"""The scanner and gunicorn's own parser read the same heads alike.

Where gunicorn accepts a head and the scanner reads it, they agree on everything that a rule
can ask; where the scanner is not certain, it says nothing. It is not certain only where there
is a reason.
"""

from urllib.parse import parse_qs

import pytest
from gunicorn.config import Config
from hypothesis import example, given

from gunicorn_cluster_ext.routing.head import NEED_MORE, Head, decode, scan
from tests.harness import grammar
from tests.harness.reference import Accepted, Incomplete, config, judge

DEFAULT = config()
#: Spellings that the scanner leaves alone are let through, by settings that are off by default.
LENIENT = {
    "strip_header_spaces": config(strip_header_spaces=True),
    "permit_obsolete_folding": config(permit_obsolete_folding=True),
    "header_map=dangerous": config(header_map="dangerous"),
    "header_map=refuse": config(header_map="refuse"),
    "forwarder_headers=*": config(forwarder_headers="*"),
    "everything": config(
        strip_header_spaces=True,
        permit_obsolete_folding=True,
        header_map="dangerous",
        permit_unconventional_http_method=True,
        permit_unconventional_http_version=True,
        casefold_http_method=True,
    ),
}
HEADERS = tuple(name.lower() for name in grammar.HEADERS)
UNDERSCORED = tuple(name.lower() for name in grammar.UNDERSCORED)


def both(data: bytes, cfg: Config) -> tuple[Head, Accepted] | None:
    """Return how the scanner and gunicorn read `data`, if both do."""
    head, verdict = scan(data), judge(data, cfg)
    if isinstance(head, Head) and isinstance(verdict, Accepted):
        return head, verdict
    return None


def only(values: list[bytes]) -> bytes | None:
    return values[0] if len(set(values)) == 1 else None


# --- what is a head ---------------------------------------------------------------------------


@given(grammar.anything)
@example(b"\r\nGET / HTTP/1.1\r\n\r\n")
@example(b"GET / HTTP/1.1\r\n")
def test_more_is_needed_exactly_when_gunicorn_would_wait(data: bytes) -> None:
    head, verdict = scan(data), judge(data, DEFAULT)
    if isinstance(verdict, Incomplete):
        assert head is NEED_MORE
    if isinstance(verdict, Accepted):
        assert head is not NEED_MORE


@given(grammar.heads())
def test_an_ordinary_head_that_gunicorn_accepts_is_read(data: bytes) -> None:
    if isinstance(judge(data, DEFAULT), Accepted) and not data.startswith(b"M-SEARCH"):
        assert isinstance(scan(data), Head)


@given(grammar.anything)
def test_a_head_does_not_depend_on_what_follows_it(data: bytes) -> None:
    head = scan(data)
    if isinstance(head, Head):
        more = scan(data + b"POST /x HTTP/1.1\r\nX-Key: 9\r\nCookie: session=9\r\n\r\n")
        assert isinstance(more, Head)
        assert (more.path, more.query_string) == (head.path, head.query_string)
        for name in HEADERS:
            assert more.header_lines(name) == head.header_lines(name)


# --- what is in it, as gunicorn is by default -------------------------------------------------


@given(grammar.anything)
@example(b"GET //host/path?sid=1#x HTTP/1.1\r\n\r\n")
@example(b"GET /#a?sid=1 HTTP/1.1\r\n\r\n")
@example(b"GET /?a?b#c#d HTTP/1.1\r\n\r\n")
@example(b"GET //[/?sid=1 HTTP/1.1\r\n\r\n")
def test_request_lines_agree(data: bytes) -> None:
    read = both(data, DEFAULT)
    if read:
        head, accepted = read
        request = accepted.request
        assert head.method.decode() == request.method
        assert head.path.decode() == request.path
        assert head.query_string.decode() == request.query


@given(grammar.anything)
def test_headers_agree(data: bytes) -> None:
    read = both(data, DEFAULT)
    if read:
        head, accepted = read
        oddly_spelt = any(name in data.lower() for name in UNDERSCORED)
        for name in HEADERS:
            value = head.header(name)
            assert value == accepted.header(name) or (value is None and oddly_spelt)


@given(grammar.odd_heads())
@example(b"GET / HTTP/1.1\r\nX_Key: 1\r\n\r\n")
def test_headers_that_the_application_never_sees_are_not_seen_here(data: bytes) -> None:
    read = both(data, DEFAULT)
    if read:
        head, accepted = read
        for name in UNDERSCORED:
            assert head.header(name) in (None, accepted.header(name))


@given(grammar.anything)
@example(b"GET / HTTP/1.1\r\nCookie: session=1; session =2\r\n\r\n")
def test_cookies_agree(data: bytes) -> None:
    read = both(data, DEFAULT)
    if read:
        head, accepted = read
        for name in grammar.COOKIES:
            assert head.cookie(name) in (None, only(accepted.cookies(name)))


@given(grammar.heads())
def test_a_cookie_that_is_certain_is_found(data: bytes) -> None:
    read = both(data, DEFAULT)
    if read and b" =" not in data and b"\t=" not in data:
        head, accepted = read
        if [name for name, _ in accepted.request.headers].count("COOKIE") == 1:
            for name in grammar.COOKIES:
                assert head.cookie(name) == only(accepted.cookies(name))


@given(grammar.anything)
def test_parameters_agree(data: bytes) -> None:
    read = both(data, DEFAULT)
    if read:
        head, accepted = read
        for name in (b"sid", b"EIO", b"user"):
            assert head.query(name) in (None, only(accepted.parameters(name)))


@given(grammar.heads())
def test_a_parameter_that_is_certain_is_found(data: bytes) -> None:
    read = both(data, DEFAULT)
    if read and b"%" not in data and b"+" not in data:
        head, accepted = read
        for name in (b"sid", b"EIO", b"user"):
            if b"" not in accepted.parameters(name):
                assert head.query(name) == only(accepted.parameters(name))


@given(grammar.targets())
@example(b"/?%73id=1&sid=2")
@example(b"/?sid=2&s%69d=1")
@example(b"/?sid&sid=2")
def test_a_parameter_is_what_an_application_reads(target: bytes) -> None:
    """Escapes are decoded in names, too: python-engineio reads its sid with parse_qs."""
    read = both(b"GET " + target + b" HTTP/1.1\r\n\r\n", DEFAULT)
    if read:
        head, accepted = read
        query = accepted.environ["QUERY_STRING"]
        parsed = parse_qs(query, keep_blank_values=True, encoding="latin-1")
        for name in (b"sid", b"EIO", b"user"):
            value = head.query(name)
            if value is not None:
                assert {text.encode("latin-1") for text in parsed[name.decode()]} == {decode(value)}


# --- as gunicorn may be configured --------------------------------------------------------


@pytest.mark.parametrize("cfg", LENIENT.values(), ids=LENIENT)
@given(data=grammar.odd_heads() | grammar.mutated_heads())
@example(b"GET / HTTP/1.1\r\nX-Key: 1\r\nX_Key: 2\r\n\r\n")
@example(b"GET / HTTP/1.1\r\nX_Key: 2\r\n\r\n")
@example(b"GET / HTTP/1.1\r\nX-Key : 2\r\nX-Key: 1\r\n\r\n")
@example(b"GET / HTTP/1.1\r\nX-Key: 1\r\n X-Key: 2\r\n\r\n")
@example(b"GET / HTTP/1.1\r\nCookie: session=1;\r\n\tsession=2\r\n\r\n")
def test_the_scanner_agrees_or_declines(cfg: Config, data: bytes) -> None:
    read = both(data, cfg)
    if read:
        head, accepted = read
        assert head.path.decode() == accepted.request.path
        assert head.query_string.decode() == accepted.request.query
        for name in HEADERS + UNDERSCORED:
            assert head.header(name) in (None, accepted.header(name)), name
        for name in grammar.COOKIES:
            assert head.cookie(name) in (None, only(accepted.cookies(name))), name


@pytest.mark.parametrize("cfg", LENIENT.values(), ids=LENIENT)
@given(data=grammar.anything)
def test_more_is_never_needed_of_what_gunicorn_accepts(cfg: Config, data: bytes) -> None:
    if scan(data) is NEED_MORE:
        assert not isinstance(judge(data, cfg), Accepted)
