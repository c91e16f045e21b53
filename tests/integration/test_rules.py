"""Each sticky rule, end to end on four workers."""

import os
import signal
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import gunicorn
import pytest

from gunicorn_cluster_ext.routing.rules import rendezvous
from tests.harness.clients.connection import Answer, request_bytes
from tests.harness.programs import StartGunicorn
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.view import EVERY_KIND, GEVENT, PATIENCE_S, View
from tests.harness.waiting import wait_until

pytestmark = EVERY_KIND

WORKERS = 4
SLOTS = range(WORKERS)
COOKIE = "gunicorn_worker"


def start(sticky: StartGunicorn, *rules: str, app: str = "whoami:app", **more: Any) -> Gunicorn:
    config = f"cluster_sticky = {list(rules)!r}\n" if rules else ""
    args = more.pop("args", ())
    server = sticky(app, "-w", str(WORKERS), *args, config=config + more.pop("config", ""), **more)
    View(server).wait_slots(WORKERS)
    return server


def workers_of(server: Gunicorn, requests: Iterable[tuple[str, dict[str, str]]]) -> list[int]:
    """Return the worker that answered each (target, headers), all over one connection."""
    with server.connect() as connection:
        return [
            connection.request("GET", target, headers).json()["worker"]
            for target, headers in requests
        ]


def owner(key: bytes) -> int:
    return rendezvous(key, SLOTS)


def check_spread(server: Gunicorn, requests: list[tuple[str, dict[str, str]]], keys: list[bytes]):
    """Check that every request goes to its key's owner by hand-off, and that workers share them."""
    view = View(server)
    expected = [owner(key) for key in keys]
    assert len(set(expected)) >= 3, "these keys test nothing"
    before = view.total("handed_in")
    assert workers_of(server, requests) == expected
    # On one connection each change of owner is a hand-off.
    changes = sum(one != other for one, other in pairwise(expected))
    handed = view.total("handed_in") - before
    assert changes <= handed <= changes + 1
    # The sender counts after the receiver may have.
    wait_until(lambda: view.total("handed_out") == view.total("handed_in"), 10, "as many out")
    # From connections of their own they go there as well.
    for (target, headers), slot in zip(requests[:6], expected[:6], strict=True):
        answer = server.get(target, **{n.replace("-", "_"): v for n, v in headers.items()})
        assert answer.json()["worker"] == slot


# --- cookie --------------------------------------------------------------------------------


def set_cookie(answer: Answer) -> list[str]:
    return answer.headers.get_all("Set-Cookie", [])


def test_cookie_attributes(shared_sticky: StartGunicorn, kind: str) -> None:
    server = start(shared_sticky)
    answer = server.get("/")
    slot = answer.json()["worker"]
    assert set_cookie(answer) == [f"{COOKIE}={slot}; Path=/; HttpOnly; SameSite=Lax"]
    answer = server.get("/", x_forwarded_proto="https")
    slot, scheme = answer.json()["worker"], answer.json()["scheme"]
    # Before gunicorn 27 its asgi worker does not know this header.
    assert scheme == "https" or ("ASGI" in kind and gunicorn.version_info < (27,))
    secure = "; Secure" if scheme == "https" else ""
    assert set_cookie(answer) == [f"{COOKIE}={slot}; Path=/; HttpOnly; SameSite=Lax{secure}"]


def test_a_stranger_does_not_make_the_cookie_secure(sticky: StartGunicorn) -> None:
    server = start(sticky, args=("--forwarded-allow-ips", "192.0.2.1"))
    (cookie,) = set_cookie(server.get("/", x_forwarded_proto="https"))
    assert "Secure" not in cookie


def test_cookie_where_it_is_set(shared_sticky: StartGunicorn) -> None:
    server = start(shared_sticky)
    assert set_cookie(server.get("/?header=Cache-Control:public,max-age=60")) == []
    assert set_cookie(server.get("/?header=Cache-Control:s-maxage=60")) == []
    assert set_cookie(server.get("/?header=Cache-Control:max-age=60")) == []
    assert len(set_cookie(server.get("/?header=Cache-Control:private,max-age=60"))) == 1
    assert len(set_cookie(server.get("/?header=Cache-Control:no-store"))) == 1
    # The application's own cookies stay, and errors are answers too.
    both = set_cookie(server.get("/?header=Set-Cookie:mine=1"))
    assert both[0] == "mine=1" and both[1].startswith(COOKIE)
    assert len(set_cookie(server.get("/?status=500"))) == 1
    # A client that has it need not be told again.
    for slot in SLOTS:
        answer = server.get("/", cookie=f"{COOKIE}={slot}")
        assert answer.json()["worker"] == slot
        assert set_cookie(answer) == []


