"""The ready-made configuration.

``gunicorn -c python:gunicorn_cluster_ext.conf app:app``, or at the top of a file of your own::

    from gunicorn_cluster_ext.conf import *

followed by your values and hooks, which win. Whatever hooks you define, the pack's run too.
"""

from gunicorn_cluster_ext.hooks import on_starting

__all__ = ["keepalive", "on_starting", "worker_class"]

worker_class = "gunicorn_cluster_ext.Sticky"
# Longer than the idle time after which reverse proxies and browsers usually reuse a
# connection; an idle connection costs no thread. Gunicorn's default of 2 s closes most.
keepalive = 15
