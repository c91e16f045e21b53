"""Deploys that a server has to survive: code that fails, and configurations that it refuses."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.harness.servers.deploy import GOOD, only_in
from tests.harness.servers.site import Site

ILL = """
import whoami

def app(environ, start_response):
    if environ["PATH_INFO"] != "/health":
        return whoami.app(environ, start_response)
    start_response("500 Ill", [("Content-Length", "0")])
    return [b""]
"""
# It is ready some milliseconds after its import.
CRASHES = f"import os, threading\nthreading.Timer(0.3, os._exit, (9,)).start()\n{GOOD}"
HEALTH: dict[str, Any] = {
    "cluster_health_path": "/health",
    "cluster_health_interval": 0.2,
    "cluster_health_timeout": 1,
    "cluster_health_failures": 2,
}


@dataclass(frozen=True)
class Deploy:
    """Bad code, and a word of the reason that the server gives."""

    code: str
    word: str
    settings: dict[str, Any] = field(default_factory=dict)


BAD = {
    "syntax error": Deploy("def app(:\n", "could not load"),
    "import error": Deploy("import no_such_module\n", "could not load"),
    "no application": Deploy("", "could not load"),
    "error": Deploy("raise RuntimeError('not today')\n", "could not load"),
    "exit": Deploy("import os\nos._exit(5)\n", "code 5"),
    "sys.exit": Deploy("import sys\nsys.exit(0)\n", "code 0"),
    "killed": Deploy("import os\nos.kill(os.getpid(), 9)\n", "SIGKILL"),
    "hanging import": Deploy(
        "import time\ntime.sleep(3600)\n", "ready within 1 s", {"cluster_startup_timeout": 1}
    ),
    "failing health": Deploy(ILL, "health", HEALTH),
}


THIRD_FAILS = {
    "load": Deploy(only_in((2,), "raise RuntimeError('no third')"), "could not load"),
    "hang": Deploy(
        only_in((2,), "import time; time.sleep(3600)"),
        "ready within",
        {"cluster_startup_timeout": 2},
    ),
    "exit": Deploy(only_in((2,), "import os; os._exit(5)"), "code 5"),
}


def append(line: str) -> Callable[[Site], None]:
    def spoil(refused: Site) -> None:
        path = refused.server.config_path
        path.write_text(f"{path.read_text()}{line}\n")

    return spoil


def remove(refused: Site) -> None:
    refused.server.config_path.unlink()


REFUSED = {
    "syntax error": append("workers = ("),
    "error": append("raise RuntimeError('not today')"),
    "import error": append("import no_such_module"),
    "sys.exit": append("import sys; sys.exit(3)"),
    "bad value": append("workers = 'many'"),
    "bad hook": append("pre_fork = 5"),
    "unknown setting": append("cluster_roll_surg = 1"),
    "bad setting": append("cluster_roll_surge = -1"),
    "no progress": append("cluster_roll_surge = cluster_roll_unavailable = 0"),
    "no worker class": append("worker_class = 'no_such_module.Worker'"),
    "gone": remove,
}
