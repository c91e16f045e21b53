"""The official JavaScript client: it begins with polling and upgrades to WebSocket."""

import json
from typing import Any

import pytest

from tests.harness.programs import StartGunicorn, StartNode

pytestmark = pytest.mark.one_gunicorn

CLIENTS = 24
CALLS = 10


def run_clients(node: StartNode, url: str, transports: list[str]) -> list[dict[str, Any]]:
    plan = {"clients": CLIENTS, "calls": CALLS, "transports": transports}
    seen: list[dict[str, Any]] = node("clients.js", url, json.dumps(plan)).result(90)
    assert len(seen) == CLIENTS
    return seen


def check_served(seen: list[dict[str, Any]], transports: list[str]) -> None:
    assert [client["error"] for client in seen if client["error"]] == []
    assert [client["answers"] for client in seen] == [CALLS] * CLIENTS
    assert all(client["transports"] == transports for client in seen)
    used = [set(client["workers"]) for client in seen]
    assert all(len(workers) == 1 for workers in used)
    assert len(set.union(*used)) >= 3


def test_upgrade_from_polling_to_websocket(gunicorn: StartGunicorn, node: StartNode) -> None:
    server = gunicorn("chat:app", "-k", "gunicorn_cluster_ext.Sticky", "-w", "4", serving=4)
    seen = run_clients(node, server.url, ["polling", "websocket"])
    check_served(seen, ["polling", "websocket"])


def test_polling_only(gunicorn: StartGunicorn, node: StartNode) -> None:
    server = gunicorn("chat:app", "-k", "gunicorn_cluster_ext.Sticky", "-w", "4", serving=4)
    check_served(run_clients(node, server.url, ["polling"]), ["polling"])


def test_websocket_only(gunicorn: StartGunicorn, node: StartNode) -> None:
    server = gunicorn("chat:app", "-k", "gunicorn_cluster_ext.Sticky", "-w", "4", serving=4)
    seen = run_clients(node, server.url, ["websocket"])
    check_served(seen, ["websocket"])


def test_stock_gthread_cannot(gunicorn: StartGunicorn, node: StartNode) -> None:
    stock = ("-k", "gthread", "-w", "4", "--threads", "100", "--graceful-timeout", "1")
    server = gunicorn("chat:app", *stock, serving=4)
    seen = run_clients(node, server.url, ["polling", "websocket"])
    assert [client for client in seen if client["error"]]
