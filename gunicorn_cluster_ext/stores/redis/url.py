"""What the URL of a Redis says, Sentinel and Cluster included. No I/O."""

# mypy: disallow-untyped-calls=false

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import unquote

from redis.asyncio.connection import parse_url as parse_async_url
from redis.connection import parse_url

_PORTS = {"": 6379, "sentinel": 26379, "cluster": 6379}


class Address(NamedTuple):
    """``way`` is "", "sentinel" or "cluster"; ``url`` what redis-py understands of it."""

    way: str
    url: str
    nodes: tuple[tuple[str, int], ...] = ()
    service: str = ""

    def options(self, asynchronous: bool = False) -> dict[str, Any]:
        """What redis-py's connections are made with. Raises ValueError."""
        parse: Any = parse_async_url if asynchronous else parse_url
        return dict(parse(self.url))

    def __str__(self) -> str:
        """Without user and password: this is for logs."""
        if self.way:
            nodes = ",".join(f"{host}:{port}" for host, port in self.nodes)
            return f"redis+{self.way}://{nodes}{self.service and '/' + self.service}"
        options = parse_url(self.url)
        if "path" in options:
            return f"unix://{options['path']}"
        return f"redis://{options.get('host', 'localhost')}:{options.get('port', 6379)}"


def parse(url: str) -> Address:
    """Raises ValueError."""
    scheme, _, rest = url.partition("://")
    scheme, _, way = scheme.partition("+")
    if not way:
        return Address("", url)
    rest, _, query = rest.partition("?")
    place, _, path = rest.partition("/")
    user, at, hosts = place.rpartition("@")
    service, database = path.partition("/")[::2] if way == "sentinel" else ("", path)
    nodes = tuple(_node(host, _PORTS[way]) for host in hosts.split(",") if host)
    if not nodes:
        raise ValueError("there is no host")
    plain = f"{scheme}://{user}{at}{hosts.split(',')[0]}/{database}"
    return Address(way, f"{plain}?{query}" if query else plain, nodes, unquote(service))


def _node(text: str, port: int) -> tuple[str, int]:
    """``host``, ``host:port``, ``[address]:port``."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, int(rest[1:] or port) if rest else port
    host, colon, number = text.rpartition(":")
    return (host, int(number)) if colon else (text, port)
