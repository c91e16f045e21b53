"""python-socketio's own tests of its pub/sub managers, of the version that is installed, with ours
in their place. They are in its source distribution only."""

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

pytestmark = pytest.mark.one_gunicorn

HERE = Path(__file__).parent
FILES = ("tests/common/test_pubsub_manager.py", "tests/async/test_pubsub_manager.py")
#: Of 5.18; they grow.
LEAST = 90


def run(directory: Path, *command: str, path: str = "") -> str:
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=directory,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_pubsub_managers(tmp_path: Path) -> None:
    source = f"python-socketio=={version('python-socketio')}"
    run(tmp_path, "pip", "download", "--no-deps", "--no-binary", "python-socketio", source)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    # Not among our own requirements: it would take part in all our tests.
    run(tmp_path, "pip", "install", "--no-deps", "--target", "plugins", "pytest-asyncio")
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")

    (sources,) = tmp_path.glob("python_socketio-*/")
    path = os.pathsep.join([str(HERE), str(tmp_path / "plugins"), str(HERE.parents[1])])
    plugins = ("-p", "ours", "-p", "no:cacheprovider", "-p", "pytest_asyncio")
    options = ("-q", *plugins, "-c", str(tmp_path / "pytest.ini"), "--rootdir", ".")
    said = run(sources, "pytest", *options, *FILES, path=path)
    passed = int(said.splitlines()[-1].split(" passed")[0])
    assert passed >= LEAST, said
