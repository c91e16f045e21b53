"""Each test has an interpreter of its own: engineio is patched for ever."""

from gunicorn_cluster_ext.routing.tags import parse_sid
from tests.harness.forks import in_fresh_interpreter

TAG = """
import sys
from gunicorn_cluster_ext.workers.engineio import tag_sids
begun = []
tag_sids(2, 5, lambda: begun.append(1))
"""
ASK = """
print(server.generate_id(), len(begun))
"""


def sids(code: str) -> tuple[str, int]:
    """Return the sid that a server in `code` makes, and how many were counted."""
    sid, count = in_fresh_interpreter(code + ASK).split()
    return sid, int(count)


def test_engineio_that_is_imported_later_makes_tagged_sids() -> None:
    sid, count = sids(TAG + "import engineio; server = engineio.Server(async_mode='threading')")
    assert sid.endswith(".2.5")
    assert parse_sid(sid.encode()) == (2, 5)
    assert count == 1


def test_engineio_that_was_imported_before_makes_tagged_sids() -> None:
    """With preload_app the arbiter has imported it."""
    sid, count = sids(
        "import engineio\n" + TAG + "server = engineio.Server(async_mode='threading')"
    )
    assert parse_sid(sid.encode()) == (2, 5)
    assert count == 1


def test_a_server_that_was_made_before_makes_tagged_sids() -> None:
    sid, _ = sids("import engineio; server = engineio.Server(async_mode='threading')" + TAG)
    assert parse_sid(sid.encode()) == (2, 5)


def test_an_asyncio_server_makes_tagged_sids() -> None:
    sid, _ = sids(TAG + "import engineio; server = engineio.AsyncServer(async_mode='asgi')")
    assert parse_sid(sid.encode()) == (2, 5)


def test_a_socketio_server_makes_tagged_sids() -> None:
    code = TAG + "import socketio; server = socketio.Server(async_mode='threading').eio"
    assert parse_sid(sids(code)[0].encode()) == (2, 5)


def test_an_application_without_engineio_is_not_made_to_import_it() -> None:
    code = TAG + "import json, wsgiref, sys\nprint('engineio' in sys.modules)"
    assert in_fresh_interpreter(code) == "False"


def test_an_engineio_that_is_not_installed_stays_so() -> None:
    code = TAG + (
        "import sys\n"
        "sys.path[:] = []\n"
        "try:\n"
        "    import engineio.base_server\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)"
    )
    assert in_fresh_interpreter(code) == "No module named 'engineio'"


def test_looking_for_engineio_is_not_importing_it() -> None:
    """Libraries look for it to find out what is installed."""
    probe = "import importlib.util; importlib.util.find_spec('engineio.base_server')\n"
    code = TAG + probe + "import engineio; server = engineio.Server(async_mode='threading')"
    assert parse_sid(sids(code)[0].encode()) == (2, 5)


def test_an_import_that_fails_may_be_tried_again() -> None:
    code = TAG + (
        "sys.modules['secrets'] = None\n"
        "try:\n"
        "    import engineio\n"
        "except ImportError:\n"
        "    failed = True\n"
        "del sys.modules['secrets']\n"
        "import engineio; server = engineio.Server(async_mode='threading'); assert failed"
    )
    assert parse_sid(sids(code)[0].encode()) == (2, 5)


def test_the_module_is_like_any_other() -> None:
    code = TAG + (
        "import inspect, engineio.base_server as module\n"
        "source = inspect.getsource(module)\n"
        "print(module.__name__, module.__spec__.name, 'class BaseServer' in source)"
    )
    assert in_fresh_interpreter(code) == "engineio.base_server engineio.base_server True"


def test_the_import_system_is_left_as_it_was() -> None:
    code = "import sys; before = list(sys.meta_path)" + TAG + "import engineio\n"
    assert in_fresh_interpreter(code + "print(sys.meta_path == before)") == "True"
