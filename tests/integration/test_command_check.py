"""gunicorn-cluster check, with real applications."""

import resource
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.harness.clients.command import Done, run_command
from tests.harness.ports import free_port
from tests.harness.programs import StartRedis
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn

FLASK = """
import os
from flask import Flask
app = Flask("shop", root_path=os.getcwd())
app.secret_key = {key}
"""
DJANGO = """
import os
from django.conf import settings
from django.core.wsgi import get_wsgi_application
settings.configure(SECRET_KEY={key}, SESSION_ENGINE="django.contrib.sessions.backends.cache")
app = get_wsgi_application()
"""
STARLETTE = """
import os
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
app = Starlette(middleware=[Middleware(SessionMiddleware, secret_key={key})])
"""
RANDOM = "os.urandom(16).hex()"


@pytest.fixture
def check(new_directory: Callable[[], Path]) -> Callable[..., Done]:
    """Runs it on a module `shop` with that code."""

    def run(code: str, *arguments: str, config: str = "workers = 2\n", **env: str) -> Done:
        directory = new_directory()
        (directory / "shop.py").write_text(code)
        (directory / "gunicorn.conf.py").write_text(config)
        return run_command("check", *arguments, "shop:app", directory=directory, env=env)

    return run


Check = Callable[..., Done]
STICKY = ("-k", "gunicorn_cluster_ext.Sticky")
APP = "from whoami import app\n"


def levels(done: Done) -> list[str]:
    return [line.split(":")[0] for line in done.stdout.splitlines() if line[:1] in "new"]


def test_nothing_is_wrong(check: Check) -> None:
    done = check(APP, *STICKY)
    assert done.stdout == (
        "shop:app: gunicorn_cluster_ext.Sticky, 2 workers x 100 threads\nNothing is wrong.\n"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_application_that_is_patched(check: Check) -> None:
    """gevent has changed how the examiner forks and waits."""
    kind = ("-k", "gunicorn_cluster_ext.StickyGevent")
    assert check(APP, *kind).stdout.endswith("Nothing is wrong.\n")
    done = check("import time\ntime.sleep(600)\n", *kind, GUNICORN_CLUSTER_STARTUP_TIMEOUT="1")
    assert done.returncode == 2 and "was not loaded within 1 s" in done.stdout


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def app(:\n", "SyntaxError"),
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("", "AppImportError"),
        ("raise SystemExit(7)\n", "SystemExit: 7"),
        ("import os\nos._exit(0)\n", "it ended the process"),
        (f"import gunicorn_cluster_ext as g\nassert g.worker_id() < 1\n{APP}", "one worker of two"),
    ],
    ids=["syntax", "import", "empty", "exit", "exit at once", "one worker"],
)  # fmt: skip
def test_an_application_that_cannot_be_loaded(check: Check, code: str, words: str) -> None:
    done = check(f"print('printed')\n{code}", *STICKY)
    assert done.returncode == 2
    assert words in done.stdout and "shop:app cannot be loaded" in done.stdout
    assert "printed" not in done.stdout and done.stderr == ""


def test_an_application_that_hangs(check: Check) -> None:
    done = check("import time\ntime.sleep(600)\n", *STICKY, GUNICORN_CLUSTER_STARTUP_TIMEOUT="1")
    assert done.returncode == 2
    assert "was not loaded within 1 s (cluster_startup_timeout)" in done.stdout


def test_nothing_that_the_application_starts_is_left(
    check: Check, new_directory: Callable[[], Path]
) -> None:
    note = new_directory() / "pid"
    code = (
        "import subprocess, pathlib\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid))\n"
    )
    assert check(code + APP, *STICKY).returncode == 0
    pid = int(note.read_text())
    wait_until(lambda: not psutil.pid_exists(pid) or _is_dead(pid), 5, "the end of the child")


def _is_dead(pid: int) -> bool:
    return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("workers = \n", "SyntaxError"),
        ("cluster_sticki = ['cookie']\n", "Did you mean cluster_sticky?"),
        ("cluster_threads = 'many'\n", "cluster_threads = 'many'"),
        ("worker_class = 'gunicorn_cluster_ext.Stick'\n", "there is no gunicorn_cluster_ext.Stick"),
        ("worker_class = 'nowhere.Class'\n", "nowhere"),
        ("workers = 'many'\n", "many"),
        ("cluster_session_cookie = '__Host-s'\ncluster_session_domain = 'a.b'\n", "__Host-"),
        ("bind = ['127.0.0.1:8000', ':8000']\n", "0.0.0.0:8000 includes 127.0.0.1:8000"),
    ],
)
def test_a_configuration_that_cannot_be_used(check: Check, config: str, words: str) -> None:
    done = check(APP, config=config)
    assert done.returncode == 2
    assert words in done.stdout and "error:" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("code", "name", "kind"),
    [
        (FLASK, "secret_key of the Flask application shop", STICKY),
        (DJANGO, "Django's SECRET_KEY", STICKY),
        (STARLETTE, "secret_key of SessionMiddleware", ("-k", "gunicorn_cluster_ext.StickyASGI")),
    ],
    ids=["Flask", "Django", "Starlette"],
)
def test_secrets_of_one_worker_only(
    check: Check, code: str, name: str, kind: tuple[str, ...]
) -> None:
    done = check(code.format(key=RANDOM), *kind)
    assert done.returncode == 1
    assert f"warning: {name} differs between the workers" in done.stdout
    done = check(code.format(key="'from a file'"), *kind)
    assert "differs between" not in done.stdout
    # The master makes it, and all workers have it.
    assert "differs between" not in check(code.format(key=RANDOM), *kind, "--preload").stdout


