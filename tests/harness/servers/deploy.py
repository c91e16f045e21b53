"""Code that is deployed: the module `deployed` in a server's own directory."""

import os
from pathlib import Path

APP = "deployed:app"

GOOD = "from whoami import app\n"
IMPORTING = "the application is imported"


def deploy(directory: Path, code: str) -> None:
    """Replace the module at once, so that no worker loads half of it."""
    path = directory / "deployed.py"
    written = path.with_suffix(".new")
    written.write_text(code)
    os.replace(written, path)


def slow(seconds: float) -> str:
    """What takes some seconds to import, and logs IMPORTING before."""
    say = f"print({IMPORTING!r}, file=sys.stderr, flush=True)"
    return f"import sys, time\n{say}\ntime.sleep({seconds})\n{GOOD}"


def only_in(slots: tuple[int, ...], code: str) -> str:
    """What is bad for some workers only."""
    block = "\n".join(f"    {line}" for line in code.splitlines())
    condition = f"from gunicorn_cluster_ext import worker_id\nif worker_id() in {slots}:\n"
    return f"{condition}{block}\n{GOOD}"
