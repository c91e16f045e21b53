import os
from pathlib import Path

import pytest

from gunicorn_cluster_ext.runtime import server_info
from gunicorn_cluster_ext.runtime.server_info import SERVER_INFO_FILE, ServerInfo

INFO = ServerInfo(
    pack="1.0",
    gunicorn="27.0.1",
    python="3.11.7",
    started=1_000.0,
    app="app:app",
    addresses=["http://127.0.0.1:8000"],
    worker_class="gunicorn_cluster_ext.Sticky",
    store="embedded",
    restart_limit=(20, 60.0),
    settings={},
)


def test_it_reads_what_was_written(tmp_path: Path) -> None:
    assert server_info.read(tmp_path) is None
    server_info.write(tmp_path, INFO)
    newer = INFO._replace(restart_limit=None, settings={"cluster_sticky": ["cookie"]})
    server_info.write(tmp_path, newer)
    assert server_info.read(tmp_path) == newer
    assert [path.name for path in tmp_path.iterdir()] == [SERVER_INFO_FILE]
    assert (tmp_path / SERVER_INFO_FILE).stat().st_mode & 0o777 == 0o600


def test_a_link_does_not_lead_to_another_file(tmp_path: Path) -> None:
    other = tmp_path / "passwd"
    other.write_text("root\n")
    os.symlink(other, tmp_path / f"{SERVER_INFO_FILE}.new")
    server_info.write(tmp_path, INFO)
    assert other.read_text() == "root\n"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"pack": "1.0"}', b'{"other": 1}', b"\xff"])
def test_an_unreadable_file_is_none(tmp_path: Path, data: bytes) -> None:
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
