"""What the parts of the supervisor ask of the arbiter."""

from __future__ import annotations

from typing import Any, Protocol


class SupervisedArbiter(Protocol):
    """The attributes of ``ClusterArbiter`` that its parts use: all but the last two methods are
    gunicorn's own. ``WORKERS`` maps pids to gunicorn's worker objects."""

    LISTENERS: list[Any]
    WORKERS: dict[int, Any]
    app: Any
    cfg: Any
    log: Any
    master_pid: int
    num_workers: int
    pid: int
    pidfile: Any
    proc_name: str
    systemd: bool
    timeout: float
    worker_age: int
    worker_class: Any

    def handle_hup(self) -> None: ...

    def kill_worker(self, pid: int, sig: int) -> None: ...

    def setup(self, app: Any) -> None: ...

    def spawn_worker(self) -> int: ...

    def fail_roll(self, reason: str, now: float) -> None: ...

    def publish(self) -> None: ...
