"""Request heads: bytes -> Head | NEED_MORE | OPAQUE. No I/O.

The scanner only decides where a request goes; gunicorn's own parser reads the head afterwards and
remains the judge of what is valid. So the scanner need not understand every head, but must read
the heads that it does understand as gunicorn does. Where the two could disagree (a folded header,
a space before a colon, a repeated cookie) it reports nothing, and the request is served where it
arrived.
"""

from __future__ import annotations

import enum
import functools
import operator
import re
from typing import Final
from urllib.parse import unquote_to_bytes


class Partial(enum.Enum):
    """The reason why there is no head."""

    NEED_MORE = "the head is not complete"
    OPAQUE = "the head cannot be read: the request is served where it arrived"


NEED_MORE: Final = Partial.NEED_MORE
OPAQUE: Final = Partial.OPAQUE

# A strict subset of what gunicorn accepts (gunicorn.http.message.Request.parse_request_line):
# targets in origin-form, of visible ASCII. Absolute-form and "*" are left to gunicorn.
_REQUEST_LINE = re.compile(rb"([A-Z]{3,20}) (/[\x21-\x7e]*) HTTP/1\.[01]\r\n")
#: The head that stands for one that cannot be read.
_UNREADABLE: Final = b"GET / HTTP/1.1\r\n\r\n"
#: Optional whitespace (RFC 9110 section 5.6.3).
_OWS = b" \t"


class Head:
    """The parts of a request head that sticky rules need.

    ``client`` is the address of the peer as text: from the socket, or from the PROXY protocol
    where that is in use; "" for a Unix socket. Values are bytes, as gunicorn's parser reports
    them; None means "missing, or ambiguous".
    """

    __slots__ = ("_cookie_line", "_lower", "_raw", "client", "method", "path", "query_string")

    def __init__(self, raw: bytes, line: re.Match[bytes], client: str = "") -> None:
        self._raw = raw
        self._lower: bytes | None = None
        self._cookie_line: bytes | None = None
        self.client = client
        self.method = line[1]
        # The fragment is split off before the query, as urlsplit() does.
        target: bytes = line[2].partition(b"#")[0]
        self.path, _, self.query_string = target.partition(b"?")

    def __repr__(self) -> str:
        return f"<Head {self.method.decode()} {self.path.decode()}>"

    def header_lines(self, name: bytes) -> list[bytes] | None:
        """Return the values of the header ``name`` (lower case) in order; None if ambiguous."""
        if self._lower is None:
            self._lower = self._raw.lower()
        lower, needle = self._lower, b"\r\n" + name
        values: list[bytes] = []
        at = lower.find(needle)
        while at >= 0:
            colon = at + len(needle)
            after = lower[colon : colon + 1]
            if after == b":":
                end = lower.find(b"\r\n", colon)
                if lower[end + 2 : end + 3] in (b" ", b"\t"):
                    return None  # obsolete line folding: the value continues
                values.append(self._raw[colon + 1 : end].strip(_OWS))
            elif after in (b" ", b"\t"):
                return None  # gunicorn may strip this (strip_header_spaces)
            at = lower.find(needle, colon)
        return values

    def header(self, name: bytes) -> bytes | None:
        """Return the header ``name`` (lower case), repeated ones joined by a comma as in WSGI.

        WSGI makes one name of "-" and "_", and what gunicorn does with "_" is a setting
        (``header_map``). So the result is None for a ``name`` with "_", and for a head that has
        another spelling of ``name``.
        """
        values = self.header_lines(name)
        if not values or b"_" in name:
            return None
        if b"-" in name and b"_" in self._raw:
            spellings = _spellings(name).findall(self._raw)
            if any(spelling.lower() != name for spelling in spellings):
                return None
        return b",".join(values)

    def cookie(self, name: bytes) -> bytes | None:
        """Return the cookie ``name``; None if it is repeated with different values."""
        if self._cookie_line is None:
            lines = self.header_lines(b"cookie")
            self._cookie_line = lines[0] if lines and len(lines) == 1 else b""
        return find_cookie(self._cookie_line, name)

    def query(self, name: bytes) -> bytes | None:
        """Return the query parameter ``name``, not decoded; None if repeated values differ."""
        if name not in self.query_string:
            return None
        pairs = [pair.partition(b"=") for pair in self.query_string.split(b"&")]
        if any(b"%" in key and decode(key) == name for key, _, _ in pairs):
            return None  # an escaped spelling of the name: parsers differ on it
        return _only([value for key, _, value in pairs if key == name])


def find_cookie(line: bytes, name: bytes) -> bytes | None:
    """Return the cookie ``name`` of the ``Cookie`` header ``line``; None if repeated values
    differ."""
    if name not in line:
        return None
    values = [
        value.strip(_OWS)
        for key, equals, value in map(_split_pair, line.split(b";"))
        if equals and key.strip(_OWS) == name
    ]
    return _only(values)


_split_pair: Final = operator.methodcaller("partition", b"=")


def _only(values: list[bytes]) -> bytes | None:
    """Return the value that all ``values`` have, or None."""
    if len(values) == 1:
        return values[0]
    if not values or any(value != values[0] for value in values):
        return None
    return values[0]


@functools.lru_cache(maxsize=64)
def _spellings(name: bytes) -> re.Pattern[bytes]:
    """Return a pattern that finds ``name`` with "-" or "_", as the name of a header."""
    spelt = re.escape(name).replace(rb"\-", rb"[-_]")
    return re.compile(rb"\r\n(" + spelt + rb")[ \t]*:", re.IGNORECASE)


def decode(value: bytes) -> bytes:
    """Return a query parameter's value without its escapes: all spellings become one key."""
    if b"%" not in value and b"+" not in value:
        return value
    return unquote_to_bytes(value.replace(b"+", b" "))


def scan(data: bytes, client: str = "") -> Head | Partial:
    """Return the head at the start of ``data``; more bytes may follow it."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return NEED_MORE
    line = _REQUEST_LINE.match(data)
    if line is None:
        return OPAQUE
    return Head(data[: end + 4], line, client)


def unreadable_head(client: str) -> Head:
    """Return a head that tells only ``client``, for a connection whose bytes cannot be read."""
    line = _REQUEST_LINE.match(_UNREADABLE)
    assert line is not None
    return Head(_UNREADABLE, line, client)
