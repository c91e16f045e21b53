"""The lower bound for a message: socket pairs between four processes, and nothing else.

    python -m benchmarks.bus_floor [--rounds 9]

This is the least that ``benchmarks.bus`` could show for *one way*: one process sends 100 bytes to
three others every two milliseconds; each of them waits in ``recv`` and records when it returned.
Prints the median of each receiver in each round, and that of all, in microseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import struct
import sys
import time
from itertools import chain
from statistics import median

from .bus import PACED, PAUSE_S

RECEIVERS = 3
SENT = struct.Struct("<Q92x")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bus_floor")
    parser.add_argument("--rounds", type=int, default=9)
    rounds = [one_round() for _ in range(parser.parse_args().rounds)]
    for delays in rounds:
        print("  ".join(f"{median(each):5.0f}" for each in delays))
    print(f"p50 one way: {median(median(chain.from_iterable(delays)) for delays in rounds):.0f} us")
    return 0


def one_round() -> list[list[float]]:
    """Return the delays that each receiver recorded."""
    receivers: list[socket.socket] = []
    for _ in range(RECEIVERS):
        here, there = socket.socketpair()
        if os.fork() == 0:
            for other in (here, *receivers):
                other.close()
            receive(there)
        there.close()
        receivers.append(here)
    for _ in range(PACED):
        message = SENT.pack(time.monotonic_ns())
        for receiver in receivers:
            receiver.send(message)
        time.sleep(PAUSE_S)
    return [noted(receiver) for receiver in receivers]


def receive(sender: socket.socket) -> None:
    """Receive until the sender closes, report the delays, and exit; runs in a child process."""
    delays = []
    while message := sender.recv(SENT.size):
        delays.append((time.monotonic_ns() - SENT.unpack(message)[0]) / 1e3)
    sender.sendall(json.dumps(delays).encode())
    os._exit(0)


def noted(receiver: socket.socket) -> list[float]:
    receiver.shutdown(socket.SHUT_WR)
    with receiver, receiver.makefile("rb") as answer:
        delays: list[float] = json.loads(answer.read())
    os.wait()
    return delays


if __name__ == "__main__":
    sys.exit(main())
