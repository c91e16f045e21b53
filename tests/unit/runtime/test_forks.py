"""What is called in a forked child."""

from gunicorn_cluster_ext.runtime import forks
from tests.harness.forks import in_child


class Holder:
    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls
        forks.register(self)

    def forget(self) -> None:
        self.calls.append(self.name)
        if self.name == "broken":
            raise OSError("a descriptor that the application has closed")


def test_all_are_called_in_order_also_when_one_fails() -> None:
    calls: list[str] = []
    holders = [Holder(name, calls) for name in ("first", "broken", "last")]
    assert in_child(lambda: calls) == ["first", "broken", "last"]
    assert calls == [] and len(holders) == 3, "not in the parent"


def test_none_is_kept_alive() -> None:
    calls: list[str] = []
    Holder("gone", calls)
    assert in_child(lambda: calls) == []
