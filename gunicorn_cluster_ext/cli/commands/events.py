"""``gunicorn-cluster events``: print what happened: starts, exits, rolls, reloads."""

from __future__ import annotations

import argparse
import select
import sys
import time
from collections.abc import Iterator
from contextlib import closing

import msgspec

from gunicorn_cluster_ext.cli.server import CommandError, add_server_options, find_server
from gunicorn_cluster_ext.runtime import event_log
from gunicorn_cluster_ext.runtime.discovery import Server
from gunicorn_cluster_ext.runtime.event_log import Event

_FOLLOW_INTERVAL_MS = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_options(parser)
    parser.add_argument("-n", "--lines", type=int, help="print only this many of the last events")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="print new events until the server ends"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")


def run(options: argparse.Namespace) -> int:
    server = find_server(options)
    form = _as_json if options.json else _as_text
    with closing(event_log.Tail(server.directory)) as tail:
        try:
            for event in _events(server, tail, options):
                print(form(event), flush=options.follow)
        except KeyboardInterrupt:
            if not options.follow:
                raise
    return 0


def _events(server: Server, tail: event_log.Tail, options: argparse.Namespace) -> Iterator[Event]:
    try:
        seen = [*event_log.older(server.directory), *tail.read()]
    except OSError as error:
        raise CommandError(f"the events of server {server.pid} cannot be read: {error}") from None
    yield from seen if options.lines is None else seen[len(seen) - options.lines :]
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    while options.follow:
        # Read once more after the server's last sign of life: it writes events until its end.
        is_last = not server.is_running
        yield from tail.read()
        # The poll reports an error when the reader of a pipe has closed it.
        if is_last or output.poll(_FOLLOW_INTERVAL_MS):
            return


def _as_json(event: Event) -> str:
    return msgspec.json.encode(event).decode()


def _as_text(event: Event) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
    lost = f" ({event.lost} events before it were lost)" if event.lost else ""
    who = "" if event.worker is None else f" worker {event.worker}.{event.generation}"
    pid = "" if event.pid is None else f" pid {event.pid}"
    text = f": {event.text}" if event.text else ""
    return f"{at} {event.event}{who}{pid}{text}{lost}"
