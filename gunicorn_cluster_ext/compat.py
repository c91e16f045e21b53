"""Everything in gunicorn that the pack relies on beyond its documented interface.

Tested with the newest releases of gunicorn 25 (25.3.0), 26 (26.2.0) and 27 (27.0.1).

* ``arbiter.Arbiter``: ``setup``, ``stop``, ``spawn_worker``, ``kill_worker``,
  ``wait_for_signals``, ``handle_hup``, ``handle_usr1``, ``WORKERS``, ``LISTENERS``,
  ``_get_num_workers``/``_set_num_workers``, ``_stats``
  (with ``start_time``), that SIGCHLD wakes the loop and does nothing when no child has ended,
  ``reexec_pid``, ``dirty_arbiter_pid``, ``pidfile``, ``systemd``,
  ``WORKER_BOOT_ERROR``, ``APP_LOAD_ERROR``; that ``reload``, ``manage_workers``,
  ``murder_workers`` and ``reap_workers``, which are replaced, are called by ``run`` through
  ``self``; that ``pre_fork`` runs right before the fork; that ``Worker.check_config`` runs in the
  arbiter. ``app.base``: that ``reload`` makes a new ``cfg`` and exits when it cannot, and that the
  executed file is ``sys.modules["__config__"]``. ``sock.create_sockets``.
* ``workers.base.Worker``: ``age``, ``pid``, ``cfg``, ``sockets``, ``tmp``, ``wsgi``,
  ``notify``, ``nr``, ``max_requests``, ``alive``, ``init_signals``, ``handle_winch``; that every
  class calls ``notify`` when it serves, and not before; that ``post_worker_init`` runs between
  ``load_wsgi`` and ``run``; that the application is ``wsgi``, in ``ASGIWorker`` ``asgi``, and is
  asked for when a connection comes, not before.
* ``workers.gthread``: ``TConn``; in ``ThreadWorker`` ``handle``, ``get_thread_pool``,
  ``handle_exit``, ``_keepalive_after``, ``method_queue``, ``poller``, ``tpool``, ``nr_conns``,
  ``max_keepalived``, ``is_parent_alive``, and that ``handle_request`` asks for
  ``len(self.keepalived_conns)``.
* ``workers.ggevent.GeventWorker``: ``patch``, ``notify``, ``timeout_ctx``, ``worker_connections``,
  ``handle``, ``handle_request``, ``handle_http2_request``; that ``handle`` gets its parser from
  ``http.get_parser``, asks it for each request, and asks its listener for nothing but its name.
* ``workers.gasgi.ASGIWorker``: ``run`` (which calls ``_serve`` and cleans up), ``loop``, ``asgi``,
  ``state``, ``lifespan``, ``nr_conns``, ``worker_connections``, ``_quick_shutdown``,
  ``_get_ssl_context``, the names of its signal handlers. ``asgi.lifespan.LifespanManager``.
  ``asgi.protocol.ASGIProtocol``: ``transport``, ``_callback_parser.reset``, ``_websocket`` with
  ``accepted``, ``closed`` and ``_send_close``, ``_closed`` and ``_conn_lost_handled`` (set, it
  touches the connection no more), ``_pause_reading``, ``_resume_reading``, ``_reading_paused``,
  ``_safe_write``, ``_close_transport``, ``_arm_keepalive_timer``, ``_cancel_keepalive_timer``,
  ``_on_message_complete``, ``_effective_peername``, ``_h2c_upgrade_ok``,
  ``_handle_http_request``, ``_handle_http2_request``, ``_feed_callback_parser``; that its task
  waits for the event ``_request_ready``, which is set when a head is complete, and clears it when
  it wants the next; that it goes on to read ``_closed`` then.
* ``http.parser.Parser``: ``finish_body``, ``unreader``, ``req_count``, ``mesg``; that ``next`` on
  an iterable source raises ``NoMoreData`` exactly when the bytes so far decide nothing.
  ``http.body.LengthReader.length``: what is left of a body.
* ``config.Config``: ``get_cmd_args_from_env``; that ``default_proc_name`` is the application's
  name.
* ``glogging.Logger``: ``error_log``, ``error_fmt``. ``util._setproctitle``.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from gunicorn import http
from gunicorn.http import get_parser
from gunicorn.http.errors import NoMoreData


def command_line(cfg: Any) -> list[str]:
    """Return the words of gunicorn's command line, and those of GUNICORN_CMD_ARGS."""
    return [*sys.argv[1:], *cfg.get_cmd_args_from_env()]


