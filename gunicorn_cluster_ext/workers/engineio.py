"""Engine.IO sids that name the process that made them.

``engineio.base_server.BaseServer.generate_id`` is the one place where python-engineio makes
a sid, and a sid is in the query of every later request, also from clients that keep no
cookies. The class is patched when, and only when, the application imports it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from gunicorn_cluster_ext.routing.tags import tag_sid
from gunicorn_cluster_ext.runtime.import_hook import when_imported

_MODULE = "engineio.base_server"


def tag_sids(slot: int, generation: int, begun: Callable[[], None]) -> None:
    """Tag every sid that this process makes from now on, and call ``begun`` for each.

    Called in the worker, before the application is loaded there.
    """
    patch = functools.partial(_patch, slot=slot, generation=generation, begun=begun)
    when_imported(_MODULE, patch)


def _patch(module: ModuleType, *, slot: int, generation: int, begun: Callable[[], None]) -> None:
    generate_id = module.BaseServer.generate_id

    @functools.wraps(generate_id)
    def tagged(self: Any) -> str:
        begun()
        return tag_sid(generate_id(self), slot, generation)

    module.BaseServer.generate_id = tagged
