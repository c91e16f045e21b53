"""The options and helpers that the blocking and the asynchronous client share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from redis.exceptions import RedisClusterException

#: The part of the timeout that one connection attempt gets: a host that does not answer leaves time
#: for the others.
_CONNECT_SHARE = 1 / 3


class Call(NamedTuple):
    """Commands in one round trip, answered before ``deadline`` (monotonic).

    ``node`` is the node of a Cluster to ask, or None for the nodes that hold the keys.
    """

    commands: Sequence[tuple[Any, ...]]
    deadline: float
    node: Any = None


def connection_options(options: dict[str, Any], timeout: float, retry: Any) -> dict[str, Any]:
    """Return the options of a connection; those of the address are ``options``."""
    return {
        "protocol": 2,
        **options,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout * _CONNECT_SHARE,
        "retry": retry,
    }


def sentinel_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options for asking Sentinels, and remove theirs from those of the master."""
    asking = {name: each for name, each in options.items() if name not in ("host", "port", "db")}
    for name in ("username", "password"):
        asking.pop(name, None)
        if (own := options.pop(f"sentinel_{name}", None)) is not None:
            asking.pop(f"sentinel_{name}", None)
            asking[name] = own
    for name in ("host", "port"):
        options.pop(name, None)
    return asking


def sentinels_of(client: Any) -> list[Any]:
    """Return the clients of the Sentinels that ``client`` asks."""
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    return [] if manager is None else list(manager.sentinels)


def nodes_of(client: Any, keys: Iterable[bytes]) -> list[Any]:
    """Return the nodes of a Cluster that hold these keys; None for an unknown node. ``client`` is
    redis-py's, or None before it exists."""
    try:
        nodes = [client.get_node_from_key(key) for key in keys] if client is not None else [None]
    except RedisClusterException:
        return [None]
    return list({node and node.name: node for node in nodes}.values())
