"""Engine.IO sids that say which process made them.

``engineio.base_server.BaseServer.generate_id`` is the one place where python-engineio makes
a sid, and a sid is in the query of every later request, also of clients that keep no
cookies. The class is patched when, and only when, the application imports it.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from gunicorn_cluster_ext.tags import tag_sid

_MODULE = "engineio.base_server"


def tag_sids(slot: int, generation: int, begun: Callable[[], None]) -> None:
    """Tag every sid that this process makes from now on; ``begun`` is told of each new one.

    Called in the worker, before the application is loaded there.
    """
    module = sys.modules.get(_MODULE)
    patch = functools.partial(_patch, slot=slot, generation=generation, begun=begun)
    if module is not None:
        patch(module)
    else:
        sys.meta_path.insert(0, _Watch(patch))


def _patch(module: ModuleType, *, slot: int, generation: int, begun: Callable[[], None]) -> None:
    generate_id = module.BaseServer.generate_id

    @functools.wraps(generate_id)
    def tagged(self: Any) -> str:
        begun()
        return tag_sid(generate_id(self), slot, generation)

    module.BaseServer.generate_id = tagged


class _Watch(MetaPathFinder):
    """Finds nothing itself; tells when the module has been executed, and then goes."""

    def __init__(self, patch: Callable[[ModuleType], None]) -> None:
        self._patch = patch
        self._is_asking = False

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _MODULE or self._is_asking:
            return None
        self._is_asking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._is_asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _TellingLoader(spec.loader, self._executed)
        return spec

    def _executed(self, module: ModuleType) -> None:
        sys.meta_path.remove(self)
        self._patch(module)


class _TellingLoader(Loader):
    def __init__(self, loader: Loader, tell: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._tell = tell

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._tell(module)
