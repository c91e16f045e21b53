"""Operations that are written once, and called with or without ``await``.

An operation is a generator. It yields a *step*, whatever takes time, and is sent the step's result
or has its error raised in it. How a step is carried out is all that the two faces differ in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator
from types import MethodType
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar, overload

P = ParamSpec("P")
T = TypeVar("T")

Steps = Generator[Any, Any, T]


class Pause(NamedTuple):
    """The step that every face knows."""

    seconds: float


class Blocking:
    """The face of a store whose methods return when they are done."""

    def carry_out(self, step: Any) -> Any:
        time.sleep(step.seconds)

    def run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    result = self.carry_out(step)
                except Exception as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            steps.close()

    def bind_steps(self, method: Callable[..., Steps[T]]) -> Callable[..., T]:
        return lambda *args, **kwargs: self.run(method(self, *args, **kwargs))

    def bind_plain(self, method: Callable[..., T]) -> Callable[..., T]:
        return MethodType(method, self)


class Asynchronous:
    """The face of a store whose methods are awaited."""

    async def carry_out(self, step: Any) -> Any:
        await asyncio.sleep(step.seconds)

    async def run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    result = await self.carry_out(step)
                except Exception as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            steps.close()  # also when the task is cancelled: what the operation holds is given back

    def bind_steps(self, method: Callable[..., Steps[T]]) -> Callable[..., Coroutine[Any, Any, T]]:
        return lambda *args, **kwargs: self.run(method(self, *args, **kwargs))

    def bind_plain(self, method: Callable[..., T]) -> Callable[..., Coroutine[Any, Any, T]]:
        async def call(*args: Any, **kwargs: Any) -> T:
            return method(self, *args, **kwargs)

        return call


class _Method(Generic[P, T]):
    """A method whose type depends on the face that it is looked up in."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, store: Blocking, owner: type) -> Callable[P, T]: ...

    @overload
    def __get__(self, store: Asynchronous, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...

    def __get__(self, store: Any, owner: type) -> Any:
        bound = self._bind(store)
        # Found before this descriptor from now on: a lookup costs as much as any attribute.
        setattr(store, self._name, bound)
        return bound

    def _bind(self, store: Any) -> Any:
        raise NotImplementedError


class operation(_Method[P, T]):
    """Decorates a generator."""

    def __init__(self, method: Callable[Concatenate[Any, P], Steps[T]]) -> None:
        super().__init__(method)

    def _bind(self, store: Any) -> Any:
        return store.bind_steps(self._method)


class immediate(_Method[P, T]):
    """Decorates a method that never waits, so that it needs no generator."""

    def __init__(self, method: Callable[Concatenate[Any, P], T]) -> None:
        super().__init__(method)

    def _bind(self, store: Any) -> Any:
        return store.bind_plain(self._method)
