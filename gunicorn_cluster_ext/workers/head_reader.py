"""The request heads that a worker holds back until it can tell whose they are."""

from __future__ import annotations

from typing import Any

from gunicorn_cluster_ext import compat
from gunicorn_cluster_ext.routing.head import NEED_MORE, OPAQUE, scan
from gunicorn_cluster_ext.routing.proxy_protocol import NO_PROXY_HEADER, ProxyHeader, scan_proxy
from gunicorn_cluster_ext.workers.connection import Arrival


class Heads:
    """Reads them as the configuration ``cfg`` wants."""

    def __init__(self, cfg: Any) -> None:
        self._cfg = cfg
        self._proxy_mode = cfg.proxy_protocol
        self._judge_step = compat.smallest_limit(cfg)
        #: Whether they can be read at all: otherwise what is known at accept must do.
        self.are_readable = compat.can_read_heads(cfg)

    def scan(self, conn: Arrival) -> Any:
        """The Head that ``conn`` has received, NEED_MORE, or OPAQUE."""
        mode = self._proxy_mode
        if mode == "off":
            return scan(conn.received, conn.address)
        if conn.requests:
            return scan(conn.received, self._client_of(conn))
        proxied = scan_proxy(conn.received, mode)
        if proxied is NEED_MORE or proxied is OPAQUE:
            return proxied
        if proxied is NO_PROXY_HEADER:
            return scan(conn.received, conn.address)
        conn.proxied = conn.received[: proxied.length]
        return scan(conn.received[proxied.length :], proxied.client or conn.address)

    def _client_of(self, conn: Arrival) -> str:
        """The PROXY protocol names the client once, before the first request."""
        proxied = scan_proxy(conn.proxied, self._proxy_mode)
        return (proxied.client if isinstance(proxied, ProxyHeader) else None) or conn.address

    def have_answer(self, conn: Arrival) -> bool:
        """Whether gunicorn would answer this half of a head at once, with an error.

        It is asked when there is something new to judge: when the request line is there, at a
        bare line feed, and when a limit may have been passed, but not at every byte of a
        client that dribbles.
        """
        data = conn.received
        lines, feeds = data.count(b"\r\n"), data.count(b"\n")
        news = (lines > 0, feeds != lines, not data[:1].isalpha(), len(data) // self._judge_step)
        if news == conn.judged:
            return False
        conn.judged = news
        return compat.is_answerable(self._cfg, data, conn.client, conn.requests)
