"""Values as bytes: MessagePack with extension types, never pickle.

A decoded value equals the encoded one and has the same type, for None, bool, int of any size,
float, str, bytes, list, tuple, dict with any keys, set, frozenset, datetime, date, time, timedelta,
Decimal, UUID, ``markupsafe.Markup`` and Django's ``SafeString``. Encoding any other type is an
error. An object of a subclass (a named tuple, an ``IntEnum``, a ``defaultdict``) is decoded as its
base class in this list. An aware datetime keeps its offset, but not the name of its time zone.

The encoding is canonical: equal bytes mean equal values, and encoding a decoded value gives the
same bytes again. Sessions compare bytes to find what a request has changed. Hence sets are sorted.

An integer that a store can increment (64 bits) is written in decimal digits, as in Redis; no other
value begins with a digit or a minus sign.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from msgspec.msgpack import Decoder, Encoder, Ext

#: Levels of nesting. A deeper value is most likely a cycle, which has no end.
MAX_DEPTH = 100
_INT64 = 1 << 63
_LONGEST_INT = len(str(-_INT64))


class UnknownType(TypeError):
    """A value cannot be stored; the message names its key and its type."""


class CorruptValue(ValueError):
    """Stored bytes cannot be decoded; the message does not show them."""


class Extension(NamedTuple):
    """The encoding of a type that MessagePack does not have.

    ``kind`` is the type, or its full name so that it need not be imported.
    """

    code: int
    kind: type | str
    pack: Callable[[Any], bytes]
    unpack: Callable[[bytes], Any]


def encode(value: Any, key: str) -> bytes:
    """Return ``value`` as bytes. Raise UnknownType, which names ``key``, if it has no encoding."""
    if type(value) is int and -_INT64 <= value < _INT64:
        return b"%d" % value
    try:
        try:
            return _encoder.encode(_wrap(value, _PLAIN, 0))
        except (OverflowError, UnicodeEncodeError):
            return _encoder.encode(_wrap(value, _CERTAIN, 0))
    except _Unknown as unknown:
        raise UnknownType(f"{key!r} cannot be stored: {unknown}") from None


def decode(data: bytes) -> Any:
    """Return the value that ``data`` encodes. Raise CorruptValue."""
    if data[:1] in _DIGITS:
        return _int(data)
    try:
        return _decoder.decode(data)
    except Exception as error:  # whatever the constructor of a type raises
        raise CorruptValue(type(error).__name__) from None


def register(extension: Extension) -> None:
    """Add a type. All processes that share values must register it with the same code.

    Codes from 32 to 63 are this pack's, those from 64 to 127 the application's. Raise ValueError if
    the code is taken or out of range.
    """
    if not 32 <= extension.code <= 127 or extension.code in _UNPACK:
        raise ValueError(f"the code {extension.code} is taken, or not from 64 to 127")
    _add(extension)


# --- encoding -----------------------------------------------------------------------------

#: Types that the encoder may see. It would write others as something else without an error (a set
#: as a list, a UUID as a string).
_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
#: Those of which the encoder accepts every value; it refuses a large int and a lone surrogate.
_CERTAIN = _PLAIN - {int, str}
_DIGITS = frozenset(b"%d" % digit for digit in range(10)) | {b"-"}

_TUPLE, _SET, _FROZENSET, _PAIRS, _INT, _TEXT = range(1, 7)
_encoder = Encoder()


class _Unknown(Exception):
    """A value cannot be stored; the message says why."""


def _wrap(value: Any, plain: frozenset[type], depth: int) -> Any:
    """Return ``value`` with all types that the encoder must not see replaced by extensions.

    Most containers hold only ``plain`` values. ``issuperset`` finds that out in C, without a Python
    step for each value.
    """
    kind: Any = type(value)
    if kind in plain:
        return value
    if depth == MAX_DEPTH:
        raise _Unknown(f"it is nested more than {MAX_DEPTH} deep")
    if kind is list:
        return _wrap_items(value, plain, depth)
    if kind is dict:
        return _wrap_dict(value, plain, depth)
    return _wrapper(kind)(value, plain, depth)


def _wrap_items(items: Any, plain: frozenset[type], depth: int) -> Any:
    if plain.issuperset(map(type, items)):
        return items
    return [_wrap(item, plain, depth + 1) for item in items]


def _wrap_dict(value: dict[Any, Any], plain: frozenset[type], depth: int) -> Any:
    if not plain.issuperset(map(type, value)):
        pairs = [part for pair in value.items() for part in pair]
        return Ext(_PAIRS, _encoder.encode(_wrap_items(pairs, plain, depth)))
    if plain.issuperset(map(type, value.values())):
        return value
    return {key: _wrap(item, plain, depth + 1) for key, item in value.items()}


def _wrap_set(code: int, value: Any, plain: frozenset[type], depth: int) -> Any:
    items = (_encoder.encode(_wrap(item, plain, depth + 1)) for item in value)
    return Ext(code, _encoder.encode([msgspec.Raw(item) for item in sorted(items)]))


def _wrap_int(value: int, plain: frozenset[type], depth: int) -> Any:
    value = int.__index__(value)
    if -_INT64 <= value < 2 * _INT64:
        return value
    return Ext(_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _wrap_str(value: str, plain: frozenset[type], depth: int) -> Any:
    """Encode a lone surrogate too: UTF-8 does not have it, but file names and JSON may."""
    data = _utf8(value)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return Ext(_TEXT, data)


def _utf8(value: str) -> bytes:
    return str.encode(value, errors="surrogatepass")


_Wrapper = Callable[[Any, frozenset[type], int], Any]

#: These also get subclasses, so they call the base class's methods: a subclass may override them.
_WRAPPERS: dict[type, _Wrapper] = {
    tuple: lambda value, plain, depth: Ext(
        _TUPLE, _encoder.encode(_wrap_items(list(value), plain, depth))
    ),
    set: functools.partial(_wrap_set, _SET),
    frozenset: functools.partial(_wrap_set, _FROZENSET),
    int: _wrap_int,
    str: _wrap_str,
    float: lambda value, plain, depth: float.__float__(value),
    bytes: lambda value, plain, depth: bytes(memoryview(value)),
    list: lambda value, plain, depth: _wrap_items([*list.__iter__(value)], plain, depth),
    dict: lambda value, plain, depth: _wrap_dict({**value}, plain, depth),
}


@functools.lru_cache(maxsize=1024)
def _wrapper(kind: type) -> _Wrapper:
    """Return the function that wraps objects of ``kind``, by the first of its known bases."""
    for base in kind.__mro__:
        extension = _BY_KIND.get(base) or _BY_KIND.get(_name(base))
        if extension is not None:
            return _extension_wrapper(extension)
        if base in _WRAPPERS:
            return _WRAPPERS[base]
    raise _Unknown(f"the type {_name(kind)} is not supported")


def _extension_wrapper(extension: Extension) -> _Wrapper:
    code, pack = extension.code, extension.pack
    return lambda value, plain, depth: Ext(code, pack(value))


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


# --- decoding -----------------------------------------------------------------------------


def _items(data: bytes) -> Any:
    return _decoder.decode(data)


def _dict(data: bytes) -> dict[Any, Any]:
    """Return a dict whose keys and values alternate in ``data``."""
    parts = _items(data)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _int(data: bytes) -> int:
    try:
        if len(data) <= _LONGEST_INT:
            return int(data)
    except ValueError:
        pass
    raise CorruptValue("it is not a number")


def _text(data: bytes) -> str:
    return data.decode(errors="surrogatepass")


def _markup(data: bytes) -> Any:
    """Return plain text if markupsafe is missing. It will be escaped, which is safe."""
    try:
        from markupsafe import Markup
    except ImportError:
        return _text(data)
    return Markup(_text(data))


def _safe_string(data: bytes) -> Any:
    try:
        from django.utils.safestring import SafeString
    except ImportError:
        return _text(data)
    return SafeString(_text(data))


_decoder = Decoder(ext_hook=lambda code, data: _UNPACK[code](bytes(data)))
_UNPACK: dict[int, Callable[[bytes], Any]] = {
    _TUPLE: lambda data: tuple(_items(data)),
    _SET: lambda data: set(_items(data)),
    _FROZENSET: lambda data: frozenset(_items(data)),
    _PAIRS: _dict,
    _INT: lambda data: int.from_bytes(data, "big", signed=True),
    _TEXT: _text,
}

# --- types that are extensions --------------------------------------------------------------

_BY_KIND: dict[type | str, Extension] = {}


def _add(extension: Extension) -> None:
    _BY_KIND[extension.kind] = extension
    _UNPACK[extension.code] = extension.unpack
    _wrapper.cache_clear()


def _textual(code: int, kind: type, to: Callable[[Any], str], back: Callable[[str], Any]) -> None:
    _add(Extension(code, kind, lambda value: to(value).encode(), lambda data: back(data.decode())))


_textual(16, datetime, datetime.isoformat, datetime.fromisoformat)
_textual(17, date, date.isoformat, date.fromisoformat)
_textual(18, time, time.isoformat, time.fromisoformat)
_textual(19, Decimal, Decimal.__str__, Decimal)
_add(
    Extension(
        20,
        timedelta,
        lambda value: b"%d %d %d" % (value.days, value.seconds, value.microseconds),
        lambda data: timedelta(*map(int, data.split())),
    )
)
_add(Extension(21, UUID, lambda value: bytes(value.bytes), lambda data: UUID(bytes=data)))
_add(Extension(22, "markupsafe.Markup", _utf8, _markup))
_add(Extension(23, "django.utils.safestring.SafeString", _utf8, _safe_string))
