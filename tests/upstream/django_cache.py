"""Django's own tests of a cache, of ours: what its runner finds here."""

from typing import Any

from cache.tests import BaseCacheTests, caches_setting_for_tests  # type: ignore[import-not-found]
from django.test import TestCase, override_settings

BACKEND = "gunicorn_cluster_ext.django.cache.ClusterCache"
#: What only a cache that pickles can keep: models, query sets, functions and classes.
PICKLED = (
    "test_cache_read_for_model_instance",
    "test_cache_read_for_model_instance_with_deferred",
    "test_cache_write_for_model_instance_with_deferred",
    "test_data_types",
)
#: UnknownType is raised instead of PickleError.
PICKLE_ERRORS = ("test_add_fail_on_pickleerror", "test_set_fail_on_pickleerror")
#: The store evicts what was used least recently when it is full, not a fraction at a count.
CULLING = ("test_cull", "test_zero_cull")


@override_settings(CACHES=caches_setting_for_tests(BACKEND=BACKEND))
class ClusterCacheTests(BaseCacheTests, TestCase):  # type: ignore[misc]
    pass


def _does_not_apply(self: Any) -> None:
    self.skipTest("does not apply")


for _name in (*PICKLED, *PICKLE_ERRORS, *CULLING):
    assert hasattr(BaseCacheTests, _name), _name
    setattr(ClusterCacheTests, _name, _does_not_apply)
