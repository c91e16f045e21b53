"""Everything in gunicorn that the pack relies on beyond its documented interface.

Tested with the newest releases of gunicorn 25 (25.3.0), 26 (26.2.0) and 27 (27.0.1).

* ``arbiter.Arbiter``: ``setup``, ``stop``, ``spawn_worker``, ``kill_worker``,
  ``wait_for_signals``, ``handle_hup``, ``handle_usr1``, ``WORKERS``, ``LISTENERS``, ``timeout``,
  ``_get_num_workers``/``_set_num_workers``, ``_stats``
  (with ``start_time``), ``reexec_pid``, ``dirty_arbiter_pid``, ``dirty_arbiter``, ``pidfile``,
  ``systemd``, ``proc_name``, ``WORKER_BOOT_ERROR``, ``APP_LOAD_ERROR``; that SIGCHLD wakes the loop
  and does nothing when no child has ended; that ``run`` calls ``reload``, ``manage_workers``,
  ``murder_workers`` and ``reap_workers``, which are replaced, through ``self``; that ``pre_fork``
  runs right before the fork; that ``Worker.check_config`` runs in the arbiter.
* ``app.base``: that ``reload`` makes a new ``cfg`` and exits when it cannot, and that the executed
  file is ``sys.modules["__config__"]``. ``app.wsgiapp.WSGIApplication``.
* ``sock.create_sockets``, ``sock.ssl_context``, ``BaseSocket.get_backlog``. ``pidfile.Pidfile``.
* ``workers.base.Worker``: ``age``, ``pid``, ``ppid``, ``cfg``, ``sockets``, ``tmp``, ``wsgi``,
  ``notify``, ``nr``, ``max_requests``, ``alive``, ``booted``, ``aborted``, ``init_signals``,
  ``handle_winch``; that every class calls ``notify`` when it serves, and not before; that
  ``post_worker_init`` runs between ``load_wsgi`` and ``run``; that the application is ``wsgi``, in
  ``ASGIWorker`` ``asgi``, and is looked up when a connection arrives, not before.
* ``workers.gthread``: ``TConn`` with ``initialized``, ``is_http2`` and ``data_ready``; in
  ``ThreadWorker`` ``accept``, ``_accepting``, ``handle``, ``get_thread_pool``, ``handle_exit``,
  ``_keepalive_after``, ``method_queue``, ``poller``, ``tpool``, ``nr_conns``, ``is_parent_alive``;
  that ``handle_request`` reads ``len(self.keepalived_conns)``.
* ``workers.ggevent.GeventWorker``: ``patch``, ``notify``, ``timeout_ctx``, ``worker_connections``,
  ``handle``, ``handle_request``, ``handle_http2_request``, ``handle_quit``; that ``handle`` gets
  its parser from ``http.get_parser``, takes each request from it, and asks its listener only for
  its name.
* ``workers.gasgi.ASGIWorker``: ``run`` (which calls ``_serve`` and cleans up), ``loop``, ``asgi``,
  ``state``, ``lifespan``, ``nr_conns``, ``worker_connections``, ``_quick_shutdown``,
  ``_get_ssl_context``, the names of its signal handlers. ``asgi.lifespan.LifespanManager``.
* ``asgi.protocol.ASGIProtocol``: ``transport``, ``_callback_parser.reset``, ``_websocket`` with
  ``accepted``, ``closed`` and ``_send_close``, ``_closed`` and ``_conn_lost_handled`` (once set,
  the protocol no longer touches the connection), ``_pause_reading``, ``_resume_reading``,
  ``_reading_paused``, ``_safe_write``, ``_close_transport``, ``_arm_keepalive_timer``,
  ``_cancel_keepalive_timer``, ``_on_message_complete``, ``_effective_peername``,
  ``_h2c_upgrade_ok``, ``_handle_http_request``, ``_handle_http2_request``,
  ``_feed_callback_parser``; that its task waits for the event ``_request_ready``, which is set when
  a head is complete, clears it when it wants the next request, and then reads ``_closed``.
* ``http.parser.Parser``: ``finish_body``, ``unreader`` (with ``buf`` and ``unread``),
  ``req_count``, ``mesg``; that ``next`` on an iterable source raises ``NoMoreData`` exactly when
  the bytes so far decide nothing. ``http.body.LengthReader.length``: the unread part of a body.
* ``config.Config``: that ``set(name, value)`` sets a setting, and that ``default_proc_name`` is the
  application's name; ``env_orig``, ``worker_class_str``, ``forwarded_allow_networks``,
  ``get_cmd_args_from_env``.
* ``glogging.Logger``: ``error_log``, ``error_fmt``. ``util._setproctitle``, ``util.get_arity``.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any, Final

from gunicorn import http, version_info
from gunicorn.http import get_parser
from gunicorn.http.errors import NoMoreData

#: Judging an incomplete head takes longer the more of it there is, so it is not done for every
#: few bytes.
_MAX_STEP_BYTES: Final = 2048


def command_line(cfg: Any) -> list[str]:
    """Return the words of gunicorn's command line, and those of GUNICORN_CMD_ARGS."""
    return [*sys.argv[1:], *cfg.get_cmd_args_from_env()]


