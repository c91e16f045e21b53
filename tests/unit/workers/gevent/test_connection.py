"""Connections of gevent workers. Each test has an interpreter, so a gevent, of its own."""

import sys

import pytest

from tests.harness.forks import in_fresh_interpreter

HEADER = """
import os, re, socket, gevent
from gevent.hub import get_hub
from gunicorn_cluster_ext.workers.gevent.connection import GreenletConnection

ours, theirs = socket.socketpair()
conn = GreenletConnection(ours.detach(), "", "/server")

def polled():
    info = open(f"/proc/self/fdinfo/{get_hub().loop.fileno()}").read()
    return {int(fd) for fd in re.findall(r"tfd: +([0-9]+)", info)}

more = []
waiting = gevent.spawn(lambda: more.append(conn.read_more(20)))
gevent.sleep(0)
"""


def run(code: str) -> str:
    return in_fresh_interpreter(HEADER + code)


@pytest.mark.skipif(sys.platform != "linux", reason="epoll")
def test_a_released_connection_is_polled_no_more() -> None:
    """Another process has the connection; libev would learn that from its input."""
    assert (
        run("""
gevent.sleep(0.01)
fd = conn.fd
elsewhere = os.dup(fd)
assert fd in polled()
conn.release()
assert fd not in polled()
theirs.sendall(b"for somebody else")
waiting.join(20)
conn.release()
print(more, conn.received, os.read(elsewhere, 100))
""")
        == "[False] b'' b'for somebody else'"
    )


def test_input_is_collected() -> None:
    assert (
        run("""
theirs.sendall(b"GET ")
waiting.join(20)
theirs.sendall(b"/")
assert conn.read_more(20)
print(more, conn.received, conn.gettimeout())
""")
        == "[True] b'GET /' None"
    )


@pytest.mark.parametrize(
    "nothing", ["theirs.close(); waiting.join(20)", "waiting.kill()"], ids=["closed", "too late"]
)
def test_nothing_comes(nothing: str) -> None:
    assert run(f"{nothing}\nprint(conn.read_more(0.01), conn.closed)") == "False False"


def test_a_refusal_waits_for_the_client() -> None:
    assert (
        run("""
waiting.kill()
theirs.sendall(b"a body that nobody reads")
refusing = gevent.spawn(conn.refuse, 503, "Service Unavailable", "Retry-After: 1\\r\\n")
gevent.sleep(0.01)
answer = theirs.recv(1000)
assert theirs.recv(1) == b""  # our end is closed, and the client's is still read
assert not refusing.ready()
theirs.close()
refusing.join(20)
print(refusing.ready(), answer.split(b"\\r\\n")[:2])
""")
        == "True [b'HTTP/1.1 503 Service Unavailable', b'Retry-After: 1']"
    )
