"""What is closed at the end of a `with` block."""

from typing import TypeVar

C = TypeVar("C", bound="Closing")


class Closing:
    """A context manager whose end calls `close`."""

    def __enter__(self: C) -> C:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError
