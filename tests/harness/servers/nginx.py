"""A real nginx in front of the servers of a test."""

import os
from pathlib import Path

from tests.harness.clients.connection import Connection
from tests.harness.ports import accepts, free_port
from tests.harness.process import Process, find_program

_AROUND = """
daemon off;
{user}
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr info;
events {{ worker_connections 512; }}
http {{
    access_log {directory}/access.log;
    client_body_temp_path {directory}/client;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {blocks}
}}
"""


def in_front_of(port: int, keepalive: int) -> str:
    """Return the blocks of a proxy before that port, which keeps so many connections open."""
    return f"""
        upstream workers {{ server 127.0.0.1:{port}; keepalive {keepalive}; }}
        server {{
            LISTEN
            location / {{
                proxy_pass http://workers;
                proxy_http_version 1.1;
                proxy_set_header Connection "";
            }}
        }}
        """


class Nginx(Process):
    """`blocks` stand inside `http {}`; `LISTEN` in them becomes `listen 127.0.0.1:port;`."""

    def __init__(self, directory: Path, blocks: str) -> None:
        self.port = free_port()
        config = directory / "nginx.conf"
        config.write_text(
            _AROUND.format(
                directory=directory,
                # Its workers would drop to a user who cannot enter our directory.
                user="user root;" if os.geteuid() == 0 else "",
                blocks=blocks.replace("LISTEN", f"listen 127.0.0.1:{self.port};"),
            )
        )
        command = [find_program("nginx"), "-p", str(directory), "-c", str(config), "-e", "stderr"]
        super().__init__("nginx", command, directory)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, timeout: float = 20) -> Connection:
        return Connection(("127.0.0.1", self.port), timeout)

    def wait_ready(self) -> None:
        self.wait_for(lambda: accepts(self.port), 10, "an nginx that accepts")
