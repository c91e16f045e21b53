"""Code that is deployed: the module `deployed` in a server's own directory."""

import os
from pathlib import Path

APP = "deployed:app"

GOOD = "from whoami import app\n"
IMPORTING = "the application is imported"


def deploy(directory: Path, code: str) -> None:
    """Replace the module atomically."""
    path = directory / "deployed.py"
    written = path.with_suffix(".new")
    written.write_text(code)
    os.replace(written, path)


def slow(seconds: float) -> str:
    """Return code that takes some seconds to import, and prints IMPORTING before."""
    say = f"print({IMPORTING!r}, file=sys.stderr, flush=True)"
    return f"import sys, time\n{say}\ntime.sleep({seconds})\n{GOOD}"


def only_in(slots: tuple[int, ...], code: str) -> str:
    """Return code that does `code` in some workers only, and is good in the others."""
    block = "\n".join(f"    {line}" for line in code.splitlines())
    condition = f"from gunicorn_cluster_ext import worker_id\nif worker_id() in {slots}:\n"
    return f"{condition}{block}\n{GOOD}"