def test_cookie_brings_every_request_to_its_worker(shared_sticky: StartGunicorn) -> None:
    server = start(shared_sticky)
    view = View(server)
    slots = [slot for _ in range(5) for slot in SLOTS]
    requests = [("/", {"Cookie": f"a=1; {COOKIE}={slot}; b=2"}) for slot in slots]
    before = view.total("handed_in")
    assert workers_of(server, requests) == slots
    assert len(slots) - 1 <= view.total("handed_in") - before <= len(slots)


def test_the_cookie_of_a_slot_that_serves_no_more(sticky: StartGunicorn) -> None:
    server = start(sticky)
    view = View(server)
    assert server.get("/", cookie=f"{COOKIE}=3").json()["worker"] == 3
    server.signal(signal.SIGTTOU)
    view.wait_slots(3)
    answer = server.get("/", cookie=f"{COOKIE}=3")
    slot = answer.json()["worker"]
    assert slot in (0, 1, 2)
    assert answer.cookies() == {COOKIE: str(slot)}
    for strange in ("99", "x", "", "-1", "03"):
        answer = server.get("/", cookie=f"{COOKIE}={strange}")
        assert answer.cookies() == {COOKIE: str(answer.json()["worker"])}
    # When the slot is back its clients are too.
    server.signal(signal.SIGTTIN)
    view.wait_slots(4)
    assert server.get("/", cookie=f"{COOKIE}=3").json()["worker"] == 3


def test_the_cookie_follows_the_slot(sticky: StartGunicorn) -> None:
    server = start(sticky)
    view = View(server)
    old = view.pids()[2]
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: view.generations().get(2) == 2, PATIENCE_S, "a new worker 2")
    pids = view.wait_slots(WORKERS)
    answer = server.get("/", cookie=f"{COOKIE}=2")
    assert answer.json()["pid"] == pids[2] != old
    assert set_cookie(answer) == []


@pytest.mark.one_gunicorn
def test_a_cookie_by_another_name(sticky: StartGunicorn) -> None:
    server = start(sticky, config="cluster_cookie = 'home.of'\n")
    assert server.get("/").cookies().keys() == {"home.of"}
    requests = [("/", {"Cookie": f"{COOKIE}=0; home.of={slot}"}) for slot in SLOTS]
    assert workers_of(server, requests) == list(SLOTS)


@pytest.mark.one_gunicorn
def test_no_cookie_without_the_rule(shared_sticky: StartGunicorn) -> None:
    server = start(shared_sticky, "hash:ip")
    assert set_cookie(server.get("/")) == []


# --- engineio ------------------------------------------------------------------------------


def polling(sid: str) -> str:
    return f"/socket.io/?EIO=4&transport=polling&sid={sid}&t=1"


def test_a_tagged_sid_goes_to_its_process(shared_sticky: StartGunicorn) -> None:
    server = start(shared_sticky)
    view = View(server)
    slots = [slot for _ in range(3) for slot in SLOTS]
    before = view.total("handed_in")
    requests = [(polling(f"lv_VI97HAXpY6yYWAAAC.{slot}.1"), {}) for slot in slots]
    assert workers_of(server, requests) == slots
    assert view.total("handed_in") - before >= len(slots) - 1


@pytest.mark.one_gunicorn
def test_a_sid_of_an_unknown_generation_goes_to_the_slot(shared_sticky: StartGunicorn) -> None:
    server = start(shared_sticky)
    requests = [(polling(f"abc.{slot}.77"), {}) for slot in SLOTS]
    assert workers_of(server, requests) == list(SLOTS)


@pytest.mark.one_gunicorn
def test_the_sid_wins_over_the_cookie_by_default(shared_sticky: StartGunicorn) -> None:
    server = start(shared_sticky)
    requests = [(polling(f"abc.{slot}.1"), {"Cookie": f"{COOKIE}={3 - slot}"}) for slot in SLOTS]
    assert workers_of(server, requests) == list(SLOTS)
    # What carries no tag leaves the request to the cookie.
    for sid in ("abc", "abc.2", "abc.x.1", "abc.2.1.1", "abc.99.1"):
        requests = [(polling(sid), {"Cookie": f"{COOKIE}={slot}"}) for slot in SLOTS]
        assert workers_of(server, requests) == list(SLOTS), sid


