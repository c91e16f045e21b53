"""Twelve Socket.IO clients in rooms, twenty messages, and what each client has to hear."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from tests.harness.clients.guests import Guest, hear_all
from tests.harness.programs import StartNode

#: An obedient server for each worker class.
SERVERS = {
    "thread": ("remote_controlled:app", "gunicorn_cluster_ext.Sticky"),
    "gevent": ("remote_controlled:app", "gunicorn_cluster_ext.StickyGevent"),
    "asgi": ("remote_controlled_asgi:app", "gunicorn_cluster_ext.StickyASGI"),
}
BOTH = ("polling", "websocket")
CLIENTS = 12
MESSAGES = 20
LARGE = 300_000
#: (sender, number, length of the text)
Heard = tuple[int, int, int]


def room_of(client: int) -> str:
    return f"room {client % 3}"


def plan() -> list[dict[str, Any]]:
    """Return messages from every client, to all or to a room of four."""
    return [
        {
            "sender": number % CLIENTS,
            "number": number,
            "room": None if number % 4 == 0 else room_of(number // 4),
            "length": LARGE if number == 7 else 10 * number,
        }
        for number in range(MESSAGES)
    ]


def expected(client: int) -> list[Heard]:
    return [
        (message["sender"], message["number"], message["length"])
        for message in plan()
        if message["room"] in (None, room_of(client))
    ]


def check(heard: Sequence[Sequence[Heard]]) -> None:
    """Check that each client heard its messages once, and those of one sender in order."""
    for client in range(CLIENTS):
        assert sorted(heard[client], key=_number) == expected(client)
        for sender in range(CLIENTS):
            numbers = [number for who, number, _ in heard[client] if who == sender]
            assert numbers == sorted(numbers)


def _number(heard: Heard) -> int:
    return heard[1]


def in_python(urls: Sequence[str], transports: Sequence[str], at_exit: ExitStack) -> list[Guest]:
    """Connect python-socketio clients in turn, to the servers in turn. Each half has one transport,
    so every worker gets some of both."""
    guests = []
    for client in range(CLIENTS):
        url = urls[client % len(urls)]
        transport = transports[client * len(transports) // CLIENTS]
        guests.append(Guest(url, transport))
        at_exit.callback(guests[-1].client.disconnect)
        guests[-1].do("enter_room", guests[-1].sid, room_of(client))
    return guests


def talk(guests: Sequence[Guest]) -> None:
    for message in plan():
        said = [message["sender"], message["number"], "x" * message["length"]]
        guests[message["sender"]].do("emit", "said", said, room=message["room"])
    heard = hear_all(guests, guests)
    check([[(who, number, len(text)) for _, (who, number, text) in each] for each in heard])


def in_node(node: StartNode, urls: Sequence[str], transports: Sequence[str]) -> set[int]:
    """Do the same with the official client, all at once; return the workers they were on."""
    clients = [
        {
            "url": urls[client % len(urls)],
            "transport": transports[client * len(transports) // CLIENTS],
            "room": room_of(client),
        }
        for client in range(CLIENTS)
    ]
    seen = node("crowd.js", json.dumps({"clients": clients, "messages": plan()})).result(90)
    check([[tuple(heard) for heard in client["heard"]] for client in seen])
    return {client["worker"] for client in seen}
