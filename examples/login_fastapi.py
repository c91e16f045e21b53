"""A login and three counters on several workers, with FastAPI.

    gunicorn -c python:gunicorn_cluster_ext.conf -k asgi -w 4 --chdir examples login_fastapi:app

Open the page in several browsers: every worker has its own (wrong) counter, while the session and
the right counter are shared by all workers. They are stored on this machine; for several machines
give the address of a Redis: GUNICORN_CLUSTER_STORE=redis://host:port/0.
"""

from html import escape
from urllib.parse import parse_qs

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from gunicorn_cluster_ext import cache, worker_id
from gunicorn_cluster_ext.session import ASGISessionMiddleware

app = FastAPI()
app.add_middleware(ASGISessionMiddleware)  # request.session, in the store

wrong = 0

PAGE = """<!doctype html>
<title>Login and counters</title>
<p>Worker <b id="worker">{worker}</b> greets <b id="user">{user}</b>.
<p>Your visits: <b id="mine">{mine}</b>
<p>All visits: <b id="right">{right}</b>
<p>All visits, counted wrong: <b id="wrong">{wrong}</b>
<form method="post" action="/login"><input name="user" placeholder="name"> <button>Log in</button>
</form>
<form method="post" action="/logout"><button>Log out</button></form>
"""


@app.get("/")
async def page(request: Request) -> HTMLResponse:
    global wrong
    wrong += 1  # WRONG: only what this worker has seen, and forgotten when it is replaced
    right = await cache.aincr("visits")  # right: atomic, for all workers
    session = request.session
    session["visits"] = session.get("visits", 0) + 1
    user = escape(session.get("user", "nobody"))
    text = PAGE.format(
        worker=worker_id(), user=user, mine=session["visits"], right=right, wrong=wrong
    )
    return HTMLResponse(text)


@app.post("/login")
async def login(request: Request) -> RedirectResponse:
    form = parse_qs((await request.body()).decode())
    request.session.regenerate()  # type: ignore[attr-defined]  # nobody can have planted its id
    request.session["user"] = form["user"][0][:50]
    return RedirectResponse("/", 302)


@app.post("/logout")
async def logout(request: Request) -> RedirectResponse:
    request.session.clear()  # for good: no request that began before brings it back
    return RedirectResponse("/", 302)
