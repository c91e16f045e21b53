"""Benchmarks. Start here: ``python -m benchmarks.sticky --help``."""
