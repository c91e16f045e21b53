"""``gunicorn-cluster init``: a configuration to begin with, every setting explained."""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gunicorn_cluster_ext.cli.files import write

_NAME = "gunicorn_cluster_ext.conf"
_WIDTH = 88

_HEAD = """\
# A configuration of gunicorn, which is Python:
#
#     gunicorn -c {name} app:app
#
# `gunicorn-cluster check -c {name} app:app` says what is wrong with it.

# The worker class and the hooks of gunicorn-cluster-ext. What follows has the last word.
from gunicorn_cluster_ext.conf import *  # noqa: F403

bind = "127.0.0.1:8000"

# Each has a number that stays, from 0 on.
workers = 4

# Threads per worker: as many requests at once. Without it, up to `cluster_threads`.
# threads = 16

# Seconds that a worker which is to finish has for requests in progress.
# graceful_timeout = 30


# Settings of gunicorn-cluster-ext, with their defaults. The environment wins:
# GUNICORN_CLUSTER_STICKY=hash:ip, for example.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser("init", help="write a configuration with every setting explained")
    parser.add_argument("path", nargs="?", type=Path, default=Path(_NAME), help=f"default: {_NAME}")
    parser.add_argument("--force", action="store_true", help="also over a file that is there")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    write({options.path: text(options.path.name)}, force=options.force)
    return 0


def text(name: str) -> str:
    """The configuration; ``name`` is that of its file."""
    from gunicorn_cluster_ext.settings import Settings

    settings = (_setting(field) for field in dataclasses.fields(Settings))
    return _HEAD.format(name=name) + "".join(settings)


def _setting(field: Any) -> str:
    from gunicorn_cluster_ext.settings import PREFIX

    about = field.metadata
    unit = f", in {about['unit']}" if about["unit"] else ""
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    lines = [
        *_comment(about["why"]),
        *_comment(f"Allowed{unit}: {about['allowed']}."),
        f"# {PREFIX}{field.name} = {default!r}",
    ]
    return "\n" + "\n".join(lines) + "\n"


def _comment(words: str) -> Iterator[str]:
    for line in textwrap.wrap(words, _WIDTH, break_on_hyphens=False):
        yield f"# {line}"
