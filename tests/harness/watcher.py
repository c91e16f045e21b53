"""Sampling something in the background of a test."""

from threading import Event, Thread
from typing import Any

from tests.harness.closing import Closing


class Watcher(Closing):
    """Calls ``look`` every ``interval`` seconds in a thread, from enter to exit."""

    interval = 0.01

    def __enter__(self) -> Any:
        self._over = Event()
        self._thread = Thread(target=self._run, name=type(self).__name__)
        self._thread.start()
        return self

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self.interval):
            self.look()

    def look(self) -> None:
        raise NotImplementedError
