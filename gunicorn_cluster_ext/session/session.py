"""A session: one field in the store for each of its keys. What a request costs:

    unread                    the store is not asked
    read                      one read, and one write if it was last written a tenth of its idle
                              time ago
    changed                   one write of the changed fields, if the session still exists
    clear()                   it is deleted; values that are set after that make a new session
    regenerate()              a new id for what the store has at that moment; the old session is
                              deleted, and if it did not exist any more, so is the new one

So concurrent requests lose no change of different keys, a request never undoes a logout that came
after its beginning, and nothing is ever locked. An id that the store does not know is never used:
a new session gets a new id. The store has only a hash of the id.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any, Final, NamedTuple, TypeVar

from gunicorn_cluster_ext import codec
from gunicorn_cluster_ext.logs import log, warn_throttled
from gunicorn_cluster_ext.runtime.counters import (
    Counter,
    session_errors,
    session_reads,
    session_writes,
)
from gunicorn_cluster_ext.session.cookie import complain_of_cookie, new_id
from gunicorn_cluster_ext.session.tracked_fields import Changes, Fields
from gunicorn_cluster_ext.settings import Settings
from gunicorn_cluster_ext.stores.contract import AsyncStore, StoreAway, StoreError
from gunicorn_cluster_ext.stores.handles import Stores
from gunicorn_cluster_ext.stores.sync_async import IO, run

T = TypeVar("T")

#: Fields of our own: when the session was created, and last written (Unix time).
_MADE: Final = b"\0made"
_SEEN: Final = b"\0seen"
#: How often a session that is only read is written within its idle time.
_TOUCHES = 10
_AWAY = "the store with the sessions cannot be reached"


class SessionAway(StoreAway):
    """The store with the sessions cannot be reached. No session has ended: try again later."""


class Outcome(enum.Enum):
    """What a response does with the client's cookie."""

    KEEP = enum.auto()
    PUT = enum.auto()
    REMOVE = enum.auto()


class SessionLifetime(NamedTuple):
    """How long a session lives, in seconds: unused, and in total (0: without limit)."""

    idle: float
    total: float

    @classmethod
    def of(cls, settings: Settings) -> SessionLifetime:
        return cls(settings.session_idle, settings.session_lifetime)

    def ttl(self, made: float, now: float) -> float:
        """Return the time to live of a session that was created at ``made`` (Unix time)."""
        left = made + self.total - now if self.total else self.idle
        return max(1.0, min(self.idle, left))

    def is_over(self, made: float, now: float) -> bool:
        return bool(self.total) and made + self.total <= now

    def is_due(self, seen: float, now: float) -> bool:
        """Return whether an unchanged session is to be written, so that it does not expire."""
        return not 0 <= now - seen < self.idle / _TOUCHES


def store_key(sid: str) -> bytes:
    """Return the key in the store, a hash: who reads the store learns no cookie."""
    return b"session:" + hashlib.sha256(sid.encode()).hexdigest().encode()


