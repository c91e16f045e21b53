"""A session: one field in the store for each of its keys, and what a request makes of them.

    unread                    nothing is asked of the store
    read                      one read; one write more when it was last written a tenth of its
                              idle time ago
    changed                   only the changed fields are written, if the session is still there
    clear()                   it is deleted; what is set after that makes a new one
    regenerate()              a new id, with what the store has at that moment; the old one is
                              deleted, and if it was gone already, so is the new one

So concurrent requests lose no change of different keys, a logout is never undone by a request
that began before it, and nothing is ever locked. An id that the store does not know is never
used: a new session gets a new one. The store has its hash only.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import time
from collections.abc import Iterator, MutableMapping
from typing import Any, Final, NamedTuple

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
from gunicorn_cluster_ext.stores.contract import StoreAway, StoreError
from gunicorn_cluster_ext.stores.drivers import Asynchronous, Blocking
from gunicorn_cluster_ext.stores.handles import Stores
from gunicorn_cluster_ext.stores.script import Script, Step, arun, run

#: Fields that are not the application's: when the session was made, and last written (Unix time).
_MADE: Final = b"\0made"
_SEEN: Final = b"\0seen"
_TOUCHES = 10
_AWAY = "the store with the sessions cannot be reached"


class SessionAway(StoreAway):
    """The store with the sessions cannot be reached. Nobody is logged out: try again later."""


class Outcome(enum.Enum):
    """What is to become of the client's cookie."""

    KEEP = enum.auto()
    PUT = enum.auto()
    REMOVE = enum.auto()


class Limits(NamedTuple):
    """In seconds; ``lifetime`` 0: none."""

    idle: float
    lifetime: float

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(settings.session_idle, settings.session_lifetime)

    def ttl(self, made: float, now: float) -> float:
        left = made + self.lifetime - now if self.lifetime else self.idle
        return max(1.0, min(self.idle, left))

    def is_over(self, made: float, now: float) -> bool:
        return bool(self.lifetime) and made + self.lifetime <= now

    def is_due(self, seen: float, now: float) -> bool:
        """Whether to write it for no other reason than that it lives on."""
        return not 0 <= now - seen < self.idle / _TOUCHES


def store_key(sid: str) -> bytes:
    """A leak of the store is not one of cookies."""
    return b"session:" + hashlib.sha256(sid.encode()).hexdigest().encode()


