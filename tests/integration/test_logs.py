"""What a server logs: a line for each event that an operator cares about, none per request."""

import json
import os
import re
import signal
from collections import Counter
from typing import Any

import pytest

from gunicorn_cluster_ext.runtime.board.layout import RollState
from tests.harness.programs import StartGunicorn
from tests.harness.servers.site import Site, StartSite
from tests.harness.view import PATIENCE_S, STICKY, View
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn

JSON = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"class": "json_lines.Formatter"}},
    "handlers": {"err": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["err"], "level": "INFO"},
    "loggers": {
        "gunicorn.error": {"handlers": ["err"], "level": "INFO", "propagate": False},
        "gunicorn.access": {"handlers": ["err"], "level": "INFO", "propagate": False},
    },
}


@pytest.mark.parametrize("way", ["logconfig_json", "logconfig_dict"])
def test_structured_logs(gunicorn: StartGunicorn, way: str) -> None:
    """From the first line to the last, over a reload too."""
    config = "accesslog = '-'\naccess_log_format = 'accessed'\n"
    if way == "logconfig_dict":
        config += f"logconfig_dict = {JSON!r}\n"
    else:
        config += f"import json\nopen('log.json', 'w').write(json.dumps({JSON!r}))\n"
        config += "logconfig_json = 'log.json'\n"
    server = gunicorn("whoami:app", "-k", STICKY, "-w", "2", config=config)
    view = View(server)
    first = view.wait_slots(2)
    server.get("/", Cookie="gunicorn_worker=1")
    server.signal(signal.SIGHUP)
    second = view.wait_slots(2, generation=2)
    server.stop()
    lines: list[dict[str, Any]] = [json.loads(each) for each in server.log_text().splitlines()]
    identities = {pid: (str(slot), "1") for slot, pid in first.items()}
    identities |= {pid: (str(slot), "2") for slot, pid in second.items()}
    identities[server.pid] = ("-", "-")
    for line in lines:
        assert (line["worker_id"], line["worker_generation"]) == identities[line["pid"]], line
    assert {line["pid"] for line in lines} == set(identities)
    accessed = [line for line in lines if line["message"] == "accessed" and line["pid"] == first[1]]
    assert accessed, "the access log has the fields too"


# --- lines ----------------------------------------------------------------------------------------


def said(site: Site, begin: int = 0) -> Counter[str]:
    """The lines from ``begin`` on, without times and numbers, and how often each is there."""
    lines = site.server.log_text().splitlines()[begin:]
    text = (re.sub(r"^\[.*?\] \[\d+\] ", "", line) for line in lines)
    text = (re.sub(r"\[worker \d+\] ", "", line) for line in text)
    return Counter(re.sub(r"\d+(\.\d+)?", "N", line).replace("[INFO] ", "") for line in text)


def mark(site: Site) -> int:
    return len(site.server.log_text().splitlines())


@pytest.fixture
def booted(site: StartSite) -> Site:
    """With all that it says at first; gunicorn opens its control socket in a thread."""
    started = site()
    for words in ("Control socket", "workers serve"):
        wait_until(lambda words=words: started.lines(words), PATIENCE_S, words)
    return started


def test_a_boot(booted: Site) -> None:
    lines = said(booted)
    control = {line for line in lines if line.startswith("Control socket listening at")}
    assert len(control) == 1 and lines.pop(control.pop()) == 1
    assert lines == Counter(
        {
            "Starting gunicorn N.N": 1,
            "Listening at: http://N.N:N (N)": 1,
            "Using worker: gunicorn_cluster_ext.Sticky": 1,
            "Booting worker with pid: N": 3,
            "All N workers serve, N s after the start": 1,
        }
    )


def test_requests_are_not_logged(booted: Site) -> None:
    begin = mark(booted)
    with booted.load() as load:
        wait_until(lambda: load.report.answers > 500, PATIENCE_S, "answers")
    assert said(booted, begin) == Counter()


def test_a_roll(booted: Site) -> None:
    begin = mark(booted)
    booted.roll()
    wait_until(lambda: len(booted.lines("the reload replaced it")) == 3, PATIENCE_S, "the last")
    assert said(booted, begin) == Counter(
        {
            "Handling signal: hup": 1,
            "Hang up: Master": 1,
            "Replacing N workers (surge N, unavailable N)": 1,
            "Booting worker with pid: N": 3,
            "Worker exiting (pid: N)": 3,
            "Replaced N workers in N s": 1,
            "Worker N (pid:N) finished (the reload replaced it) after serving for N s.": 3,
        }
    )


def test_a_crash(booted: Site) -> None:
    begin = mark(booted)
    os.kill(booted.pids[1], signal.SIGKILL)
    booted.view.wait_generation(1, 2)
    assert said(booted, begin) == Counter(
        {
            "[ERROR] Worker (pid:N) was sent SIGKILL! Perhaps out of memory? Worker N (pid:N) was "
            "ended by SIGKILL after serving for N s; its replacement waits N s.": 1,
            "Booting worker with pid: N": 1,
        }
    )


def test_a_broken_deploy(booted: Site) -> None:
    begin = mark(booted)
    booted.deploy("raise RuntimeError('no')\n")
    booted.roll(RollState.FAILED)
    lines = [line for line in said(booted, begin) if line.startswith("[ERROR] ")]
    assert [line for line in lines if "Exception in worker process" not in line] == [
        "[ERROR] Worker (pid:N) exited with code N. Worker N (pid:N) could not load the "
        "application (exit code N) before it was ready, N s after its start.",
        "[ERROR] Roll failed: worker N could not load the application (exit code N) before it "
        "was ready, N s after its start; the previous workers keep serving.",
    ]


def test_a_stop(booted: Site) -> None:
    begin = mark(booted)
    booted.server.stop()
    assert said(booted, begin) == Counter(
        {
            "Handling signal: term": 1,
            "Worker exiting (pid: N)": 3,
            "Worker N (pid:N) finished (the server is stopping) after serving for N s.": 3,
            "Shutting down: Master": 1,
        }
    )


def test_gunicorns_control_socket_is_named_once(site: StartSite) -> None:
    named = site()
    named.roll()
    os.kill(named.view.pids()[0], signal.SIGKILL)
    named.view.wait_generation(0, 3)
    assert len(named.lines("Control socket listening at")) == 1
