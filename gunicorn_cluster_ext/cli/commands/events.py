"""``gunicorn-cluster events``: what happened to a server and its workers."""

from __future__ import annotations

import argparse
import select
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import msgspec

from gunicorn_cluster_ext.cli.server import CommandError, add_choice, choose
from gunicorn_cluster_ext.runtime import event_log
from gunicorn_cluster_ext.runtime.discovery import Server
from gunicorn_cluster_ext.runtime.event_log import Event


def add(commands: Any) -> None:
    parser = commands.add_parser("events", help="what happened: boots, exits, rolls, reloads")
    add_choice(parser)
    parser.add_argument("-n", "--lines", type=int, help="only the last so many of those there are")
    parser.add_argument("-f", "--follow", action="store_true", help="and what happens from now on")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    server = choose(options)
    told = _json if options.json else _words
    with closing(event_log.Tail(server.directory)) as tail:
        try:
            for event in _events(server, tail, options):
                print(told(event), flush=options.follow)
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
        runs = server.is_running
        yield from tail.read()
        # No more when the server has ended, or nobody reads it any more: a pipe may be closed.
        if not runs or output.poll(_PAUSE):
            return


#: Milliseconds between two looks for more.
_PAUSE = 200


def _json(event: Event) -> str:
    return msgspec.json.encode(event).decode()


def _words(event: Event) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
    lost = f" ({event.lost} events before it were lost)" if event.lost else ""
    who = "" if event.worker is None else f" worker {event.worker}.{event.generation}"
    pid = "" if event.pid is None else f" pid {event.pid}"
    text = f": {event.text}" if event.text else ""
    return f"{at} {event.event}{who}{pid}{text}{lost}"
