"""Whose word on the client's address counts. No I/O.

``X-Forwarded-For`` is believed from the proxies that gunicorn believes
(``forwarded_allow_ips``), and only as far as they vouch: read from the right, the first
address that is no such proxy is the client.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from gunicorn_cluster_ext.routing.head import Head

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class TrustedProxies:
    """The proxies that may say who the client is; ``everyone`` is gunicorn's ``*``."""

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
        """The client's address: the hash key of ``hash:ip``.

        Peers on a Unix socket have no address and are trusted, as gunicorn has it; without
        a forwarded address such a request has no key.
        """
        if head.client and head.client not in self:
            return head.client.encode()
        forwarded = head.header(b"x-forwarded-for")
        hops = forwarded.decode("latin-1").split(",") if forwarded else []
        addresses = [hop.strip() for hop in hops if hop.strip()]
        return (self._behind(addresses) if addresses else head.client).encode() or None

    def _behind(self, addresses: list[str]) -> str:
        for address in reversed(addresses):
            if address not in self:
                return address
        return addresses[0]
