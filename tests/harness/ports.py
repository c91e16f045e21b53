"""Free ports for servers that cannot choose one themselves."""

import random
import socket

# Below the range from which the kernel takes the ports of outgoing connections.
_RANGE = range(10_000, 32_000)


def free_port() -> int:
    """Return a port that was just free, at random because parallel tests ask at once."""
    while True:
        port = random.choice(_RANGE)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