class Session(MutableMapping[str, Any]):
    """The session of one request; ``sid`` is what the client sent, if it has the right form."""

    def __init__(self, stores: Stores, limits: Limits, sid: str | None) -> None:
        #: Whether the application has looked at it.
        self.accessed = False
        #: Why the store could not be reached.
        self.failure: StoreError | None = None
        #: Whether the store has been written to, so that the session lives on from now.
        self.written = False
        #: Whether another request has ended it, so that our changes were dropped.
        self.lost = False
        self._limits = limits
        self._stores = stores
        self._sid = sid
        self._key = b""  # in the store, when something is known of it there
        self._fields: Fields | None = None
        self._found = False
        self._anew = False
        self._made = self._seen = 0.0
        self._cleared: list[bytes] = []
        self._over = False
        self._blocking = True

    def __repr__(self) -> str:
        if self._fields is None:
            return "<Session, unread>"
        return f"<Session of {', '.join(self._fields) or 'nothing'}>"

    # --- a dictionary -------------------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        return self._read()[name]

    def get(self, name: str, default: Any = None) -> Any:
        fields = self._read()
        return fields[name] if name in fields else default

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
        """Log out: the session ends, and what is set from now on makes a new one."""
        self._check()
        if self._sid is not None:
            self._cleared.append(store_key(self._sid))
        self.accessed = True
        self._sid = None
        self._fields = Fields({})
        self._found = self._anew = False

    def regenerate(self) -> None:
        """A new id for the same data, and a new lifetime; for a login, so that whoever knew the
        id before it does not know it afterwards."""
        self._write()
        self._anew = True

    @property
    def new(self) -> bool:
        """Whether the client came without a session."""
        self._read()
        return not self._found

    @property
    def failed(self) -> bool:
        """Whether the application asked for it in vain."""
        return self.accessed and self.failure is not None

    def limits(self) -> Limits:
        """Of this session, which is loaded."""
        return self._limits

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
            log.warning("A session is changed after its response began; that will not be stored")

    # --- from the store -----------------------------------------------------------------

    def load(self) -> None:
        """Does nothing if that was done. Raises SessionAway."""
        if self._fields is not None:
            return
        if self.failure is not None:
            raise SessionAway(_AWAY) from self.failure
        if not self._blocking:
            raise RuntimeError("first: await session.aload()")
        run(self._load(), Blocking(self._stores))

    async def aload(self) -> None:
        if self._fields is None:
            await arun(self._load(), Asynchronous(self._stores))

    async def prepare(self, *, load: bool) -> None:
        """Before code in an event loop that must not wait for the store: load it, if there is
        something, or see to it that nothing else does. What fails is said when it is used."""
        if load and self._sid is not None:
            with contextlib.suppress(SessionAway):
                await self.aload()
        self._blocking = self._sid is None

    def _load(self) -> Script[None]:
        stored: dict[bytes, bytes] = {}
        if self._sid is not None:
            self._key = store_key(self._sid)
            stored = yield from self._ask(session_reads, lambda face: face.store.fields(self._key))
            self._found = bool(stored) and self._is_sound(stored)
            if not stored:
                complain_of_cookie("A session cookie without a session: it has ended, or never was")
        if not self._found:
            self._sid = None
            self._fields = Fields({})

    def _is_sound(self, stored: dict[bytes, bytes]) -> bool:
        """Take what is stored, unless it is over or damaged."""
        try:
            self._made, self._seen = _time(stored, _MADE), _time(stored, _SEEN)
            self._fields = Fields(stored)
        except codec.CorruptValue as error:
            log.warning("A stored session is damaged (%s), and begins anew", error)
            return False
        return not self.limits().is_over(self._made, time.time())

    def _ask(self, count: Counter, step: Step) -> Script[Any]:
        try:
            answer = yield step
        except StoreError as error:
            self.failure = error
            session_errors.add()
            warn_throttled(error)
            raise SessionAway(_AWAY) from error
        count.add()
        return answer

    # --- into the store -----------------------------------------------------------------

    def save(self, *, last: bool = True) -> tuple[Outcome, str]:
        """Write what was changed; what to do with the cookie, and the id for it.

        ``last``: no other save will follow. Raises SessionAway and UnknownType.
        """
        return run(self._save(last), Blocking(self._stores))

    async def asave(self, *, last: bool = True) -> tuple[Outcome, str]:
        return await arun(self._save(last), Asynchronous(self._stores))

    def _save(self, last: bool) -> Script[tuple[Outcome, str]]:
        outcome = Outcome.KEEP
        if self._cleared:
            yield from self._ask(session_writes, lambda face: face.store.delete(self._cleared))
            self._cleared = []
            outcome = Outcome.REMOVE
        if self._fields is not None:
            outcome = yield from self._save_fields(self._fields, self._fields.changes(), outcome)
        self._over = last
        return outcome, self._sid or ""

    def _save_fields(self, fields: Fields, changes: Changes, outcome: Outcome) -> Script[Outcome]:
        if not self._found:
            if changes.put:
                yield from self._create(changes)
                outcome = Outcome.PUT
        elif self._anew:
            moved = yield from self._move(changes)
            outcome = Outcome.PUT if moved else Outcome.KEEP
        elif changes or self.limits().is_due(self._seen, time.time()):
            yield from self._merge(changes)
        fields.stored(changes)
        return outcome

    def _create(self, changes: Changes) -> Script[None]:
        sid, self._made = new_id(), time.time()
        self._key = store_key(sid)
        yield from self._put(changes.put)
        self._sid, self._found = sid, True

    def _merge(self, changes: Changes) -> Script[None]:
        if not (yield from self._put(changes.put, changes.remove)):
            self.lost = True
            # Another request has ended it. The cookie may be that of a new one by now.
            log.debug("A session has ended in the middle of a request, whose changes are dropped")

    def _move(self, changes: Changes) -> Script[bool]:
        """Whether the session was still there. Its data is that of the store, with our changes."""
        old, self._anew = self._key, False
        stored = yield from self._ask(session_reads, lambda face: face.store.fields(old))
        if not stored:
            self.lost = True
            return False
        kept = {key: data for key, data in stored.items() if key not in changes.remove}
        self._sid, self._made = new_id(), time.time()
        self._key = store_key(self._sid)
        yield from self._put({**kept, **changes.put})
        if (yield from self._ask(session_writes, lambda face: face.store.delete([old]))):
            return True
        self.lost = True
        yield from self._ask(session_writes, lambda face: face.store.delete([self._key]))
        return False

    def _put(self, put: dict[bytes, bytes], remove: Any = None) -> Script[bool]:
        """Write fields; with ``remove`` only if the session is there. Whether it was."""
        self._seen = time.time()
        times = {_SEEN: b"%d" % self._seen}
        if remove is None:
            times[_MADE] = b"%d" % self._made
        ttl, must_exist = self.limits().ttl(self._made, self._seen), remove is not None
        self.written = yield from self._ask(
            session_writes,
            lambda face: face.store.change(
                self._key, {**put, **times}, remove or (), ttl=ttl, must_exist=must_exist
            ),
        )
        return self.written


def _time(stored: dict[bytes, bytes], name: bytes) -> float:
    value = codec.decode(stored.pop(name, b""))
    if type(value) is not int:
        raise codec.CorruptValue("its time")
    return float(value)
