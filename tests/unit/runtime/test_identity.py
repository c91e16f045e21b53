"""Each test runs in a process of its own, because nothing undoes `watch`."""

import io
import logging
import os
from collections.abc import Callable
from typing import Any

import pytest

from gunicorn_cluster_ext.runtime import identity
from tests.harness.forks import in_child, in_fresh_interpreter

STOCK = "%(asctime)s [%(process)d] [%(levelname)s] %(message)s"


def identity_here() -> dict[str, Any]:
    return {
        "id": identity.worker_id(),
        "worker": identity.current_worker(),
        "environment": os.environ.get(identity.ID_VARIABLE),
        "pid": os.getpid(),
    }


def as_arbiter(work: Callable[[], Any]) -> Any:
    """Return the result of `work` in a process that is like an arbiter."""

    def start() -> Any:
        os.environ.pop(identity.ID_VARIABLE, None)
        identity.watch()
        return work()

    return in_child(start)


def as_worker(work: Callable[[], Any], slot: int = 2, generation: int = 5) -> Any:
    """Return the result of `work` in a worker."""

    def arbiter() -> Any:
        identity.assign(slot, generation)
        return in_child(work)

    return as_arbiter(arbiter)


NO_WORKER = {"id": None, "worker": None, "environment": None}


def is_no_worker(answer: dict[str, Any]) -> bool:
    return answer | NO_WORKER == answer


# --- who --------------------------------------------------------------------------------------


def test_outside_a_worker_there_is_no_worker() -> None:
    assert is_no_worker(as_arbiter(identity_here))


def test_the_next_fork_is_the_worker() -> None:
    answer = as_worker(identity_here)
    assert answer["id"] == 2
    assert answer["worker"] == [2, 5, answer["pid"]]
    assert answer["environment"] == "2"


def test_the_arbiter_is_no_worker() -> None:
    def arbiter() -> Any:
        identity.assign(2, 5)
        in_child(lambda: None)
        return identity_here()

    assert is_no_worker(as_arbiter(arbiter))


def test_the_fork_after_that_is_no_worker() -> None:
    """Gunicorn's arbiter forks other things as well."""

    def arbiter() -> Any:
        identity.assign(2, 5)
        return [in_child(identity_here), in_child(identity_here)]

    worker, other = as_arbiter(arbiter)
    assert worker["id"] == 2
    assert is_no_worker(other)


def test_a_fork_without_an_assignment_is_no_worker() -> None:
    assert is_no_worker(as_arbiter(lambda: in_child(identity_here)))


def test_each_worker_has_its_own_identity() -> None:
    def arbiter() -> Any:
        answers = []
        for slot in range(3):
            identity.assign(slot, slot + 1)
            answers.append(in_child(identity_here)["worker"][:2])
        return answers

    assert as_arbiter(arbiter) == [[0, 1], [1, 2], [2, 3]]


def test_a_process_forked_by_a_worker_belongs_to_it() -> None:
    assert as_worker(lambda: in_child(identity_here))["id"] == 2


def test_watching_twice_is_watching_once() -> None:
    def arbiter() -> Any:
        identity.watch()
        factory = logging.getLogRecordFactory()
        identity.watch()
        return factory is logging.getLogRecordFactory()

    assert as_arbiter(arbiter)


def test_the_public_functions_do_not_import_gunicorn() -> None:
    code = (
        "import sys, gunicorn_cluster_ext\n"
        "assert gunicorn_cluster_ext.worker_id() is None\n"
        "assert gunicorn_cluster_ext.current_worker() is None\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('gunicorn', 'gevent')])"
    )
    assert in_fresh_interpreter(code) == "[]"


# --- log records ------------------------------------------------------------------------------


def record_fields() -> list[Any]:
    record = logging.getLogger("any").makeRecord("any", 20, "file", 1, "said", (), None)
    return [getattr(record, name, None) for name in ("worker_id", "worker_generation")]


def test_records_name_the_worker() -> None:
    assert as_worker(record_fields) == ["2", "5"]
    assert as_arbiter(record_fields) == ["-", "-"]


def test_a_users_record_factory_is_kept() -> None:
    """It was set before ours."""
    code = (
        "import logging\n"
        "class Record(logging.LogRecord):\n"
        "    pass\n"
        "logging.setLogRecordFactory(Record)\n"
        "from gunicorn_cluster_ext.runtime import identity\n"
        "identity.watch()\n"
        "record = logging.makeLogRecord({})\n"
        "print(type(record).__name__, record.worker_id)"
    )
    assert in_fresh_interpreter(code) == "Record -"


# --- lines ------------------------------------------------------------------------------------


def logged(formatter: logging.Formatter, mark: bool = True) -> str:
    """Return what a logger with one handler writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.Logger("gunicorn.error")
    logger.addHandler(handler)
    if mark:
        identity.mark_log(logger, STOCK)
    logger.info("Booting %s", "now")
    try:
        raise RuntimeError("no luck")
    except RuntimeError:
        logger.exception("failed")
    return stream.getvalue()


def stock() -> str:
    return logged(logging.Formatter(STOCK, "[DATE]"))


def test_lines_of_a_worker_name_it() -> None:
    text = as_worker(lambda: stock().replace(str(os.getpid()), "PID"))
    lines = text.splitlines()
    assert lines[0] == "[DATE] [PID] [INFO] [worker 2] Booting now"
    assert lines[1] == "[DATE] [PID] [ERROR] [worker 2] failed"
    assert lines[-1] == "RuntimeError: no luck"


def test_lines_of_the_arbiter_stay_as_they_are() -> None:
    def arbiter() -> Any:
        return [stock(), logged(logging.Formatter(STOCK, "[DATE]"), mark=False)]

    marked, unmarked = as_arbiter(arbiter)
    assert marked == unmarked
    assert "[DATE]" in marked


class OwnFormatter(logging.Formatter):
    """A formatter of the user."""


@pytest.mark.parametrize(
    "formatter",
    [
        logging.Formatter("%(levelname)s %(message)s"),
        logging.Formatter("{message}", style="{"),
        OwnFormatter(STOCK),
    ],
    ids=["format", "style", "class"],
)
def test_a_users_formatter_is_not_changed(formatter: logging.Formatter) -> None:
    assert "[worker" not in as_worker(lambda: logged(formatter))


def test_a_users_format_can_name_the_worker() -> None:
    formatter = logging.Formatter("%(worker_id)s/%(worker_generation)s %(message)s")
    assert as_worker(lambda: logged(formatter)).startswith("2/5 Booting now\n")


def test_a_handler_without_a_formatter_is_not_changed() -> None:
    logger = logging.Logger("gunicorn.error")
    logger.addHandler(logging.NullHandler())
    identity.mark_log(logger, STOCK)
    assert logger.handlers[0].formatter is None


def test_marking_twice_is_marking_once() -> None:
    logger = logging.Logger("gunicorn.error")
    logger.addHandler(logging.NullHandler())
    logger.handlers[0].setFormatter(logging.Formatter(STOCK, "%H"))
    identity.mark_log(logger, STOCK)
    marked = logger.handlers[0].formatter
    identity.mark_log(logger, STOCK)
    assert logger.handlers[0].formatter is marked
    assert isinstance(marked, identity.WorkerFormatter)
    assert marked.datefmt == "%H"


def test_a_record_of_another_factory_is_formatted() -> None:
    """A factory that was set after ours knows nothing of workers."""
    formatter = identity.WorkerFormatter("%(message)s", None)
    record = logging.LogRecord("any", 20, "file", 1, "said", (), None)
    assert formatter.format(record) == "said"
