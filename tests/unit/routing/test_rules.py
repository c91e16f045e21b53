from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_cluster_ext.routing.head import Head, scan, unreadable_head
from gunicorn_cluster_ext.routing.rule_syntax import RuleContext, build_rule, check_rule
from gunicorn_cluster_ext.routing.rules import (
    Cookie,
    EngineIO,
    Hash,
    Learned,
    Owner,
    Rule,
    find_owner,
    rendezvous,
    starts_engineio_session,
)
from gunicorn_cluster_ext.routing.tags import ProcessTag
from tests.harness.forks import in_fresh_interpreter


@dataclass
class FakeBoard:
    """Generation 5 serves in the slots of `alive`, generation 4 drains in those of `draining`."""

    alive: tuple[int, ...] = (0, 1, 2, 3)
    draining: tuple[int, ...] = ()
    asked: list[int] = field(default_factory=list)

    def slots(self) -> Sequence[int]:
        return self.alive

    def seat_of_slot(self, slot: int) -> int | None:
        self.asked.append(slot)
        return 2 * slot + 1 if slot in self.alive else None

    def seat_of_process(self, slot: int, generation: int) -> int | None:
        if generation == 5 and slot in self.alive:
            return 2 * slot + 1
        return 2 * slot if generation == 4 and slot in self.draining else None


def seat(slot: int) -> int:
    return 2 * slot + 1


def head(*lines: bytes, target: bytes = b"/", client: str = "192.0.2.1") -> Head:
    data = b"\r\n".join([b"GET " + target + b" HTTP/1.1", *lines, b"", b""])
    scanned = scan(data, client)
    assert isinstance(scanned, Head)
    return scanned


class Failures(list[tuple[str, Exception]]):
    def __call__(self, words: str, error: Exception) -> None:
        self.append((words, error))


def rule(words: str, failures: Failures | None = None) -> Rule:
    check_rule(words)
    failures = Failures() if failures is None else failures
    return build_rule(words, RuleContext("gunicorn_worker", client_ip, recall, failures))


def client_ip(head: Head) -> bytes:
    return head.client.encode()


def recall(words: str, value: bytes) -> ProcessTag | None:
    """Return the process that knows the value, as LEARNED has it."""
    return LEARNED.get((words.split(":")[1], value))


LEARNED = {
    ("header", b"abc"): ProcessTag(2, 5),
    ("cookie", b"abc"): ProcessTag(1, 5),
    ("header", b"draining"): ProcessTag(2, 4),
    ("header", b"gone"): ProcessTag(2, 3),
    ("header", b"gone with its slot"): ProcessTag(9, 1),
}


def same_owner(words: str, first: Head, second: Head) -> bool:
    """Return whether the rule finds the same key in both; over many slots, keys rarely collide."""
    board = FakeBoard(tuple(range(1000)))
    owners = [rule(words).owner(each, board) for each in (first, second)]
    assert None not in owners
    return owners[0] == owners[1]


# --- engineio ---------------------------------------------------------------------------------


def test_a_sid_belongs_to_the_process_that_made_it() -> None:
    owner = EngineIO().owner(head(target=b"/?EIO=4&sid=abc.2.5"), FakeBoard())
    assert owner == Owner(seat(2), hard_affinity=True)


def test_a_sid_belongs_to_its_process_also_while_that_drains() -> None:
    owner = EngineIO().owner(head(target=b"/?sid=abc.2.4"), FakeBoard(draining=(2,)))
    assert owner == Owner(4, hard_affinity=True)


def test_a_sid_of_a_dead_process_goes_to_its_slot() -> None:
    """Its present process answers that the session is unknown, and the client connects again."""
    owner = EngineIO().owner(head(target=b"/?sid=abc.2.3"), FakeBoard())
    assert owner == Owner(seat(2), hard_affinity=False)


def test_a_sid_of_a_dead_slot_has_no_owner() -> None:
    assert EngineIO().owner(head(target=b"/?sid=abc.9.1"), FakeBoard()) is None


@pytest.mark.parametrize(
    "query", [b"", b"EIO=4", b"sid=", b"sid=abc", b"sid=abc.2.5&sid=abc.1.5", b"sid=abc.2.5.1"]
)
def test_without_a_tagged_sid_there_is_no_owner(query: bytes) -> None:
    assert EngineIO().owner(head(target=b"/?" + query), FakeBoard()) is None


@pytest.mark.parametrize(
    ("query", "begins"),
    [(b"EIO=4&transport=polling", True), (b"EIO=4&sid=abc.1.2", False), (b"sid=1", False)],
)
def test_a_request_without_a_sid_starts_an_engineio_session(query: bytes, begins: bool) -> None:
    assert starts_engineio_session(head(target=b"/socket.io/?" + query)) is begins


def test_any_other_request_starts_no_session() -> None:
    assert not starts_engineio_session(head())
    assert not starts_engineio_session(unreadable_head("192.0.2.1"))


