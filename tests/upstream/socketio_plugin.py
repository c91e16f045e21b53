"""A plugin for pytest: where python-socketio's tests make a pub/sub manager, they get ours."""

from socketio import async_pubsub_manager, pubsub_manager  # type: ignore[import-untyped]

from gunicorn_cluster_ext.socketio import AsyncClusterManager, ClusterManager

pubsub_manager.PubSubManager = ClusterManager
async_pubsub_manager.AsyncPubSubManager = AsyncClusterManager
