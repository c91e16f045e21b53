"""Files that a command writes for somebody to edit."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gunicorn_cluster_ext.cli.server import CommandError


def write(files: Mapping[Path, str], *, force: bool) -> None:
    """Write these texts, and say so. Raises CommandError; a file that is there needs ``force``."""
    there = [str(path) for path in files if path.exists()]
    if there and not force:
        raise CommandError(f"{', '.join(there)}: is there already; --force overwrites it")
    for path, text in files.items():
        try:
            path.write_text(text)
        except OSError as error:
            raise CommandError(f"cannot write {path}: {error.strerror}") from None
        print(f"wrote {path}")


def load(arguments: Sequence[str]) -> Any:
    """The application of ``gunicorn ARGUMENTS``, with its configuration, not loaded yet.

    Executes the configuration file in this process, as gunicorn does. What cannot be read ends
    the process: gunicorn says why.
    """
    from gunicorn.app.wsgiapp import WSGIApplication

    sys.argv = ["gunicorn", *arguments]
    return WSGIApplication("%(prog)s [OPTIONS] [APP_MODULE]", prog="gunicorn")
