"""``gunicorn-cluster settings``: print every cluster_* setting as a Markdown table."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing."""


def run(options: argparse.Namespace) -> int:
    from gunicorn_cluster_ext import settings

    print(settings.table())
    return 0
