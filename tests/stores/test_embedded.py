"""The embedded store on its own: its size, its clock, its file."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest

from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores import open_store
from gunicorn_cluster_ext.stores.contract import StoreError
from gunicorn_cluster_ext.stores.embedded import environment, shared_state
from gunicorn_cluster_ext.stores.sync_async import BlockingStore
from tests.harness.store_conformance import Conformance

MEGABYTE = 1 << 20


class TestEmbedded(Conformance):
    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        return Settings(store_path=str(tmp_path / "store"), store_size="64M")


class Clock:
    """A time since boot that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(shared_state, "since_boot", clock)
    return clock


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "store"


OpenStore = Callable[..., BlockingStore]


@pytest.fixture
def opened(directory: Path) -> Iterator[OpenStore]:
    """Opens the store as a new process does."""
    with contextlib.ExitStack() as stack:

        def open_again(size: str = "4M", **options: object) -> BlockingStore:
            environment._environments.pop(str(directory), None)
            store = open_store(
                Settings(store_path=str(directory), store_size=size, **options)  # type: ignore[arg-type]
            )
            stack.callback(store.close)
            return store

        yield open_again


def data_file(directory: Path) -> Path:
    (file,) = (each for each in directory.glob("*.mdb") if each.name != "broken.mdb")
    return file


