"""The problems of a configuration and its application, judged from facts about them. No I/O.

``examiner`` collects the facts, in other processes; the command ``check`` prints the findings.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterator

from msgspec import Struct


class Level(enum.IntEnum):
    """The severity of a finding. ERROR: the server would not start, or not as it was meant to."""

    NOTE = 0
    WARNING = 1
    ERROR = 2


class Finding(Struct, frozen=True):
    level: Level
    text: str
    #: The end of a traceback, for whoever fixes the problem.
    details: str = ""


class ConfigFacts(Struct):
    """The configuration, and facts about this machine that matter to it.

    ``error`` says why the configuration cannot be used; then only ``app`` is set besides.
    """

    app: str
    error: str = ""
    worker_class: str = ""
    is_sticky: bool = False  # the worker class belongs to this pack
    is_asgi: bool = False
    is_threaded: bool = False
    workers: int = 1
    workers_are_set: bool = True  # by the user, not by WEB_CONCURRENCY
    threads: int = 1
    addresses: list[str] = []
    reuse_port: bool = False
    preload: bool = False
    reads_heads: bool = True
    rules: list[str] = []
    store: str = ""
    full_rollback: bool = False
    health_path: str | None = None
    startup_timeout: float = 0.0
    foreign_user: str = ""  # the user to run as, if this user cannot become it
    unwritable: str = ""  # why the board has no directory
    cookie_error: str = ""  # why browsers would refuse the session cookie
    open_files: int = 0  # the limit of a worker
    needed_files: int = 0  # the most that a worker may need


class AppFacts(Struct):
    """The facts that one process found after it had loaded the application as a worker does."""

    error: str = ""  # why the application cannot be loaded
    details: str = ""
    hung: bool = False
    is_asgi: bool = False
    secrets: dict[str, str] = {}  # their digests, by name
    websockets: list[str] = []  # the imported libraries for them
    in_memory: list[str] = []  # the state that each worker keeps in its own memory
    unmanaged_socketio: bool = False  # a server that knows only the clients of its own worker
    broken_rules: dict[str, str] = {}  # why each of them cannot be built
    store_error: str = ""


class Facts(Struct):
    configuration: ConfigFacts
    workers: list[AppFacts] = []


def judge(facts: Facts) -> list[Finding]:
    """Return the findings, the worst first."""
    configuration = facts.configuration
    if configuration.error:
        return [Finding(Level.ERROR, configuration.error)]
    found = [each for rule in _OF_CONFIGURATION for each in rule(configuration)]
    found += _loading(facts)
    if not any(loaded.error or loaded.hung for loaded in facts.workers):
        found += [each for rule in _OF_APPLICATION for each in rule(facts)]
    return sorted(found, key=lambda each: -each.level)


def _error(text: str) -> Finding:
    return Finding(Level.ERROR, text)


def _warning(text: str) -> Finding:
    return Finding(Level.WARNING, text)


def _note(text: str) -> Finding:
    return Finding(Level.NOTE, text)


# --- the configuration ----------------------------------------------------------------------------


def _worker_count(of: ConfigFacts) -> Iterator[Finding]:
    if not of.workers_are_set:
        yield _warning(
            f"workers = {of.workers} comes from WEB_CONCURRENCY, which may differ on another "
            "machine. Set `workers`."
        )


def _listening(of: ConfigFacts) -> Iterator[Finding]:
    for address, times in Counter(of.addresses).items():
        if times > 1:
            yield _error(f"bind: {address} is listed {times} times; it can be bound only once.")
    for address in of.addresses:
        host, _, port = address.rpartition(":")
        everywhere = f"0.0.0.0:{port}"
        if host not in ("0.0.0.0", "[::]") and everywhere in of.addresses and "[" not in host:
            yield _error(f"bind: {everywhere} includes {address}; only one of them can be bound.")
    if of.reuse_port:
        yield _warning(
            "reuse_port: each worker has its own queue of new connections, and when a worker is "
            "replaced, the connections in its queue are refused. Remove it."
        )


def _preloading(of: ConfigFacts) -> Iterator[Finding]:
    if of.preload:
        yield _warning(
            "preload_app: the master has loaded the code, so HUP and `gunicorn-cluster roll` "
            "restart the workers with the same code. Remove it, or deploy with USR2."
        )


def _routing(of: ConfigFacts) -> Iterator[Finding]:
    lost = [rule for rule in of.rules if rule != "hash:ip"]
    if not of.is_sticky:
        yield _note(
            f"The worker class {of.worker_class} does not belong to this pack: sticky rules do not "
            "work with it."
        )
        if of.full_rollback:
            yield _warning(f'cluster_roll_rollback = "full" has no effect with {of.worker_class}.')
        if of.health_path:
            yield _warning(f"cluster_health_path has no effect with {of.worker_class}.")
    elif lost and not of.reads_heads:
        yield _error(
            f"cluster_sticky: {', '.join(lost)} cannot work with TLS, HTTP/2 or the uwsgi protocol "
            "in gunicorn, which hide the heads of requests. Terminate TLS in a proxy, or use "
            "hash:ip."
        )
    elif lost and of.store.startswith("redis"):
        yield _note(
            f"cluster_sticky: {', '.join(lost)} finds a worker on this machine. If you use Redis "
            "because you have several machines, the load balancer must send each client to the "
            "same machine."
        )


def _machine(of: ConfigFacts) -> Iterator[Finding]:
    if of.foreign_user:
        yield _error(f"user = {of.foreign_user}: only root can become another user.")
    if of.unwritable:
        yield _warning(
            f"There is no directory for the board ({of.unwritable}). The server runs without one, "
            "but `gunicorn-cluster` and messages between workers need it. Set cluster_dir."
        )
    if of.open_files < of.needed_files:
        yield _warning(
            f"A worker may have {of.open_files} open files (ulimit -n), but worker_connections and "
            f"cluster_slots need {of.needed_files}. Raise the limit (systemd: LimitNOFILE)."
        )
    if of.cookie_error:
        yield _error(of.cookie_error)


# --- the application ------------------------------------------------------------------------------


def _loading(facts: Facts) -> Iterator[Finding]:
    of = facts.configuration
    failed = [loaded for loaded in facts.workers if loaded.error or loaded.hung]
    whose = "" if len(failed) == len(facts.workers) else " in one worker of two"
    for loaded in failed[:1]:
        if loaded.hung:
            limit = f"{of.startup_timeout:g} s (cluster_startup_timeout)"
            yield _error(f"{of.app} was not loaded within {limit}{whose}.")
        else:
            text = f"{of.app} cannot be loaded{whose}: {loaded.error}"
            yield Finding(Level.ERROR, text, loaded.details)


def _protocol(facts: Facts) -> Iterator[Finding]:
    of = facts.configuration
    if any(loaded.is_asgi for loaded in facts.workers) and not of.is_asgi:
        yield _error(
            f"{of.app} is an ASGI application, and {of.worker_class} is for WSGI. Use "
            "gunicorn_cluster_ext.StickyASGI."
        )


def _secrets(facts: Facts) -> Iterator[Finding]:
    if len(facts.workers) < 2 or facts.configuration.workers < 2:
        return
    first, second = (loaded.secrets for loaded in facts.workers[:2])
    for name in sorted(first.keys() & second.keys()):
        if first[name] != second[name]:
            yield _warning(
                f"{name} differs between the workers, so a worker rejects what another one has "
                "signed: users seem to be logged out. Read it from the environment or a file."
            )


def _websockets(facts: Facts) -> Iterator[Finding]:
    of = facts.configuration
    libraries = sorted({name for loaded in facts.workers for name in loaded.websockets})
    if libraries and of.threads == 1 and of.is_threaded:
        yield _warning(
            f"threads = 1, and the application has imported {', '.join(libraries)}: each WebSocket "
            "and each polling client occupies a thread, so the worker serves no one else."
        )


def _socketio(facts: Facts) -> Iterator[Finding]:
    if facts.configuration.workers > 1 and any(each.unmanaged_socketio for each in facts.workers):
        yield _warning(
            "Socket.IO without a client manager: what a worker emits does not reach the clients of "
            "other workers. Use gunicorn_cluster_ext.socketio.ClusterManager."
        )


def _memory(facts: Facts) -> Iterator[Finding]:
    if facts.configuration.workers > 1:
        for what in sorted({name for loaded in facts.workers for name in loaded.in_memory}):
            yield _warning(
                f"{what} is kept in each worker's own memory, where the others do not see it. See "
                "gunicorn_cluster_ext.cache, and the sessions of this pack."
            )


def _rules(facts: Facts) -> Iterator[Finding]:
    broken = {rule: why for each in facts.workers for rule, why in each.broken_rules.items()}
    for rule, why in broken.items():
        yield _error(f"cluster_sticky: {rule} cannot be used: {why}")


def _store(facts: Facts) -> Iterator[Finding]:
    for text in sorted({loaded.store_error for loaded in facts.workers} - {""}):
        yield _warning(f"cluster_store: {text}")


_OF_CONFIGURATION: tuple[Callable[[ConfigFacts], Iterator[Finding]], ...] = (
    _worker_count,
    _listening,
    _preloading,
    _routing,
    _machine,
)
_OF_APPLICATION: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _protocol,
    _secrets,
    _websockets,
    _socketio,
    _memory,
    _rules,
    _store,
)
