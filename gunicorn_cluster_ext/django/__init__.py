"""For Django: a cache, sessions, and their middleware.

    CACHES = {"default": {"BACKEND": "gunicorn_cluster_ext.django.cache.ClusterCache"}}
    SESSION_ENGINE = "gunicorn_cluster_ext.django.sessions"
    MIDDLEWARE = [..., "gunicorn_cluster_ext.django.middleware.SessionMiddleware", ...]

The middleware replaces ``django.contrib.sessions.middleware.SessionMiddleware``: when the store is
away it answers 503, where Django's would answer 500.
"""