def setting_of(error: BaseException) -> str | None:
    """Return the gunicorn setting whose value raised ``error``, as far as its traceback tells."""
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code.co_name == "set" and frame.f_globals.get("__name__") == "gunicorn.config":
            if isinstance(name := frame.f_locals.get("name"), str):
                return name
        traceback = traceback.tb_next
    return None


def has_kept_logging(log: Any, cfg: Any) -> bool:
    """Return whether ``Arbiter.setup`` kept the previous logging, because that of ``cfg`` failed.

    Gunicorn 27 does so, and only logs why. Before that a reload left logging as it was.
    """
    return version_info >= (27,) and getattr(log, "cfg", cfg) is not cfg


def offer_parser(make: Callable[[Any, Any, Any], Any]) -> None:
    """Have ``make`` create the parsers of ``AsyncWorker.handle`` in this process from now on.

    It gets the arguments of ``http.get_parser``. If it returns None, gunicorn's parser is used.
    """

    def parser(cfg: Any, source: Any, address: Any, http2_connection: bool = False) -> Any:
        ours = None if http2_connection else make(cfg, source, address)
        return get_parser(cfg, source, address, http2_connection) if ours is None else ours

    http.get_parser = parser


def take_buffered(parser: Any) -> bytes:
    """Remove and return the bytes that ``parser`` has read beyond the last request.

    ``Unreader.take_buffered`` does this from gunicorn 26 on.
    """
    unreader = parser.unreader
    data: bytes = unreader.buf.getvalue()
    if data:
        unreader.buf.seek(0)
        unreader.buf.truncate()
    return data


def is_read(parser: Any) -> bool:
    """Return whether the last request has no body, or one of known length that was read fully."""
    request = getattr(parser, "mesg", None)
    return request is not None and getattr(request.body.reader, "length", 1) == 0


def is_spent(parser: Any) -> bool:
    """Return whether the client will send nothing more on this connection.

    That is so if it asked to close the connection and its request was read fully. The connection
    can then be closed without waiting for the client.
    """
    return is_read(parser) and bool(parser.mesg.should_close())


def is_answerable(cfg: Any, data: bytes, client: Any, requests: int) -> bool:
    """Return whether gunicorn's parser rejects ``data``, an incomplete head, without waiting for
    more.

    Such a head can go to a thread at once; any other would occupy the thread while the parser
    waits. The parser itself is asked, so that nothing has to be imitated.
    """
    # In two pieces, because the parser checks some limits only when it reads more.
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
    """Return after how many bytes of an incomplete head one of gunicorn's limits may be passed.

    At most ``_MAX_STEP_BYTES``, because the limit on the number of fields is not one of bytes.
    """
    limits: list[int] = [cfg.limit_request_line, cfg.limit_request_field_size]
    return min([_MAX_STEP_BYTES, *(limit for limit in limits if limit > 0)])


def is_asgi(app: Any) -> bool:
    """Return whether ``app`` is an ASGI application; uvicorn's workers have it as ``wsgi``."""
    call = app if inspect.isroutine(app) else type(app).__call__
    return inspect.iscoroutinefunction(call)


def is_tornado(app: Any) -> bool:
    """Return whether ``app`` is a Tornado application, which gets Tornado's own requests.

    Gunicorn's tornado worker recognises it by its class and treats all others as WSGI.
    """
    return any(kind.__module__.startswith("tornado.") for kind in type(app).__mro__)


def can_read_heads(cfg: Any) -> bool:
    """Return whether the first bytes of a connection are a readable HTTP/1 request head.

    They are not with TLS, the uwsgi protocol, or HTTP/2 by prior knowledge (gunicorn 26 on).
    """
    h2c = getattr(cfg, "http2_cleartext", "off") in ("prior-knowledge", "both")
    return not cfg.is_ssl and getattr(cfg, "protocol", "http") == "http" and not h2c