# --- how much it holds ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "share"),
    [(50, 0.1), (700, 0.25), (1_900, 0.25), (2_100, 0.25), (30_000, 0.4), (300_000, 0.3)],
)
def test_a_full_store_takes_everything(
    opened: OpenStore, directory: Path, clock: Clock, size: int, share: float
) -> None:
    """Three times as much as it could hold; at least `share` of its size is kept, the newest."""
    store = opened("4M")
    keys = [os.urandom(8) for _ in range(12 * MEGABYTE // (size + 500))]
    for key in keys:
        clock.now += 0.2
        store.set(key, b"x" * size, ttl=1e6)
    with opened_lmdb(store) as transaction:  # reading through the store would mark entries as used
        kept = [transaction.get(b"k" + key) is not None for key in keys]
    count = sum(kept)
    assert count * size > share * 4 * MEGABYTE
    assert kept == [False] * (len(keys) - count) + [True] * count
    assert data_file(directory).stat().st_blocks * 512 <= 4.1 * MEGABYTE


def test_a_full_store_of_mixed_sizes(opened: OpenStore) -> None:
    store = opened("4M")
    for number in range(3_000):
        store.set(b"%d" % number, b"x" * (number * 7919 % 100_000))
    assert store.get(b"2999") is not None


def test_a_full_store_takes_many_at_once(opened: OpenStore) -> None:
    store = opened("4M")
    store.set_many({b"%d" % number: b"x" * 10_000 for number in range(1_000)})
    assert store.get(b"999") is not None


def test_a_full_store_takes_fields_and_counts(opened: OpenStore) -> None:
    store = opened("4M")
    for number in range(2_000):
        store.change(b"m%d" % number, {b"f": b"x" * 5_000}, ttl=60)
        assert store.incr(b"n") == number + 1
    assert store.fields(b"m1999") == {b"f": b"x" * 5_000}


def test_an_entry_larger_than_the_store(opened: OpenStore) -> None:
    store = opened("4M")
    store.set(b"a", b"1")
    with pytest.raises(StoreError, match=r"600000 bytes are too many.*cluster_store_size"):
        store.set(b"b", b"x" * 600_000)
    with pytest.raises(StoreError, match="too many"):
        store.change(b"c", {b"f": b"x" * 600_000})
    assert store.get_many([b"a", b"b"]) == [b"1", None]


def test_the_expired_go_first(opened: OpenStore, clock: Clock) -> None:
    store = opened("4M")
    for number in range(50):
        store.set(b"old%d" % number, b"x" * 10_000)
    clock.now += 100
    for number in range(150):
        store.set(b"short%d" % number, b"x" * 10_000, ttl=10)
    clock.now += 20
    for number in range(150):
        store.set(b"new%d" % number, b"x" * 10_000)
    assert None not in store.get_many(b"old%d" % number for number in range(50))
    for number in range(50):
        store.set(b"newer%d" % number, b"x" * 10_000)
    assert None in store.get_many(b"new%d" % number for number in range(150))


def test_the_expired_make_room_by_themselves(opened: OpenStore, clock: Clock) -> None:
    store = opened("64M")
    for number in range(1_000):
        store.set(b"%d" % number, b"x", ttl=10)
    clock.now += 20
    for _ in range(300):
        store.set(b"one", b"x")
    with opened_lmdb(store) as transaction:
        assert transaction.stat()["entries"] < 10


def test_what_is_read_stays(
    opened: OpenStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened("4M")
    for number in range(100):
        store.set(b"%d" % number, b"x" * 5_000)
    for number in range(2_000):
        clock.now += 1
        if number % 10 == 0:
            assert store.get(b"7") is not None, number
        store.set(b"new%d" % number, b"x" * 5_000)
    assert store.get(b"8") is None


def test_reads_alone_mark_what_they_use(opened: OpenStore, clock: Clock) -> None:
    store = opened("4M")
    for number in range(300):
        store.set(b"%d" % number, b"x")
    clock.now += 100
    before = last_transaction(store)
    for _ in range(20):
        for number in range(300):
            store.get(b"%d" % number)
    assert before < last_transaction(store) <= before + 3


@contextlib.contextmanager
def opened_lmdb(store: BlockingStore) -> Iterator[lmdb.Transaction]:
    with store.coroutines._environment._lmdb.begin() as transaction:  # type: ignore[attr-defined]
        yield transaction


def last_transaction(store: BlockingStore) -> int:
    return int(store.coroutines._environment._lmdb.info()["last_txnid"])  # type: ignore[attr-defined]


# --- its clock --------------------------------------------------------------------------------


def test_times_end_by_its_own_clock(opened: OpenStore, clock: Clock) -> None:
    store = opened()
    store.set(b"a", b"1", ttl=10)
    clock.now += 9.9
    assert store.get(b"a") == b"1"
    clock.now += 0.2
    assert store.get(b"a") is None


@pytest.mark.parametrize("jump", [-1e8, 1e8])
def test_a_wall_clock_that_jumps_changes_nothing(
    opened: OpenStore, clock: Clock, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    store = opened()
    store.set(b"a", b"1", ttl=10)
    wall = time.time() + jump
    monkeypatch.setattr(time, "time", lambda: wall)
    assert store.get(b"a") == b"1"
    store.close()
    store = opened()
    assert store.get(b"a") == b"1"
    clock.now += 11
    assert store.get(b"a") is None


@pytest.fixture
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Callable[[], None]:
    """Reboots the machine: another boot id, and a clock that starts again."""
    file = tmp_path / "boot_id"
    file.write_text("00000000-0000-0000-0000-000000000001\n")
    monkeypatch.setattr(shared_state, "_BOOT_ID", str(file))

    def boot() -> None:
        file.write_text(f"{time.perf_counter_ns():032x}\n")
        clock.now = 5.0

    return boot


def test_times_go_on_over_a_reboot(
    opened: OpenStore, clock: Clock, boot: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = 1.7e9
    monkeypatch.setattr(time, "time", lambda: wall)
    store = opened()
    store.set(b"short", b"1", ttl=50)
    store.set(b"long", b"1", ttl=500)
    store.close()
    boot()
    wall += 100
    store = opened()
    assert store.get_many([b"short", b"long"]) == [None, b"1"]
    clock.now += 450
    assert store.get(b"long") is None


def test_its_clock_never_goes_back(
    opened: OpenStore, clock: Clock, boot: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened()
    store.set(b"a", b"1", ttl=50)
    store.close()
    boot()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    store = opened()
    assert store.get(b"a") == b"1"
    clock.now += 51
    assert store.get(b"a") is None


# --- its file -----------------------------------------------------------------------------------


def test_it_outlives_a_restart(opened: OpenStore, directory: Path) -> None:
    store = opened()
    store.set(b"a", b"1", ttl=60)
    store.change(b"m", {b"f": b"1"})
    store.close()
    store = opened()
    assert store.get(b"a") == b"1"
    assert store.fields(b"m") == {b"f": b"1"}
    assert {oct(each.stat().st_mode)[-3:] for each in directory.iterdir()} == {"600"}


def test_it_outlives_a_reboot_if_it_was_closed(
    opened: OpenStore, boot: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    store = opened()
    store.set(b"a", b"1")
    store.close()
    boot()
    assert opened().get(b"a") == b"1"
    assert caplog.messages == []


def test_it_outlives_a_reboot_if_it_was_closed_after_a_fork(
    opened: OpenStore, boot: Callable[[], None]
) -> None:
    store = opened()
    store.set(b"a", b"1")
    assert os.waitpid(forked(), 0)[1] == 0
    store.close()
    boot()
    assert opened().get(b"a") == b"1"


def forked() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return pid


def crash(store: BlockingStore) -> None:
    """End the use of a store as SIGKILL does: the kernel drops the locks, and nothing is closed."""
    used = store.coroutines._environment  # type: ignore[attr-defined]
    used._lmdb.close()
    used.state.close()
    used._forget()


def test_after_a_power_cut_it_starts_empty(
    opened: OpenStore, directory: Path, boot: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    store = opened()
    store.set(b"a", b"1")
    crash(store)
    boot()
    store = opened()
    assert store.get(b"a") is None
    store.set(b"a", b"2")
    assert store.get(b"a") == b"2"
    assert messages(caplog) == ["starts empty: the machine went down while it was in use."]
    assert (directory / "broken.mdb").exists()


def test_what_the_killed_have_left_is_settled(
    opened: OpenStore, directory: Path, boot: Callable[[], None]
) -> None:
    store = opened()
    store.set(b"a", b"1")
    crash(store)
    shared_state.settle(str(directory), 0)
    boot()
    assert opened().get(b"a") == b"1"


def test_what_somebody_uses_is_not_settled(
    opened: OpenStore, directory: Path, boot: Callable[[], None]
) -> None:
    store = opened()
    store.set(b"a", b"1")
    shared_state.settle(str(directory), 0.05)
    crash(store)
    boot()
    assert opened().get(b"a") is None


def test_what_was_used_before_a_power_cut_is_not_settled(
    opened: OpenStore, directory: Path, boot: Callable[[], None]
) -> None:
    store = opened()
    store.set(b"a", b"1")
    crash(store)
    boot()
    shared_state.settle(str(directory), 0)
    assert opened().get(b"a") is None


def test_nothing_is_made_where_nothing_is(directory: Path) -> None:
    shared_state.settle(str(directory), 0)
    directory.mkdir()
    shared_state.settle(str(directory), 0)
    assert list(directory.iterdir()) == []


def test_a_crash_of_all_processes_loses_nothing(
    opened: OpenStore, boot: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    store = opened()
    store.set(b"a", b"1")
    crash(store)
    assert opened().get(b"a") == b"1"
    assert caplog.messages == []


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged, after the store's directory."""
    assert all(each.levelno == logging.ERROR for each in caplog.records)
    return [each.split(" ", 5)[5] for each in caplog.messages]


def foreign(file: Path) -> None:
    """Write a file as LMDB 1.0 might: the version comes after the magic number."""
    with file.open("r+b") as data:
        for page in (0, 4096):
            data.seek(page + 20)
            data.write(b"\x63\0\0\0")


def garbage(file: Path) -> None:
    file.write_bytes(os.urandom(file.stat().st_size))


DAMAGES = {
    "garbage": garbage,
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: os.truncate(file, 3 * 4096),
    "foreign": foreign,
    "missing": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_bad_file_is_set_aside(
    opened: OpenStore,
    directory: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], object],
) -> None:
    store = opened()
    store.set_many({b"%d" % number: b"x" * 100 for number in range(1_000)})
    store.close()
    damage(data_file(directory))
    store = opened()
    assert store.get(b"1") is None
    store.set(b"1", b"2")
    assert store.get(b"1") == b"2"
    assert len(caplog.messages) <= 1
    store.close()
    assert opened().get(b"1") == b"2"


@pytest.mark.parametrize("content", [b"", b"garbage" * 1_000, bytes(4096)], ids=len)
def test_a_bad_state(
    opened: OpenStore, directory: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    store = opened()
    store.set(b"a", b"1")
    store.close()
    (directory / "state").write_bytes(content)
    store = opened()
    store.set(b"a", b"2")
    assert store.get(b"a") == b"2"


def test_what_breaks_in_use_starts_empty_for_all(
    opened: OpenStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB's error is simulated: real damage may also crash the process."""
    store = opened()
    store.set(b"a", b"1")
    transactions = store.coroutines._transactions  # type: ignore[attr-defined]
    monkeypatch.setattr(transactions, "_tidy", lambda *args: complain(monkeypatch, transactions))
    store.set(b"b", b"2")
    assert store.get_many([b"a", b"b"]) == [None, b"2"]
    assert messages(caplog) == ["starts empty: page 7 is no page."]


def complain(monkeypatch: pytest.MonkeyPatch, transactions: object) -> None:
    monkeypatch.setattr(transactions, "_tidy", lambda *args: None)
    raise lmdb.CorruptedError("page 7 is no page")


@pytest.mark.parametrize(
    ("error", "found"),
    [(lmdb.BadRslotError, b"1"), (lmdb.ReadersFullError, b"1"), (lmdb.CorruptedError, None)],
)
def test_a_read_that_fails(
    opened: OpenStore, caplog: pytest.LogCaptureFixture, error: type[Exception], found: bytes
) -> None:
    """The second attempt succeeds, or the file is broken: then it is empty until the next write."""
    store = opened()
    store.set(b"a", b"1")
    fail_reads(store, error("said LMDB"))
    assert store.get(b"a") == found
    assert len(caplog.messages) == (found is None)


def test_a_read_that_cannot_be(opened: OpenStore) -> None:
    store = opened()
    store.set(b"a", b"1")
    fail_reads(store, lmdb.MapResizedError("said LMDB"))
    with pytest.raises(StoreError, match="another process has a larger cluster_store_size"):
        store.get(b"a")


def fail_reads(store: BlockingStore, error: Exception) -> None:
    def begin() -> None:
        raise error

    used = store.coroutines._environment  # type: ignore[attr-defined]
    used.view = used.view._replace(begin=begin)


def test_more_readers_than_there_are_places(opened: OpenStore) -> None:
    store = opened()
    store.set(b"a", b"1")
    readers = [store.coroutines._environment._lmdb.begin() for _ in range(1_024)]  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match="READERS_FULL"):
        store.get(b"a")
    readers.clear()
    assert store.get(b"a") == b"1"


def test_a_store_that_is_made_larger_and_smaller(opened: OpenStore) -> None:
    for size in ("4M", "16M", "1M"):
        store = opened(size)
        assert (store.get(b"a") == b"1") is (size != "4M")
        for number in range(1_000):
            store.set(b"%d" % number, b"x" * 5_000)
            store.get(b"a")
        store.set(b"a", b"1")
        store.close()


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cluster_store_path"):
        open_store(Settings(store_path=str(tmp_path / "file")))


def test_its_repr(opened: OpenStore, directory: Path) -> None:
    store = opened()
    assert repr(store) == f"<EmbeddedStore {directory}>"
    assert repr(store.coroutines._environment) == f"<Environment {directory} closed>"  # type: ignore[attr-defined]
