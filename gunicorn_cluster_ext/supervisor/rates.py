"""How many requests each worker has served in the last seconds. No I/O."""

from __future__ import annotations

from collections.abc import Mapping

#: Seconds over which they are counted.
INTERVAL = 5.0


class Rates:
    """Counts again every INTERVAL seconds. The caller passes ``now``, and keys for processes."""

    def __init__(self) -> None:
        self._counted = 0.0
        self._before: Mapping[int, int] = {}

    def is_due(self, now: float) -> bool:
        return now - self._counted >= INTERVAL

    def turn(self, requests: Mapping[int, int], now: float) -> dict[int, float]:
        """Requests per second, of each."""
        passed, self._counted = now - self._counted, now
        before, self._before = self._before, requests
        return {key: (count - before.get(key, 0)) / passed for key, count in requests.items()}
