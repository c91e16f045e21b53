"""A process that uses a store: python -m tests.harness.store_program WHAT WHERE ..."""

import sys
import time
from collections.abc import Callable

from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores import open_store
from gunicorn_cluster_ext.stores.sync_async import BlockingStore
from tests.harness.store_conformance import in_threads

#: The size of an embedded store.
SIZE = "4M"


def count(store: BlockingStore, threads: str, times: str) -> None:
    def work(number: int) -> None:
        for _ in range(int(times)):
            store.incr(b"count")

    in_threads(int(threads), work)


def write(store: BlockingStore, name: str) -> None:
    """Write numbers until it is killed, each in three places; print each that was written."""
    number = int(store.get(name.encode()) or 0)
    while True:
        number += 1
        text = b"%d" % number
        store.set_many({name.encode(): text, name.encode() + b":again": text}, ttl=60)
        store.change(name.encode() + b":map", {text[-1:]: text}, ttl=60)
        print(number, flush=True)


def hold(store: BlockingStore) -> None:
    """Stay in the middle of a write until the process is ended."""
    store.set(b"held", b"1")
    with store.coroutines._environment.lock:  # type: ignore[attr-defined]
        state = store.coroutines._environment.enter()  # type: ignore[attr-defined]
        with store.coroutines._environment.opened()[0].begin(write=True) as transaction:  # type: ignore[attr-defined]
            transaction.put(b"kheld", b"2")
            print("ready", flush=True)
            time.sleep(60)
        state.leave()


def read(store: BlockingStore) -> None:
    """Stay in the middle of a read until the process is ended."""
    store.set(b"read", b"1")
    with store.coroutines._environment.opened()[0].begin():  # type: ignore[attr-defined]
        print("ready", flush=True)
        time.sleep(60)


def put(store: BlockingStore, key: str, value: str) -> None:
    store.set(key.encode(), value.encode())


_PARTS: tuple[Callable[..., None], ...] = (count, write, hold, read, put)
PARTS = {part.__name__: part for part in _PARTS}

if __name__ == "__main__":
    what, where, *args = sys.argv[1:]
    settings = (
        Settings(store=where) if "://" in where else Settings(store_path=where, store_size=SIZE)
    )
    opened = open_store(settings)
    PARTS[what](opened, *args)
    opened.close()
