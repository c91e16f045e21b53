"""The PROXY protocol: bytes -> ProxyHeader | NEED_MORE | OPAQUE. No I/O.

A proxy sends this header once, before the first request of a connection, to name the client.
Versions 1 (text) and 2 (binary) are HAProxy's "The PROXY protocol", sections 2.1 and 2.2.
As in ``head``, gunicorn parses the header again and remains the judge of what is valid.
"""

from __future__ import annotations

import ipaddress
from typing import Final, NamedTuple

from gunicorn_cluster_ext.routing.head import NEED_MORE, OPAQUE, Partial

_V2_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
#: The signature, a byte each for version and family, and two for the length of the rest.
_V2_FIXED_BYTES: Final = 16
#: Bytes of an address, by family: AF_INET, AF_INET6.
_V2_ADDRESS_BYTES: Final = {0x1: 4, 0x2: 16}
#: "PROXY", family, two addresses and two ports. "PROXY UNKNOWN" has fewer; gunicorn refuses it.
_V1_FIELDS: Final = 6


class ProxyHeader(NamedTuple):
    """A header of ``length`` bytes; ``client`` is the address that it names, None for none."""

    length: int
    client: str | None


#: The bytes begin with something else.
NO_PROXY_HEADER: Final = ProxyHeader(0, None)


def scan_proxy(data: bytes, mode: str) -> ProxyHeader | Partial:
    """Return the PROXY protocol header at the start of ``data``.

    ``mode`` is gunicorn's setting ``proxy_protocol``: "v1", "v2" or "auto". Gunicorn reads
    twelve bytes before it decides, so fewer are NEED_MORE here as well. A malformed header is
    OPAQUE: gunicorn answers it with an error.
    """
    if len(data) < len(_V2_SIGNATURE):
        return NEED_MORE
    if mode != "v1" and data.startswith(_V2_SIGNATURE):
        return _scan_v2(data)
    if mode != "v2" and data.startswith(b"PROXY "):
        return _scan_v1(data)
    return NO_PROXY_HEADER


def _scan_v1(data: bytes) -> ProxyHeader | Partial:
    end = data.find(b"\r\n")
    if end < 0:
        return NEED_MORE
    fields = data[:end].split(b" ")
    if len(fields) != _V1_FIELDS:
        return OPAQUE
    return ProxyHeader(end + 2, fields[2].decode("latin-1"))


def _scan_v2(data: bytes) -> ProxyHeader | Partial:
    if len(data) < _V2_FIXED_BYTES:
        return NEED_MORE
    length = _V2_FIXED_BYTES + int.from_bytes(data[14:16], "big")
    if len(data) < length:
        return NEED_MORE
    size = _V2_ADDRESS_BYTES.get(data[13] >> 4, 0)
    if data[12] & 0x0F == 0 or not size:  # the command LOCAL, or a family without an IP address
        return ProxyHeader(length, None)
    if length < _V2_FIXED_BYTES + 2 * size:
        return OPAQUE
    address = ipaddress.ip_address(data[_V2_FIXED_BYTES : _V2_FIXED_BYTES + size])
    # Gunicorn spells the address with inet_ntop(3), which writes a mapped one like this.
    mapped = getattr(address, "ipv4_mapped", None)
    return ProxyHeader(length, f"::ffff:{mapped}" if mapped else str(address))
