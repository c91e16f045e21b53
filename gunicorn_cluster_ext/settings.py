"""Every ``cluster_*`` setting, once: name, default, unit, what is allowed, and why it is there.

They are read from the executed configuration (a file, or the module that ``python:`` names)
and then from ``GUNICORN_CLUSTER_*`` in the environment, which wins, as in gunicorn's own
order. A name that nobody knows or a value that is not allowed stops the start: gunicorn
itself ignores unknown names in silence.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from gunicorn_cluster_ext import setting_values
from gunicorn_cluster_ext.routing import rule_syntax

PREFIX = "cluster_"
ENVIRONMENT = "GUNICORN_CLUSTER_"
_FEWEST_SLOTS = 16
# Kubernetes gives every container such variables for a service called "gunicorn-cluster".
_SERVICE = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)")


class SettingError(ValueError):
    """A setting that cannot be used; the message says which, why, and what to do."""


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
        setting_values.rules,
        "list of rules",
        f"a list of {rule_syntax.ALLOWED}; in the environment separated by commas, or JSON",
        "How the worker that owns a request is found. The first rule that finds one wins; "
        "a request of nobody goes to a worker that is free.",
    )
    cookie: str = _setting(
        "gunicorn_worker",
        setting_values.cookie_name,
        "name",
        "a cookie name (letters, digits and !#$%&'*+-.^_`|~)",
        "The cookie of the rule `cookie`.",
    )
    threads: int = _setting(
        100,
        setting_values.number(1, 10_000, int),
        "integer",
        "1 to 10000",
        "Threads per worker where gunicorn's own `threads` is not set. Gunicorn's default of 1 "
        "cannot serve Socket.IO: each client that polls, and each WebSocket, holds a thread. "
        "Threads are started when they are needed.",
        "threads",
    )
    slots: int = _setting(
        0,
        setting_values.number(0, 1_000, int),
        "integer",
        "0 to 1000; 0 means twice `workers`, and at least 16",
        "The most workers that TTIN or a reload can ask for. Each costs four open files in "
        "every process.",
        "workers",
    )
    head_timeout: float = _setting(
        10.0,
        setting_values.number(0.1, 3_600, float),
        "number",
        "0.1 to 3600",
        "How long a client may take to send a request's head once it has begun; then it is "
        "answered 408. It waits outside the threads, so slow clients keep nobody waiting.",
        "seconds",
    )
    handoff_timeout: float = _setting(
        2.0,
        setting_values.number(0, 3_600, float),
        "number",
        "0 to 3600",
        "How long a request that only one process can serve waits for room in that process's "
        "inbox; then it is answered 503 with Retry-After.",
        "seconds",
    )
    learn_ttl: float = _setting(
        3_600.0,
        setting_values.number(1, 31_536_000, float),
        "number",
        "1 to 31536000",
        "How long the rules `learn:...` remember a value that no request has brought.",
        "seconds",
    )
    learn_size: int = _setting(
        65_536,
        setting_values.number(8, 1 << 24, int),
        "integer",
        "8 to 16777216",
        "How many values they remember. When there are more, those go that were used least "
        "recently. Each takes 32 bytes of memory, which all workers share.",
        "values",
    )
    dir: str | None = _setting(
        None,
        setting_values.directory,
        "path",
        "a directory that the server can write; none: $XDG_RUNTIME_DIR, /dev/shm or the "
        "temporary directory",
        "Where the server makes its private directory, for what other processes may read.",
    )

    startup_timeout: float = _setting(
        60.0,
        setting_values.number(0, 86_400, float),
        "number",
        "0 to 86400; 0 means any time",
        "How long a worker may take from its start until it is ready. Until then gunicorn's "
        "`timeout` does not apply.",
        "seconds",
    )
    roll_surge: int | str = _setting(
        1,
        setting_values.share,
        "number or percentage",
        "0 to 1000, or a percentage of `workers` (rounded up)",
        "How many workers more than `workers` a reload may start: Kubernetes' maxSurge. With 0, "
        "for tight memory, an old worker is gone before its successor starts.",
        "workers",
    )
    roll_unavailable: int | str = _setting(
        0,
        setting_values.share,
        "number or percentage",
        "0 to 1000, or a percentage of `workers` (rounded down)",
        "How many of `workers` may be missing during a reload: Kubernetes' maxUnavailable.",
        "workers",
    )
    roll_rollback: str = _setting(
        "keep",
        setting_values.one_of("keep", "full"),
        "word",
        "keep or full",
        "What a failed reload leaves: `keep` those workers that it has replaced, or undo it in "
        "`full`. Then replaced workers are parked until all is done, which takes memory for twice "
        "the workers, and a worker class of this pack.",
    )
    roll_observe: float = _setting(
        0.0,
        setting_values.number(0, 86_400, float),
        "number",
        "0 to 86400",
        "A new worker that crashes, or fails its health checks, within this time after the last "
        "one was replaced fails the reload as well.",
        "seconds",
    )
    drain_timeout: float | None = _setting(
        None,
        setting_values.optional(setting_values.number(0, 86_400, float)),
        "number",
        "0 to 86400; none: gunicorn's `graceful_timeout`",
        "How long a worker that was replaced may finish, and goes on answering the clients "
        "whose sessions only it knows (Engine.IO, `learn:...`).",
        "seconds",
    )
    health_path: str | None = _setting(
        None,
        setting_values.optional(setting_values.path),
        "path",
        "the path of a URL; none: no checks",
        "What each worker is asked for by itself. One that does not answer with a status from 200 "
        "to 399 is replaced, and a new one does not replace another before it does. Needs a worker "
        "class of this pack.",
    )
    health_interval: float = _setting(
        10.0,
        setting_values.number(0.1, 86_400, float),
        "number",
        "0.1 to 86400",
        "How often.",
        "seconds",
    )
    health_timeout: float = _setting(
        5.0,
        setting_values.number(0.1, 3_600, float),
        "number",
        "0.1 to 3600",
        "How long an answer may take.",
        "seconds",
    )
    health_failures: int = _setting(
        3,
        setting_values.number(1, 1_000, int),
        "integer",
        "1 to 1000",
        "How many checks in a row must fail.",
        "checks",
    )
    restart_delay: float = _setting(
        0.1,
        setting_values.number(0, 3_600, float),
        "number",
        "0 to 3600",
        "How long the replacement of a worker that ended unexpectedly waits. Each further such "
        "exit in its slot doubles it; 0 means no delay.",
        "seconds",
    )
    restart_delay_max: float = _setting(
        30.0,
        setting_values.number(0, 86_400, float),
        "number",
        "0 to 86400",
        "The longest such delay.",
        "seconds",
    )
    min_uptime: float = _setting(
        10.0,
        setting_values.number(0, 86_400, float),
        "number",
        "0 to 86400",
        "A worker that was ready for so long is replaced at once, and the delay of its slot "
        "begins anew.",
        "seconds",
    )
    restart_limit: setting_values.Rate | None = _setting(
        "20/60",
        setting_values.optional(setting_values.rate),
        "rate",
        "exits/seconds; empty: no limit",
        "More unexpected exits than this, of all workers together, and `cluster_restart_policy` "
        "applies. Crashes, signals, failed starts and timeouts count; recycling, reloads, and "
        "what somebody asked for do not.",
    )
    restart_policy: str = _setting(
        "backoff",
        setting_values.one_of("backoff", "halt"),
        "word",
        "backoff or halt",
        "`backoff`: go on trying, at the longest delay. `halt`: end the server with exit code 1, "
        "so that whoever started it sees it.",
    )
    max_memory: int | None = _setting(
        None,
        setting_values.optional(setting_values.size),
        "size",
        "1M or more, with K, M or G; none: no limit",
        "A worker whose resident memory is larger in three samples in a row (one every two "
        "seconds) is replaced. Linux only.",
        "bytes",
    )
    max_memory_hard: int | None = _setting(
        None,
        setting_values.optional(setting_values.size),
        "size",
        "1M or more, with K, M or G; none: no limit",
        "A worker whose resident memory is larger is killed at once. Linux only.",
        "bytes",
    )
    max_lifetime: float = _setting(
        0.0,
        setting_values.number(0, 31_536_000, float),
        "number",
        "0 to 31536000; 0 means no limit",
        "A worker is replaced after this time, less up to a tenth at random.",
        "seconds",
    )

    store: str = _setting(
        "embedded",
        setting_values.store,
        "word or URL",
        "embedded, redis://host:port/db, rediss://..., unix:///socket?db=0, "
        "redis+sentinel://host:port,host:port/service/db, redis+cluster://host:port,host:port",
        "What all workers share is kept here: `embedded` on this machine (LMDB, no server to run), "
        "or in a Redis, for several machines.",
    )
    store_path: str | None = _setting(
        None,
        setting_values.directory,
        "path",
        "a directory of the user that the workers run as, on a local disk; none: one for each "
        "`cluster_store_name`, in $STATE_DIRECTORY, $XDG_STATE_HOME, ~/.local/state or /var/tmp",
        "Where the embedded store has its files. Processes with the same path share them.",
    )
    store_name: str | None = _setting(
        None,
        setting_values.optional(setting_values.name),
        "text",
        "at most 1000 characters that can be seen; none: the server's `chdir`, application and "
        "`bind`, and in a process that is no server's its working directory",
        "Which of this user's embedded stores it is, where no path says so. Give the same name to "
        "a shell or a task queue that is to share what the server has.",
    )
    store_prefix: str = _setting(
        "gunicorn_cluster:",
        setting_values.prefix,
        "text",
        "at most 100 letters, digits and visible characters of ASCII, or nothing",
        "What all keys in a Redis begin with. Two sites on one Redis need two prefixes; processes "
        "of one site the same.",
    )
    store_size: int = _setting(
        "256M",
        setting_values.size,
        "size",
        "1M or more, with K, M or G",
        "The size of the embedded store's file, at most. It holds values for about two thirds of "
        "that (small ones, a fourth); then those that were used least recently go.",
        "bytes",
    )
    store_timeout: float = _setting(
        1.0,
        setting_values.number(0.01, 60, float),
        "number",
        "0.01 to 60",
        "How long a call to the store takes at most, connecting and trying again included.",
        "seconds",
    )
    store_connections: int = _setting(
        50,
        setting_values.number(1, 10_000, int),
        "integer",
        "1 to 10000",
        "Connections of each worker to a Redis (to each, in a Cluster), at most.",
        "connections",
    )
    cache_ttl: float = _setting(
        300.0,
        setting_values.number(0, 31_536_000, float),
        "number",
        "0 to 31536000; 0 means as long as there is room",
        "How long the cache keeps what is stored without a `ttl` of its own.",
        "seconds",
    )
    session_cookie: str = _setting(
        "gunicorn_session",
        setting_values.cookie_name,
        "name",
        "a cookie name; one that begins with `__Host-` (which browsers then hold to https, this "
        "host and the path /) makes the cookie so",
        "The cookie of the session middleware.",
    )
    session_idle: float = _setting(
        86_400.0,
        setting_values.number(1, 31_536_000, float),
        "number",
        "1 to 31536000",
        "How long a session lives without being used. It is written anew for that at most ten "
        "times in this time.",
        "seconds",
    )
    session_lifetime: float = _setting(
        1_209_600.0,
        setting_values.number(0, 315_360_000, float),
        "number",
        "0 to 315360000; 0 means no limit, and a cookie that goes with the browser",
        "How long a session lives at most, used or not.",
        "seconds",
    )
    session_samesite: str = _setting(
        "Lax",
        setting_values.one_of("Lax", "Strict", "None"),
        "word",
        "Lax, Strict or None",
        "`SameSite` of the session's cookie. None makes it `Secure`, or browsers refuse it.",
    )
    session_secure: str = _setting(
        "auto",
        setting_values.one_of("auto", "always"),
        "word",
        "auto or always",
        "`Secure` for the session's cookie: as the request's scheme is (see gunicorn's "
        "`forwarded_allow_ips`), or always.",
    )
    session_domain: str | None = _setting(
        None,
        setting_values.optional(setting_values.domain),
        "name",
        "a host name; none: the host that set it",
        "`Domain` of the session's cookie.",
    )
    session_path: str = _setting(
        "/",
        setting_values.cookie_path,
        "path",
        "the path of a URL, without `;`",
        "`Path` of the session's cookie.",
    )

    bus_timeout: float = _setting(
        1.0,
        setting_values.number(0, 60, float),
        "number",
        "0 to 60",
        "How long whoever publishes on the bus waits for a worker that does not read it and for "
        "which 8 MB are kept already. Then messages to that worker are lost, which is counted and "
        "logged, and it is not waited for again until it reads.",
        "seconds",
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
        if self.roll_surge == 0 and self.roll_unavailable == 0:
            raise SettingError(
                f"{PREFIX}roll_surge and {PREFIX}roll_unavailable are both 0, so no worker could "
                "be replaced. Set one of them to 1."
            )

    def capacity(self, workers: int) -> int:
        """Return for how many slots a server that starts with ``workers`` makes room."""
        return max(self.slots or max(_FEWEST_SLOTS, 2 * workers), workers)

    def drain(self, cfg: Any) -> float:
        """Return how long, in seconds, a worker may drain; ``cfg`` is gunicorn's."""
        return float(cfg.graceful_timeout if self.drain_timeout is None else self.drain_timeout)


NAMES = tuple(field.name for field in dataclasses.fields(Settings))


def read(config: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """The settings in a configuration's names and in the environment. Raises SettingError."""
    found = {
        name.removeprefix(PREFIX): value
        for name, value in config.items()
        if name.startswith(PREFIX) and not _is_module(value)
    }
    for name, value in environ.items():
        rest = name.removeprefix(ENVIRONMENT)
        if rest != name and not _SERVICE.fullmatch(rest):
            found[rest.lower()] = value
    for name in found:
        if name not in NAMES:
            raise SettingError(_unknown(name, environ))
    return Settings(**found)


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
