"""Where an installed program is."""

import os
import shutil


def find_program(name: str) -> str:
    """Servers live in /usr/sbin, which an ordinary user's PATH may lack."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")
    assert found, f"{name} is not installed: run tests/install-system-packages"
    return found
