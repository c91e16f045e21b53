"""/metrics of an ASGI application."""

from gunicorn_cluster_ext.metrics import asgi_app as app

__all__ = ["app"]
