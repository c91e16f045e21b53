import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gunicorn_cluster_ext.runtime import event_log
from gunicorn_cluster_ext.runtime.event_log import (
    EVENTS_FILE,
    MAX_FILE_BYTES,
    OLDER_EVENTS_FILE,
    Event,
    Journal,
    Tail,
)

LOG = logging.getLogger("test.events")


@pytest.fixture
def tail(tmp_path: Path) -> Iterator[Tail]:
    with closing(Tail(tmp_path)) as following:
        yield following


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path, LOG)


def everything(directory: Path) -> list[Event]:
    with closing(Tail(directory)) as tail:
        return [*event_log.older(directory), *tail.read()]


def texts(directory: Path) -> list[str]:
    return [each.text for each in everything(directory)]


def test_it_reads_what_was_written(journal: Journal, tmp_path: Path) -> None:
    began, wall = time.monotonic(), time.time()
    journal.write("exit", "was ended by SIGKILL", worker=2, generation=3, pid=4711, cause="crash")
    journal.write("stop")
    first, second = everything(tmp_path)
    assert first == Event(
        first.at, first.monotonic, "exit", "was ended by SIGKILL", 2, 3, 4711, "crash"
    )
    assert began <= first.monotonic <= second.monotonic <= time.monotonic()
    assert wall <= first.at <= time.time()
    assert (second.event, second.text, second.worker, second.lost) == ("stop", "", None, 0)
    assert (tmp_path / EVENTS_FILE).stat().st_mode & 0o777 == 0o600


def test_each_event_is_one_line(journal: Journal, tmp_path: Path) -> None:
    journal.write("control", "two\nlines \u2028 and quotes \"'")
    assert len((tmp_path / EVENTS_FILE).read_text().split("\n")) == 2
    assert texts(tmp_path) == ["two\nlines \u2028 and quotes \"'"]


def test_a_name_that_is_not_valid_text(journal: Journal, tmp_path: Path) -> None:
    journal.write("reload refused", "no file \udcff.py")
    assert texts(tmp_path) == ["no file ?.py"]


def test_no_file_stays_open(journal: Journal) -> None:
    before = os.listdir("/dev/fd")
    journal.write("stop")
    assert os.listdir("/dev/fd") == before


def test_the_files_are_bounded(journal: Journal, tmp_path: Path) -> None:
    """The newest events stay, and no line is lost between the two files."""
    line = "x" * 4_000
    for number in range(400):
        journal.write("control", f"{number} {line}")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [EVENTS_FILE, OLDER_EVENTS_FILE]
    )
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2 * (MAX_FILE_BYTES + 5_000)
    numbers = [int(text.split()[0]) for text in texts(tmp_path)]
    assert numbers == list(range(numbers[0], 400))
    assert len(numbers) > MAX_FILE_BYTES / 4_200


def test_without_a_directory_nothing_happens() -> None:
    Journal(None, LOG).write("stop")


def test_unwritable_events_are_counted_and_reported_once(
    journal: Journal, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / EVENTS_FILE).mkdir()
    journal.write("boot", "lost")
    journal.write("boot", "lost too")
    (tmp_path / EVENTS_FILE).rmdir()
    journal.write("ready", "written")
    journal.write("exit", "written")
    assert [(each.text, each.lost) for each in everything(tmp_path)] == [
        ("written", 2),
        ("written", 0),
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Events cannot be written" in caplog.text


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_a_link_does_not_lead_to_another_file(
    journal: Journal, tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    """The directory belongs to the workers' user, and the arbiter may be root."""
    other = tmp_path / "passwd"
    other.write_text("root\n")
    make(other, tmp_path / EVENTS_FILE)
    journal.write("boot", "x")
    assert other.read_text() == "root\n"


def test_a_fifo_does_not_block_the_server(journal: Journal, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / EVENTS_FILE)
    journal.write("boot", "lost")
    (tmp_path / EVENTS_FILE).unlink()
    journal.write("boot", "written")
    assert [(each.text, each.lost) for each in everything(tmp_path)] == [("written", 1)]


def test_the_files_belong_to_the_owner_of_the_directory(journal: Journal, tmp_path: Path) -> None:
    """If root starts the server, the user of its workers can read them."""
    if os.geteuid() == 0:
        os.chown(tmp_path, 65534, 65534)
    journal.write("boot")
    assert (tmp_path / EVENTS_FILE).stat().st_uid == tmp_path.stat().st_uid


def test_a_partial_event_does_not_damage_the_next(journal: Journal, tmp_path: Path) -> None:
    journal.write("boot", "first")
    with (tmp_path / EVENTS_FILE).open("ab") as file:
        file.write(b'{"at": 1, "mono')
    journal._lost = 1  # as it is when a disk is full in the middle of an event
    journal.write("boot", "second")
    assert texts(tmp_path) == ["first", "second"]


# --- following --------------------------------------------------------------------------------


def test_each_event_is_read_once(journal: Journal, tail: Tail) -> None:
    assert tail.read() == []
    for text in ("first", "second"):
        journal.write("control", text)
        assert [each.text for each in tail.read()] == [text]
    assert tail.read() == []


def test_a_partial_event_is_read_when_it_is_complete(
    journal: Journal, tail: Tail, tmp_path: Path
) -> None:
    journal.write("control", "all of it")
    data = (tmp_path / EVENTS_FILE).read_bytes()
    (tmp_path / EVENTS_FILE).write_bytes(data[:20])
    assert tail.read() == []
    (tmp_path / EVENTS_FILE).write_bytes(data)
    assert [each.text for each in tail.read()] == ["all of it"]


def test_it_follows_the_next_file(journal: Journal, tail: Tail, tmp_path: Path) -> None:
    seen: list[Event] = []
    for number in range(300):
        journal.write("control", f"{number} {'x' * 4_000}")
        if number % 7 == 0:
            seen += tail.read()
    seen += tail.read()
    assert [int(each.text.split()[0]) for each in seen] == list(range(300))
    assert (tmp_path / OLDER_EVENTS_FILE).exists()


def test_it_reads_the_last_events_after_the_file_is_removed(
    journal: Journal, tail: Tail, tmp_path: Path
) -> None:
    """The server removes its files when it ends."""
    journal.write("boot")
    tail.read()
    journal.write("stop")
    (tmp_path / EVENTS_FILE).unlink()
    assert [each.event for each in tail.read()] == ["stop"]
    assert tail.read() == []
