"""python-socketio's own tests of its pub/sub managers, with ours in their place."""

from pathlib import Path

import pytest

from tests.upstream.sources import HERE, run, sources

pytestmark = pytest.mark.one_gunicorn

FILES = ("tests/common/test_pubsub_manager.py", "tests/async/test_pubsub_manager.py")
#: Of 5.18; they grow.
LEAST = 90


def test_pubsub_managers(tmp_path: Path) -> None:
    theirs = sources("python-socketio", tmp_path)
    # Not among our own requirements: it would take part in all our tests.
    run(tmp_path, "pip", "install", "--no-deps", "--target", "plugins", "pytest-asyncio")
    settings = tmp_path / "pytest.ini"
    settings.write_text("[pytest]\nasyncio_mode = auto\n")
    options = ["-q", "-c", str(settings), "--rootdir", "."]
    for plugin in ("no:cacheprovider", "pytest_asyncio", "socketio_plugin"):
        options += ["-p", plugin]
    path = (HERE, tmp_path / "plugins", HERE.parents[1])
    said = run(theirs, "pytest", *options, *FILES, path=path)
    assert int(said.splitlines()[-1].split(" passed")[0]) >= LEAST, said
