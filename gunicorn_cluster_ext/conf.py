"""The ready-made configuration.

``gunicorn -c python:gunicorn_cluster_ext.conf app:app``, or at the top of a file of your own::

    from gunicorn_cluster_ext.conf import *

followed by your values and hooks, which take precedence. The pack's hooks run beside yours.
"""

from gunicorn_cluster_ext.hooks import on_starting

__all__ = ["keepalive", "on_starting", "worker_class"]

worker_class = "gunicorn_cluster_ext.Sticky"
# Reverse proxies and browsers usually reuse a connection within this time, and an idle one costs
# no thread. Gunicorn's default of 2 s closes most of them.
keepalive = 15
