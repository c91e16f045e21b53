"""A cache that all workers share: ``from gunicorn_cluster_ext import cache``.

    cache.set("answer", 42, ttl=60)
    cache.get("answer")
    cache.incr("visits")                                   # atomic over all workers
    cache.get_or_set("report", make_report, ttl=300)       # computed once, whoever asks
    with cache.lock("invoices", ttl=30): ...

    @cache.cached(ttl=60)
    def price(article): ...

Asynchronous code has ``aget``, ``aset`` and so on. Values are those of ``codec``; to store any
other type raises UnknownType.

When the store is away, a lookup is a miss and a new value is dropped; both are counted, and quick.
Operations whose result decides something (``add``, ``incr``, ``clear``, locks) raise StoreAway.
"""

from __future__ import annotations

from gunicorn_cluster_ext.cache.cache import Cache
from gunicorn_cluster_ext.cache.locks import Lock, LockTimeout
from gunicorn_cluster_ext.stores.contract import StoreAway

__all__ = [
    "Cache",
    "Lock",
    "LockTimeout",
    "StoreAway",
    "aadd",
    "aclear",
    "add",
    "adelete",
    "adelete_many",
    "aget",
    "aget_many",
    "aget_or_set",
    "aincr",
    "aset",
    "aset_many",
    "atouch",
    "cached",
    "clear",
    "delete",
    "delete_many",
    "get",
    "get_many",
    "get_or_set",
    "incr",
    "lock",
    "namespace",
    "set",
    "set_many",
    "stats",
    "touch",
]

# The functions of the package are the methods of the cache without a name.
_default = Cache()
namespace = _default.namespace
get, aget = _default.get, _default.aget
set, aset = _default.set, _default.aset
add, aadd = _default.add, _default.aadd
touch, atouch = _default.touch, _default.atouch
delete, adelete = _default.delete, _default.adelete
incr, aincr = _default.incr, _default.aincr
get_many, aget_many = _default.get_many, _default.aget_many
set_many, aset_many = _default.set_many, _default.aset_many
delete_many, adelete_many = _default.delete_many, _default.adelete_many
clear, aclear = _default.clear, _default.aclear
get_or_set, aget_or_set = _default.get_or_set, _default.aget_or_set
cached = _default.cached
lock = _default.lock
stats = _default.stats
