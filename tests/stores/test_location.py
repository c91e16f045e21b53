import os
import stat
from pathlib import Path

import pytest

from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores.contract import StoreError
from gunicorn_cluster_ext.stores.embedded import location


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_private_place_in_the_home(home: Path) -> None:
    path = location.default("server")
    assert path.startswith(f"{home}/.local/state/gunicorn-cluster/")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert location.default("server") == path
    assert location.default("another") != path


def test_what_systemd_and_the_user_say(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", f"{home}")
    assert location.default("s").startswith(f"{home}/gunicorn-cluster/")
    (home / "state").mkdir()
    monkeypatch.setenv("STATE_DIRECTORY", f"{home}/state:{home}/other")
    assert location.default("s").startswith(f"{home}/state/gunicorn-cluster/")


def test_a_home_of_another_user_is_not_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    monkeypatch.setattr(location, "_check", lambda path, forbidden: None)
    path = location.default("server")
    try:
        assert path.startswith("/var/tmp/gunicorn-cluster-12345/")
    finally:
        os.rmdir(path)
        os.rmdir(os.path.dirname(path))


@pytest.mark.parametrize("obstacle", ["link", "file", "open", "foreign"])
def test_what_is_in_the_way_is_refused(
    obstacle: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(location, "_bases", lambda: iter([str(home / "base")]))
    place = Path(location.default("server"))
    place.rmdir()
    if obstacle == "link":
        (home / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(home / "elsewhere")
    elif obstacle == "file":
        place.touch()
    elif obstacle == "open":
        place.mkdir()
        place.chmod(0o750)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    with pytest.raises(StoreError, match="set cluster_store_path"):
        location.default("server")


def test_the_next_place_when_one_cannot_be_had(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").touch()
    monkeypatch.setattr(location, "_bases", lambda: iter([f"{home}/file/x", f"{home}/second"]))
    assert location.default("server").startswith(f"{home}/second/")


def test_a_path_that_was_given(home: Path) -> None:
    (home / "real").mkdir(mode=0o755)
    (home / "link").symlink_to(home / "real")
    assert location.given(f"{home}/link") == f"{home}/real"
    assert stat.S_IMODE(os.stat(location.given(f"{home}/a/b")).st_mode) == 0o700
    (home / "real").chmod(0o777)
    with pytest.raises(StoreError, match="open to others"):
        location.given(f"{home}/real")
    (home / "file").touch()
    with pytest.raises(StoreError, match="cannot be used"):
        location.given(f"{home}/file/x")


def test_a_name_or_the_working_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert location.existing(Settings()) == []
    here, named = location.of(Settings()), location.of(Settings(store_name="shop"))
    assert here != named
    assert location.existing(Settings()) == [here]
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    assert location.of(Settings()) != here
    assert location.of(Settings(store_name="shop")) == named
    given = Settings(store_name="shop", store_path=f"{home}/given")
    assert location.existing(given) == []
    assert location.of(given) == f"{home}/given"
    assert location.existing(given) == [f"{home}/given"]
