"""The URL of a Redis, of its Sentinels, or of a Cluster. No I/O."""

# mypy: disallow-untyped-calls=false

from __future__ import annotations

import enum
from typing import Any, NamedTuple
from urllib.parse import unquote

from redis.asyncio.connection import parse_url as parse_async_url
from redis.connection import parse_url


class Topology(enum.Enum):
    """How the servers are arranged. The value follows the ``+`` in the scheme of a URL."""

    SINGLE = ""
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


_DEFAULT_PORTS = {Topology.SENTINEL: 26379, Topology.CLUSTER: 6379}


class Address(NamedTuple):
    """Where the servers are. ``url`` is the part of the URL that redis-py understands."""

    topology: Topology
    url: str
    nodes: tuple[tuple[str, int], ...] = ()
    service: str = ""

    def options(self, asynchronous: bool = False) -> dict[str, Any]:
        """Return the options for redis-py's connections. Raises ValueError."""
        parse: Any = parse_async_url if asynchronous else parse_url
        return dict(parse(self.url))

    def __str__(self) -> str:
        """Return the address without user and password, for logs."""
        if self.topology is not Topology.SINGLE:
            nodes = ",".join(f"{host}:{port}" for host, port in self.nodes)
            return f"redis+{self.topology.value}://{nodes}{self.service and '/' + self.service}"
        options = parse_url(self.url)
        if "path" in options:
            return f"unix://{options['path']}"
        return f"redis://{options.get('host', 'localhost')}:{options.get('port', 6379)}"


def parse(url: str) -> Address:
    """Return the address in a URL. Raises ValueError."""
    scheme, _, rest = url.partition("://")
    scheme, _, arrangement = scheme.partition("+")
    topology = Topology(arrangement)
    if topology is Topology.SINGLE:
        return Address(topology, url)
    rest, _, query = rest.partition("?")
    place, _, path = rest.partition("/")
    user, at, hosts = place.rpartition("@")
    service, database = path.partition("/")[::2] if topology is Topology.SENTINEL else ("", path)
    nodes = tuple(_node(host, _DEFAULT_PORTS[topology]) for host in hosts.split(",") if host)
    if not nodes:
        raise ValueError("there is no host")
    plain = f"{scheme}://{user}{at}{hosts.split(',')[0]}/{database}"
    return Address(topology, f"{plain}?{query}" if query else plain, nodes, unquote(service))


def _node(text: str, port: int) -> tuple[str, int]:
    """Parse ``host``, ``host:port`` or ``[address]:port``."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, int(rest[1:] or port) if rest else port
    host, colon, number = text.rpartition(":")
    return (host, int(number)) if colon else (text, port)