class Session(MutableMapping[str, Any]):
    """The session of one request. ``sid`` is the id that the client sent, if it is well-formed."""

    def __init__(self, stores: Stores, lifetime: SessionLifetime, sid: str | None) -> None:
        #: Whether the application has used the session.
        self.accessed = False
        #: Why the store could not be reached.
        self.failure: StoreError | None = None
        #: Whether the session was written, so that its idle time starts now.
        self.written = False
        #: Whether another request has ended the session, so that our changes were dropped.
        self.lost = False
        self._lifetime = lifetime
        self._stores = stores
        self._sid = sid
        self._key = b""  # in the store, once it is known
        self._fields: Fields | None = None
        self._found = False
        self._renewed = False
        self._made = self._seen = 0.0
        self._cleared: list[bytes] = []
        self._over = False
        self._may_block = True

    def __repr__(self) -> str:
        if self._fields is None:
            return "<Session, unread>"
        return f"<Session of {', '.join(self._fields) or 'nothing'}>"

    # --- a dictionary -------------------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        return self._read()[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._write()[name] = value

    def __delitem__(self, name: str) -> None:
        del self._write()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __contains__(self, name: object) -> bool:
        return name in self._read()

    def __ior__(self, other: Any) -> Session:
        self.update(other)
        return self

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def clear(self) -> None:
        """Log out: the session ends, and values that are set from now on make a new one."""
        self._check()
        if self._sid is not None:
            self._cleared.append(store_key(self._sid))
        self.accessed = True
        self._sid = None
        self._fields = Fields({})
        self._found = self._renewed = False

    def regenerate(self) -> None:
        """Give the session a new id and a new lifetime. A login does this, so that whoever knew the
        id before does not know it afterwards."""
        self._write()
        self._renewed = True

    @property
    def new(self) -> bool:
        """Whether the request had no session."""
        self._read()
        return not self._found

    @property
    def failed(self) -> bool:
        """Whether the application could not use the session, because the store is away."""
        return self.accessed and self.failure is not None

    def lifetime(self) -> SessionLifetime:
        """Return the lifetime of this session, which is loaded. Subclasses have rules of theirs."""
        return self._lifetime

    def _read(self) -> Fields:
        self.accessed = True
        if self._fields is None:
            self.load()
        assert self._fields is not None
        return self._fields

    def _write(self) -> Fields:
        self._check()
        return self._read()

    def _check(self) -> None:
        if self._over:
            log.warning("A session was changed after its response began; the change is not stored")

    # --- from the store -----------------------------------------------------------------

    def load(self) -> None:
        """Load the session, once. Raises SessionAway."""
        if self._fields is not None:
            return
        if self.failure is not None:
            raise SessionAway(_AWAY) from self.failure
        if not self._may_block:
            raise RuntimeError("first: await session.aload()")
        run(self._load(self._stores.blocking_io))

    async def aload(self) -> None:
        """Load the session, once. Raises SessionAway."""
        if self._fields is None:
            await self._load(self._stores.async_io)

    async def prepare(self, *, load: bool) -> None:
        """Prepare for code in an event loop, which must not wait for the store: load the session,
        or have its first use raise RuntimeError. A failure is kept, and raised at the first use."""
        if load and self._sid is not None:
            with contextlib.suppress(SessionAway):
                await self.aload()
        self._may_block = self._sid is None

    async def _load(self, io: IO) -> None:
        if self._sid is not None:
            self._key = store_key(self._sid)
            stored = await self._ask(io, session_reads, lambda store: store.fields(self._key))
            if stored:
                self._found = self._accept(stored)
            else:
                complain_of_cookie("A session cookie without a session: it has ended, or never was")
        if not self._found:
            self._sid = None
            self._fields = Fields({})

    def _accept(self, stored: dict[bytes, bytes]) -> bool:
        """Take the stored fields, unless the session has ended or is damaged."""
        try:
            self._made, self._seen = _time(stored, _MADE), _time(stored, _SEEN)
            self._fields = Fields(stored)
        except codec.CorruptValue as error:
            log.warning("A stored session is damaged (%s) and starts empty", error)
            return False
        return not self.lifetime().is_over(self._made, time.time())

    async def _ask(self, io: IO, count: Counter, call: Callable[[AsyncStore], Awaitable[T]]) -> T:
        """Return the store's answer, and count it. Raises SessionAway."""
        try:
            answer = await call(io.store)
        except StoreError as error:
            self.failure = error
            session_errors.add()
            warn_throttled(error)
            raise SessionAway(_AWAY) from error
        count.add()
        return answer

    # --- into the store -----------------------------------------------------------------

    def save(self, *, last: bool = True) -> tuple[Outcome, str]:
        """Write the changes. Return what to do with the cookie, and the session id for it.

        ``last``: no other save will follow. Raises SessionAway and UnknownType.
        """
        return run(self._save(self._stores.blocking_io, last))

    async def asave(self, *, last: bool = True) -> tuple[Outcome, str]:
        return await self._save(self._stores.async_io, last)

    async def _save(self, io: IO, last: bool) -> tuple[Outcome, str]:
        outcome = Outcome.KEEP
        if self._cleared:
            await self._ask(io, session_writes, lambda store: store.delete(self._cleared))
            self._cleared = []
            outcome = Outcome.REMOVE
        if self._fields is not None:
            changes = self._fields.changes()
            if not self._found:
                if changes.put:
                    await self._create(io, changes)
                    outcome = Outcome.PUT
            elif self._renewed:
                outcome = Outcome.PUT if await self._move(io, changes) else Outcome.KEEP
            elif changes or self.lifetime().is_due(self._seen, time.time()):
                if not await self._put(io, changes.put, changes.remove):
                    # Another request has ended it. The cookie may be that of a new one by now.
                    self.lost = True
                    log.debug("A session ended in the middle of a request; its changes are dropped")
            self._fields.stored(changes)
        self._over = last
        return outcome, self._sid or ""

    async def _create(self, io: IO, changes: Changes) -> None:
        sid, self._made = new_id(), time.time()
        self._key = store_key(sid)
        await self._put(io, changes.put)
        self._sid, self._found = sid, True

    async def _move(self, io: IO, changes: Changes) -> bool:
        """Move the session, as the store has it, to a new id. Return whether it still existed."""
        old, self._renewed = self._key, False
        stored = await self._ask(io, session_reads, lambda store: store.fields(old))
        if not stored:
            self.lost = True
            return False
        kept = {key: data for key, data in stored.items() if key not in changes.remove}
        self._sid, self._made = new_id(), time.time()
        self._key = store_key(self._sid)
        await self._put(io, {**kept, **changes.put})
        if await self._ask(io, session_writes, lambda store: store.delete([old])):
            return True
        self.lost = True
        await self._ask(io, session_writes, lambda store: store.delete([self._key]))
        return False

    async def _put(
        self, io: IO, put: dict[bytes, bytes], remove: list[bytes] | None = None
    ) -> bool:
        """Write fields; with ``remove`` only if the session exists. Return whether it did."""
        self._seen = time.time()
        times = {_SEEN: b"%d" % self._seen}
        if remove is None:
            times[_MADE] = b"%d" % self._made
        ttl, must_exist = self.lifetime().ttl(self._made, self._seen), remove is not None
        self.written = await self._ask(
            io,
            session_writes,
            lambda store: store.change(
                self._key, {**put, **times}, remove or (), ttl=ttl, must_exist=must_exist
            ),
        )
        return self.written


def _time(stored: dict[bytes, bytes], name: bytes) -> float:
    value = codec.decode(stored.pop(name, b""))
    if type(value) is not int:
        raise codec.CorruptValue("its time")
    return float(value)
