"""The listening sockets of a server whose configuration changes. Runs in the arbiter."""

from __future__ import annotations

import os
import socket
from typing import Any

from gunicorn import sock


class _Only:
    """A configuration that listens at ``address`` only."""

    def __init__(self, cfg: Any, address: list[Any]) -> None:
        self._cfg = cfg
        self.address = address

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cfg, name)


def renewed(listeners: list[Any], old: Any, new: Any, log: Any) -> list[Any]:
    """The listeners for the configuration ``new``; those of addresses that stay are kept.

    Gunicorn's own reload closes and binds them all, which ends the server if any address stays:
    its workers still listen there. Raises OSError when an address cannot be had.
    """
    kept = dict(zip(old.address, listeners, strict=False))
    added = [address for address in new.address if address not in kept]
    for address in added:
        _check_free(address)
    made = sock.create_sockets(_Only(new, added), log) if added else []
    kept.update(zip(added, made, strict=True))
    return [kept[address] for address in new.address]


def _check_free(address: Any) -> None:
    """Raise OSError if a TCP address cannot be bound: gunicorn would block, and try for 5 s."""
    if not isinstance(address, tuple):
        return
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(address)
            trial.listen(1)
        except OSError as error:
            raise OSError(error.errno, f"cannot listen at {address}: {error.strerror}") from None


def close(listeners: list[Any], kept: list[Any]) -> None:
    """Close those that are not ``kept`` as well; a Unix socket's file goes too."""
    for listener in listeners:
        if listener not in kept:
            name = listener.getsockname()
            listener.close()
            if isinstance(name, str) and os.path.exists(name):
                os.unlink(name)
