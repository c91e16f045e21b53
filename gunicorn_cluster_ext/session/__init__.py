"""Sessions that all workers share, for WSGI and ASGI applications.

    app = SessionMiddleware(app)        # environ["gunicorn_cluster.session"]
    app = ASGISessionMiddleware(app)    # scope["session"], Starlette's request.session

The session is a dictionary; what it does with its changes stands in ``record``. Settings are those
of the server (``cluster_session_*``); each may be given here by the rest of its name, such as
``idle=3600``.

It is saved when the response begins, for its cookie must be in the head. When the store is away,
a request that touches the session is answered 503 with ``Retry-After``; if the application turns
the exception (SessionAway) into an answer of its own below 500, that is sent.
"""

from __future__ import annotations

from gunicorn_cluster_ext.session.asgi import ASGISessionMiddleware
from gunicorn_cluster_ext.session.session import Session, SessionAway
from gunicorn_cluster_ext.session.wsgi import SessionMiddleware

__all__ = ["ASGISessionMiddleware", "Session", "SessionAway", "SessionMiddleware"]
