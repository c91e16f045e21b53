"""``gunicorn-cluster init``: write a configuration file that explains every setting."""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from collections.abc import Iterator
from pathlib import Path

from gunicorn_cluster_ext.cli.files import write

_DEFAULT_NAME = "gunicorn_cluster_ext.conf"
_WIDTH = 88

_PREAMBLE = """\
# A configuration file of gunicorn, which is Python code:
#
#     gunicorn -c {name} app:app
#
# `gunicorn-cluster check -c {name} app:app` finds problems in it.

# The worker class and the hooks of gunicorn-cluster-ext. Settings below override them.
from gunicorn_cluster_ext.conf import *  # noqa: F403

bind = "127.0.0.1:8000"

# Each worker has a stable number, from 0 on.
workers = 4

# Threads per worker, which is the number of requests that it serves at once. Without this setting
# a worker has up to `cluster_threads`.
# threads = 16

# Seconds that a retiring worker has to finish its requests in progress.
# graceful_timeout = 30


# Settings of gunicorn-cluster-ext, with their defaults. Environment variables override them, for
# example GUNICORN_CLUSTER_STICKY=hash:ip.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        nargs="?",
        type=Path,
        default=Path(_DEFAULT_NAME),
        help=f"the file to write; default: {_DEFAULT_NAME}",
    )
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")


def run(options: argparse.Namespace) -> int:
    write({options.path: text(options.path.name)}, force=options.force)
    return 0


def text(name: str) -> str:
    """Return the text of the configuration file ``name``."""
    from gunicorn_cluster_ext.settings import PREFIX, Settings

    lines = []
    for field in dataclasses.fields(Settings):
        facts = field.metadata
        unit = f", in {facts['unit']}" if facts["unit"] else ""
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        lines += ["", *_comment(facts["why"]), *_comment(f"Allowed{unit}: {facts['allowed']}.")]
        lines.append(f"# {PREFIX}{field.name} = {default!r}")
    return _PREAMBLE.format(name=name) + "\n".join(lines) + "\n"


def _comment(words: str) -> Iterator[str]:
    for line in textwrap.wrap(words, _WIDTH, break_on_hyphens=False):
        yield f"# {line}"
