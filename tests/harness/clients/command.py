"""``gunicorn-cluster``, as a shell runs it."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.harness.servers.gunicorn import environment

_PATIENCE_S = 120
Done = subprocess.CompletedProcess[str]
Running = subprocess.Popen[str]


def command_line(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "gunicorn_cluster_ext", *arguments]


@contextmanager
def running_command(*arguments: str, directory: Path) -> Iterator[Running]:
    """Run a command in the background; kill it at the end if it still runs."""
    process = subprocess.Popen(
        command_line(*arguments),
        env=environment(directory, None),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def run_command(*arguments: str, directory: Path, env: Mapping[str, str] | None = None) -> Done:
    """Run a command to its end; applications are found in tests/apps and in examples."""
    return subprocess.run(
        command_line(*arguments),
        cwd=directory,
        env=environment(directory, env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
    )