def test_a_sid_follows_its_process_while_it_drains(sticky: StartGunicorn) -> None:
    server = start(sticky)
    view = View(server)
    old = view.pids()[2]
    with server.connect(timeout=60) as busy:
        # Only while a request is in progress does a process drain for long.
        busy.send(f"GET /?sleep=8 HTTP/1.1\r\nHost: x\r\nCookie: {COOKIE}=2\r\n\r\n".encode())
        wait_until(lambda: view.slots()[2].words["busy"] == 1, PATIENCE_S, "a busy worker 2")
        server.signal(signal.SIGHUP)
        wait_until(
            lambda: {row.state.name for row in view.rows if row.slot == 2} == {"READY", "DRAINING"},
            PATIENCE_S,
            "two processes in slot 2",
        )
        for _ in range(5):
            assert server.get(polling("abc.2.1")).json()["pid"] == old
            new = server.get("/", cookie=f"{COOKIE}=2").json()
            assert (new["worker"], new["pid"] != old) == (2, True)
        assert busy.answer().json()["pid"] == old
    view.wait_slots(WORKERS, generation=2)
    # Now it is gone, and its sids go to the slot, which does not know them.
    assert server.get(polling("abc.2.1")).json()["pid"] == new["pid"]


def busy(view: View) -> list[int]:
    return [row.words["busy"] for _, row in sorted(view.slots().items())]


def test_new_sessions_go_to_the_emptiest_worker(sticky: StartGunicorn, tmp_path: Path) -> None:
    """Busy workers get none, whichever of them accepts the connection."""
    server = start(sticky)
    view = View(server)
    ends = [tmp_path / str(slot) for slot in range(3)]
    connections = [server.connect(timeout=60) for _ in ends]
    try:
        for slot, connection in enumerate(connections):
            cookie = {"Cookie": f"{COOKIE}={slot}"}
            connection.send(request_bytes("GET", f"/?until={ends[slot]}", cookie))
        for _ in range(5):
            # A request counts where it arrived until it is handed on, and an answer may be here
            # before its worker has published that it is idle.
            wait_until(lambda: busy(view) == [1, 1, 1, 0], PATIENCE_S, "three busy workers")
            assert server.get("/socket.io/?EIO=4&transport=polling").json()["worker"] == 3
    finally:
        for path, connection in zip(ends, connections, strict=True):
            path.unlink(missing_ok=True)
            connection.close()


# --- hash ----------------------------------------------------------------------------------

CLIENTS = [f"203.0.113.{number}" for number in range(12)]


def test_hash_ip_of_a_trusted_proxy(shared_sticky: StartGunicorn) -> None:
    server = start(shared_sticky, "hash:ip")
    check_spread(
        server,
        [("/", {"X-Forwarded-For": client}) for client in CLIENTS],
        [client.encode() for client in CLIENTS],
    )
    # What the client itself claims stands to the left of what the proxy knows.
    forged = [("/", {"X-Forwarded-For": f"198.51.100.1, {client}"}) for client in CLIENTS]
    assert workers_of(server, forged) == [owner(client.encode()) for client in CLIENTS]
    # A trusted proxy behind another is not the client.
    chained = [("/", {"X-Forwarded-For": f"{client}, 127.0.0.1"}) for client in CLIENTS]
    assert workers_of(server, chained) == [owner(client.encode()) for client in CLIENTS]
    assert workers_of(server, [("/", {})]) == [owner(b"127.0.0.1")]


def test_hash_ip_of_a_stranger(sticky: StartGunicorn) -> None:
    server = start(sticky, "hash:ip", args=("--forwarded-allow-ips", "192.0.2.1"))
    claims = [("/", {"X-Forwarded-For": client}) for client in CLIENTS]
    assert set(workers_of(server, claims)) == {owner(b"127.0.0.1")}
    assert server.get("/").json()["worker"] == owner(b"127.0.0.1")


@pytest.mark.one_gunicorn
def test_hash_header(sticky: StartGunicorn) -> None:
    names = [f"tenant-{number}" for number in range(12)]
    server = start(sticky, "hash:header:X-Tenant")
    check_spread(server, [("/", {"x-tenant": n}) for n in names], [n.encode() for n in names])


@pytest.mark.one_gunicorn
def test_hash_query(sticky: StartGunicorn) -> None:
    rooms = [f"room {number}" for number in range(12)]
    server = start(sticky, "hash:query:room")
    keys = [room.encode() for room in rooms]
    requests = [(f"/?a=1&room={room.replace(' ', '+')}&b", {}) for room in rooms]
    check_spread(server, requests, keys)
    # Each spelling of a value is the same key.
    requests = [(f"/?room={room.replace(' ', '%20').replace('r', '%72')}", {}) for room in rooms]
    assert workers_of(server, requests) == [owner(key) for key in keys]


@pytest.mark.one_gunicorn
def test_hash_cookie(sticky: StartGunicorn) -> None:
    sessions = [f"session{number}" for number in range(12)]
    server = start(sticky, "hash:cookie:sessionid")
    requests = [("/", {"Cookie": f"x=1; sessionid={session}"}) for session in sessions]
    check_spread(server, requests, [session.encode() for session in sessions])


