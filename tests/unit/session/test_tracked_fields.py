"""Fields: which values of a dictionary are new, changed inside, or removed."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_cluster_ext.codec import CorruptValue, UnknownType, encode
from gunicorn_cluster_ext.session.tracked_fields import Fields


def fields(**values: Any) -> Fields:
    return Fields({name.encode(): encode(value, name) for name, value in values.items()})


def changed(some: Fields) -> tuple[dict[str, Any], list[str]]:
    changes = some.changes()
    put = Fields(changes.put)
    return dict(put), sorted(name.decode() for name in changes.remove)


def test_nothing_done_is_nothing_changed() -> None:
    some = fields(a=1, b=[1, {"c": {2}}], d=None)
    assert not some.changes()
    assert dict(some) == {"a": 1, "b": [1, {"c": {2}}], "d": None}
    assert not some.changes()


def test_what_is_set_and_deleted() -> None:
    some = fields(a=1, b=2, c=3)
    some["a"], some["n"] = 10, (1, 2)
    del some["b"]
    assert changed(some) == ({"a": 10, "n": (1, 2)}, ["b"])
    assert some.changes()


def test_the_same_again_is_no_change() -> None:
    some = fields(a=1, b=[1])
    some["a"], some["b"] = 1, [1]
    assert not some.changes()
    del some["a"]
    some["a"] = 1
    some["new"] = 5
    del some["new"]
    assert not some.changes()


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f["cart"]["items"].append(3),
        lambda f: f["cart"].pop("items"),
        lambda f: f["cart"]["user"]["tags"].add("x"),
        lambda f: [value["user"].clear() for value in f.values() if isinstance(value, dict)],
        lambda f: f.get("cart").update(more=1),
        lambda f: f.setdefault("cart", {})["items"].pop(),
        lambda f: dict(f)["cart"]["items"].reverse(),
    ],
)
def test_what_is_changed_deep_inside(change: Any) -> None:
    cart = {"items": [1, 2], "user": {"tags": {"a"}}}
    some = fields(cart=cart, other=[1])
    change(some)
    put, removed = changed(some)
    assert list(put) == ["cart"] and put["cart"] != cart and removed == []


def test_what_was_set_can_change_as_well() -> None:
    some = fields()
    some["list"] = items = []
    items.append(1)
    some["tuple"] = ([],)
    some["tuple"][0].append(2)
    assert changed(some) == ({"list": [1], "tuple": ([2],)}, [])
    some["list"] = 5
    items.append(2)
    assert changed(some)[0]["list"] == 5


def test_what_was_stored_counts_no_more() -> None:
    some = fields(a=[1], b=2)
    some["a"].append(2)
    del some["b"]
    some.stored(some.changes())
    assert not some.changes()
    some["a"].append(3)
    some["b"] = 2
    assert changed(some) == ({"a": [1, 2, 3], "b": 2}, [])


def test_what_cannot_be_stored_is_refused_where_it_is_set() -> None:
    some = fields(a=1)
    with pytest.raises(UnknownType, match=r"'user'.*builtins.object"):
        some["user"] = object()
    assert "user" not in some
    some["deep"] = {}
    some["deep"]["user"] = object()
    with pytest.raises(UnknownType, match=r"'deep'.*builtins.object"):
        some.changes()


@pytest.mark.parametrize("name", [1, None, b"x", ("a",), "\0made"])
def test_names_are_strings(name: Any) -> None:
    with pytest.raises(TypeError, match="no name"):
        fields()[name] = 1


def test_it_is_a_dictionary() -> None:
    some = fields(a=1, b=[2])
    assert (len(some), list(some), "a" in some, 5 in some) == (2, ["a", "b"], True, False)
    assert some == {"a": 1, "b": [2]}
    assert some.pop("a") == 1 and some.pop("a", None) is None
    with pytest.raises(KeyError):
        some["a"]
    with pytest.raises(KeyError):
        del some["a"]
    some |= {"x": 1}  # type: ignore[misc]
    some.update(y=2)
    some.clear()
    assert changed(some) == ({}, ["a", "b"])


@pytest.mark.parametrize("stored", [{b"a": b"\xc1"}, {b"\xff": b"1"}, {b"a": b""}])
def test_what_is_damaged_is_found_at_once(stored: dict[bytes, bytes]) -> None:
    with pytest.raises(CorruptValue):
        Fields(stored)


values = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
contents = st.dictionaries(st.text("abc", min_size=1, max_size=2), values, max_size=4)


@given(contents, contents, contents)
def test_two_requests_that_change_different_names_lose_nothing(
    before: dict[str, Any], mine: dict[str, Any], yours: dict[str, Any]
) -> None:
    """Applied to the store one after the other, as its atomic `change` does."""
    mine = {"m" + name: value for name, value in mine.items()}
    yours = {"y" + name: value for name, value in yours.items()}
    store = {name.encode(): encode(value, name) for name, value in before.items()}
    requests = [(Fields(store), mine), (Fields(store), yours)]
    for some, new in requests:
        copy.deepcopy(dict(some))  # all was looked at
        some.update(new)
    for some, _ in requests:
        changes = some.changes()
        store |= changes.put
        for key in changes.remove:
            del store[key]
    assert dict(Fields(store)) == {**before, **mine, **yours}
