"""Files of a command: gunicorn's configuration, and files written for somebody to edit."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gunicorn_cluster_ext.cli.server import CommandError


def load_app(arguments: Sequence[str]) -> Any:
    """Return gunicorn's application object for ``gunicorn ARGUMENTS``, with its configuration.

    This executes the configuration file in this process, as gunicorn does, but does not import
    the user's application. If something cannot be read, gunicorn prints why and exits.
    """
    from gunicorn.app.wsgiapp import WSGIApplication

    sys.argv = ["gunicorn", *arguments]
    return WSGIApplication("%(prog)s [OPTIONS] [APP_MODULE]", prog="gunicorn")


def write(files: Mapping[Path, str], *, force: bool) -> None:
    """Write each text to its file, and print that.

    Raise CommandError, also if a file exists already and ``force`` is not given.
    """
    existing = [str(path) for path in files if path.exists()]
    if existing and not force:
        raise CommandError(f"{', '.join(existing)}: already exists; --force overwrites it")
    for path, text in files.items():
        try:
            path.write_text(text)
        except OSError as error:
            raise CommandError(f"cannot write {path}: {error.strerror}") from None
        print(f"wrote {path}")
