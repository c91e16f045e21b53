"""What gunicorn's own parser makes of bytes, as a reference for the head scanner."""

import socket
from dataclasses import dataclass
from typing import Any

from gunicorn.config import Config
from gunicorn.http import get_parser, wsgi
from gunicorn.http.errors import ConfigurationProblem, NoMoreData

#: Gunicorn trusts this peer: its forwarded_allow_ips and proxy_allow_ips hold it.
CLIENT = ("127.0.0.1", 1)


def config(**values: Any) -> Config:
    cfg = Config()
    for name, value in values.items():
        cfg.set(name, value)
    return cfg


@dataclass
class Accepted:
    """A request that gunicorn would serve: as its parser and as the application see it."""

    request: Any
    environ: dict[str, Any]

    def header(self, name: bytes) -> bytes | None:
        """Return the header `name` (lower case) as the application finds it."""
        key = name.decode().upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = f"HTTP_{key}"
        value = self.environ.get(key)
        return None if value is None else value.encode("latin-1")

    def cookies(self, name: bytes) -> list[bytes]:
        """Return every value of the cookie `name`: split at ";" and at the first "=", stripped."""
        found = []
        for pair in (self.header(b"cookie") or b"").split(b";"):
            key, equals, value = pair.partition(b"=")
            if equals and key.strip(b" \t") == name:
                found.append(value.strip(b" \t"))
        return found

    def parameters(self, name: bytes) -> list[bytes]:
        """Return every value of the query parameter `name`, with its escapes; "" if it has none."""
        found = []
        for pair in self.environ["QUERY_STRING"].encode("latin-1").split(b"&"):
            key, _, value = pair.partition(b"=")
            if key == name:
                found.append(value)
        return found


@dataclass
class Incomplete:
    """Gunicorn would wait for more bytes."""


@dataclass
class Refused:
    """Gunicorn would answer with an error."""

    error: Exception


Verdict = Accepted | Incomplete | Refused


def judge(data: bytes, cfg: Config) -> Verdict:
    """Return what gunicorn makes of `data`, as the first bytes of a connection."""
    try:
        request = next(get_parser(cfg, iter([data]), CLIENT))
    except (NoMoreData, StopIteration):
        return Incomplete()
    except Exception as error:
        return Refused(error)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            _, environ = wsgi.create(request, ours, CLIENT, ("127.0.0.1", 80), cfg)
        except ConfigurationProblem as error:
            return Refused(error)
    return Accepted(request, environ)


def would_wait(data: bytes, cfg: Config, client: Any, requests: int) -> bool:
    """True if gunicorn waits for more, on a real connection that has sent `data` in pieces."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        size = len(data) // 50 + 1
        for start in range(0, len(data), size):
            theirs.send(data[start : start + size])
        ours.setblocking(False)
        parser = get_parser(cfg, ours, client)
        parser.req_count = requests
        try:
            next(parser)
        except BlockingIOError:
            return True
        except Exception:
            return False
        return False
