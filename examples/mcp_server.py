"""An MCP server on several workers (Python SDK v1, streamable HTTP, stateful).

    GUNICORN_CLUSTER_STICKY=learn:header:Mcp-Session-Id \
        gunicorn -k gunicorn_cluster_ext.StickyASGI -w 4 --chdir examples mcp_server:app

Clients find it at http://127.0.0.1:8000/mcp. A session is in the memory of the worker that opened
it, and no other knows it. The rule learns the session's id from the response to the client's first
request, and brings every request that carries it to that worker, over whatever connection.

A worker that is replaced (HUP) goes on with its sessions for cluster_drain_timeout, if that is
not set for gunicorn's graceful_timeout of 30 s. Set it to as long as your sessions may take.
"""

from weakref import WeakKeyDictionary

from mcp.server.fastmcp import Context, FastMCP
from mcp.server.session import ServerSession

from gunicorn_cluster_ext import worker_id

mcp = FastMCP("Notebook", log_level="WARNING")
app = mcp.streamable_http_app()

notes: WeakKeyDictionary[ServerSession, list[str]] = WeakKeyDictionary()


@mcp.tool()
def write(text: str, context: Context) -> dict[str, int | None]:
    """Write a note into this session's notebook; answers how many there are, and the worker."""
    mine = notes.setdefault(context.session, [])
    mine.append(text)
    return {"notes": len(mine), "worker": worker_id()}


@mcp.tool()
def read(context: Context) -> list[str]:
    """The notes of this session, in order."""
    return notes.get(context.session, [])
