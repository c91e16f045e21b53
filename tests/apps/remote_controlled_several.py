"""Several Socket.IO servers in each process: a twin with the same channel, and one with another."""

import remote_controlled  # type: ignore[import-not-found]
import socketio  # type: ignore[import-untyped]

from gunicorn_cluster_ext.socketio import ClusterManager

app = remote_controlled.app
for path, channel in (("twin", "socketio"), ("other", "another")):
    server = socketio.Server(async_mode="threading", client_manager=ClusterManager(channel))
    server.on("where", remote_controlled.where)
    app = socketio.WSGIApp(server, app, socketio_path=path)
