"""Every ``cluster_*`` setting, once: name, default, unit, what is allowed, and why it is there.

They are read from the executed configuration (a file, or the module that ``python:`` names)
and then from ``GUNICORN_CLUSTER_*`` in the environment, which wins, as in gunicorn's own
order. A name that nobody knows or a value that is not allowed stops the start: gunicorn
itself ignores unknown names in silence.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gunicorn_cluster_ext import routing

PREFIX = "cluster_"
ENVIRONMENT = "GUNICORN_CLUSTER_"
# Kubernetes gives every container such variables for a service called "gunicorn-cluster".
_SERVICE = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)")


class SettingError(ValueError):
    """A setting that cannot be used; the message says which, why, and what to do."""


def _rules(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = json.loads(value) if value.startswith("[") else value.split(",")
    if not isinstance(value, Sequence) or not all(isinstance(rule, str) for rule in value):
        raise ValueError("it is not a list of strings")
    rules = tuple(rule.strip() for rule in value if rule.strip())
    for rule in rules:
        routing.check_rule(rule)
    return rules


def _number(low: float, high: float, kind: type) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError("it is not a number")
        number = kind(value)
        if not low <= number <= high or (isinstance(value, float) and number != value):
            raise ValueError("it is out of range")
        return number

    return parse


def _cookie_name(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", value):
        raise ValueError("it is not the name of a cookie")
    return value


def _directory(value: Any) -> str | None:
    if value in (None, ""):
        return None
    if not isinstance(value, str | os.PathLike):
        raise ValueError("it is not a path")
    return os.path.abspath(value)


def _setting(
    default: Any, parse: Callable[[Any], Any], kind: str, allowed: str, why: str, unit: str = ""
) -> Any:
    about = {"parse": parse, "kind": kind, "allowed": allowed, "why": why, "unit": unit}
    return dataclasses.field(default=default, metadata=about)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The values of all ``cluster_*`` settings, without the prefix."""

    sticky: tuple[str, ...] = _setting(
        ("engineio", "cookie"),
        _rules,
        "list of rules",
        f"a list of {routing.ALLOWED}; in the environment separated by commas, or JSON",
        "How the worker that owns a request is found. The first rule that finds one wins; "
        "a request of nobody goes to a worker that is free.",
    )
    cookie: str = _setting(
        "gunicorn_worker",
        _cookie_name,
        "name",
        "a cookie name (letters, digits and !#$%&'*+-.^_`|~)",
        "The cookie of the rule `cookie`.",
    )
    threads: int = _setting(
        100,
        _number(1, 10_000, int),
        "integer",
        "1 to 10000",
        "Threads per worker where gunicorn's own `threads` is not set. Gunicorn's default of 1 "
        "cannot serve Socket.IO: each client that polls, and each WebSocket, holds a thread. "
        "Threads are started when they are needed.",
        "threads",
    )
    slots: int = _setting(
        0,
        _number(0, 1_000, int),
        "integer",
        "0 to 1000; 0 means twice `workers`, and at least 16",
        "The most workers that TTIN or a reload can ask for. Each costs four open files in "
        "every process.",
        "workers",
    )
    head_timeout: float = _setting(
        10.0,
        _number(0.1, 3_600, float),
        "number",
        "0.1 to 3600",
        "How long a client may take to send a request's head once it has begun; then it is "
        "answered 408. It waits outside the threads, so slow clients keep nobody waiting.",
        "seconds",
    )
    handoff_timeout: float = _setting(
        2.0,
        _number(0, 3_600, float),
        "number",
        "0 to 3600",
        "How long a request that only one process can serve waits for room in that process's "
        "inbox; then it is answered 503 with Retry-After.",
        "seconds",
    )
    dir: str | None = _setting(
        None,
        _directory,
        "path",
        "a directory that the server can write; none: $XDG_RUNTIME_DIR, /dev/shm or the "
        "temporary directory",
        "Where the server makes its private directory, for what other processes may read.",
    )

    def __post_init__(self) -> None:
        """Each value is checked here, whoever builds the object. Raises SettingError."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            try:
                object.__setattr__(self, field.name, field.metadata["parse"](value))
            except (ValueError, OverflowError) as error:
                raise SettingError(
                    f"{PREFIX}{field.name} = {value!r}: {error}. Allowed: "
                    f"{field.metadata['allowed']}."
                ) from None


NAMES = tuple(field.name for field in dataclasses.fields(Settings))


def read(config: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """The settings in a configuration's names and in the environment. Raises SettingError."""
    values = {
        name.removeprefix(PREFIX): value
        for name, value in config.items()
        if name.startswith(PREFIX) and not _is_module(value)
    }
    for name, value in environ.items():
        rest = name.removeprefix(ENVIRONMENT)
        if rest != name and not _SERVICE.fullmatch(rest):
            values[rest.lower()] = value
    for name in values:
        if name not in NAMES:
            raise SettingError(_unknown(name, environ))
    return Settings(**values)


def _is_module(value: Any) -> bool:
    return isinstance(value, type(sys))


def _unknown(name: str, environ: Mapping[str, str]) -> str:
    variable = ENVIRONMENT + name.upper()
    written = variable if variable in environ else PREFIX + name
    near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
    known = ", ".join(PREFIX + known for known in NAMES)
    hint = f"Did you mean {PREFIX}{near[0]}? " if near else ""
    return f"{written} is no setting. {hint}Known settings: {known}."


def of_config(cfg: Any) -> Settings:
    """The settings that go with ``cfg``, a gunicorn configuration. Raises SettingError."""
    return read(executed_config(cfg.config), os.environ)


def executed_config(location: str | None) -> Mapping[str, Any]:
    """The names of the configuration that gunicorn has executed; ``location`` is its ``config``.

    gunicorn keeps a file as the module ``__config__``
    (gunicorn.app.base.Application.get_config_from_filename).
    """
    name = "__config__"
    if location is not None and location.startswith("python:"):
        name = location.removeprefix("python:")
    module = sys.modules.get(name)
    return {} if module is None else vars(module)


def table() -> str:
    """All settings as a Markdown table."""
    lines = ["| setting | default | allowed | what for |", "|---|---|---|---|"]
    for field in dataclasses.fields(Settings):
        about = field.metadata
        default = f"{field.default!r} {about['unit']}".strip()
        cells = (f"`{PREFIX}{field.name}`", default, about["allowed"], about["why"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(line.replace("`|~", "`\\|~") for line in lines)
