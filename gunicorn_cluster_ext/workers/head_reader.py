"""The request heads that a worker holds back until it can tell whose they are."""

from __future__ import annotations

from typing import Any

from gunicorn_cluster_ext import compat
from gunicorn_cluster_ext.routing.head import NEED_MORE, OPAQUE, Head, Partial, scan
from gunicorn_cluster_ext.routing.proxy_protocol import ProxyHeader, scan_proxy
from gunicorn_cluster_ext.workers.connection import Connection


class HeadReader:
    """Reads heads as the configuration ``cfg`` wants."""

    def __init__(self, cfg: Any) -> None:
        self._cfg = cfg
        self._proxy_mode = cfg.proxy_protocol
        self._check_step = compat.smallest_limit(cfg)
        #: False where the bytes of a connection are no plain HTTP/1: then its client's address,
        #: known at accept, must do.
        self.are_readable = compat.can_read_heads(cfg)

    def read(self, conn: Connection) -> Head | Partial:
        """Return the Head that ``conn`` has received, NEED_MORE, or OPAQUE.

        The last means that gunicorn is to have the bytes: only it can read them, or it would answer
        this half of a head at once, with an error.
        """
        if not conn.received:
            return NEED_MORE
        if not self.are_readable:
            return OPAQUE
        if self._proxy_mode == "off":
            head = scan(conn.received, conn.address)
        else:
            head = self._scan_proxied(conn)
        if head is NEED_MORE and self._is_answerable(conn):
            return OPAQUE
        return head

    def _scan_proxied(self, conn: Connection) -> Head | Partial:
        if conn.requests:
            # The PROXY protocol names the client once, before the first request.
            before = scan_proxy(conn.proxied, self._proxy_mode)
            client = before.client if isinstance(before, ProxyHeader) else None
            return scan(conn.received, client or conn.address)
        proxied = scan_proxy(conn.received, self._proxy_mode)
        if isinstance(proxied, Partial):
            return proxied
        conn.proxied = conn.received[: proxied.length]
        return scan(conn.received[proxied.length :], proxied.client or conn.address)

    def _is_answerable(self, conn: Connection) -> bool:
        """Return True if gunicorn would answer this half of a head at once.

        Gunicorn is asked when there is something new to check: when the request line is there, at
        a bare line feed, and when a limit may have been passed, but not at every byte of a client
        that sends a few at a time.
        """
        data = conn.received
        lines, feeds = data.count(b"\r\n"), data.count(b"\n")
        news = (lines > 0, feeds != lines, not data[:1].isalpha(), len(data) // self._check_step)
        if news == conn.checked:
            return False
        conn.checked = news
        return compat.is_answerable(self._cfg, data, conn.client, conn.requests)
