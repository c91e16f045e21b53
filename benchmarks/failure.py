"""The one exception that ends a benchmark run."""

from __future__ import annotations


class Failure(Exception):
    """A contender did not do what it is measured for: its figures mean nothing."""
