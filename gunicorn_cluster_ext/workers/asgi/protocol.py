"""A connection of ``StickyASGI``: gunicorn's own protocol, which is given whole heads only.

    bytes --> Entrance --> ASGIConnection --> gunicorn's ASGIProtocol
                             holds them until it is known whose request they begin

From a head to the end of its request all bytes are gunicorn's. What comes after that is held until
the request has been answered. A connection is handed over between two requests only, when nothing
of it is left in this process: no task of gunicorn's, no byte that was not sent.

Closing our copy of a connection must not end it. asyncio and uvloop close the descriptor when a
transport is aborted, and call shutdown(2) only for ``write_eof``; gunicorn, which does call that,
leaves alone what it takes for closed.

**The end of a request.** gunicorn clears an event when it wants the next head; ours tells the
connection so. What the client sends between the end of its request and that moment is held, since
gunicorn would serve it here, and before gunicorn 27 lose it.

**How much is read.** asyncio reads up to 256 kB at once, more than a message carries, and the head
of an upload would be stuck with its body. So the loop sees a ``BufferedProtocol`` that offers 16
kB while a head is awaited, and 256 kB otherwise.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from gunicorn.asgi.protocol import ASGIProtocol

from gunicorn_cluster_ext.workers.asgi.loop import AsyncioConnection
from gunicorn_cluster_ext.workers.connection import (
    HEAD_READ_SIZE,
    NOTHING_CHECKED,
    ip_of,
    refusal,
)

if TYPE_CHECKING:
    from gunicorn_cluster_ext.workers.asgi.worker import StickyASGI

#: Bytes read at once while no head is awaited, as asyncio does.
READ_SIZE: Final = 256 * 1024
#: Code and reason of the WebSocket close (RFC 6455 section 7.4 and the IANA registry).
SERVICE_RESTART: Final = (1012, "service restart")


class ASGIConnection(AsyncioConnection, ASGIProtocol):
    """A connection as gunicorn's protocol.

    It has ``begun`` from a request's head on until the request is answered, and for good where
    heads cannot be read or HTTP/1 has ended (WebSocket, HTTP/2).
    """

    worker: StickyASGI

    begun = False
    #: True when the request has been read to its end, unless heads cannot be read here.
    is_read = False
    #: True where heads cannot be read (TLS, HTTP/2): then all bytes are gunicorn's.
    is_opaque = False

    _is_opening = False
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, worker: StickyASGI, sock: socket.socket, client: Any, server: Any) -> None:
        super().__init__(worker)
        self.sock = sock
        self.fd = sock.fileno()
        self.client, self.server = client, server
        self.address = ip_of(client)

    # --- what the worker decides ----------------------------------------------------------

    def wait(self) -> None:
        if self.received:
            self._cancel_keepalive_timer()
            self._await_rest()
        self._open()
        self._resume_reading()

    def pause(self) -> None:
        self._cancel_timer()
        self._open()
        self._pause_reading()

    def serve(self) -> None:
        self._cancel_timer()
        self._cancel_keepalive_timer()
        self.begun, self.is_read = True, False
        if self.transport is None:
            self._open()
        else:
            self._feed()

    def refuse(self, status: int, reason: str, headers: str) -> None:
        self._cancel_timer()
        self._safe_write(refusal(status, reason, headers))
        self._close_transport()

    def release(self) -> None:
        self._cancel_timer()
        if self.transport is None:
            self._closed = True
            if not self._is_opening:
                self.sock.close()
            return
        self._cancel_keepalive_timer()
        # Seeing this, gunicorn neither shuts the connection down nor counts it once more; and
        # its task ends when what the application still does after its last answer is done.
        self._closed = self._conn_lost_handled = True
        self.worker.nr_conns -= 1
        if self._request_ready is not None:
            self._request_ready.set()
        self.transport.abort()

    def can_move(self) -> bool:
        """Return True if the client was sent all that was written, and may ask for more."""
        transport = self.transport
        if transport is None:
            return True
        return not (transport.is_closing() or transport.get_write_buffer_size())

    def can_answer(self) -> bool:
        return self.transport is not None

    async def restart(self) -> None:
        """Tell a WebSocket's client to connect again."""
        websocket = self._websocket
        if websocket is not None and websocket.accepted and not websocket.closed:
            await websocket._send_close(*SERVICE_RESTART)

    # --- called by the event loop -----------------------------------------------------------

    def _open(self) -> None:
        if not self._is_opening:
            self._is_opening = True
            self.worker.loop.create_task(self._connect())

    async def _connect(self) -> None:
        worker = self.worker
        if self._closed:
            self.sock.close()
            return
        try:
            await worker.loop.connect_accepted_socket(
                lambda: Entrance(self, worker.buffer), self.sock, ssl=worker.ssl_context
            )
        except OSError as error:  # a TLS handshake that fails, too
            self.log.debug("A connection ended before it began: %s", error)
            self.sock.close()
            worker.forget(self)

    def connection_made(self, transport: Any) -> None:
        if self._closed:  # it was handed over meanwhile
            self._conn_lost_handled = True
            transport.abort()
            return
        super().connection_made(transport)
        if not self.worker.head_reader.are_readable:
            self.begun = self.is_opaque = True
            return
        self._request_ready = Flag(self._answered)
        if self.served:
            # Other workers have served requests on it, so no PROXY protocol header can follow.
            self._callback_parser.reset()
            if not self.begun:
                # After gunicorn's task has begun, which (before 27) begins by cancelling it.
                self.worker.loop.call_soon(self._await_next)
        if self.begun:
            self._feed()
        elif self._reading_paused:
            transport.pause_reading()

    def _await_next(self) -> None:
        if not (self.begun or self.received or self._closed):
            self._arm_keepalive_timer()

    def data_received(self, data: bytes) -> None:
        if self.awaits_head():
            self.received = self.received + data if self.received else data
            if not self.begun:
                self.worker.advance(self)
            elif len(self.received) >= HEAD_READ_SIZE:
                self._pause_reading()
        else:
            super().data_received(data)

    def awaits_head(self) -> bool:
        """Return True if what comes next belongs to the next request.

        A client may have an answer before gunicorn knows that it is complete.
        """
        if self.begun and (self.is_websocket or getattr(self, "_h2c_upgrade_ok", False)):
            return False  # no more requests may follow
        return self.is_read or not self.begun

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        super().connection_lost(exc)
        self.worker.forget(self)

    # --- called by gunicorn -----------------------------------------------------------------

    def _answered(self) -> None:
        """Called when a request has been answered, and the next one may come."""
        if self.transport.is_closing():
            return  # its descriptor may be another connection's by now
        self._cancel_timer()
        self.served += 1
        self.hops, self.checked = 0, NOTHING_CHECKED
        self.begun = self.owned = False
        self.worker.on_keepalive(self)
        if self.received:
            self.worker.loop.call_soon(self._advance)

    def _advance(self) -> None:
        if not (self.begun or self._closed):
            self.worker.advance(self)

    def _on_message_complete(self) -> None:
        super()._on_message_complete()
        self.is_read = not self.is_opaque

    def _feed_callback_parser(self, data: bytes) -> bool:
        """Called by gunicorn: its version 27 reads ahead, and comes here with what it has read."""
        if self.transport.is_closing():
            return False
        if self.begun:
            return bool(super()._feed_callback_parser(data))
        self.received = data + self.received
        self.worker.advance(self)
        return not self._closed

    def _effective_peername(self, peername: Any) -> Any:
        """Return the client. The PROXY protocol names it before the first request only."""
        if not self.served:
            self.client = super()._effective_peername(peername)
            self.address = ip_of(self.client)
        return self.client

    async def _handle_http_request(self, *args: Any, **kwargs: Any) -> Any:
        self.worker.call_begins(self)
        try:
            return await super()._handle_http_request(*args, **kwargs)
        finally:
            self.worker.call_ends(self)

    async def _handle_http2_request(self, *args: Any, **kwargs: Any) -> Any:
        self.worker.call_begins(self)
        try:
            return await super()._handle_http2_request(*args, **kwargs)
        finally:
            self.worker.call_ends(self)

    # --- pieces -----------------------------------------------------------------------------

    def _feed(self) -> None:
        if self._reading_paused:
            self._resume_reading()
        data, self.received = self.received, b""
        super().data_received(data)
        # What looked like an error, gunicorn may still want the rest of.
        if not (self._request_ready.is_set() or self._closed):
            self._await_rest()

    def _await_rest(self) -> None:
        """Limit the time that a head that has begun may take."""
        if self._timer is None:
            self._timer = self.worker.loop.call_later(self.worker.head_timeout, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        if not (self._closed or self._request_ready.is_set()):
            self.worker.on_late_head(self)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Flag(asyncio.Event):
    """The event that a request's head is there. Gunicorn clears it when it wants the next."""

    def __init__(self, cleared: Callable[[], None]) -> None:
        super().__init__()
        self._cleared = cleared

    def clear(self) -> None:
        super().clear()
        self._cleared()


class Entrance(asyncio.BufferedProtocol):
    """The protocol that the event loop has of a connection: it decides how much is read at once.

    uvloop does not ask an ``asyncio.Protocol`` for a buffer, and gunicorn's protocol is one.
    """

    def __init__(self, conn: ASGIConnection, buffer: memoryview) -> None:
        self._conn = conn
        self._buffer = buffer
        self._small = buffer[:HEAD_READ_SIZE]

    def connection_made(self, transport: Any) -> None:
        self._conn.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._conn.connection_lost(exc)

    def pause_writing(self) -> None:
        self._conn.pause_writing()

    def resume_writing(self) -> None:
        self._conn.resume_writing()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._small if self._conn.awaits_head() else self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._conn.data_received(bytes(self._buffer[:nbytes]))
