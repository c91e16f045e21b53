"""What is wrong with a configuration and its application, from facts about them. No I/O.

``examiner`` finds the facts, in other processes; ``check`` prints what follows from them.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterator

from msgspec import Struct


class Level(enum.IntEnum):
    """How bad it is. An ERROR: the server does not start, or not as it was meant to."""

    NOTE = 0
    WARNING = 1
    ERROR = 2


class Finding(Struct, frozen=True):
    level: Level
    text: str
    #: What Python had to say, for those who must mend it.
    details: str = ""


class ConfigurationFacts(Struct):
    """What was read, and what this machine has to say to it.

    ``error``: it cannot be used, and why; then only ``app`` means something.
    """

    app: str
    error: str = ""
    worker_class: str = ""
    is_sticky: bool = False  # of this pack
    is_asgi: bool = False
    is_threaded: bool = False
    workers: int = 1
    workers_are_set: bool = True  # by the user, and not by WEB_CONCURRENCY
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
    foreign_user: str = ""  # whom it is to run as, and cannot become
    unwritable: str = ""  # why there is no directory for the board
    cookie_error: str = ""  # why browsers refuse the session's cookie
    open_files: int = 0  # how many a worker may have,
    needed_files: int = 0  # and how many it may come to need


class ApplicationFacts(Struct):
    """What one process found that has loaded the application as a worker does."""

    error: str = ""  # why it could not
    details: str = ""
    hung: bool = False
    is_asgi: bool = False
    secrets: dict[str, str] = {}  # digests, by name
    websockets: list[str] = []  # libraries for them that it has imported
    in_memory: list[str] = []  # what it keeps in each worker's own memory
    lonely_socketio: bool = False  # a server that knows the clients of its own worker only
    rules: dict[str, str] = {}  # those that cannot be built, and why
    store_error: str = ""


class Facts(Struct):
    configuration: ConfigurationFacts
    workers: list[ApplicationFacts] = []


def judge(facts: Facts) -> list[Finding]:
    """What is to be said, the worst first."""
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


def _worker_count(of: ConfigurationFacts) -> Iterator[Finding]:
    if not of.workers_are_set:
        yield _warning(
            f"workers = {of.workers} comes from WEB_CONCURRENCY, and changes with the machine that "
            "sets it. Set `workers`."
        )


def _listening(of: ConfigurationFacts) -> Iterator[Finding]:
    for address, times in Counter(of.addresses).items():
        if times > 1:
            yield _error(f"bind: {address} is there {times} times; the second one is in use.")
    for address in of.addresses:
        host, _, port = address.rpartition(":")
        everywhere = f"0.0.0.0:{port}"
        if host not in ("0.0.0.0", "[::]") and everywhere in of.addresses and "[" not in host:
            yield _error(f"bind: {everywhere} is {address} as well; one of them is in use.")
    if of.reuse_port:
        yield _warning(
            "reuse_port: each worker has a queue of its own for new connections, and those in the "
            "queue of a worker that is replaced are refused. Remove it."
        )


def _preloading(of: ConfigurationFacts) -> Iterator[Finding]:
    if of.preload:
        yield _warning(
            "preload_app: the master has loaded the code, so HUP and `gunicorn-cluster roll` "
            "restart workers with the same code. Remove it, or deploy with USR2."
        )


def _routing(of: ConfigurationFacts) -> Iterator[Finding]:
    lost = [rule for rule in of.rules if rule != "hash:ip"]
    if not of.is_sticky:
        yield _note(
            f"The worker class {of.worker_class} is not of this pack: no sticky rule works with it."
        )
        if of.full_rollback:
            yield _warning(f'cluster_roll_rollback = "full" does nothing with {of.worker_class}.')
        if of.health_path:
            yield _warning(f"cluster_health_path does nothing with {of.worker_class}.")
    elif lost and not of.reads_heads:
        yield _error(
            f"cluster_sticky: {', '.join(lost)} cannot work with TLS, HTTP/2 or the uwsgi protocol "
            "in gunicorn, which hide the heads of requests. Terminate TLS in front, or use hash:ip."
        )
    elif lost and of.store.startswith("redis"):
        yield _note(
            f"cluster_sticky: {', '.join(lost)}: find a worker on this machine. If the Redis is "
            "there because you have several machines, what is in front must bring a client to the "
            "same machine first."
        )


def _machine(of: ConfigurationFacts) -> Iterator[Finding]:
    if of.foreign_user:
        yield _error(f"user = {of.foreign_user}: only root can become another user.")
    if of.unwritable:
        yield _warning(
            f"There is no directory for the board ({of.unwritable}). The server runs without, but "
            "`gunicorn-cluster` and messages between workers need it. Set cluster_dir."
        )
    if of.open_files < of.needed_files:
        yield _warning(
            f"A worker may have {of.open_files} open files (ulimit -n), and {of.needed_files} are "
            "needed for worker_connections and cluster_slots. Raise the limit (systemd: "
            "LimitNOFILE)."
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
                f"{name} is another one in each worker, so what one of them has signed is nothing "
                "to the others: logins seem to be lost. Take it from the environment or a file."
            )


def _websockets(facts: Facts) -> Iterator[Finding]:
    of = facts.configuration
    libraries = sorted({name for loaded in facts.workers for name in loaded.websockets})
    if libraries and of.threads == 1 and of.is_threaded:
        yield _warning(
            f"threads = 1, and the application has imported {', '.join(libraries)}: each WebSocket "
            "and each client that polls holds a thread, and then nobody else is served."
        )


def _socketio(facts: Facts) -> Iterator[Finding]:
    if facts.configuration.workers > 1 and any(each.lonely_socketio for each in facts.workers):
        yield _warning(
            "Socket.IO without a client manager: what one worker emits does not reach the clients "
            "of the others. Use gunicorn_cluster_ext.socketio.ClusterManager."
        )


def _memory(facts: Facts) -> Iterator[Finding]:
    if facts.configuration.workers > 1:
        for what in sorted({name for loaded in facts.workers for name in loaded.in_memory}):
            yield _warning(
                f"{what} is kept in each worker's own memory: the others do not see it. See "
                "gunicorn_cluster_ext.cache, and the sessions of this pack."
            )


def _rules(facts: Facts) -> Iterator[Finding]:
    broken = {rule: why for each in facts.workers for rule, why in each.rules.items()}
    for rule, why in broken.items():
        yield _error(f"cluster_sticky: {rule} cannot be used: {why}")


def _store(facts: Facts) -> Iterator[Finding]:
    for text in sorted({loaded.store_error for loaded in facts.workers} - {""}):
        yield _warning(f"cluster_store: {text}")


_OF_CONFIGURATION: tuple[Callable[[ConfigurationFacts], Iterator[Finding]], ...] = (
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
