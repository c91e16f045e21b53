"""Server-sent events on several workers: a message to one reaches the clients of all, no broker.

    gunicorn -k gunicorn_cluster_ext.StickyASGI -w 4 --chdir examples sse:app

Open the page in several browsers; each shows the worker of its stream. A stream stays with its
worker while the worker is being replaced (HUP), for at most cluster_drain_timeout. Then the browser
reconnects by itself, and misses messages that are sent in between.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, StreamingResponse

from gunicorn_cluster_ext import bus, worker_id

PAGE = """<!doctype html>
<title>Said</title>
<p>You hear worker <b id="worker">?</b>.
<form id="form"><input id="text" autofocus> <button>Say</button></form>
<ul id="said"></ul>
<script>
const element = id => document.getElementById(id);
const events = new EventSource("events");
events.addEventListener("welcome", event => element("worker").textContent = event.data);
events.onmessage = event => {
  const item = element("said").appendChild(document.createElement("li"));
  item.textContent = JSON.parse(event.data).text;
};
element("form").onsubmit = event => {
  event.preventDefault();
  fetch("say", {method: "POST", body: element("text").value});
  element("text").value = "";
};
</script>
"""

#: The most messages that wait for a slow client; then its stream ends, and it reconnects.
ROOM = 1_000

#: One queue per client of this worker.
streams: set[asyncio.Queue[bytes]] = set()


def hear(message: bytes) -> None:
    """Pass a message to the clients of this worker; runs in the event loop."""
    for stream in list(streams):
        try:
            stream.put_nowait(message)
        except asyncio.QueueFull:
            streams.discard(stream)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    end = bus.subscribe("said", hear)
    yield
    end()


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def page() -> HTMLResponse:
    return HTMLResponse(PAGE)


@app.post("/say", status_code=204)
async def say(request: Request) -> Response:
    text = (await request.body()).decode(errors="replace")[:500]
    message = json.dumps({"text": text, "worker": worker_id()}).encode()
    hear(message)  # the bus reaches only the other workers
    await bus.apublish("said", message)
    return Response(status_code=204)


@app.get("/events")
async def events() -> StreamingResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx: send at once
    return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)


async def stream() -> AsyncIterator[bytes]:
    mine: asyncio.Queue[bytes] = asyncio.Queue(ROOM)
    streams.add(mine)
    try:
        yield b"event: welcome\ndata: %d\n\n" % (worker_id() or 0)
        while mine in streams or not mine.empty():
            try:
                message = await asyncio.wait_for(mine.get(), 15)
            except asyncio.TimeoutError:
                yield b": still here\n\n"  # so that proxies do not close an idle stream
            else:
                yield b"data: %s\n\n" % message
    finally:
        streams.discard(mine)
