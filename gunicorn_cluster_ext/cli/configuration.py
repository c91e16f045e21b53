"""A gunicorn's configuration, read as gunicorn reads it, without a server."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def load(arguments: Sequence[str]) -> Any:
    """The application of ``gunicorn ARGUMENTS``, with its configuration, not loaded yet.

    Executes the configuration file in this process, as gunicorn does. What cannot be read ends
    the process: gunicorn says why.
    """
    from gunicorn.app.wsgiapp import WSGIApplication

    sys.argv = ["gunicorn", *arguments]
    return WSGIApplication("%(prog)s [OPTIONS] [APP_MODULE]", prog="gunicorn")
