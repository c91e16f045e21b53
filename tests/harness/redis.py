"""A real redis-server that keeps nothing on disk."""

from pathlib import Path

import redis

from .ports import accepts, free_port
from .process import Process
from .program import find_program


class Redis(Process):
    """`port` lets a test start a second one where the first has been."""

    def __init__(self, directory: Path, *args: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        command = [find_program("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--save", "", "--appendonly", "no", "--dir", str(directory)]
        super().__init__("redis", [*command, *args], directory)

    def subscribers(self, channel: str) -> int:
        with redis.Redis.from_url(self.url) as client:
            return int(client.pubsub_numsub(channel)[0][1])

    def wait_ready(self) -> None:
        self.wait_for(lambda: accepts(self.port), 10, "a redis-server that accepts")
