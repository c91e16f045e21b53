"""Files that a command writes for somebody to edit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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
