"""``gunicorn-cluster systemd``: write a systemd service and its socket.

Their timeouts fit those of the server.
"""

from __future__ import annotations

import argparse
import math
import os
import pwd
import socket
import sys
from pathlib import Path
from typing import Any

from gunicorn_cluster_ext.cli.files import write
from gunicorn_cluster_ext.cli.server import CommandError

PARSER_OPTIONS = {"usage": "%(prog)s [options] -- GUNICORN_ARGUMENTS"}

#: systemd waits so much longer than the server itself does.
_MARGIN_S = 10

_SERVICE_UNIT = """\
# Written by `gunicorn-cluster systemd`. Its timeouts follow from the configuration: write it again
# after changes of graceful_timeout, workers, cluster_startup_timeout or cluster_roll_*.
#
#     systemctl reload {name}      a rolling restart; fails if the deploy is broken
#     systemctl restart {name}     connections wait in {name}.socket meanwhile

[Unit]
Description=gunicorn: {title}
Requires={name}.socket
After=network.target

[Service]
# gunicorn reports that it is ready when it listens, before its workers have loaded the
# application. Clients that connect earlier wait.
Type=notify
NotifyAccess=main
{user}
WorkingDirectory={directory}
ExecStart={python} -m gunicorn {arguments}
ExecReload={python} -m gunicorn_cluster_ext roll --pid $MAINPID --dir %t/{name}

# The directories of the board (`gunicorn-cluster status --dir /run/{name}`) and the embedded store.
RuntimeDirectory={name}
StateDirectory={name}
Environment=GUNICORN_CLUSTER_DIR=%t/{name}

# systemd stops only the master, which stops its workers. graceful_timeout is {graceful:g} s.
KillMode=mixed
TimeoutStopSec={stop}
# This limits a reload as well: {workers} workers, cluster_startup_timeout {startup:g} s.
TimeoutStartSec={start}
# A server whose application cannot be loaded exits with 3 or 4.
Restart=on-failure
RestartSec=2
LimitNOFILE=65536

NoNewPrivileges=true
PrivateTmp=true

[Install]
WantedBy=multi-user.target
"""

_SOCKET_UNIT = """\
# Written by `gunicorn-cluster systemd`. systemd listens, so no connection is refused while gunicorn
# restarts.

[Unit]
Description=Socket of gunicorn: {title}

[Socket]
{streams}
Backlog={backlog}
NoDelay=true

[Install]
WantedBy=sockets.target
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--name", default="gunicorn", help="the name of the units; default: gunicorn"
    )
    parser.add_argument(
        "--user", help="the user of the service; default: the current user, unless root"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(),
        metavar="DIRECTORY",
        help="where to write them; default: .",
    )
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    parser.add_argument("arguments", nargs="+", metavar="GUNICORN_ARGUMENTS")


def run(options: argparse.Namespace) -> int:
    from gunicorn_cluster_ext.cli.files import load_app

    directory, uid = os.getcwd(), os.geteuid()
    cfg = load_app(options.arguments).cfg
    user = options.user or (pwd.getpwuid(uid).pw_name if uid else None)
    files = units(options.name, user, directory, options.arguments, cfg)
    write({options.output / name: text for name, text in files.items()}, force=options.force)
    print(
        "Put them into /etc/systemd/system, then run: systemctl daemon-reload; "
        f"systemctl enable --now {options.name}.socket {options.name}.service"
    )
    return 0


def units(
    name: str, user: str | None, directory: str, arguments: list[str], cfg: Any
) -> dict[str, str]:
    """Return the texts of the units by file name. Raise CommandError."""
    if cfg.daemon:
        raise CommandError(
            "daemon = True: systemd would believe that the server has died; remove it"
        )
    if cfg.reuse_port:
        raise CommandError("reuse_port = True: workers would not use systemd's socket; remove it")
    service = _SERVICE_UNIT.format(
        name=name,
        title=arguments[-1],
        user=f"User={user}" if user else "# User=www-data",
        directory=_escaped(directory),
        python=_quoted(sys.executable),
        arguments=" ".join(_quoted(each) for each in arguments),
        workers=cfg.workers,
        **_timeouts(cfg),
    )
    streams = "\n".join(f"ListenStream={_stream(address)}" for address in cfg.address)
    listening = _SOCKET_UNIT.format(title=arguments[-1], streams=streams, backlog=cfg.backlog)
    return {f"{name}.service": service, f"{name}.socket": listening}


def _timeouts(cfg: Any) -> dict[str, Any]:
    from gunicorn_cluster_ext.settings import of_config

    settings = of_config(cfg)
    drain = settings.drain(cfg)
    # Without a surge each worker drains before its successor starts.
    per_worker = settings.startup_timeout + (0 if settings.roll_surge else drain)
    roll = cfg.workers * per_worker + settings.roll_observe + _MARGIN_S
    return {
        "graceful": cfg.graceful_timeout,
        "startup": settings.startup_timeout,
        "stop": math.ceil(cfg.graceful_timeout) + _MARGIN_S,
        "start": math.ceil(roll) if settings.startup_timeout else "infinity",
    }


def _stream(address: Any) -> str:
    """Return an address for ListenStream=, which resolves no names (systemd.socket(5))."""
    if isinstance(address, int):
        raise CommandError(f"bind = fd://{address}: another program owns this socket already")
    if isinstance(address, str):
        is_abstract = address.startswith("\0")
        return _escaped("@" + address[1:] if is_abstract else os.path.abspath(address))
    host, port = address
    found = str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
    return f"[{found}]:{port}" if ":" in found else f"{found}:{port}"


def _quoted(argument: str) -> str:
    """Return an argument of a command line, quoted (systemd.service(5))."""
    text = _escaped(argument).replace("$", "$$").replace("\\", "\\\\").replace('"', '\\"')
    return text if text and not set(text) & set(" \t\"';\\") else f'"{text}"'


def _escaped(text: str) -> str:
    return text.replace("%", "%%")
