"""Every ``cluster_*`` setting with its default, unit, allowed values and purpose.

The settings are read from the executed configuration (a file, or the module that ``python:`` names)
and then from ``GUNICORN_CLUSTER_*`` in the environment, which wins, as in gunicorn's own order. An
unknown name or a value that is not allowed stops the start; gunicorn itself ignores unknown names
silently.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from gunicorn_cluster_ext import setting_values as values
from gunicorn_cluster_ext.logs import hide_credentials

PREFIX = "cluster_"
ENVIRONMENT = "GUNICORN_CLUSTER_"
_ESCAPED_BAR = r"\|"
#: TTIN and a reload must find free slots, also on a server with one worker.
_MIN_SLOTS = 16
#: Kubernetes gives every container such variables for a service called "gunicorn-cluster".
_SERVICE = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)")


class SettingError(ValueError):
    """A setting cannot be used; the message names it, the reason, and what is allowed."""


def _setting(default: Any, kind: values.Kind, why: str, unit: str = "") -> Any:
    about = {"parse": kind.parse, "allowed": kind.allowed, "why": why, "unit": unit}
    return dataclasses.field(default=default, metadata=about)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The values of all ``cluster_*`` settings, without the prefix."""

    sticky: tuple[str, ...] = _setting(
        ("engineio", "cookie"),
        values.RULES,
        "The rules that find the worker that owns a request. The first rule that finds one wins; "
        "if none does, a worker with a free thread serves the request.",
    )
    cookie: str = _setting(
        "gunicorn_worker",
        values.COOKIE_NAME,
        "The cookie that the rule `cookie` sets and reads. Two servers on one host name need two "
        "names.",
    )
    threads: int = _setting(
        100,
        values.integer(1, 10_000),
        "The most threads of a worker, if gunicorn's own `threads` is not set. Gunicorn's default "
        "of 1 cannot serve Socket.IO: each polling client and each WebSocket occupies a thread. "
        "Threads are started when they are needed.",
        "threads",
    )
    slots: int = _setting(
        0,
        values.integer(0, 1_000, "0 means twice `workers`, and at least 16"),
        "The most workers that TTIN or a reload can ask for. Each costs four open files in every "
        "process.",
        "workers",
    )
    head_timeout: float = _setting(
        10.0,
        values.number(0.1, 3_600),
        "How long a client may take to send the head of a request, from its first byte. After that "
        "it is answered 408. No thread is occupied meanwhile, so slow clients delay nobody.",
        "seconds",
    )
    handoff_timeout: float = _setting(
        2.0,
        values.number(0, 3_600),
        "How long a request that only one process can serve waits while that process accepts no "
        "more. After that it is answered 503 with Retry-After.",
        "seconds",
    )
    learn_ttl: float = _setting(
        3_600.0,
        values.number(1, 31_536_000),
        "How long the rules `learn:...` remember a value after its last use. Set it to the "
        "lifetime of the application's sessions.",
        "seconds",
    )
    learn_size: int = _setting(
        65_536,
        values.integer(8, 1 << 24),
        "How many values the rules `learn:...` remember. Beyond that the least recently used are "
        "forgotten, which is logged. Each takes 32 bytes of memory, which all workers share.",
        "values",
    )
    dir: str | None = _setting(
        None,
        values.directory(
            "a directory that the server can write",
            "$XDG_RUNTIME_DIR, /dev/shm or the temporary directory",
        ),
        "Where the server makes its private directory, through which the command line and other "
        "processes find the server.",
    )

    startup_timeout: float = _setting(
        60.0,
        values.number(0, 86_400, "0 means no limit"),
        "How long a worker may take from its start until it is ready. Until then gunicorn's "
        "`timeout` does not apply. Raise it for applications that load slowly.",
        "seconds",
    )
    roll_surge: int | str = _setting(
        1,
        values.worker_share(rounding="up"),
        "How many workers beyond `workers` a reload may run (maxSurge in Kubernetes). With 0, for "
        "tight memory, an old worker ends before its successor starts.",
        "workers",
    )
    roll_unavailable: int | str = _setting(
        0,
        values.worker_share(rounding="down"),
        "How many of `workers` may be missing during a reload (maxUnavailable in Kubernetes).",
        "workers",
    )
    roll_rollback: str = _setting(
        "keep",
        values.one_of("keep", "full"),
        "What a failed reload does with the workers that it has replaced: `keep` leaves the new "
        "ones, `full` brings the old ones back. For `full`, replaced workers are parked until the "
        "reload ends, which takes memory for twice the workers, and a worker class of this pack.",
    )
    roll_observe: float = _setting(
        0.0,
        values.number(0, 86_400),
        "How long a reload watches its new workers after it has replaced the last one. If one of "
        "them crashes or fails its health checks in this time, the reload has failed.",
        "seconds",
    )
    drain_timeout: float | None = _setting(
        None,
        values.optional(values.number(0, 86_400), "gunicorn's `graceful_timeout`"),
        "How long a worker that was replaced may take to finish its requests. Meanwhile it also "
        "serves the clients whose sessions are in its memory (Engine.IO, `learn:...`).",
        "seconds",
    )
    health_path: str | None = _setting(
        None,
        values.optional(values.URL_PATH, "no checks"),
        "The path of the health check, which each worker is asked for separately. A worker that "
        "does not answer with a status from 200 to 399 is replaced, and a reload replaces no "
        "worker before its successor does. Needs a worker class of this pack.",
    )
    health_interval: float = _setting(
        10.0,
        values.number(0.1, 86_400),
        "The time between two health checks of a worker.",
        "seconds",
    )
    health_timeout: float = _setting(
        5.0,
        values.number(0.1, 3_600),
        "How long a worker may take to answer a health check.",
        "seconds",
    )
    health_failures: int = _setting(
        3,
        values.integer(1, 1_000),
        "How many health checks in a row must fail before a worker is replaced.",
        "checks",
    )
    restart_delay: float = _setting(
        0.1,
        values.number(0, 3_600, "0 means no delay"),
        "How long the replacement of a worker that ended unexpectedly is delayed. Each further "
        "such exit in its slot doubles the delay.",
        "seconds",
    )
    restart_delay_max: float = _setting(
        30.0,
        values.number(0, 86_400),
        "The longest such delay.",
        "seconds",
    )
    min_uptime: float = _setting(
        10.0,
        values.number(0, 86_400),
        "A worker that was ready for this long is replaced without delay when it ends, and resets "
        "the delay of its slot.",
        "seconds",
    )
    restart_limit: values.Rate | None = _setting(
        "20/60",
        values.optional(values.RATE, "no limit"),
        "After more unexpected exits than this, of all workers together, `cluster_restart_policy` "
        "applies. Crashes, signals, failed starts and timeouts count; recycling, reloads and exits "
        "that somebody asked for do not.",
    )
    restart_policy: str = _setting(
        "backoff",
        values.one_of("backoff", "halt"),
        "What happens beyond `cluster_restart_limit`. `backoff`: keep trying, at the longest "
        "delay. `halt`: end the server with exit code 1, so that whatever started it notices.",
    )
    max_memory: int | None = _setting(
        None,
        values.optional(values.SIZE, "no limit"),
        "A worker whose resident memory exceeds this in three samples in a row (one every two "
        "seconds) is replaced; its successor starts first. Linux only.",
        "bytes",
    )
    max_memory_hard: int | None = _setting(
        None,
        values.optional(values.SIZE, "no limit"),
        "A worker whose resident memory exceeds this is killed at once. Linux only.",
        "bytes",
    )
    max_lifetime: float = _setting(
        0.0,
        values.number(0, 31_536_000, "0 means no limit"),
        "A worker is replaced after this time, reduced at random by up to a tenth so that workers "
        "are not all replaced together.",
        "seconds",
    )

    store: str = _setting(
        "embedded",
        values.STORE,
        "Where shared data (cache, sessions) is kept: `embedded` on this machine (LMDB, no server "
        "to run), or in a Redis that several machines share.",
    )
    store_path: str | None = _setting(
        None,
        values.directory(
            "a directory of the user that the workers run as, on a local disk",
            "one for each `cluster_store_name`, in $STATE_DIRECTORY, $XDG_STATE_HOME, "
            "~/.local/state or /var/tmp",
        ),
        "Where the embedded store has its files. Processes with the same path share them.",
    )
    store_name: str | None = _setting(
        None,
        values.optional(
            values.NAME,
            "the server's `chdir`, application and `bind`, and in a process that is not a server "
            "its working directory",
        ),
        "Which of this user's embedded stores to use, if `cluster_store_path` is not set. Give the "
        "same name to a shell or a task queue that should share the server's data.",
    )
    store_prefix: str = _setting(
        "gunicorn_cluster:",
        values.KEY_PREFIX,
        "What all keys in a Redis begin with. Two sites on one Redis need two prefixes; all "
        "processes of one site need the same.",
    )
    store_size: int = _setting(
        "256M",
        values.SIZE,
        "The largest size of the embedded store's file. About two thirds of it hold values (of "
        "small values, a quarter); beyond that the least recently used are evicted.",
        "bytes",
    )
    store_timeout: float = _setting(
        1.0,
        values.number(0.01, 60),
        "How long a call to the store may take, including connecting and retries.",
        "seconds",
    )
    store_connections: int = _setting(
        50,
        values.integer(1, 10_000),
        "The most connections of a worker to a Redis (to each node of a Cluster).",
        "connections",
    )
    cache_ttl: float = _setting(
        300.0,
        values.number(0, 31_536_000, "0 means until it is evicted"),
        "How long the cache keeps a value that is stored without a `ttl`.",
        "seconds",
    )
    session_cookie: str = _setting(
        "gunicorn_session",
        values.COOKIE_NAME,
        "The cookie of the session middleware. A name that begins with `__Host-` makes browsers "
        "enforce https, this host and the path /, and the cookie is set accordingly.",
    )
    session_idle: float = _setting(
        86_400.0,
        values.number(1, 31_536_000),
        "How long a session lives without being used. To prolong it, it is written at most ten "
        "times in this period.",
        "seconds",
    )
    session_lifetime: float = _setting(
        1_209_600.0,
        values.number(
            0, 315_360_000, "0 means no limit, and a cookie that ends with the browser session"
        ),
        "How long a session lives at most, even if it is used.",
        "seconds",
    )
    session_samesite: str = _setting(
        "Lax",
        values.one_of("Lax", "Strict", "None"),
        "`SameSite` of the session cookie. `None` also makes it `Secure`, as browsers demand.",
    )
    session_secure: str = _setting(
        "auto",
        values.one_of("auto", "always"),
        "`Secure` of the session cookie: on https requests only (see gunicorn's "
        "`forwarded_allow_ips`), or always.",
    )
    session_domain: str | None = _setting(
        None,
        values.optional(values.DOMAIN, "the host that sets the cookie"),
        "`Domain` of the session cookie. Set it to share sessions with subdomains.",
    )
    session_path: str = _setting("/", values.COOKIE_PATH, "`Path` of the session cookie.")

    bus_timeout: float = _setting(
        1.0,
        values.number(0, 60),
        "How long a publisher waits for a worker that does not read the bus and for which 8 MB are "
        "queued. After that, messages to that worker are dropped, counted and logged until it "
        "reads again, and publishers no longer wait for it.",
        "seconds",
    )

    def __post_init__(self) -> None:
        """Check and parse each value. Raise SettingError."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            try:
                object.__setattr__(self, field.name, field.metadata["parse"](value))
            except (ValueError, OverflowError) as error:
                shown = hide_credentials(repr(value)) if field.name == "store" else repr(value)
                raise SettingError(
                    f"{PREFIX}{field.name} = {shown}: {error}. Allowed: "
                    f"{field.metadata['allowed']}."
                ) from None
        if self.roll_surge == 0 and self.roll_unavailable == 0:
            raise SettingError(
                f"{PREFIX}roll_surge and {PREFIX}roll_unavailable are both 0, so no worker could "
                "be replaced. Set one of them to 1."
            )

    def capacity(self, workers: int) -> int:
        """Return the number of slots of a server that starts with ``workers`` workers."""
        return max(self.slots or max(_MIN_SLOTS, 2 * workers), workers)

    def drain(self, cfg: Any) -> float:
        """Return the seconds that a worker may take to drain; ``cfg`` is gunicorn's."""
        return float(cfg.graceful_timeout if self.drain_timeout is None else self.drain_timeout)


