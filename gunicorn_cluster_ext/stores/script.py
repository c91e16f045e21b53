"""What takes several steps, written once for blocking and for asynchronous code.

A script is a generator. It yields steps, functions of a *face*, and gets their results:

    def double(key: bytes) -> Script[int]:
        number = yield lambda face: face.store.get(key)
        yield sleep(1)
        ...

``run`` takes the steps one by one; ``arun`` awaits what they give. Whatever a step raises, a
cancelled task's CancelledError included, is raised in the script, which may take further steps to
give back what it holds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from typing import Any, TypeVar

T = TypeVar("T")
Step = Callable[[Any], Any]
Script = Generator[Step, Any, T]


def sleep(seconds: float) -> Step:
    """The step that every face knows."""
    return lambda face: face.sleep(seconds)


def run(script: Script[T], face: Any) -> T:
    try:
        step = next(script)
        while True:
            try:
                result = step(face)
            except BaseException as error:
                step = script.throw(error)
            else:
                step = script.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def arun(script: Script[T], face: Any) -> T:
    try:
        step = next(script)
        while True:
            try:
                result = step(face)
                if inspect.isawaitable(result):
                    result = await result
            except BaseException as error:
                step = script.throw(error)
            else:
                step = script.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
