"""The listening sockets of a server whose configuration changes. Runs in the arbiter."""

from __future__ import annotations

import os
import socket
from typing import Any

from gunicorn import sock


class _Only:
    """The configuration ``cfg``, but with other listening addresses."""

    def __init__(self, cfg: Any, address: list[Any]) -> None:
        self._cfg = cfg
        self.address = address

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cfg, name)


def renewed(listeners: list[Any], old: Any, new: Any, log: Any) -> list[Any]:
    """Return the listeners for the configuration ``new``; addresses that ``old`` has too keep
    theirs.

    Gunicorn's own reload closes and binds them all, which ends the server if it keeps any address:
    its workers still listen there. Raises OSError when an address cannot be bound.
    """
    kept = dict(zip(old.address, listeners, strict=False))
    added = [address for address in new.address if address not in kept]
    for address in added:
        _check_free(address)
    made = sock.create_sockets(_Only(new, added), log) if added else []
    kept.update(zip(added, made, strict=True))
    return [kept[address] for address in new.address]


def _check_free(address: Any) -> None:
    """Raise OSError if a TCP address cannot be bound. Gunicorn would retry, and block, for 5 s."""
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
    """Close the listeners that are not among ``kept``, and remove their Unix sockets' files."""
    for listener in listeners:
        if listener not in kept:
            name = listener.getsockname()
            listener.close()
            if isinstance(name, str) and os.path.exists(name):
                os.unlink(name)
