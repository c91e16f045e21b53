"""MCP's own client (Python SDK v1) with the example's server, whose sessions one process knows."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import gunicorn
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

from gunicorn_cluster_ext.runtime.board.layout import RollState, State
from tests.harness.programs import StartGunicorn
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.view import View

pytestmark = pytest.mark.one_gunicorn

WORKERS = 4
SESSIONS = 16
CALLS = 5
RULE = 'cluster_sticky = ["learn:header:Mcp-Session-Id"]\n'
STICKY_ASGI = "gunicorn_cluster_ext.StickyASGI"


class Notebook:
    """One client's session, in which it has written so many notes."""

    def __init__(self, session: ClientSession, name: int) -> None:
        self._session = session
        self._name = name
        self.written: list[str] = []
        self.workers: set[int | None] = set()

    async def write(self) -> None:
        text = f"{self._name}: {len(self.written)}"
        self.written.append(text)
        answer = await self._call("write", text=text)
        assert answer["notes"] == len(self.written)
        self.workers.add(answer["worker"])

    async def check(self) -> None:
        assert (await self._call("read"))["result"] == self.written

    async def _call(self, tool: str, **arguments: str) -> Any:
        result = await self._session.call_tool(tool, arguments)
        assert not result.isError, result
        return result.structuredContent


async def open_notebook(stack: AsyncExitStack, server: Gunicorn, name: int) -> Notebook:
    client = streamable_http_client(f"{server.url}/mcp")
    read, write, _ = await stack.enter_async_context(client)
    session = await stack.enter_async_context(ClientSession(read, write))
    await session.initialize()
    return Notebook(session, name)


async def take_notes(server: Gunicorn, name: int) -> set[int | None]:
    """A whole session; the workers that answered."""
    async with AsyncExitStack() as stack:
        notebook = await open_notebook(stack, server, name)
        for _ in range(CALLS):
            await notebook.write()
        await notebook.check()
    return notebook.workers


def succeed(*sessions: Callable[[], Awaitable[Any]]) -> list[Any]:
    """What each of the sessions, all at once, came to: its answer or its error."""

    async def run() -> list[Any]:
        limited = (asyncio.wait_for(session(), 60) for session in sessions)
        return await asyncio.gather(*limited, return_exceptions=True)

    return asyncio.run(run())


def start(gunicorn: StartGunicorn, kind: str, config: str = RULE) -> Gunicorn:
    return gunicorn("mcp_server:app", "-k", kind, "-w", str(WORKERS), config=config)


def notes_of_all(server: Gunicorn) -> list[Any]:
    return succeed(*(lambda name=name: take_notes(server, name) for name in range(SESSIONS)))


# The asgi worker of gunicorn 25 says that the client has gone as soon as it has sent its request,
# so the SDK answers nothing, not even on one worker.
if gunicorn.version_info >= (26,):

    def test_every_session_finds_its_process(gunicorn: StartGunicorn) -> None:
        server = start(gunicorn, STICKY_ASGI)
        view = View(server)
        view.wait_slots(WORKERS)
        workers = notes_of_all(server)
        assert all(isinstance(each, set) and len(each) == 1 for each in workers), workers
        shares = Counter(worker for each in workers for worker in each)
        assert len(shares) == WORKERS and max(shares.values()) <= SESSIONS / 2, shares
        assert view.total("handed_in") > 0

    def test_no_session_is_lost_while_the_server_rolls(gunicorn: StartGunicorn) -> None:
        server = start(gunicorn, STICKY_ASGI, RULE + "cluster_drain_timeout = 20\n")
        view = View(server)
        old = set(view.wait_slots(WORKERS).values())

        async def roll() -> None:
            async with AsyncExitStack() as stack:
                notebooks = [await open_notebook(stack, server, name) for name in range(SESSIONS)]
                server.signal(signal.SIGHUP)
                deadline = time.monotonic() + 60
                while view.roll[:2] != (RollState.COMMITTED, 1):
                    assert time.monotonic() < deadline
                    await asyncio.gather(*(notebook.write() for notebook in notebooks))
                assert old.isdisjoint(view.pids().values())
                # The old processes answer their sessions, and the new ones take new clients.
                newcomers = [await open_notebook(stack, server, name) for name in range(100, 104)]
                for _ in range(CALLS):
                    await asyncio.gather(*(each.write() for each in (*notebooks, *newcomers)))
                await asyncio.gather(*(each.check() for each in (*notebooks, *newcomers)))
                draining = {row.words["pid"] for row in view.rows if row.state is State.DRAINING}
                assert draining and draining <= old
                assert all(len(notebook.workers) == 1 for notebook in notebooks)

        asyncio.run(roll())
        view.wait_slots(WORKERS, generation=2)

    def test_without_the_pack_none_does(gunicorn: StartGunicorn) -> None:
        server = start(gunicorn, "asgi", config="")
        server.wait_serving(WORKERS)
        lost = [each for each in notes_of_all(server) if isinstance(each, BaseException)]
        assert len(lost) > SESSIONS / 2
