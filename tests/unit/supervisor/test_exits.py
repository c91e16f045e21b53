import os
import signal
import sys

import pytest

from gunicorn_cluster_ext.runtime.board.layout import Cause, Place, State
from gunicorn_cluster_ext.supervisor.exits import (
    BOOT_ERROR,
    FEWER,
    LOAD_ERROR,
    RESTART,
    ROLL,
    ROLL_FAILED,
    Exit,
)
from gunicorn_cluster_ext.supervisor.slots import Process, Role


def process(
    ready_at: float | None = 102.0,
    state: State = State.READY,
    kill_reason: str = "",
    reason: str = "",
) -> Process:
    """Return a process that was forked at 100, and retired for ``reason``, if there is one."""
    one = Process(1, Place(0, 0, 1), 0, 100.0, Role.CURRENT, state, ready_at=ready_at)
    one.kill_reason, one.retire_reason = kill_reason, reason
    one.retired_at = 110.0 if reason or kill_reason else None
    return one


BOOTING = {"ready_at": None, "state": State.BOOTING}


@pytest.mark.parametrize(
    ("status", "exit"),
    [
        (0, Exit(0, None)),
        (3 << 8, Exit(3, None)),
        (255 << 8, Exit(255, None)),
        (signal.SIGKILL, Exit(None, 9)),
        (signal.SIGSEGV | 0x80, Exit(None, 11)),
    ],
)
def test_a_wait_status_is_decoded(status: int, exit: Exit) -> None:
    assert Exit.of_code(os.waitstatus_to_exitcode(status)) == exit


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_the_wait_status_of_a_real_process_is_decoded() -> None:
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", "raise SystemExit(4)"], os.environ)
    assert Exit.of_code(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) == Exit(LOAD_ERROR, None)


@pytest.mark.parametrize(
    ("number", "name"), [(9, "SIGKILL"), (6, "SIGABRT"), (99, "signal 99"), (None, "signal None")]
)
def test_signals_have_names(number: int | None, name: str) -> None:
    assert Exit(None, number).signal_name == name


@pytest.mark.parametrize(
    ("exit", "failed"),
    [
        (Exit(BOOT_ERROR, None), True),
        (Exit(LOAD_ERROR, None), True),
        (Exit(0, None), False),
        (Exit(1, None), False),
        (Exit(None, 3), False),
        (Exit(None, 4), False),
    ],
)
def test_two_exit_codes_mean_a_failed_boot(exit: Exit, failed: bool) -> None:
    assert exit.failed_to_boot is failed


TERM, KILL, DONE = Exit(None, signal.SIGTERM), Exit(None, signal.SIGKILL), Exit(0, None)


@pytest.mark.parametrize(
    ("exit", "one"),
    [
        (DONE, process(reason="roll")),
        (KILL, process(reason="roll")),
        (Exit(1, None), process(reason="roll")),
        (Exit(LOAD_ERROR, None), process(**BOOTING, reason="the roll failed")),
        (TERM, process()),
        (TERM, process(**BOOTING)),
        (DONE, process(state=State.DRAINING)),
    ],
)
def test_requested_exits_are_expected(exit: Exit, one: Process) -> None:
    assert exit.is_expected(one)


@pytest.mark.parametrize(
    ("exit", "one"),
    [
        (DONE, process()),
        (DONE, process(**BOOTING)),
        (Exit(1, None), process()),
        (Exit(1, None), process(state=State.DRAINING)),
        (KILL, process()),
        (KILL, process(state=State.DRAINING)),
        (Exit(None, signal.SIGSEGV), process()),
        (Exit(LOAD_ERROR, None), process(**BOOTING)),
        (Exit(BOOT_ERROR, None), process(**BOOTING)),
        (Exit(None, signal.SIGABRT), process(kill_reason="did not answer")),
        (TERM, process(kill_reason="did not answer")),
        (DONE, process(kill_reason="did not answer", reason="roll")),
    ],
)
def test_other_exits_are_unexpected(exit: Exit, one: Process) -> None:
    assert not exit.is_expected(one)


@pytest.mark.parametrize(
    ("exit", "one", "words"),
    [
        (DONE, process(reason="roll"), "finished (roll) after serving for 18.0 s"),
        (KILL, process(reason="roll"), "ended (roll) after serving for 18.0 s"),
        (
            DONE,
            process(**BOOTING, reason="the roll failed"),
            "finished (the roll failed) before it was ready, 20.0 s after its start",
        ),
        (TERM, process(), "ended (it received a signal) after serving for 18.0 s"),
        (KILL, process(), "was ended by SIGKILL after serving for 18.0 s"),
        (
            Exit(None, 64),
            process(**BOOTING),
            "was ended by SIGRTMAX before it was ready, 20.0 s after its start",
        ),
        (
            Exit(LOAD_ERROR, None),
            process(**BOOTING),
            "could not load the application (exit code 4) before it was ready, "
            "20.0 s after its start",
        ),
        (
            Exit(BOOT_ERROR, None),
            process(**BOOTING),
            "could not load the application (exit code 3) before it was ready, "
            "20.0 s after its start",
        ),
        (
            Exit(BOOT_ERROR, None),
            process(),
            "exited by itself with code 3 after serving for 18.0 s",
        ),
        (DONE, process(), "exited by itself with code 0 after serving for 18.0 s"),
        (
            Exit(None, signal.SIGABRT),
            process(kill_reason="did not answer for 30 s", reason="roll"),
            "did not answer for 30 s after serving for 18.0 s",
        ),
    ],
)
def test_the_words_of_an_exit(exit: Exit, one: Process, words: str) -> None:
    assert exit.words(one, 120.0) == words


@pytest.mark.parametrize(
    ("exit", "one", "cause"),
    [
        (Exit(LOAD_ERROR, None), process(**BOOTING), Cause.BOOT),
        (KILL, process(**BOOTING), Cause.BOOT),
        (KILL, process(), Cause.CRASH),
        (DONE, process(), Cause.CRASH),
        (KILL, process(kill_reason="sent no heartbeat for 30 s"), Cause.FORCE),
        (KILL, process(**BOOTING, kill_reason="did not become ready"), Cause.FORCE),
        (DONE, process(reason=ROLL), Cause.ROLL),
        (DONE, process(**BOOTING, reason=ROLL_FAILED), Cause.ROLL),
        (DONE, process(reason="max_requests: it has served 10"), Cause.RECYCLE),
        (DONE, process(reason=FEWER), Cause.REQUEST),
        (DONE, process(reason=RESTART), Cause.REQUEST),
        (TERM, process(), Cause.REQUEST),
        (DONE, process(state=State.DRAINING), Cause.REQUEST),
    ],
)
def test_the_cause_of_an_exit(exit: Exit, one: Process, cause: Cause) -> None:
    assert exit.cause(one) is cause
