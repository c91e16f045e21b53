"""The public names: those of docs/api.md, what can be imported, and what is used in documents."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import gunicorn_cluster_ext
from gunicorn_cluster_ext.runtime import identity
from gunicorn_cluster_ext.workers.asgi import worker
from gunicorn_cluster_ext.workers.gevent import worker as gevent
from gunicorn_cluster_ext.workers.thread import worker as thread
from tests.harness.fakes import django_site
from tests.harness.forks import in_fresh_interpreter

ROOT = Path(__file__).parents[2]
PACKAGE = "gunicorn_cluster_ext"
OURS = (f"{PACKAGE}.", "tests.")


def documented() -> dict[str, set[str]]:
    """The names in the first column of each module's table in docs/api.md."""
    _, *parts = re.split(r"^## `([\w.]+)`$", (ROOT / "docs/api.md").read_text(), flags=re.M)
    modules = dict(zip(parts[::2], parts[1::2], strict=True))
    cells = {name: re.findall(r"^\|(.*?)\|", text, re.M) for name, text in modules.items()}
    return {name: set(re.findall(r"`(\w+)", "".join(cells[name]))) for name in modules}


PUBLIC = documented()


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_those_of_the_document(name: str) -> None:
    django_site.configure()
    module = importlib.import_module(name)
    assert all(hasattr(module, each) for each in PUBLIC[name])
    exported = {each for each in getattr(module, "__all__", PUBLIC[name]) if each[0] != "_"}
    # Adapters also export a module that registers types when it is imported.
    assert {each for each in exported if not inspect.ismodule(getattr(module, each))} == PUBLIC[
        name
    ]


def used(text: str) -> set[str]:
    """The dotted names of the package in ``text``, and what is imported from them."""
    dotted = set(re.findall(rf"\b{PACKAGE}(?:\.\w+)+", text))
    for module, names in re.findall(rf"from ({PACKAGE}[.\w]*) import (\w[\w, ]*)", text):
        dotted |= {f"{module}.{name}" for name in re.findall(r"\w+", names)}
    return dotted


def test_documents_and_examples_use_public_names_only() -> None:
    public = {f"{module}.{name}" for module, names in PUBLIC.items() for name in names}
    public |= PUBLIC.keys() | {f"{PACKAGE}.django"}
    documents = {ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.py")}
    for path in documents - {ROOT / "docs/architecture.md"}:
        assert used(path.read_text()) <= public, path.name


def test_it_exports_what_an_application_needs() -> None:
    assert gunicorn_cluster_ext.Sticky is thread.Sticky
    assert gunicorn_cluster_ext.StickyASGI is worker.StickyASGI
    assert gunicorn_cluster_ext.StickyGevent is gevent.StickyGevent
    assert gunicorn_cluster_ext.Identity is identity.Identity
    assert gunicorn_cluster_ext.worker_id is identity.worker_id
    assert gunicorn_cluster_ext.current_worker is identity.current_worker


def test_its_names_can_be_listed() -> None:
    assert dir(gunicorn_cluster_ext) == sorted(gunicorn_cluster_ext.__all__)
    for name in gunicorn_cluster_ext.__all__:
        assert getattr(gunicorn_cluster_ext, name) is not None


def test_another_name_is_not_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'stiky'"):
        gunicorn_cluster_ext.stiky  # noqa: B018


def test_its_version_is_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", gunicorn_cluster_ext.__version__)


def test_importing_it_imports_neither_gunicorn_nor_gevent() -> None:
    code = (
        "import sys, gunicorn_cluster_ext\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('gunicorn', 'gevent')])"
    )
    assert in_fresh_interpreter(code) == "[]"


EXTRAS = {
    "flask": ("flask", "flask"),
    "cachelib": ("cachelib", "cachelib"),
    "metrics": ("prometheus_client", "metrics"),
    "socketio": ("socketio", "socketio"),
    "django.cache": ("django", "django"),
    "django.sessions": ("django", "django"),
    "django.middleware": ("django", "django"),
    "workers.gevent.worker": ("gevent", "gevent"),
}


@pytest.mark.parametrize("module", EXTRAS)
def test_a_module_says_which_extra_it_needs(module: str) -> None:
    library, extra = EXTRAS[module]
    code = (
        f"import sys\nsys.modules[{library!r}] = None\n"
        f"try:\n    import gunicorn_cluster_ext.{module}\n"
        "except ImportError as error:\n    print(error)"
    )
    said = in_fresh_interpreter(code)
    assert said.endswith(f"is not installed: pip install 'gunicorn-cluster-ext[{extra}]'"), said


def test_a_redis_needs_its_library() -> None:
    code = (
        "import sys\nsys.modules['redis'] = None\n"
        "from gunicorn_cluster_ext.settings import SettingError, Settings\n"
        "try:\n    Settings(store='redis://127.0.0.1')\n"
        "except SettingError as error:\n    print(error)"
    )
    assert "pip install 'gunicorn-cluster-ext[redis]'" in in_fresh_interpreter(code)


def test_benchmarks_import_what_there_is() -> None:
    for path in ROOT.glob("benchmarks/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(OURS):
                module = importlib.import_module(str(node.module))
                for name in (alias.name for alias in node.names):
                    assert hasattr(module, name), f"{path.name}: {node.module}.{name}"
