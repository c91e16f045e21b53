"""What a setting's value may be, however it is written: each function takes what a configuration or
the environment has, and returns what the package uses. They raise ValueError, or TypeError.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gunicorn_cluster_ext.routing import rule_syntax


def rules(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = json.loads(value) if value.startswith("[") else value.split(",")
    if not isinstance(value, Sequence) or not all(isinstance(rule, str) for rule in value):
        raise ValueError("it is not a list of strings")
    rules = tuple(rule.strip() for rule in value if rule.strip())
    for rule in rules:
        rule_syntax.check_rule(rule)
    return rules


def number(low: float, high: float, kind: type) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError("it is not a number")
        number = kind(value)
        if not low <= number <= high or (isinstance(value, float) and number != value):
            raise ValueError("it is out of range")
        return number

    return parse


def share(value: Any) -> int | str:
    """A number of workers, or a percentage of them, as Kubernetes writes it."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d{1,3})%", value.strip())):
        if int(match[1]) > 100:
            raise ValueError("it is more than 100%")
        return value.strip()
    return int(number(0, 1_000, int)(value))


def one_of(*words: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in words:
            raise ValueError("there is no such word")
        return str(value)

    return parse


def optional(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value in (None, "") else parse(value)


def path(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"/[!-~]*", value):
        raise ValueError("it is not the path of a URL")
    return value


def cookie_path(value: Any) -> str:
    if ";" in path(value):
        raise ValueError("a cookie's path has no ;")
    return str(value)


def domain(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"\.?[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*", value):
        raise ValueError("it is not a host name")
    return value


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def size(value: Any) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)B?", str(value).strip().upper())
    if match is None or isinstance(value, bool):
        raise ValueError("it is not a size")
    size = int(match[1]) * _UNITS[match[2]]
    if not 1 << 20 <= size < 1 << 63:
        raise ValueError("it is out of range")
    return size


class Rate(NamedTuple):
    """So many in so many seconds."""

    limit: int
    seconds: float


def rate(value: Any) -> Rate:
    if isinstance(value, Rate):
        return value
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", str(value).strip())
    if match is None:
        raise ValueError("it is not a number of exits, a slash, and a number of seconds")
    if int(match[1]) == 0 or int(match[2]) == 0:
        raise ValueError("neither number can be 0")
    return Rate(int(match[1]), float(match[2]))


def cookie_name(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", value):
        raise ValueError("it is not the name of a cookie")
    return value


#: A store's address. Sentinel and Cluster have several, separated by commas.
_STORES = {"unix"} | {f"redis{s}{way}" for s in ("", "s") for way in ("", "+sentinel", "+cluster")}


def store(value: Any) -> str:
    if value == "embedded":
        return "embedded"
    scheme, found, rest = str(value).partition("://")
    if not found or scheme not in _STORES or not rest or not isinstance(value, str):
        raise ValueError("it is neither `embedded` nor the URL of a Redis")
    if scheme.endswith("+sentinel") and not re.search(r"/[^/?]+", rest):
        raise ValueError("a Sentinel needs the name of the service, after the addresses")
    return value


def directory(value: Any) -> str | None:
    if value in (None, ""):
        return None
    if not isinstance(value, str | os.PathLike):
        raise ValueError("it is not a path")
    return os.path.abspath(value)


def name(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 1_000:
        raise ValueError("it is no name")
    return value


def prefix(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]{0,100}", value):
        raise ValueError("it cannot stand in a key")
    return value