# --- learn ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line", "owner"),
    [
        ("learn:header:X-Key", b"x-key: abc", Owner(seat(2), hard_affinity=True)),
        ("learn:header:X-Key", b'X-KEY:\t"abc" ', Owner(seat(2), hard_affinity=True)),
        ("learn:cookie:key", b"Cookie: a=b; key=abc", Owner(seat(1), hard_affinity=True)),
        ("learn:cookie:key", b'Cookie: key="abc"', Owner(seat(1), hard_affinity=True)),
        ("learn:header:X-Key", b"x-key: draining", Owner(4, hard_affinity=True)),
        ("learn:header:X-Key", b"x-key: gone", Owner(seat(2), hard_affinity=False)),
        ("learn:header:X-Key", b"x-key: gone with its slot", None),
        ("learn:header:X-Key", b"x-key: abd", None),
        ("learn:header:X-Key", b"x-key:", None),
        ("learn:header:X-Key", b"x-key: abc\r\nx-key: abc", None),
        ("learn:header:X-Key", b"cookie: X-Key=abc", None),
        ("learn:cookie:key", b"Cookie: Key=abc", None),
        ("learn:cookie:key", b"Cookie: key=abc; key=abd", None),
        ("learn:cookie:key", b"key: abc", None),
    ],
)
def test_a_learned_value_belongs_to_the_process_that_gave_it(
    words: str, line: bytes, owner: Owner | None
) -> None:
    assert rule(words).owner(head(line), FakeBoard(draining=(2,))) == owner


def test_a_request_without_a_value_may_start_a_session() -> None:
    learned = rule("learn:header:X-Key")
    assert isinstance(learned, Learned)
    assert learned.may_start_session(head(b"Cookie: x-key=abc"))
    assert not learned.may_start_session(head(b"x-key: unknown"))


# --- cookie -----------------------------------------------------------------------------------


def test_a_cookie_names_a_slot() -> None:
    owner = Cookie(b"gunicorn_worker").owner(head(b"Cookie: a=b; gunicorn_worker=3"), FakeBoard())
    assert owner == Owner(seat(3), hard_affinity=False)


@pytest.mark.parametrize(
    "value", [b"9", b"9999", b"03", b"-1", b"x", b"", b"3; gunicorn_worker=2", b"3.5"]
)
def test_a_cookie_that_names_no_live_slot_finds_no_owner(value: bytes) -> None:
    cookie = head(b"Cookie: gunicorn_worker=" + value)
    assert Cookie(b"gunicorn_worker").owner(cookie, FakeBoard()) is None


# --- hash -------------------------------------------------------------------------------------


def test_a_key_has_one_live_owner() -> None:
    board = FakeBoard()
    owner = rule("hash:ip").owner(head(), board)
    assert owner is not None and not owner.hard_affinity
    assert owner.seat in {seat(slot) for slot in board.alive}
    assert rule("hash:ip").owner(head(), board) == owner


def test_a_key_moves_when_its_slot_dies_and_comes_back() -> None:
    everybody = FakeBoard()
    owner = rule("hash:ip").owner(head(), everybody)
    assert owner is not None
    rest = FakeBoard(tuple(slot for slot in everybody.alive if seat(slot) != owner.seat))
    other = rule("hash:ip").owner(head(), rest)
    assert other is not None and other != owner
    assert rule("hash:ip").owner(head(), everybody) == owner


def test_without_live_slots_there_is_no_owner() -> None:
    assert rule("hash:ip").owner(head(), FakeBoard(alive=())) is None


def test_without_a_key_there_is_no_owner() -> None:
    assert Hash(lambda head: None).owner(head(), FakeBoard()) is None


def test_a_slot_that_dies_during_the_lookup_owns_nothing() -> None:
    class Dying(FakeBoard):
        def seat_of_slot(self, slot: int) -> int | None:
            return None

    assert rule("hash:ip").owner(head(), Dying()) is None


@pytest.mark.parametrize(
    ("words", "first", "same", "other"),
    [
        (
            "hash:header:X-Key",
            head(b"X-Key: 1"),
            head(b"x-key:  1 ", client="192.0.2.2"),
            head(b"X-Key: 2"),
        ),
        (
            "hash:query:user",
            head(target=b"/?user=a/b&x=1"),
            head(target=b"/other?x=2&user=a%2Fb"),
            head(target=b"/?user=a"),
        ),
        (
            "hash:cookie:session",
            head(b"Cookie: session=1"),
            head(b"Cookie: a=b; session=1"),
            head(b"Cookie: session=2"),
        ),
        (
            "hash:path:^/rooms/([^/]+)",
            head(target=b"/rooms/red/join"),
            head(target=b"/rooms/red?x=1"),
            head(target=b"/rooms/blue"),
        ),
        (
            "hash:path:^/rooms/[^/]+",
            head(target=b"/rooms/red/join"),
            head(target=b"/rooms/red"),
            head(target=b"/rooms/blue"),
        ),
    ],
)
def test_a_hash_rule_sees_its_key_and_nothing_else(
    words: str, first: Head, same: Head, other: Head
) -> None:
    assert same_owner(words, first, same)
    assert not same_owner(words, first, other)
    assert rule(words).owner(head(target=b"/elsewhere"), FakeBoard()) is None


