"""Request heads: bytes -> Head | NEED_MORE | OPAQUE. No I/O.

The scanner decides only where a request goes; gunicorn's own parser reads it afterwards
and remains the judge of what is valid. So the scanner need not understand everything, but
what it does understand must be what gunicorn understands: where the two could disagree
(a folded header, a space before a colon, a repeated cookie) it declines, and the request
is served where it arrived.
"""

from __future__ import annotations

import enum
import functools
import operator
import re
from typing import Final
from urllib.parse import unquote_to_bytes


class Partial(enum.Enum):
    """Why there is no head."""

    NEED_MORE = "the head is not complete"
    OPAQUE = "the head cannot be read: serve it where it is"


NEED_MORE: Final = Partial.NEED_MORE
OPAQUE: Final = Partial.OPAQUE

# A strict subset of what gunicorn accepts (gunicorn.http.message.Request.parse_request_line):
# origin-form targets of visible ASCII. Absolute-form and "*" are left to gunicorn.
_REQUEST_LINE = re.compile(rb"([A-Z]{3,20}) (/[\x21-\x7e]*) HTTP/1\.[01]\r\n")
_OWS = b" \t"


class Head:
    """A request head that can be asked for what sticky rules need.

    ``client`` is the address of the peer as text: from the socket, or from the PROXY
    protocol where that is in use; "" for a Unix socket. Values come as gunicorn's parser
    reports them, as bytes; None means "not there, or not certain".
    """

    __slots__ = ("client", "method", "path", "query_string", "_cookie_line", "_lower", "_raw")

    def __init__(self, raw: bytes, line: re.Match[bytes], client: str = "") -> None:
        self._raw = raw
        self._lower: bytes | None = None
        self._cookie_line: bytes | None = None
        self.client = client
        self.method = line[1]
        # In this order urlsplit() cuts: the fragment first, then the query.
        target: bytes = line[2].partition(b"#")[0]
        self.path, _, self.query_string = target.partition(b"?")

    def __repr__(self) -> str:
        return f"<Head {self.method.decode()} {self.path.decode()}>"

    def header_lines(self, name: bytes) -> list[bytes] | None:
        """Every value of the header ``name`` (lower case), in order; None when not certain."""
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
                    return None  # obsolete folding: the value goes on
                values.append(self._raw[colon + 1 : end].strip(_OWS))
            elif after in (b" ", b"\t"):
                return None  # gunicorn may strip this (strip_header_spaces)
            at = lower.find(needle, colon)
        return values

    def header(self, name: bytes) -> bytes | None:
        """The header ``name`` (lower case), repeated ones joined by a comma as WSGI has it.

        WSGI makes one name of "-" and "_". What gunicorn does with the latter is a setting
        (``header_map``), so a head that has both spellings gives None, and so does "_" in
        ``name``.
        """
        values = self.header_lines(name)
        if not values or _is_ambiguous(name, self._raw):
            return None
        return b",".join(values)

    def cookie(self, name: bytes) -> bytes | None:
        """The cookie ``name``; None when it comes twice with different values."""
        if self._cookie_line is None:
            lines = self.header_lines(b"cookie")
            self._cookie_line = lines[0] if lines and len(lines) == 1 else b""
        return find_cookie(self._cookie_line, name)

    def query(self, name: bytes) -> bytes | None:
        """The query parameter ``name``, undecoded; None when it comes twice and differs."""
        if name not in self.query_string:
            return None
        pairs = [pair.partition(b"=") for pair in self.query_string.split(b"&")]
        if any(b"%" in key and decode(key) == name for key, _, _ in pairs):
            return None  # spelt in a way that is read in more than one
        return _only([value for key, _, value in pairs if key == name])


def find_cookie(line: bytes, name: bytes) -> bytes | None:
    """The cookie ``name`` in a ``Cookie`` header; None when it comes twice and differs."""
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
    if len(values) == 1:
        return values[0]
    if not values or any(value != values[0] for value in values):
        return None
    return values[0]


def _is_ambiguous(name: bytes, raw: bytes) -> bool:
    if b"_" in name:
        return True
    if b"-" not in name or b"_" not in raw:
        return False
    return any(found.lower() != name for found in _spellings(name).findall(raw))


@functools.lru_cache(maxsize=64)
def _spellings(name: bytes) -> re.Pattern[bytes]:
    spelt = re.escape(name).replace(rb"\-", rb"[-_]")
    return re.compile(rb"\r\n(" + spelt + rb")[ \t]*:", re.IGNORECASE)


def decode(value: bytes) -> bytes:
    """A query parameter's value without its escapes, so that each spelling is one key."""
    if b"%" not in value and b"+" not in value:
        return value
    return unquote_to_bytes(value.replace(b"+", b" "))


def scan(data: bytes, client: str = "") -> Head | Partial:
    """The head at the start of ``data``, which may hold more behind it."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return NEED_MORE
    line = _REQUEST_LINE.match(data)
    if line is None:
        return OPAQUE
    return Head(data[: end + 4], line, client)


def blind(client: str) -> Head:
    """A head of which only the client is known: of a connection whose bytes cannot be read."""
    line = _REQUEST_LINE.match(_NOTHING)
    assert line is not None
    return Head(_NOTHING, line, client)


_NOTHING: Final = b"GET / HTTP/1.1\r\n\r\n"
