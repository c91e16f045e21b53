"""Sessions that all workers share, for WSGI and ASGI applications.

    app = SessionMiddleware(app)        # environ["gunicorn_cluster.session"]
    app = ASGISessionMiddleware(app)    # scope["session"], Starlette's request.session

The session is a dictionary; the module ``session`` says when it is read and written. The settings
are those of the server (``cluster_session_*``); each may be given here by the rest of its name,
such as ``idle=3600``.

The session is saved when the response begins, because the cookie must be in the head. When the
store is away, a request that uses the session is answered 503 with ``Retry-After``, unless the
application turns the exception (SessionAway) into a response of its own below 500.
"""

from __future__ import annotations

from gunicorn_cluster_ext.session.asgi import ASGISessionMiddleware
from gunicorn_cluster_ext.session.session import Session, SessionAway
from gunicorn_cluster_ext.session.wsgi import SessionMiddleware

__all__ = ["ASGISessionMiddleware", "Session", "SessionAway", "SessionMiddleware"]
