import errno
import os
from pathlib import Path

import pytest

from gunicorn_cluster_ext.runtime.directory import allocate, directories, make_directory
from tests.harness.forks import spawn, status_of

#: A user for the workers of a server that root has started.
USER = 65534 if os.geteuid() == 0 else os.geteuid()
GROUP = 65534 if os.geteuid() == 0 else os.getegid()


@pytest.fixture
def dead_pid() -> int:
    pid = spawn(lambda: None)
    status_of(pid)
    return pid


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only places that are tried for a directory."""
    for name in ("runtime", "memory", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(
        "gunicorn_cluster_ext.runtime.directory._places",
        lambda: [str(tmp_path / name) for name in ("runtime", "memory", "temporary")],
    )
    return tmp_path


def test_a_directory_is_private(tmp_path: Path) -> None:
    made = make_directory(str(tmp_path), USER, GROUP, Path)
    assert made.parent == tmp_path
    assert made.name.startswith(f"gunicorn-cluster-{os.getpid()}-")
    assert made.stat().st_mode & 0o777 == 0o700
    assert (made.stat().st_uid, made.stat().st_gid) == (USER, GROUP)


def test_two_servers_of_one_process_have_two_directories(tmp_path: Path) -> None:
    first, second = (make_directory(str(tmp_path), USER, GROUP, Path) for _ in range(2))
    assert first != second
    assert set(directories(str(tmp_path))) == {(os.getpid(), first), (os.getpid(), second)}


def test_the_first_place_that_can_be_written_is_taken(places: Path) -> None:
    assert make_directory(None, USER, GROUP, Path).parent == places / "runtime"
    for path in (places / "runtime").iterdir():
        path.rmdir()
    (places / "runtime").rmdir()
    assert make_directory(None, USER, GROUP, Path).parent == places / "memory"


def test_a_place_that_is_full_is_left_as_it_was(places: Path) -> None:
    def fill(directory: Path) -> Path:
        if directory.parent.name == "runtime":
            raise OSError(errno.ENOSPC, "No space left on device")
        return directory

    assert make_directory(None, USER, GROUP, fill).parent == places / "memory"
    assert list((places / "runtime").iterdir()) == []


@pytest.mark.parametrize("number", [None, errno.EINVAL, errno.EOPNOTSUPP])
def test_memory_is_allocated_where_the_system_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    def fail(*_: int) -> None:
        raise OSError(number, "posix_fallocate")

    if number is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", fail)
    with (tmp_path / "mapped").open("w+b") as file:
        allocate(file.fileno(), 1 << 16)
        assert os.fstat(file.fileno()).st_size == 1 << 16
        assert os.fstat(file.fileno()).st_blocks * 512 >= 1 << 16


def test_a_file_system_without_room_is_an_os_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: int) -> None:
        raise OSError(errno.ENOSPC, "posix_fallocate")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with (tmp_path / "mapped").open("w+b") as file, pytest.raises(OSError, match="fallocate"):
        allocate(file.fileno(), 1 << 16)


def test_no_writable_place_is_an_os_error(places: Path) -> None:
    with pytest.raises(OSError):
        make_directory(str(places / "absent"), USER, GROUP, Path)


def test_servers_are_found_in_all_places(places: Path) -> None:
    runtime = make_directory(str(places / "runtime"), USER, GROUP, Path)
    memory = make_directory(str(places / "memory"), USER, GROUP, Path)
    assert list(directories()) == [(os.getpid(), runtime), (os.getpid(), memory)]
    assert list(directories(str(places / "memory"))) == [(os.getpid(), memory)]
    assert list(directories(str(places / "absent"))) == []


def test_the_files_of_a_dead_server_are_removed(tmp_path: Path, dead_pid: int) -> None:
    left = tmp_path / f"gunicorn-cluster-{dead_pid}-abc"
    left.mkdir()
    (left / "board").write_bytes(b"")
    made = make_directory(str(tmp_path), USER, GROUP, Path)
    assert list(tmp_path.iterdir()) == [made]


def test_the_files_of_a_dead_server_of_another_user_are_removed(
    tmp_path: Path, dead_pid: int
) -> None:
    """Root started the server with gunicorn's setting `user`."""
    left = tmp_path / f"gunicorn-cluster-{dead_pid}-abc"
    left.mkdir()
    os.chown(left, USER, GROUP)
    make_directory(str(tmp_path), USER, GROUP, Path)
    assert not left.exists()


def test_nothing_else_is_removed(tmp_path: Path, dead_pid: int) -> None:
    target = tmp_path / "target"
    (target / "inner").mkdir(parents=True)
    kept = [
        target,
        tmp_path / f"gunicorn-cluster-{os.getpid()}-abc",
        tmp_path / f"gunicorn-cluster-{dead_pid}",
        tmp_path / f"other-gunicorn-cluster-{dead_pid}-abc",
    ]
    for path in kept[1:]:
        path.mkdir()
    link = tmp_path / f"gunicorn-cluster-{dead_pid}-link"
    link.symlink_to(target)
    file = tmp_path / f"gunicorn-cluster-{dead_pid}-file"
    file.write_text("")
    make_directory(str(tmp_path), USER, GROUP, Path)
    assert all(path.exists() for path in [*kept, link, file, target / "inner"])
