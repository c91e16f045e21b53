"""A session engine: only what a request has changed is written, nested changes included.

As elsewhere in Django a session ends ``SESSION_COOKIE_AGE`` (or ``set_expiry``) after it was last
saved; with ``SESSION_SAVE_EVERY_REQUEST`` after it was last used, which is written at most ten
times in that time.
"""

from __future__ import annotations

from typing import Any

from asgiref.sync import sync_to_async

from gunicorn_cluster_ext.extras import missing

try:
    from django.contrib.sessions.backends.base import SessionBase, UpdateError
    from django.contrib.sessions.exceptions import SessionInterrupted
except ImportError as error:
    raise missing("django", error) from None

from gunicorn_cluster_ext.session.cookie import is_id
from gunicorn_cluster_ext.session.session import Session, SessionLifetime, store_key
from gunicorn_cluster_ext.stores import handles
from gunicorn_cluster_ext.stores.sync_async import run

__all__ = ["SessionStore"]


class _DjangoSession(Session):
    """The session itself, with Django's rules for its lifetime."""

    def __init__(self, owner: SessionStore, sid: str | None) -> None:
        super().__init__(handles.default, SessionLifetime(0, 0), sid)
        self._owner = owner

    @property
    def sid(self) -> str | None:
        return self._sid

    def lifetime(self) -> SessionLifetime:
        return SessionLifetime(max(1.0, self._owner.get_expiry_age()), 0)

    def is_changed(self) -> bool:
        return self._fields is not None and bool(self._fields.changes())

    def renew(self) -> None:
        """Store the same data under a new id, in a session that replaces this one."""
        new = _DjangoSession(self._owner, None)
        if self._fields is not None:
            new.update(self)
        self._owner.cluster_session = new
        fields = new._read()
        changes = fields.changes()
        run(new._create(self._stores.blocking_io, changes))
        fields.stored(changes)


class SessionStore(SessionBase):
    """``request.session``. ``modified`` need not be set."""

    #: The session of the pack, for the middleware.
    cluster_session: _DjangoSession

    def __init__(self, session_key: str | None = None) -> None:
        super().__init__(session_key)

    # --- the attributes of Django's sessions --------------------------------------------

    def _get_key(self) -> str | None:
        return self.cluster_session.sid

    def _set_key(self, key: str | None) -> None:
        self.cluster_session = _DjangoSession(self, key if is_id(key) else None)

    session_key = property(_get_key)
    _session_key = property(_get_key, _set_key)

    @property
    def _session_cache(self) -> _DjangoSession:
        return self.cluster_session

    async def _aget_session(self, no_load: bool = False) -> _DjangoSession:
        self.accessed = True
        await self.cluster_session.aload()
        return self.cluster_session

    @property
    def modified(self) -> bool:
        return self._modified or self.cluster_session.is_changed()

    @modified.setter
    def modified(self, value: bool) -> None:
        self._modified = value

    def is_empty(self) -> bool:
        return self.session_key is None and not len(self.cluster_session)

    # --- the methods of a session engine ------------------------------------------------

    def load(self) -> dict[str, Any]:
        return dict(self.cluster_session)

    def exists(self, session_key: str) -> bool:
        return bool(handles.default.store.fields(store_key(session_key)))

    def create(self) -> None:
        self.cluster_session.renew()
        self.modified = True

    def save(self, must_create: bool = False) -> None:
        """Raises UpdateError when another request has ended the session, and SessionAway."""
        if self.session_key is None or must_create:
            self.create()
            return
        self.cluster_session.save(last=False)
        if self.cluster_session.lost:
            raise UpdateError

    def delete(self, session_key: str | None = None) -> None:
        session_key = session_key or self.session_key
        if session_key is not None:
            handles.default.store.delete([store_key(session_key)])

    def clear(self) -> None:
        """Remove all data, but keep the session; ``flush`` ends it."""
        for name in list(self._session):
            del self[name]
        self.accessed = self.modified = True

    def flush(self) -> None:
        """End the session at once."""
        self.accessed = self.modified = True
        self.cluster_session.clear()
        self.cluster_session.save(last=False)

    def cycle_key(self) -> None:
        """Change the id at once, and keep what other requests have stored meanwhile."""
        if self.cluster_session.new:
            self.create()
            return
        self.cluster_session.regenerate()
        self.cluster_session.save(last=False)
        if self.cluster_session.lost:
            raise SessionInterrupted("The session was ended by another request.")
        self.modified = True

    async def aflush(self) -> None:
        await sync_to_async(self.flush)()

    async def acycle_key(self) -> None:
        await sync_to_async(self.cycle_key)()

    @classmethod
    def clear_expired(cls) -> None:
        """Do nothing: the store removes expired sessions by itself."""
