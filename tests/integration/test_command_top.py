"""`gunicorn-cluster top`, in a terminal."""

import os
import signal

import pytest

from tests.harness.clients.command import command_line
from tests.harness.clients.terminal import Terminal
from tests.harness.servers.gunicorn import environment
from tests.harness.servers.site import Site, StartSite, for_each

pytestmark = pytest.mark.one_gunicorn

# What a terminal is told: another screen and back, and the cursor that can be seen again.
ENTER, LEAVE, SHOW_CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"
TOP = ("top", "--interval", "0.2")


def top(of: Site, columns: int = 160) -> Terminal:
    command = command_line(*TOP, "--pid", str(of.server.pid))
    return Terminal(command, of.directory, environment(of.directory, None), columns)


def check_left(shown: Terminal, before: object) -> None:
    """The terminal is as it was."""
    assert shown.raw.index(ENTER) < shown.raw.rindex(LEAVE)
    assert shown.raw.rindex(SHOW_CURSOR) > shown.raw.rindex("\x1b[?25l")
    assert shown.attributes == before
    assert "Traceback" not in shown.text


def test_what_it_shows(site: StartSite) -> None:
    watched = site()
    with watched.load(request=for_each(3)) as load, top(watched) as shown:
        load.wait_more()
        for words in (f"master {watched.server.pid}", "HISTORY", "█", "3 of 3 workers serve"):
            shown.wait_for(words)
        for pid in watched.pids.values():
            shown.wait_for(f" {pid} ")
        shown.wait_for("sorted by id")
        for key, name in {"r": "rate", "m": "memory", "i": "id"}.items():
            seen = len(shown.text)
            shown.type(key)
            shown.wait_for(f"sorted by {name};", after=seen)
        shown.type("q")
        assert shown.wait_exit() == 0


def test_it_is_sorted(site: StartSite) -> None:
    """All the load is on worker 2."""
    watched = site()
    with watched.load(request=for_each(3)[2:]) as load, top(watched) as shown:
        load.wait_more()
        shown.wait_for("sorted by id")
        shown.type("r")
        shown.wait_for("sorted by rate")
        seen = len(shown.text)
        shown.wait_for("sorted by rate", after=seen)
        shown.wait_for("quit", after=seen)
        shown.type("q")
        shown.wait_exit()
        page = shown.text[seen:].partition("HISTORY")[2]
        rows = [line.split() for line in page.splitlines()[1:4]]
    assert [row[0] for row in rows] == ["2", "0", "1"], page


@pytest.mark.parametrize("end", ["q", "\x03", signal.SIGTERM])
def test_it_leaves_the_terminal_as_it_was(site: StartSite, end: "str | signal.Signals") -> None:
    watched = site(workers=1)
    with top(watched) as shown:
        before = shown.attributes
        shown.wait_for("sorted by id")
        assert shown.attributes != before, "keys are not waited for line by line"
        if isinstance(end, str):
            shown.type(end)
        else:
            shown.signal(end)
        assert shown.wait_exit() == 0
        check_left(shown, before)


def test_the_server_ends(site: StartSite) -> None:
    watched = site(workers=1)
    with top(watched) as shown:
        before = shown.attributes
        shown.wait_for("sorted by id")
        watched.server.stop()
        assert shown.wait_exit() == 1
        check_left(shown, before)
        last = shown.text[shown.text.rindex("gunicorn-cluster: ") :]
    assert last == f"gunicorn-cluster: server {watched.server.pid} has ended\n"


def test_without_a_terminal_one_table_follows_the_other(site: StartSite) -> None:
    watched = site()
    with watched.running_command(*TOP) as command:
        assert command.stdout is not None and command.stderr is not None
        seen = 0
        while seen < 3:
            seen += command.stdout.readline().startswith(" 2  ")
        os.kill(command.pid, signal.SIGINT)
        rest, errors = command.communicate(timeout=30)
    assert (command.returncode, errors) == (0, "")
    assert "\x1b" not in rest
