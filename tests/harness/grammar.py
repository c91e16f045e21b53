"""Hypothesis strategies for request heads: gunicorn's grammar, and what breaks it."""

from hypothesis import strategies as st

#: Names that look alike, so that a careless search finds the wrong one.
HEADERS = (
    b"Cookie",
    b"X-Key",
    b"X-Key2",
    b"Ex-Key",
    b"X-Forwarded-For",
    b"Host",
    b"X",
    b"Set-Cookie",
)
#: Applications see these as the names with dashes; gunicorn drops, refuses or merges them.
UNDERSCORED = (b"X_Key", b"X_Forwarded_For", b"X_Forwarded-For")
COOKIES = (b"gunicorn_worker", b"session", b"worker", b"xsession", b"s.*", b"Session")
PARAMETERS = (b"sid", b"EIO", b"ssid", b"si", b"user", b"%73id", b"s%69d", b"si+d", b"")

VISIBLE = bytes(range(0x21, 0x7F))
FIELD = bytes([0x09, 0x20, *VISIBLE, *range(0x80, 0x100)])


def some_bytes(alphabet: bytes, max_size: int = 8) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(alphabet), max_size=max_size).map(bytes)


def _but(alphabet: bytes, *unexpected: bytes) -> bytes:
    return bytes(byte for byte in alphabet if byte not in b"".join(unexpected))


def any_case(name: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from((name, name.lower(), name.upper(), name.swapcase()))


blanks = some_bytes(b" \t", 3)
methods = st.sampled_from(
    (b"GET", b"POST", b"HEAD", b"OPTIONS", b"CONNECT", b"PROPFIND", b"M-SEARCH")
)
paths = st.one_of(
    st.sampled_from((b"/", b"//", b"//host/path", b"/a/../b", b"/%2F%3f", b"/:80", b"/a;b=c")),
    some_bytes(_but(VISIBLE, b"?#")).map(lambda tail: b"/" + tail),
)
values = st.one_of(
    st.sampled_from(
        (b"", b"1", b"2", b"lv_VI97HAXpY6yYWAAAC.2.5", b"a%2Eb", b"a+b", b"a=b", b'"1"')
    ),
    some_bytes(_but(VISIBLE, b"&;#?")),
)
parameters = st.builds(
    lambda name, equals, value: name + equals + value,
    st.sampled_from(PARAMETERS),
    st.sampled_from((b"=", b"=", b"=", b"", b"==", b"%3D")),
    values,
)
queries = st.lists(parameters, max_size=5).map(b"&".join)


@st.composite
def targets(draw: st.DrawFn) -> bytes:
    """Origin-form, as nearly all requests have it."""
    target = draw(paths)
    if draw(st.booleans()):
        target += b"?" + draw(queries)
    if draw(st.integers(0, 9)) == 0:
        target += b"#" + draw(some_bytes(VISIBLE))
    return target


odd_targets = st.one_of(
    st.sampled_from(
        (b"*", b"host:80", b"http://host/path?sid=1", b"https://[::1]/?sid=1", b"http:/")
    ),
    some_bytes(VISIBLE),
)

cookie_pairs = st.builds(
    lambda before, name, equals, value, after: before + name + equals + value + after,
    blanks,
    st.sampled_from(COOKIES),
    st.sampled_from((b"=", b"=", b"=", b"=", b" =", b"\t=", b"= ", b"", b"==")),
    values,
    blanks,
)
cookies = st.lists(cookie_pairs, max_size=5).map(b";".join)
field_values = st.one_of(values, some_bytes(FIELD, 12), some_bytes(FIELD, 40).map(lambda v: v * 20))


@st.composite
def header_lines(draw: st.DrawFn, names: tuple[bytes, ...] = HEADERS) -> bytes:
    name = draw(st.sampled_from(names))
    value = draw(cookies if name == b"Cookie" else field_values)
    return draw(any_case(name)) + b":" + draw(blanks) + value + draw(blanks)


@st.composite
def odd_header_lines(draw: st.DrawFn) -> bytes:
    """Lines that gunicorn takes only with a setting that says so, or not at all."""
    line = draw(header_lines(HEADERS + UNDERSCORED))
    name, _, value = line.partition(b":")
    fold = b"\r\n" + draw(st.sampled_from((b" ", b"\t", b"  "))) + draw(header_lines())
    return draw(
        st.sampled_from(
            (line, line + fold, line + fold + fold, name + b" :" + value, name + b"\t:" + value)
        )
    )


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Heads of which gunicorn, as it is configured by default, accepts nearly every one."""
    line = (
        draw(methods) + b" " + draw(targets()) + b" HTTP/1." + draw(st.sampled_from((b"0", b"1")))
    )
    lines = draw(st.lists(header_lines(), max_size=6))
    body = draw(st.sampled_from((b"", b"", b"body", b"GET /next HTTP/1.1\r\n\r\n")))
    return b"\r\n".join([line, *lines, b"", body])


@st.composite
def odd_heads(draw: st.DrawFn) -> bytes:
    """Heads that gunicorn accepts only here and there."""
    start = draw(st.sampled_from((b"", b"", b"", b"\r\n", b"\r\n\r\n", b"\n", b" ")))
    target = draw(st.one_of(targets(), targets(), odd_targets))
    version = draw(
        st.sampled_from((b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1"))
    )
    line = start + draw(methods) + b" " + target + b" " + version
    lines = draw(st.lists(st.one_of(header_lines(), odd_header_lines()), max_size=5))
    return b"\r\n".join([line, *lines, b"", b""])


TOKENS = (
    *(
        b"\r\n",
        b"\r",
        b"\n",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b":",
        b";",
        b"=",
        b"&",
        b"?",
        b"#",
        b"/",
        b",",
    ),
    *(
        b"\x00",
        b"\x7f",
        b"\x0b",
        b"\xa0",
        b"\xff",
        b"%",
        b"GET",
        b"GET / HTTP/1.1\r\n",
        b"HTTP/1.1",
    ),
    *(b"Cookie:", b"session=1", b"X-Key:", b"X_Key: 2\r\n", b"sid=1", b"PROXY ", b"\r\n "),
)
tokens = st.lists(st.sampled_from(TOKENS), max_size=12).map(b"".join)


@st.composite
def mutated_heads(draw: st.DrawFn) -> bytes:
    """Heads with bytes put in, taken out and cut off."""
    data = draw(st.one_of(heads(), odd_heads()))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from((0, 0, 1, 2, 5)))
        data = (
            data[:at] + draw(st.one_of(st.sampled_from(TOKENS), st.just(b""))) + data[at + length :]
        )
    if draw(st.integers(0, 4)) == 0:
        data = data[: draw(st.integers(0, len(data)))]
    return data


anything = st.one_of(
    heads(), odd_heads(), mutated_heads(), mutated_heads(), tokens, st.binary(max_size=64)
)
