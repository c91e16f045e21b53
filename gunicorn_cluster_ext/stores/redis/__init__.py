"""The store of many machines: a Redis, alone, watched by Sentinels, or a Cluster.

Everything in redis-py (5.1 and later) that the store relies on beyond the documented interface:

* ``connection.Connection`` and its subclasses: ``_connect`` returns the socket, whose only blocking
  methods are ``recv``, ``recv_into`` and ``sendall``; ``socket_connect_timeout`` is read whenever a
  host is tried; ``read_response`` takes ``disconnect_on_error``; ``can_read`` without a timeout
  tells whether the server has closed the connection; ``send_command`` takes ``keys`` for the cache
  of the client.
* ``ConnectionPool``: ``get_connection`` connects, and takes the name of a command before 5.3;
  ``cache`` is None if values are not cached. A connection that is never released may be kept.
* ``Redis``: ``parse_response`` takes the ``keys``, and a pipeline sends ``pack_commands``.
* ``cache.CacheConfig.is_allowed_to_cache`` decides which commands are cached. Before 8.0 the keys
  of invalidations are compared as text, so that bytes never match.
* ``sentinel``: ``Sentinel.sentinels`` may be replaced; ``SentinelConnectionPool.sentinel_manager``.
* ``RedisCluster``: it takes a ``connection_pool_class`` only together with a ``url``, and knows the
  documented classes of connections only; ``get_node_from_key``, ``get_primaries``; before 6 it
  retries unless ``cluster_error_retry_attempts`` is 0.
"""
