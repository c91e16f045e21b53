"""Scripts under Node, with the packages of tests/js."""

import json
from pathlib import Path
from typing import Any

from tests.harness.process import Process, find_program

_SCRIPTS = Path(__file__).parents[2] / "js"


class Node(Process):
    """A script that ends by itself and prints JSON."""

    def __init__(self, directory: Path, script: str, *args: str) -> None:
        command = [find_program("node"), str(_SCRIPTS / script), *args]
        super().__init__("node", command, directory)

    def result(self, timeout: float) -> Any:
        status = self.wait_exit(timeout)
        assert status == 0, self.report(f"exited with {status}")
        return json.loads(self.log_text())
