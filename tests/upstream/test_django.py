"""Django's own tests of caches, with ours: all that do not pickle or count."""

import re
from pathlib import Path

import pytest

from tests.harness.servers.redis import Redis
from tests.upstream.sources import HERE, run, sources

pytestmark = pytest.mark.one_gunicorn

#: Of 5.2; they grow. What does not apply is in django_cache.py.
LEAST, SKIPPED = 54, 8


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sources("django", tmp_path_factory.mktemp("django")) / "tests"


def check(theirs: Path, **settings: str) -> None:
    path = (HERE, theirs, HERE.parents[1])
    env = {"DJANGO_SETTINGS_MODULE": "django_settings", **settings}
    said = run(theirs, "django", "test", "django_cache", path=path, **env)
    assert int(re.findall(r"Ran (\d+) tests", said)[0]) >= LEAST, said
    assert f"OK (skipped={SKIPPED})" in said


def test_cache_on_the_embedded_store(theirs: Path, tmp_path: Path) -> None:
    check(theirs, GUNICORN_CLUSTER_STORE_PATH=str(tmp_path / "store"))


def test_cache_on_redis(theirs: Path, tmp_path: Path) -> None:
    redis = Redis(tmp_path)
    try:
        redis.wait_ready()
        check(theirs, GUNICORN_CLUSTER_STORE=redis.url)
    finally:
        redis.stop()
