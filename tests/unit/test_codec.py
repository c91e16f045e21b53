"""The codec: what comes back is what went in, and nothing else goes in."""

import enum
import math
from collections import Counter, OrderedDict, defaultdict
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from gunicorn_cluster_ext import codec
from gunicorn_cluster_ext.codec import (
    MAX_DEPTH,
    CorruptValue,
    Extension,
    UnknownType,
    decode,
    encode,
    register,
)

EAST = timezone(timedelta(hours=5, minutes=30, seconds=7))


def there_and_back(value: Any) -> Any:
    return decode(encode(value, "key"))


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, set | frozenset):
        return same(sorted(one, key=repr), sorted(other, key=repr))
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)


# --- what comes back --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        -1,
        2**63 - 1,
        -(2**63),
        2**63,
        2**64 - 1,
        2**64,
        -(2**63) - 1,
        10**400,
        -(2**71),
        1.5,
        -0.0,
        math.inf,
        math.nan,
        "",
        "text \U0001f600",
        "\ud800 half a pair",
        "5",
        b"",
        b"\x00\xff",
        b"5",
        [],
        [1, [2, [3]]],
        (),
        (1, 2),
        [(1, "a"), [2, "b"]],
        ([1], (2,), {"a": (3,)}),
        {},
        {"a": 1, "b": {"c": [None, True]}},
        {1: "int", None: "none", True.__class__.__name__: 0},
        {2.5: "float", b"b": "bytes", (1, 2): "tuple", frozenset({1}): "set"},
        {date(2026, 1, 1): [1], UUID(int=5): {3: 4}},
        {"\ud800": 10**30, "b": "\udfff"},
        [10**30, -(10**30), "a", 5],
        {10**30},
        set(),
        {1, 2, 3},
        {(1, 2), (3,)},
        frozenset({"a", b"b", None, 1.5}),
        datetime(2026, 7, 30, 12, 30, 15, 999),
        datetime(1, 1, 1),
        datetime(2026, 7, 30, tzinfo=timezone.utc),
        datetime(2026, 7, 30, 1, 2, 3, tzinfo=EAST),
        date(2026, 7, 30),
        time(23, 59, 59, 5),
        time(1, tzinfo=timezone.utc),
        timedelta(days=-3, microseconds=7),
        timedelta.max,
        timedelta.min,
        Decimal("1.10"),
        Decimal("-0"),
        Decimal("1E+1000"),
        Decimal("Infinity"),
        UUID("12345678-1234-5678-1234-567812345678"),
        Markup("<b>\ud800</b>"),
        {"html": [Markup("<i>")]},
    ],
    # Sets differ in order from process to process, and pytest-xdist wants the same names in all.
    ids=lambda value: type(value).__name__ if isinstance(value, set | frozenset) else repr(value),
)
def test_a_value_comes_back(value: Any) -> None:
    assert same(there_and_back(value), value)


def test_an_aware_time_keeps_its_offset() -> None:
    back = there_and_back(datetime(2026, 7, 30, tzinfo=EAST))
    assert back.utcoffset() == EAST.utcoffset(None)


def test_not_a_number_of_decimal_comes_back() -> None:
    assert there_and_back(Decimal("NaN")).is_nan()


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.none() | st.just(timezone.utc) | st.just(EAST))
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.text().map(Markup)
)
keys = st.recursive(
    scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner), max_leaves=3
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.sets(keys, max_size=4)
        | st.frozensets(keys, max_size=4)
    ),
    max_leaves=12,
)


@given(values)
def test_any_value_comes_back_and_gives_the_same_bytes_again(value: Any) -> None:
    """By the second, sessions find what a request has changed."""
    data = encode(value, "key")
    assert decode(data) == value
    assert encode(decode(data), "key") == data


def test_a_set_gives_the_same_bytes_whatever_its_order() -> None:
    one, other = set(), set()
    for number in range(0, 4096, 64):
        one.add(number)
    for number in reversed(range(0, 4096, 64)):
        other.add(number)
    assert encode(one, "") == encode(other, "")


def test_a_number_is_written_as_a_store_counts() -> None:
    assert encode(-42, "") == b"-42"
    assert encode(True, "") != b"1"
    assert decode(b"9223372036854775807") == 2**63 - 1


# --- subclasses -------------------------------------------------------------------------------


class Loud(str):
    def encode(self, *args: Any, **kwargs: Any) -> bytes:
        raise AssertionError("the codec asks no method of a subclass")


class Colour(enum.IntEnum):
    RED = 1


class Word(str, enum.Enum):
    NO = "no"


class Raw(bytes):
    pass


class Ratio(float):
    pass


class Moment(datetime):
    pass


class Bold(Markup):
    pass


