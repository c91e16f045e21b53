"""The sources of what is installed: its own tests are in its source distribution only."""

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
PATIENCE_S = 150


def run(directory: Path, *command: str, path: tuple[Path, ...] = (), **env: str) -> str:
    """``python -m command`` in the directory, with ``path`` before what is installed."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def sources(name: str, directory: Path) -> Path:
    """Where they are, under the directory: those of the version that is installed."""
    wanted = f"{name}=={version(name)}"
    run(directory, "pip", "download", "--no-deps", "--no-binary", name, wanted)
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(directory, filter="data")
    return directory / archive.name.removesuffix(".tar.gz")
