"""The methods of a store, written once and called with or without ``await``.

An operation is a script (see script.py) whose face is the store itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from gunicorn_cluster_ext.stores.script import Script, arun, run

P = ParamSpec("P")
T = TypeVar("T")


class Blocking:
    """The face of a store whose methods return when they are done."""

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def bind_script(self, method: Callable[..., Script[T]]) -> Callable[..., T]:
        return lambda *args, **kwargs: run(method(self, *args, **kwargs), self)

    def bind_plain(self, method: Callable[..., T]) -> Callable[..., T]:
        return MethodType(method, self)


class Asynchronous:
    """The face of a store whose methods are awaited."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def bind_script(
        self, method: Callable[..., Script[T]]
    ) -> Callable[..., Coroutine[Any, Any, T]]:
        return lambda *args, **kwargs: arun(method(self, *args, **kwargs), self)

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

    def __init__(self, method: Callable[Concatenate[Any, P], Script[T]]) -> None:
        super().__init__(method)

    def _bind(self, store: Any) -> Any:
        return store.bind_script(self._method)


class immediate(_Method[P, T]):
    """Decorates a method that never waits, so that it needs no generator."""

    def __init__(self, method: Callable[Concatenate[Any, P], T]) -> None:
        super().__init__(method)

    def _bind(self, store: Any) -> Any:
        return store.bind_plain(self._method)