def test_what_is_lazy_stays_so(check: Check) -> None:
    """Looking for applications among all objects makes none of them."""
    code = (
        "from django.utils.functional import SimpleLazyObject\n"
        "def make(): raise RuntimeError('made')\n"
        "lazy = [SimpleLazyObject(make)]\n"
    )
    assert check(code + FLASK.format(key="'x'"), *STICKY).stdout.endswith("Nothing is wrong.\n")


def test_django_without_a_secret(check: Check) -> None:
    done = check(DJANGO.format(key="''"), *STICKY)
    assert done.returncode == 2
    assert "shop:app cannot be loaded: ImproperlyConfigured: The SECRET_KEY" in done.stdout


def test_sessions_in_a_workers_own_memory(check: Check) -> None:
    done = check(DJANGO.format(key="'x'"), *STICKY)
    assert done.returncode == 1
    assert "warning: Django's session (a LocMemCache) is kept in each worker's own" in done.stdout


def test_socketio(check: Check) -> None:
    code = FLASK.format(key="'x'") + (
        "from flask_socketio import SocketIO\n"
        "from gunicorn_cluster_ext.socketio import ClusterManager\n"
        "io = SocketIO(app, async_mode='threading'{manager})\n"
    )
    done = check(code.replace("{manager}", ""), *STICKY, "--threads", "1")
    assert levels(done) == ["warning", "warning"]
    assert "threads = 1" in done.stdout and "without a client manager" in done.stdout
    done = check(code.replace("{manager}", ", client_manager=ClusterManager()"), *STICKY)
    assert done.stdout.endswith("Nothing is wrong.\n")


def test_how_many_workers_somebody_else_says(check: Check) -> None:
    silently = {"config": "", "WEB_CONCURRENCY": "3"}
    done = check(APP, *STICKY, **silently)
    assert done.returncode == 1 and "workers = 3 comes from WEB_CONCURRENCY" in done.stdout
    assert check(APP, *STICKY, "-w", "3", **silently).returncode == 0
    assert check(APP, *STICKY, WEB_CONCURRENCY="3").returncode == 0
    assert check(APP, *STICKY, **silently, GUNICORN_CMD_ARGS="--workers=3").returncode == 0


def test_preload_and_reuse_port(check: Check) -> None:
    done = check(APP, *STICKY, "--preload", "--reuse-port")
    assert levels(done) == ["warning", "warning"]


def test_tls_with_rules_that_need_the_head(check: Check) -> None:
    done = check(APP, *STICKY, "--certfile", "cert.pem", "--keyfile", "key.pem")
    assert done.returncode == 2 and "engineio, cookie cannot work with TLS" in done.stdout
    done = check(APP, *STICKY, "--certfile", "cert.pem", GUNICORN_CLUSTER_STICKY="hash:ip")
    assert "cannot work" not in done.stdout


def test_a_rule_of_the_application(check: Check) -> None:
    code = f"{APP}def owner(head): return None\n"
    assert check(code, *STICKY, GUNICORN_CLUSTER_STICKY="shop:owner").returncode == 0
    done = check(code, *STICKY, GUNICORN_CLUSTER_STICKY="shop:ower")
    assert done.returncode == 2
    assert "error:   cluster_sticky: shop:ower cannot be used: AttributeError" in done.stdout


def test_an_asgi_application_on_a_worker_for_wsgi(check: Check) -> None:
    done = check("from lifespan import app\n", *STICKY)
    assert done.returncode == 2 and "Use gunicorn_cluster_ext.StickyASGI" in done.stdout
    kind = ("-k", "gunicorn_cluster_ext.StickyASGI")
    assert check("from lifespan import app\n", *kind).returncode == 0


def test_a_redis_that_is_away(check: Check, redis: StartRedis) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    done = check(APP, *STICKY, GUNICORN_CLUSTER_STORE=url)
    assert done.returncode == 1 and "warning: cluster_store: " in done.stdout
    done = check(APP, *STICKY, GUNICORN_CLUSTER_STORE=f"redis://127.0.0.1:{redis().port}/0")
    assert done.returncode == 0 and levels(done) == ["note"]


def test_a_board_that_has_no_directory(check: Check) -> None:
    done = check(APP, *STICKY, GUNICORN_CLUSTER_DIR="/proc/nowhere")
    assert done.returncode == 1 and "There is no directory for the board" in done.stdout


def test_few_open_files(check: Check) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    try:
        done = check(APP, *STICKY)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert done.returncode == 1 and "A worker may have 512 open files" in done.stdout


def test_it_leaves_no_file_behind(new_directory: Callable[[], Path]) -> None:
    directory = new_directory()
    (directory / "shop.py").write_text(APP)
    arguments = ("-k", "gunicorn_cluster_ext.Sticky", "shop:app")
    env = {"HOME": str(directory), "GUNICORN_CLUSTER_DIR": str(directory)}
    assert run_command("check", *arguments, directory=directory, env=env).returncode == 0
    assert [path.name for path in directory.iterdir()] == ["shop.py"]


def test_help(new_directory: Callable[[], Path]) -> None:
    done = run_command("check", "--help", directory=new_directory())
    assert done.returncode == 0
    assert "gunicorn-cluster check GUNICORN_ARGUMENTS" in done.stdout
    assert "The exit status is 0" in done.stdout
