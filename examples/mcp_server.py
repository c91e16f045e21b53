"""An MCP server on several workers (Python SDK v1, streamable HTTP, stateful).

    GUNICORN_CLUSTER_STICKY=learn:header:Mcp-Session-Id \
        gunicorn -k gunicorn_cluster_ext.StickyASGI -w 4 --chdir examples mcp_server:app

Clients connect to http://127.0.0.1:8000/mcp. A session is in the memory of the worker that opened
it, and no other worker knows it. The rule learns the session's id from the response to the client's
first request, and routes every request with this id to that worker, over any connection.

A worker that is replaced (HUP) continues its sessions for cluster_drain_timeout (default:
gunicorn's graceful_timeout, 30 s). Set it to the longest time that your sessions may take.
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
    """Write a note into this session's notebook; return the number of notes and the worker."""
    mine = notes.setdefault(context.session, [])
    mine.append(text)
    return {"notes": len(mine), "worker": worker_id()}


@mcp.tool()
def read(context: Context) -> list[str]:
    """Return the notes of this session, in order."""
    return notes.get(context.session, [])
