import re

import pytest

import gunicorn_cluster_ext
from gunicorn_cluster_ext.runtime import identity
from gunicorn_cluster_ext.workers.asgi import worker
from gunicorn_cluster_ext.workers.gevent import worker as gevent
from gunicorn_cluster_ext.workers.thread import worker as thread
from tests.harness.forks import in_fresh_interpreter


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