class Point(NamedTuple):
    x: int
    y: list[int]


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Loud("text"), "text"),
        (Colour.RED, 1),
        (Word.NO, "no"),
        (Raw(b"raw"), b"raw"),
        (Ratio(0.5), 0.5),
        (Point(1, [2]), (1, [2])),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (Counter("aab"), {"a": 2, "b": 1}),
        (Moment(2026, 1, 1), datetime(2026, 1, 1)),
        (Bold("<b>"), Markup("<b>")),
        ({Loud("key"): Colour.RED}, {"key": 1}),
        ([Colour.RED, Loud("x")], [1, "x"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_subclass_comes_back_as_what_it_is_made_of(value: Any, plain: Any) -> None:
    assert same(there_and_back(value), plain)
    assert same(there_and_back([value]), [plain])


# --- what is refused --------------------------------------------------------------------------


@dataclass
class User:
    name: str


class Mood(enum.Enum):
    GOOD = 1


@pytest.mark.parametrize(
    "value",
    [
        object(),
        User("x"),
        Mood.GOOD,
        Fraction(1, 2),
        1j,
        bytearray(b"x"),
        memoryview(b"x"),
        range(3),
        lambda: None,
        User,
        (each for each in ()),
        ValueError("x"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("nest", [lambda v: v, lambda v: {"a": [{"b": (v,)}]}, lambda v: {"x": v}])
def test_an_unknown_type_is_refused_by_name(value: Any, nest: Any) -> None:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    with pytest.raises(UnknownType) as caught:
        encode(nest(value), "cart")
    assert "'cart'" in str(caught.value)
    assert kind in str(caught.value)
    assert caught.value.__cause__ is None


def test_as_a_key_it_is_refused_too() -> None:
    with pytest.raises(UnknownType, match="Fraction"):
        encode({Fraction(1, 2): 1}, "k")


def test_too_deep_is_refused() -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    assert there_and_back(value) == value
    with pytest.raises(UnknownType, match=r"'k'.*nested"):
        encode([value], "k")


@pytest.mark.parametrize("wrap", [lambda v: (v,), lambda v: {1: v}, lambda v: {"a": v}])
def test_any_container_has_a_depth(wrap: Any) -> None:
    value: Any = "leaf"
    for _ in range(MAX_DEPTH):
        value = wrap(value)
    assert there_and_back(value) == value
    with pytest.raises(UnknownType, match="nested"):
        encode(wrap(value), "k")


def test_what_holds_itself_is_refused() -> None:
    value: list[Any] = [[]]
    value.append(value)
    with pytest.raises(UnknownType, match="nested"):
        encode(value, "k")


# --- what is no value -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"-",
        b"5x",
        b"9" * 5000,
        b"\xc1",
        b"\x91",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc0\xc0",
        b"\xa1\xff",
        b"\x91" * 100_000,
        b"\xd4\x63x",  # an extension of nobody
        b"\xd4\x10x",  # a datetime
        b"\xd4\x13x",  # a Decimal
        b"\xd4\x15x",  # a UUID
        b"\xc7\x02\x04\x91\x01",  # pairs of which half is missing
        b"\xc7\x02\x02\x91\x90",  # a set with a list
        b'{"json": 1}',
        b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00]\x94.",  # a pickle
    ],
)
def test_bytes_that_are_no_value(data: bytes) -> None:
    with pytest.raises(CorruptValue) as caught:
        decode(data)
    assert len(str(caught.value)) < 40


@given(st.binary(max_size=40))
def test_no_bytes_make_it_fail_otherwise(data: bytes) -> None:
    try:
        decode(data)
    except CorruptValue:
        pass


@given(values, st.data())
def test_no_damage_makes_it_fail_otherwise(value: Any, data: st.DataObject) -> None:
    damaged = bytearray(encode(value, "key"))
    index = data.draw(st.integers(0, len(damaged) - 1))
    damaged[index] ^= data.draw(st.integers(1, 255))
    try:
        decode(bytes(damaged))
    except CorruptValue:
        pass


# --- more types -------------------------------------------------------------------------------


def test_a_type_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in ("_UNPACK", "_BY_KIND"):
        monkeypatch.setattr(codec, table, dict(getattr(codec, table)))
    half = Extension(
        64, Fraction, lambda value: str(value).encode(), lambda data: Fraction(data.decode())
    )
    register(half)
    try:
        assert there_and_back([Fraction(1, 2)]) == [Fraction(1, 2)]
        with pytest.raises(ValueError, match="64"):
            register(half)
    finally:
        codec._wrapper.cache_clear()


@pytest.mark.parametrize("code", [0, 1, 16, 31, 128])
def test_codes_of_others_are_not_for_it(code: int) -> None:
    with pytest.raises(ValueError, match=str(code)):
        register(Extension(code, Fraction, bytes, bytes))