NAMES = tuple(field.name for field in dataclasses.fields(Settings))


def read(config: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Return the settings among the names of a configuration and in the environment.

    Raise SettingError for an unknown name or a value that is not allowed.
    """
    found = {
        name.removeprefix(PREFIX): value
        for name, value in config.items()
        if name.startswith(PREFIX) and not isinstance(value, ModuleType)
    }
    for name, value in environ.items():
        rest = name.removeprefix(ENVIRONMENT)
        if rest != name and not _SERVICE.fullmatch(rest):
            found[rest.lower()] = value
    for name in found:
        if name not in NAMES:
            variable = ENVIRONMENT + name.upper()
            written = variable if variable in environ else PREFIX + name
            near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
            hint = f"Did you mean {PREFIX}{near[0]}? " if near else ""
            known = ", ".join(PREFIX + known for known in NAMES)
            raise SettingError(f"{written} is not a setting. {hint}Known settings: {known}.")
    return Settings(**found)


def of_config(cfg: Any) -> Settings:
    """Return the settings that go with ``cfg``, a gunicorn configuration. Raise SettingError."""
    return read(executed_config(cfg.config), os.environ)


def executed_config(location: str | None) -> Mapping[str, Any]:
    """Return the names of the configuration that gunicorn has executed.

    ``location`` is gunicorn's setting ``config``. Gunicorn keeps a file as the module
    ``__config__`` (gunicorn.app.base.Application.get_config_from_filename).
    """
    name = "__config__"
    if location is not None and location.startswith("python:"):
        name = location.removeprefix("python:")
    module = sys.modules.get(name)
    return {} if module is None else vars(module)


def table() -> str:
    """Return a Markdown table of all settings."""
    lines = ["| setting | default | allowed | purpose |", "|---|---|---|---|"]
    for field in dataclasses.fields(Settings):
        about = field.metadata
        unit = about["unit"] if field.default is not None else ""
        default = f"{field.default!r} {unit}".strip()
        cells = (f"`{PREFIX}{field.name}`", default, about["allowed"], about["why"])
        lines.append(f"| {' | '.join(cell.replace('|', _ESCAPED_BAR) for cell in cells)} |")
    return "\n".join(lines)
