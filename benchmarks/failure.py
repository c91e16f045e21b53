"""The one exception that ends a benchmark run."""

from __future__ import annotations


class Failure(Exception):
    """A contender did not do what is being measured, so its figures mean nothing."""
