"""A login and three counters on several workers, with Flask.

    gunicorn -k gunicorn_cluster_ext.Sticky -w 4 --chdir examples login_flask:app

Open the page in several browsers: every worker has its own (wrong) counter, while the session and
the right counter are shared by all workers. They are stored on this machine; for several machines
give the address of a Redis: GUNICORN_CLUSTER_STORE=redis://host:port/0.
"""

from flask import Flask, redirect, render_template_string, request, session
from werkzeug import Response

from gunicorn_cluster_ext import cache, worker_id
from gunicorn_cluster_ext.flask import ClusterSession

app = Flask(__name__)
ClusterSession(app)  # flask.session, in the store; no secret key to share

wrong = 0

PAGE = """<!doctype html>
<title>Login and counters</title>
<p>Worker <b id="worker">{{ worker }}</b> greets <b id="user">{{ session.user or "nobody" }}</b>.
<p>Your visits: <b id="mine">{{ session.visits }}</b>
<p>All visits: <b id="right">{{ right }}</b>
<p>All visits, counted wrong: <b id="wrong">{{ wrong }}</b>
<form method="post" action="/login"><input name="user" placeholder="name"> <button>Log in</button>
</form>
<form method="post" action="/logout"><button>Log out</button></form>
"""


@app.get("/")
def page() -> str:
    global wrong
    wrong += 1  # WRONG: only what this worker has seen, and forgotten when it is replaced
    right = cache.incr("visits")  # right: atomic, for all workers
    session["visits"] = session.get("visits", 0) + 1
    return render_template_string(PAGE, worker=worker_id(), wrong=wrong, right=right)


@app.post("/login")
def login() -> Response:
    session.regenerate()  # type: ignore[attr-defined]  # a new id: nobody can have planted it
    session["user"] = request.form["user"][:50]
    return redirect("/")


@app.post("/logout")
def logout() -> Response:
    session.clear()  # for good: no request that began before brings it back
    return redirect("/")
