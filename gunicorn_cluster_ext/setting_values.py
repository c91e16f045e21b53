"""The kinds of value that settings have.

Each turns what a configuration or the environment has into what the package uses, and says in words
what it accepts, so that the check and its description stand in one place.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

from gunicorn_cluster_ext.routing import rule_syntax


class Kind(NamedTuple):
    """``parse`` returns the value, or raises ValueError, TypeError or OverflowError. ``allowed``
    says what it accepts."""

    parse: Callable[[Any], Any]
    allowed: str


class Rate(NamedTuple):
    """``limit`` events in ``seconds``."""

    limit: int
    seconds: float


def number(low: float, high: float, note: str = "", *, of: type = float) -> Kind:
    """Accept numbers in this range, of the type ``of``; ``note`` explains a special value."""

    def parse(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError("it is not a number")
        number = of(value)
        if not low <= number <= high or (isinstance(value, float) and number != value):
            raise ValueError("it is out of range")
        return number

    return Kind(parse, f"{low} to {high}" + (f"; {note}" if note else ""))


integer = functools.partial(number, of=int)


def worker_share(rounding: str) -> Kind:
    """Accept a number of workers, or a percentage of them, as Kubernetes does."""

    def parse(value: Any) -> int | str:
        if isinstance(value, str) and (match := re.fullmatch(r"(\d{1,3})%", value.strip())):
            if int(match[1]) > 100:
                raise ValueError("it is more than 100%")
            return value.strip()
        return int(count.parse(value))

    count = integer(0, 1_000)
    return Kind(parse, f"{count.allowed}, or a percentage of `workers` (rounded {rounding})")


def one_of(*words: str) -> Kind:
    """Accept these words only."""

    def parse(value: Any) -> str:
        if value not in words:
            raise ValueError("it is none of these words")
        return str(value)

    return Kind(parse, f"{', '.join(words[:-1])} or {words[-1]}")


def optional(kind: Kind, without: str) -> Kind:
    """Accept values of ``kind``, or none; ``without`` says what none means."""

    def parse(value: Any) -> Any:
        return None if value in (None, "") else kind.parse(value)

    return Kind(parse, f"{kind.allowed}; none: {without}")


def text(pattern: str, allowed: str, problem: str) -> Kind:
    """Accept strings that match the regular expression ``pattern``."""

    def parse(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(problem)
        return value

    return Kind(parse, allowed)


def _rules(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = json.loads(value) if value.startswith("[") else value.split(",")
    if not isinstance(value, Sequence) or not all(isinstance(rule, str) for rule in value):
        raise ValueError("it is not a list of strings")
    rules = tuple(rule.strip() for rule in value if rule.strip())
    for rule in rules:
        rule_syntax.check_rule(rule)
    return rules


RULES = Kind(
    _rules,
    f"a list of {rule_syntax.ALLOWED}; in the environment separated by commas, or as JSON",
)


COOKIE_NAME = text(
    r"[!#$%&'*+.^_`|~0-9A-Za-z-]+",
    "a cookie name (letters, digits and !#$%&'*+-.^_`|~)",
    "it is not the name of a cookie",
)
URL_PATH = text(r"/[!-~]*", "the path of a URL", "it is not the path of a URL")
COOKIE_PATH = text(
    r"/[!-:<-~]*", "the path of a URL, without `;`", "it is not the path of a URL without ;"
)
DOMAIN = text(r"\.?[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*", "a host name", "it is not a host name")
KEY_PREFIX = text(
    r"[!-~]{0,100}",
    "at most 100 letters, digits and other visible characters of ASCII, or nothing",
    "it cannot be part of a key",
)
_MAX_NAME = 1_000


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > _MAX_NAME:
        raise ValueError("it is not such a name")
    return value


NAME = Kind(_name, f"at most {_MAX_NAME} printable characters")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _size(value: Any) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)B?", str(value).strip().upper())
    if match is None or isinstance(value, bool):
        raise ValueError("it is not a size")
    size = int(match[1]) * _UNITS[match[2]]
    if not 1 << 20 <= size < 1 << 63:
        raise ValueError("it is out of range")
    return size


SIZE = Kind(_size, "1M or more, with K, M or G")


def _rate(value: Any) -> Rate:
    if isinstance(value, Rate):
        return value
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", str(value).strip())
    if match is None:
        raise ValueError("it is not a number of exits, a slash, and a number of seconds")
    if int(match[1]) == 0 or int(match[2]) == 0:
        raise ValueError("neither number can be 0")
    return Rate(int(match[1]), float(match[2]))


RATE = Kind(_rate, "exits/seconds")
_STORE_SCHEMES = {"unix"} | {
    f"redis{tls}{topology}" for tls in ("", "s") for topology in ("", "+sentinel", "+cluster")
}


def _store(value: Any) -> str:
    if value == "embedded":
        return "embedded"
    scheme, found, rest = str(value).partition("://")
    if not found or scheme not in _STORE_SCHEMES or not rest or not isinstance(value, str):
        raise ValueError("it is neither `embedded` nor the URL of a Redis")
    if scheme.endswith("+sentinel") and not re.search(r"/[^/?]+", rest):
        raise ValueError("a Sentinel needs the name of the service, after the addresses")
    if find_spec("redis") is None:
        raise ValueError("redis-py is not installed: pip install 'gunicorn-cluster-ext[redis]'")
    return value


STORE = Kind(
    _store,
    "embedded, redis://host:port/db, rediss://..., unix:///socket?db=0, "
    "redis+sentinel://host:port,host:port/service/db, redis+cluster://host:port,host:port",
)


def _directory(value: Any) -> str:
    if not isinstance(value, str | os.PathLike):
        raise ValueError("it is not a path")
    return os.path.abspath(value)


def directory(allowed: str, without: str) -> Kind:
    """Accept a path, or none; the words say which path, and what none means."""
    return optional(Kind(_directory, allowed), without)
