"""``gunicorn-cluster systemd``: a service and its socket, with limits that agree with ours."""

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

#: Seconds that systemd waits longer than we do.
_MARGIN = 10

_SERVICE = """\
# Written by `gunicorn-cluster systemd`. Its times follow from the configuration: write it anew
# when you change graceful_timeout, workers, or cluster_* settings of rolls.
#
#     systemctl reload {name}      a rolling restart; fails if the deploy is broken
#     systemctl restart {name}     connections wait in {name}.socket meanwhile

[Unit]
Description=gunicorn: {title}
Requires={name}.socket
After=network.target

[Service]
# gunicorn says that it is ready when it listens, which is before its workers have loaded the
# application. Who connects earlier waits.
Type=notify
NotifyAccess=main
{user}
WorkingDirectory={directory}
ExecStart={python} -m gunicorn {arguments}
ExecReload={python} -m gunicorn_cluster_ext roll --pid $MAINPID --dir %t/{name}

# The board, for `gunicorn-cluster --dir /run/{name}`; and the embedded store.
RuntimeDirectory={name}
StateDirectory={name}
Environment=GUNICORN_CLUSTER_DIR=%t/{name}

# Only the master is told to stop, and tells its workers. graceful_timeout is {graceful:g} s.
KillMode=mixed
TimeoutStopSec={stop}
# Also for a reload: {workers} workers, cluster_startup_timeout {startup:g} s.
TimeoutStartSec={start}
# A server whose application cannot be loaded ends with 3 or 4.
Restart=on-failure
RestartSec=2
LimitNOFILE=65536

NoNewPrivileges=true
PrivateTmp=true

[Install]
WantedBy=multi-user.target
"""

_SOCKET = """\
# Written by `gunicorn-cluster systemd`. It is systemd that listens, so nobody is refused while
# gunicorn restarts.

[Unit]
Description=Socket of gunicorn: {title}

[Socket]
{streams}
Backlog={backlog}
NoDelay=true

[Install]
WantedBy=sockets.target
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "systemd",
        help="write a systemd service and its socket",
        usage="%(prog)s [options] -- GUNICORN_ARGUMENTS",
    )
    parser.add_argument("--name", default="gunicorn", help="of the units; default: gunicorn")
    parser.add_argument("--user", help="as whom it runs; default: who calls this, unless root")
    parser.add_argument(
        "--output", type=Path, default=Path(), metavar="DIRECTORY", help="default: ."
    )
    parser.add_argument("--force", action="store_true", help="also over files that are there")
    parser.add_argument("arguments", nargs="+", metavar="GUNICORN_ARGUMENTS")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from gunicorn_cluster_ext.cli.files import load

    directory = os.getcwd()
    cfg = load(options.arguments).cfg
    files = units(options.name, options.user or _me(), directory, options.arguments, cfg)
    write({options.output / name: text for name, text in files.items()}, force=options.force)
    print(
        f"Put them into /etc/systemd/system; then: systemctl daemon-reload; "
        f"systemctl enable --now {options.name}.socket {options.name}.service"
    )
    return 0


def _me() -> str | None:
    uid = os.geteuid()
    return pwd.getpwuid(uid).pw_name if uid else None


def units(
    name: str, user: str | None, directory: str, arguments: list[str], cfg: Any
) -> dict[str, str]:
    """The texts of the units, by their names. Raises CommandError."""
    if cfg.daemon:
        raise CommandError("daemon = True: systemd would take the server for dead; remove it")
    if cfg.reuse_port:
        raise CommandError("reuse_port = True: workers would not use systemd's socket; remove it")
    service = _SERVICE.format(
        name=name,
        title=arguments[-1],
        user=f"User={user}" if user else "# User=www-data",
        directory=_escaped(directory),
        python=_quoted(sys.executable),
        arguments=" ".join(_quoted(each) for each in arguments),
        workers=cfg.workers,
        **_times(cfg),
    )
    streams = "\n".join(f"ListenStream={_stream(address)}" for address in cfg.address)
    listening = _SOCKET.format(title=arguments[-1], streams=streams, backlog=cfg.backlog)
    return {f"{name}.service": service, f"{name}.socket": listening}


def _times(cfg: Any) -> dict[str, Any]:
    from gunicorn_cluster_ext.settings import of_config

    settings = of_config(cfg)
    drain = settings.drain(cfg)
    # Without a surge each worker finishes before its successor starts.
    each = settings.startup_timeout + (0 if settings.roll_surge else drain)
    roll = cfg.workers * each + settings.roll_observe + _MARGIN
    return {
        "graceful": cfg.graceful_timeout,
        "startup": settings.startup_timeout,
        "stop": math.ceil(cfg.graceful_timeout) + _MARGIN,
        "start": math.ceil(roll) if settings.startup_timeout else "infinity",
    }


def _stream(address: Any) -> str:
    """As systemd wants it, which looks up no names (systemd.socket(5))."""
    if isinstance(address, int):
        raise CommandError(f"bind = fd://{address}: the socket is somebody else's already")
    if isinstance(address, str):
        is_abstract = address.startswith("\0")
        return _escaped("@" + address[1:] if is_abstract else os.path.abspath(address))
    host, port = address
    found = str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
    return f"[{found}]:{port}" if ":" in found else f"{found}:{port}"


def _quoted(word: str) -> str:
    """One word of a command line (systemd.service(5))."""
    word = _escaped(word).replace("$", "$$").replace("\\", "\\\\").replace('"', '\\"')
    return word if word and not set(word) & set(" \t\"';\\") else f'"{word}"'


def _escaped(text: str) -> str:
    return text.replace("%", "%%")
