import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from gunicorn_cluster_ext.workers.listener import Listener


class Sock:
    """A listening socket whose accept fails."""

    family, type, proto = 2, 1, 0

    def __init__(self, error: int) -> None:
        self._error = error
        self.fileno: Callable[[], int] = lambda: 3
        self.getsockname: Callable[[], Any] = lambda: ("127.0.0.1", 80)
        self.setblocking: Callable[[bool], None] = lambda flag: None

    def _accept(self) -> tuple[int, Any]:
        raise OSError(self._error, os.strerror(self._error))


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.ECONNABORTED])
def test_nothing_to_accept(error: int) -> None:
    paused: list[bool] = []
    assert Listener(Sock(error), lambda: paused.append(True)).accept() is None
    assert not paused


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE])
def test_a_process_without_descriptors_pauses(error: int) -> None:
    paused: list[bool] = []
    assert Listener(Sock(error), lambda: paused.append(True)).accept() is None
    assert paused == [True]


def test_any_other_error_is_raised() -> None:
    with pytest.raises(OSError, match=r"[Ii]nvalid"):
        Listener(Sock(errno.EINVAL), lambda: None).accept()
