"""Links, and the files that go over them."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gunicorn_cluster_ext.bus import links
from gunicorn_cluster_ext.runtime.directory import bus_socket
from gunicorn_cluster_ext.runtime.fd_passing import NO_FD


@pytest.fixture
def where(new_directory: Callable[[], Path]) -> Path:
    return bus_socket(new_directory(), 3, 7)


@pytest.fixture
def link(where: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends: the sender's, and the receiver's."""
    with links.listen(where) as listener, links.connect(where) as sender:
        receiver, _ = listener.accept()
        with receiver:
            receiver.setblocking(False)
            yield sender, receiver


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_each_process_listens_at_a_path_of_its_own() -> None:
    paths = {bus_socket(Path("/d"), seat, generation) for seat in (1, 11) for generation in (1, 11)}
    assert len(paths) == 4


def test_bytes_go_over_it(link: tuple[socket.socket, socket.socket]) -> None:
    sender, receiver = link
    assert links.send(sender, [b"ab", bytearray(b"cd"), memoryview(b"ef")], None) == 6
    assert links.receive(receiver, 100) == (b"abcdef", NO_FD)


def test_nothing_ever_blocks(link: tuple[socket.socket, socket.socket]) -> None:
    sender, receiver = link
    with pytest.raises(BlockingIOError):
        links.receive(receiver, 100)
    with pytest.raises(BlockingIOError):
        while True:
            links.send(sender, [bytes(60_000)], None)


def test_connecting_does_not_block_when_the_listener_accepts_nobody(where: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(where))
        listener.listen(0)
        first.connect(str(where))
        with pytest.raises(BlockingIOError):
            links.connect(where)


def test_who_does_not_listen_cannot_be_reached(where: Path) -> None:
    with pytest.raises(FileNotFoundError):
        links.connect(where)
    links.listen(where).close()
    with pytest.raises(ConnectionRefusedError):
        links.connect(where)


def test_a_path_that_is_too_long_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cluster_dir is too long") as caught:
        links.listen(bus_socket(tmp_path / ("x" * 100), 0, 1))
    assert caught.value.errno == errno.ENAMETOOLONG


def test_a_file_goes_with_a_frame(link: tuple[socket.socket, socket.socket]) -> None:
    sender, receiver = link
    body = os.urandom(300_000)
    links.send(sender, [b"before"], None)
    links.send(sender, [b"frame"], links.File(body))
    links.send(sender, [b"after"], None)
    data, fd = links.receive(receiver, 100)
    assert data == b"beforeframe"
    try:
        assert not os.get_inheritable(fd)
        assert links.read_file(fd, len(body)) == body
    finally:
        os.close(fd)
    assert links.receive(receiver, 100) == (b"after", NO_FD)


def test_nobody_can_change_a_file(link: tuple[socket.socket, socket.socket]) -> None:
    file = links.File(b"sealed")
    for change in (
        lambda: os.pwrite(file.fd, b"X", 0),
        lambda: os.ftruncate(file.fd, 3),
        lambda: os.ftruncate(file.fd, 30),
    ):
        with pytest.raises(PermissionError):
            change()
    assert links.read_file(file.fd, 6) == b"sealed"


@pytest.mark.parametrize("size", [0, 4, 6, 1 << 62])
def test_a_file_of_another_size_is_an_error(size: int) -> None:
    file = links.File(b"5 bytes"[:5])
    with pytest.raises(OSError, match="its file has 5 bytes"):
        links.read_file(file.fd, size)


def test_a_file_without_memory_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    monkeypatch.setattr(links, "_SEALS", 0)
    file = links.File(b"on disk")
    assert links.read_file(file.fd, 7) == b"on disk"
    assert os.fstat(file.fd).st_nlink == 0


def test_files_are_closed_with_their_last_user() -> None:
    before = open_files()
    file = links.File(b"x")
    again = [file, file]
    assert open_files() != before
    del file, again
    assert open_files() == before