@pytest.mark.one_gunicorn
def test_hash_path(sticky: StartGunicorn) -> None:
    documents = [f"doc{number}" for number in range(12)]
    server = start(sticky, r"hash:path:^/documents/(\w+)")
    requests = [(f"/documents/{document}/page/{document}", {}) for document in documents]
    check_spread(server, requests, [document.encode() for document in documents])


@pytest.mark.one_gunicorn
def test_a_hash_moves_few_keys_when_a_slot_goes(sticky: StartGunicorn) -> None:
    names = [f"tenant-{number}" for number in range(16)]
    server = start(sticky, "hash:header:x-tenant")
    requests = [("/", {"X-Tenant": name}) for name in names]
    four = workers_of(server, requests)
    server.signal(signal.SIGTTOU)
    View(server).wait_slots(3)
    three = workers_of(server, requests)
    assert three == [rendezvous(name.encode(), range(3)) for name in names]
    assert all(after == before for before, after in zip(four, three, strict=True) if before != 3)


# --- module:function -----------------------------------------------------------------------


@pytest.mark.one_gunicorn
def test_a_function_of_the_application(sticky: StartGunicorn) -> None:
    names = [f"tenant{number}" for number in range(12)]
    server = start(sticky, "key_functions:tenant", app="key_functions:app")
    requests = [(f"/{name}/page", {}) for name in names]
    check_spread(server, requests, [name.encode() for name in names])
    assert server.get("/").status == 200  # None: anybody's


@pytest.mark.one_gunicorn
@pytest.mark.parametrize(
    ("tenant", "complaint"),
    [("raise", "RuntimeError('no such tenant')"), ("text", "bytes or None, not str")],
)
def test_a_function_that_fails(sticky: StartGunicorn, tenant: str, complaint: str) -> None:
    server = start(sticky, "key_functions:tenant", "cookie", app="key_functions:app")
    pids = server.worker_pids()
    for slot in SLOTS:
        lines = len(complaints(server))
        # The next rule is asked. Only the worker that reads the request asks the function;
        # the one that gets it asks again.
        answer = server.get(f"/{tenant}", cookie=f"{COOKIE}={slot}")
        assert (answer.status, answer.json()["worker"]) == (200, slot)
        assert 1 <= len(complaints(server)) - lines <= 2
    assert all(complaint in line and "key_functions:tenant" in line for line in complaints(server))
    assert server.get(f"/{tenant}").status == 200
    assert server.worker_pids() == pids
    assert "Traceback" not in server.log_text()


def complaints(server: Gunicorn) -> list[str]:
    return [line for line in server.log_text().splitlines() if "cluster_sticky: " in line]


@pytest.mark.parametrize("rule", ["nowhere:tenant", "key_functions:nobody"])
def test_a_function_that_is_not_there_fails_the_boot(sticky: StartGunicorn, rule: str) -> None:
    config = f"cluster_sticky = [{rule!r}]\n"
    server = sticky("key_functions:app", config=config, wait=False)
    assert server.wait_exit(PATIENCE_S) == 3
    assert rule.split(":")[rule.startswith("keys")] in server.log_text()


# --- order ---------------------------------------------------------------------------------


@pytest.mark.one_gunicorn
def test_the_first_rule_that_finds_an_owner_wins(sticky: StartGunicorn) -> None:
    server = start(
        sticky,
        *("hash:header:x-tenant", "cookie", "hash:query:room", "engineio", "key_functions:method"),
        app="key_functions:app",
    )
    slot = {name: owner(name.encode()) for name in ("t1", "t2", "r1", "r2", "GET")}
    everything = "/?room=r1&sid=abc.{}.1"
    for free in SLOTS:
        sid = everything.format(free)
        requests = [
            (sid, {"X-Tenant": "t1", "Cookie": f"{COOKIE}={free}"}),
            (sid, {"X-Tenant": "t2", "Cookie": f"{COOKIE}={3 - free}"}),
            (sid, {"Cookie": f"{COOKIE}={3 - free}"}),
            (sid, {"Cookie": f"{COOKIE}=12"}),
            (sid.replace("room", "not"), {"Cookie": f"{COOKIE}=12"}),
            ("/", {}),
        ]
        assert workers_of(server, requests) == [
            *(slot["t1"], slot["t2"], 3 - free, slot["r1"], free, slot["GET"])
        ]


def test_no_rules_at_all(sticky: StartGunicorn, kind: str) -> None:
    server = sticky("whoami:app", "-w", "2", config="cluster_sticky = []\n")
    view = View(server)
    view.wait_slots(2)
    answers = [server.get("/", cookie=f"{COOKIE}=1") for _ in range(6)]
    assert all(answer.status == 200 and answer.cookies() == {} for answer in answers)
    # A busy machine looks to a worker of greenlets as if they took long.
    assert view.total("handed_in") == 0 or kind == GEVENT
