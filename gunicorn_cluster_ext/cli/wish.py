"""What a command wants of the server, and what goes wrong with that, in words."""

from __future__ import annotations

import os
from pathlib import Path

from gunicorn_cluster_ext.cli.server import NO_SERVER, CommandError
from gunicorn_cluster_ext.runtime.board import control as wishes
from gunicorn_cluster_ext.runtime.board.control import Answer, Kind, Unanswered
from gunicorn_cluster_ext.runtime.discovery import Server, user

#: Seconds; an arbiter looks once a second at least.
_PATIENCE = 10.0


def wish(server: Server, kind: Kind, of: int = 0) -> Answer:
    """What it answers. Raises CommandError, also when it refuses."""
    answer = ask(server, kind, of, patience=_PATIENCE)
    if not answer.granted:
        raise CommandError(answer.text)
    return answer


def ask(server: Server, kind: Kind, of: int = 0, *, patience: float | None) -> Answer:
    """What it answers within ``patience`` seconds. Raises CommandError."""
    try:
        return wishes.ask(server.directory / "board", kind, of, patience)
    except Unanswered as error:
        raise CommandError(f"server {server.pid}: {error}") from None
    except OSError as error:
        raise CommandError(f"server {server.pid}: its board cannot be written: {error}") from None


def send(server: Server, signal: int) -> None:
    """Raises CommandError."""
    try:
        os.kill(server.pid, signal)
    except ProcessLookupError:
        raise CommandError(f"server {server.pid} has ended", NO_SERVER) from None
    except PermissionError:
        owner = user(Path(f"/proc/{server.pid}")) or "its own user"
        raise CommandError(f"server {server.pid} takes signals of {owner} only: use sudo") from None
