"""TODO routing.proxy_protocol."""

from __future__ import annotations

import ipaddress
from typing import Final, NamedTuple

from gunicorn_cluster_ext.routing.head import NEED_MORE, OPAQUE, Partial


class Proxied(NamedTuple):
    """A PROXY protocol header: how many bytes it takes, and the client that it names."""

    length: int
    client: str | None


_V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


NOT_PROXIED: Final = Proxied(0, None)


def scan_proxy(data: bytes, mode: str) -> Proxied | Partial:
    """The PROXY protocol header at the start of ``data``.

    ``mode`` is gunicorn's setting ``proxy_protocol``: "v1", "v2" or "auto". Gunicorn wants
    twelve bytes before it looks, and so does this. A malformed header is OPAQUE: gunicorn
    answers it.
    """
    if len(data) < len(_V2_SIGNATURE):
        return NEED_MORE
    if mode != "v1" and data.startswith(_V2_SIGNATURE):
        return _scan_v2(data)
    if mode != "v2" and data.startswith(b"PROXY "):
        return _scan_v1(data)
    return NOT_PROXIED


def _scan_v1(data: bytes) -> Proxied | Partial:
    end = data.find(b"\r\n")
    if end < 0:
        return NEED_MORE
    fields = data[:end].split(b" ")
    if len(fields) != 6:
        return OPAQUE
    return Proxied(end + 2, fields[2].decode("latin-1"))


def _scan_v2(data: bytes) -> Proxied | Partial:
    if len(data) < 16:
        return NEED_MORE
    length = 16 + int.from_bytes(data[14:16], "big")
    if len(data) < length:
        return NEED_MORE
    size = {0x1: 4, 0x2: 16}.get(data[13] >> 4, 0)
    if data[12] & 0x0F == 0 or not size:  # LOCAL, or a family without an IP address
        return Proxied(length, None)
    if length < 16 + 2 * size:
        return OPAQUE
    return Proxied(length, _spell(ipaddress.ip_address(data[16 : 16 + size])))


def _spell(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """As inet_ntop(3) does, and so gunicorn."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(address) if mapped is None else f"::ffff:{mapped}"
