"""``gunicorn-cluster``, as a shell runs it."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.harness.servers.gunicorn import environment

_PATIENCE_S = 120
Done = subprocess.CompletedProcess[str]


def run_command(*arguments: str, directory: Path, env: Mapping[str, str] | None = None) -> Done:
    """What it prints, and its exit status. Applications are found in tests/apps and in examples."""
    return subprocess.run(
        [sys.executable, "-m", "gunicorn_cluster_ext", *arguments],
        cwd=directory,
        env=environment(directory, env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
    )
