"""Which client a request comes from, when proxies stand in front. No I/O.

``X-Forwarded-For`` is believed from the proxies that gunicorn trusts (``forwarded_allow_ips``).
Its addresses are read from the right; the first that is not a trusted proxy is the client.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from gunicorn_cluster_ext.routing.head import Head

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class TrustedProxies:
    """The proxies that may name the client: those in ``networks``, or ``everyone`` (``*``)."""

    networks: Sequence[Network]
    everyone: bool = False

    def __contains__(self, address: str) -> bool:
        if self.everyone:
            return True
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self.networks)

    def client_ip(self, head: Head) -> bytes | None:
        """Return the client's address, the key of the rule ``hash:ip``.

        Peers on a Unix socket have no address and are trusted, as in gunicorn. Return None if
        such a peer forwards no address.
        """
        if head.client and head.client not in self:
            return head.client.encode()
        forwarded = head.header(b"x-forwarded-for")
        hops = forwarded.decode("latin-1").split(",") if forwarded else []
        addresses = [hop.strip() for hop in hops if hop.strip()]
        for address in reversed(addresses):
            if address not in self:
                return address.encode()
        return (addresses[0] if addresses else head.client).encode() or None
