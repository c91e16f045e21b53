"""What to install for the parts of the pack that need another library."""

from __future__ import annotations


def missing(extra: str, error: ImportError) -> ImportError:
    """Return an ImportError that says which ``extra`` brings the module that ``error`` misses."""
    return ImportError(
        f"{error.name} is not installed: pip install 'gunicorn-cluster-ext[{extra}]'",
        name=error.name,
    )
