"""Applications for every worker class: what WSGI has, asgi has too, in a thread for each request.

app = Both(app)                 a WSGI application
app = Both(app, asgi_app)       with one that is written for asgi

asyncio is imported where it is used: workers for WSGI import the application after the fork, and
this would be a third of what that costs each of them.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Awaitable, Callable, Iterable
from threading import Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

Environ = dict[str, Any]
Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
WSGI = Callable[..., Iterable[bytes]]
ASGI = Callable[[Scope, Receive, Send], Awaitable[None]]


class Both:
    def __init__(self, wsgi: WSGI, asgi: ASGI | None = None) -> None:
        self._wsgi = wsgi
        self._asgi = asgi or self._in_a_thread

    def __call__(self, *args: Any) -> Any:
        """Called with two arguments by a WSGI server, with three by one for asgi."""
        return self._wsgi(*args) if len(args) == 2 else self._asgi(*args)

    async def _in_a_thread(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError(f"nothing is here for {scope['type']}")
        call = _Call(self._wsgi, environ(scope, await read(receive)), send)
        await call.answered


class _Call:
    """One call of a WSGI application, in a thread that nobody waits for when the process ends."""

    def __init__(self, app: WSGI, request: Environ, send: Send) -> None:
        self._app, self._request, self._send = app, request, send
        import asyncio

        self._loop = asyncio.get_running_loop()
        self.answered: asyncio.Future[None] = self._loop.create_future()
        Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            result = self._app(self._request, self._start)
            for chunk in result:
                self._tell({"type": "http.response.body", "body": chunk, "more_body": True})
            self._tell({"type": "http.response.body"})
        except BaseException as error:
            self._settle(error)
        else:
            self._settle(None)

    def _start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
        self._tell({"type": "http.response.start", "status": int(status[:3]), "headers": encoded})

    def _tell(self, message: Message) -> None:
        import asyncio

        asyncio.run_coroutine_threadsafe(self._sent(message), self._loop).result()

    async def _sent(self, message: Message) -> None:
        await self._send(message)

    def _settle(self, error: BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._finish, error)
        except RuntimeError:
            pass  # the process ends, and its loop is closed

    def _finish(self, error: BaseException | None) -> None:
        if self.answered.done():
            return
        if error is None:
            self.answered.set_result(None)
        else:
            self.answered.set_exception(RuntimeError(repr(error)))


async def read(receive: Receive) -> bytes:
    """The body of a request."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def answer(
    send: Send, body: bytes, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """A whole response."""
    length = (b"content-length", b"%d" % len(body))
    await send(
        {"type": "http.response.start", "status": status, "headers": [*headers, length]},
    )
    await send({"type": "http.response.body", "body": body})


def environ(scope: Scope, body: bytes = b"") -> Environ:
    """A request as WSGI has it."""
    client = scope.get("client") or ("", "")
    made = {
        "REQUEST_METHOD": scope["method"],
        "PATH_INFO": scope["path"],
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "REMOTE_ADDR": client[0],
        "REMOTE_PORT": str(client[1]),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "gunicorn_cluster.worker_id": scope.get("gunicorn_cluster.worker_id"),
    }
    for name, value in scope["headers"]:
        key = f"HTTP_{name.decode('latin-1').upper().replace('-', '_')}"
        made[key] = value.decode("latin-1")
    return made
