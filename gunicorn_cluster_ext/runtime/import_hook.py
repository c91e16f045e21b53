"""Run code when the application imports a module, without importing it first.

``wrapt.when_imported`` does the same, in a C extension.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def when_imported(name: str, act: Callable[[ModuleType], None]) -> None:
    """Call ``act`` with the module ``name``: now if it is imported, else after its import."""
    module = sys.modules.get(name)
    if module is not None:
        act(module)
    else:
        sys.meta_path.insert(0, _NotifyingFinder(name, act))


class _NotifyingFinder(MetaPathFinder):
    """A finder that wraps the loader of one module, and removes itself after the import."""

    def __init__(self, name: str, act: Callable[[ModuleType], None]) -> None:
        self._name, self._act = name, act
        self._is_searching = False

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._name or self._is_searching:
            return None
        self._is_searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._is_searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _NotifyingLoader(spec.loader, self._on_executed)
        return spec

    def _on_executed(self, module: ModuleType) -> None:
        sys.meta_path.remove(self)
        self._act(module)


class _NotifyingLoader(Loader):
    def __init__(self, loader: Loader, notify: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._notify = notify

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._notify(module)