def test_a_group_that_did_not_match_is_no_key() -> None:
    optional = rule("hash:path:^/(a)?")
    assert optional.owner(head(target=b"/b"), FakeBoard()) is None


# --- a user's function ------------------------------------------------------------------------


def by_method(head: Head) -> bytes:
    return head.method


def nothing(head: Head) -> None:
    return None


def broken(head: Head) -> bytes:
    raise RuntimeError("no luck")


def mistaken(head: Head) -> Any:
    return "text"


def test_a_users_function_finds_the_key() -> None:
    failures = Failures()
    owner = rule(f"{__name__}:by_method", failures).owner(head(), FakeBoard())
    assert owner == Hash(by_method).owner(head(), FakeBoard()) is not None
    assert rule(f"{__name__}:nothing", failures).owner(head(), FakeBoard()) is None
    assert failures == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("broken", "no luck"), ("mistaken", "a rule returns bytes or None, not str")],
)
def test_a_users_function_that_fails_finds_no_owner(name: str, message: str) -> None:
    failures = Failures()
    words = f"{__name__}:{name}"
    assert rule(words, failures).owner(head(), FakeBoard()) is None
    assert [(where, str(error)) for where, error in failures] == [(words, message)]


def test_a_missing_users_function_fails_the_boot() -> None:
    with pytest.raises(AttributeError):
        rule(f"{__name__}:absent")
    with pytest.raises(ImportError):
        rule("tests.unit.absent:by_method")


# --- the first rule that finds an owner wins --------------------------------------------------


def test_the_first_rule_that_finds_an_owner_wins() -> None:
    rules = [rule("engineio"), rule("cookie"), rule("hash:ip")]
    cookie = b"Cookie: gunicorn_worker=1"
    board = FakeBoard()
    assert find_owner(rules, head(cookie, target=b"/?sid=abc.2.5"), board) == ((seat(2), True), 0)
    assert find_owner(rules, head(cookie, target=b"/?sid=abc.9.5"), board) == ((seat(1), False), 1)
    assert find_owner(rules, head(), board) == (rules[2].owner(head(), board), 2)
    assert find_owner(rules[:2], head(), board) == (None, -1)
    assert find_owner([], head(cookie), board) == (None, -1)


# --- rendezvous -------------------------------------------------------------------------------

KEYS = [b"key-%d" % number for number in range(20_000)]


@pytest.mark.parametrize("count", [2, 3, 4, 7, 16])
def test_keys_spread_evenly(count: int) -> None:
    shares = Counter(rendezvous(key, range(count)) for key in KEYS)
    fair = len(KEYS) / count
    assert set(shares) == set(range(count))
    # Five standard deviations of a fair draw.
    assert max(abs(share - fair) for share in shares.values()) < 5 * fair**0.5


def test_keys_of_slots_with_gaps_spread_evenly() -> None:
    shares = Counter(rendezvous(key, (1, 5, 700)) for key in KEYS)
    assert all(abs(share * 3 / len(KEYS) - 1) < 0.06 for share in shares.values())


def test_only_the_keys_of_a_lost_slot_move() -> None:
    before = {key: rendezvous(key, (0, 1, 2, 3)) for key in KEYS}
    after = {key: rendezvous(key, (0, 1, 3)) for key in KEYS}
    assert {key for key in KEYS if before[key] != after[key]} == {
        key for key in KEYS if before[key] == 2
    }
    moved = Counter(after[key] for key in KEYS if before[key] == 2)
    assert all(abs(share * 12 / len(KEYS) - 1) < 0.15 for share in moved.values())


@given(st.binary(max_size=40), st.sets(st.integers(0, 999), min_size=1, max_size=12))
def test_the_order_of_the_slots_does_not_matter(key: bytes, slots: set[int]) -> None:
    ordered = sorted(slots)
    assert rendezvous(key, ordered) == rendezvous(key, ordered[::-1]) in slots


def test_every_process_computes_the_same() -> None:
    """Python's own hash() would not: it differs from process to process."""
    here = [rendezvous(b"key-%d" % number, range(8)) for number in range(50)]
    code = (
        "from gunicorn_cluster_ext.routing.rules import rendezvous\n"
        "print([rendezvous(b'key-%d' % number, range(8)) for number in range(50)])"
    )
    assert in_fresh_interpreter(code) == str(here)


def test_the_hash_never_changes() -> None:
    """Another value would move every client of every server at an upgrade, and mid-roll."""
    assert [rendezvous(key, range(8)) for key in (b"", b"a", b"b", b"192.0.2.1")] == [7, 7, 3, 2]
