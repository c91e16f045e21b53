"""Several Socket.IO servers in each process: a twin with the same channel, and one with another."""

import obedient  # type: ignore[import-not-found]
import socketio  # type: ignore[import-untyped]

from gunicorn_cluster_ext.socketio import ClusterManager

app = obedient.app
for path, channel in (("twin", "socketio"), ("other", "another")):
    server = socketio.Server(async_mode="threading", client_manager=ClusterManager(channel))
    server.on("where", obedient.where)
    app = socketio.WSGIApp(server, app, socketio_path=path)
