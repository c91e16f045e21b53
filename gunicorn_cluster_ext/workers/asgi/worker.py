"""StickyASGI: gunicorn's asgi worker, which decides for every request where it is served."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from typing import Any, Final

from gunicorn.arbiter import Arbiter
from gunicorn.asgi import lifespan
from gunicorn.workers.gasgi import ASGIWorker

from gunicorn_cluster_ext.workers.asgi.loop import AsyncioWorker
from gunicorn_cluster_ext.workers.asgi.protocol import READ_SIZE, ASGIConnection
from gunicorn_cluster_ext.workers.lifecycle import DRAIN_INTERVAL_S

#: How much of the drain timeout is left for WebSockets to close.
WEBSOCKET_CLOSE_S: Final = 1.0


class StickyASGI(AsyncioWorker[ASGIConnection], ASGIWorker):
    """An asgi worker for applications that keep state between requests.

    ``worker_class = "gunicorn_cluster_ext.StickyASGI"`` is all that is needed; see the setting
    ``cluster_sticky``.
    """

    farewell_s = WEBSOCKET_CLOSE_S

    async def _serve(self) -> None:
        """Called by gunicorn when the application is loaded."""
        await self._start_application()
        await self.live()
        if self.lifespan is not None and not self._quick_shutdown:
            try:
                await self.lifespan.shutdown()
            except Exception as error:
                self.log.error("ASGI lifespan shutdown error: %s", error)

    async def _start_application(self) -> None:
        mode = getattr(self.cfg, "asgi_lifespan", "auto")
        if mode == "off":
            return
        manager = lifespan.LifespanManager(self.asgi, self.log, self.state)
        try:
            await manager.startup()
        except Exception as error:
            if mode == "on" or isinstance(error, _REPORTED):
                self.log.error("ASGI lifespan startup failed: %s", error)
                raise SystemExit(Arbiter.WORKER_BOOT_ERROR) from None
            self.log.debug("ASGI lifespan not supported by the application: %s", error)
        else:
            self.lifespan = manager

    def open_loop(self) -> None:
        self.buffer = memoryview(bytearray(READ_SIZE))
        self.ssl_context = self._get_ssl_context()
        super().open_loop()

    async def turn(self, timeout: float) -> bool:
        return await super().turn(timeout) and not self._quick_shutdown

    def make_connection(self, sock: socket.socket, client: Any, server: Any) -> ASGIConnection:
        return ASGIConnection(self, sock, client, server)

    async def end_drain(self) -> None:
        """Tell the clients of WebSockets to come again, and let them go."""
        if self._quick_shutdown:
            return
        restarts = [conn.restart() for conn in self.conns]
        await asyncio.gather(*restarts, return_exceptions=True)
        deadline = time.monotonic() + WEBSOCKET_CLOSE_S / 2
        while self._websockets and time.monotonic() < deadline:
            await self.turn(DRAIN_INTERVAL_S)

    # --- signals, called by the event loop ----------------------------------------------------

    def handle_exit_signal(self) -> None:
        """SIGTERM: finish."""
        self.handle_exit(signal.SIGTERM, None)

    def handle_quit_signal(self) -> None:
        """SIGINT and SIGQUIT: end at once."""
        super().handle_quit_signal()
        self.wake()

    def handle_winch_signal(self) -> None:
        """SIGWINCH: the arbiter has written an order on the board."""
        self.wake()


#: What gunicorn 27 raises for an application that reports that it could not start.
_REPORTED: Final = getattr(lifespan, "LifespanStartupFailed", ())
