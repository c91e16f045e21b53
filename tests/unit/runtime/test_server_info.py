import os
from pathlib import Path

import pytest

from gunicorn_cluster_ext.runtime import server_info
from gunicorn_cluster_ext.runtime.server_info import SERVER_INFO_FILE
from tests.unit.cli.test_view import ABOUT


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert server_info.read(tmp_path) is None
    server_info.write(tmp_path, ABOUT)
    newer = ABOUT._replace(restart_limit=None, settings={"cluster_sticky": ["cookie"]})
    server_info.write(tmp_path, newer)
    assert server_info.read(tmp_path) == newer
    assert [path.name for path in tmp_path.iterdir()] == [SERVER_INFO_FILE]
    assert (tmp_path / SERVER_INFO_FILE).stat().st_mode & 0o777 == 0o600


def test_nobody_leads_the_server_to_another_file(tmp_path: Path) -> None:
    other = tmp_path / "passwd"
    other.write_text("root\n")
    os.symlink(other, tmp_path / f"{SERVER_INFO_FILE}.new")
    server_info.write(tmp_path, ABOUT)
    assert other.read_text() == "root\n"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"pack": "1.0"}', b'{"other": 1}', b"\xff"])
def test_one_that_cannot_be_read_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / SERVER_INFO_FILE).write_bytes(data)
    assert server_info.read(tmp_path) is None


@pytest.mark.parametrize(
    ("store", "shown"),
    [
        ("embedded", "embedded"),
        ("redis://user:pa@ss@host:1/2?password=x", "redis://host:1/2"),
        ("redis+sentinel://:secret@a:1,b:2/service/0", "redis+sentinel://a:1,b:2/service/0"),
    ],
)
def test_no_password_is_written(store: str, shown: str) -> None:
    assert server_info._without_secret(store) == shown
