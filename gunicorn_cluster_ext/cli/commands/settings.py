"""``gunicorn-cluster settings``: print every setting, for documents."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "settings", help="print every cluster_* setting as a Markdown table"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from gunicorn_cluster_ext import settings

    print(settings.table())
    return 0
