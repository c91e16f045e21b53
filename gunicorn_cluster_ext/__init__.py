"""Several gunicorn workers that behave as one server.

Names are imported when they are first used. So importing the package imports neither gunicorn nor
gevent, and costs next to nothing for an application that only calls ``worker_id()``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gunicorn_cluster_ext.runtime.identity import Identity as Identity
    from gunicorn_cluster_ext.runtime.identity import current_worker as current_worker
    from gunicorn_cluster_ext.runtime.identity import worker_id as worker_id
    from gunicorn_cluster_ext.workers.asgi.worker import StickyASGI as StickyASGI
    from gunicorn_cluster_ext.workers.gevent.worker import StickyGevent as StickyGevent
    from gunicorn_cluster_ext.workers.thread.worker import Sticky as Sticky

__version__ = "0.1.0"
__all__ = [
    "Identity",
    "Sticky",
    "StickyASGI",
    "StickyGevent",
    "__version__",
    "current_worker",
    "worker_id",
]

_MODULES = {
    "Identity": "gunicorn_cluster_ext.runtime.identity",
    "Sticky": "gunicorn_cluster_ext.workers.thread.worker",
    "StickyASGI": "gunicorn_cluster_ext.workers.asgi.worker",
    "StickyGevent": "gunicorn_cluster_ext.workers.gevent.worker",
    "current_worker": "gunicorn_cluster_ext.runtime.identity",
    "worker_id": "gunicorn_cluster_ext.runtime.identity",
}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