def offer_parser(make: Callable[[Any, Any, Any], Any]) -> None:
    """Let ``make`` make the parsers of ``AsyncWorker.handle``, from now on in this process.

    It is called as ``http.get_parser`` is; where it has None to offer, gunicorn's own is taken.
    """

    def parser(cfg: Any, source: Any, address: Any, http2_connection: bool = False) -> Any:
        ours = None if http2_connection else make(cfg, source, address)
        return get_parser(cfg, source, address, http2_connection) if ours is None else ours

    http.get_parser = parser


def take_buffered(parser: Any) -> bytes:
    """The bytes that ``parser`` has read beyond the last request, which it then forgets.

    ``Unreader.take_buffered`` does this from gunicorn 26 on.
    """
    unreader = parser.unreader
    data: bytes = unreader.buf.getvalue()
    if data:
        unreader.buf.seek(0)
        unreader.buf.truncate()
    return data


def is_read(parser: Any) -> bool:
    """Whether the last request has no body, or one of known length that was read to the end."""
    request = getattr(parser, "mesg", None)
    return request is not None and getattr(request.body.reader, "length", 1) == 0


def is_spent(parser: Any) -> bool:
    """Whether the client can send nothing more: it said so, and its request was read to the end.

    Then a connection can be closed without waiting for the client.
    """
    return is_read(parser) and bool(parser.mesg.should_close())


def is_answerable(cfg: Any, data: bytes, client: Any, requests: int) -> bool:
    """Whether gunicorn's parser has an answer for ``data``, an incomplete head: an error.

    It is asked instead of imitated. Otherwise it would wait for more, and occupy a thread.
    """
    # In two pieces, because some limits are looked at only when more has come.
    pieces = [piece for piece in (data[:-1], data[-1:]) if piece]
    parser = get_parser(cfg, iter(pieces), client)
    parser.req_count = requests
    try:
        next(parser)
    except (NoMoreData, StopIteration):
        return False
    except Exception:
        return True
    return True


def smallest_limit(cfg: Any) -> int:
    """How many bytes of an incomplete head may pass a limit of gunicorn's; 2048 at most."""
    limits: list[int] = [cfg.limit_request_line, cfg.limit_request_field_size]
    return min([2048, *(limit for limit in limits if limit > 0)])


def is_asgi(app: Any) -> bool:
    """Whether ``app`` is an ASGI application: uvicorn's workers have it as ``wsgi``."""
    call = app if inspect.isroutine(app) else type(app).__call__
    return inspect.iscoroutinefunction(call)


def is_tornado(app: Any) -> bool:
    """Whether ``app`` is called with Tornado's own requests: gunicorn's tornado worker looks at its
    class, and takes everything else for a WSGI application."""
    return any(kind.__module__.startswith("tornado.") for kind in type(app).__mro__)


def can_read_heads(cfg: Any) -> bool:
    """Whether the first bytes of a connection are an HTTP/1 request head that may be read.

    Not with TLS, the uwsgi protocol, or HTTP/2 by prior knowledge (gunicorn 26 on).
    """
    h2c = getattr(cfg, "http2_cleartext", "off") in ("prior-knowledge", "both")
    return not cfg.is_ssl and getattr(cfg, "protocol", "http") == "http" and not h2c
