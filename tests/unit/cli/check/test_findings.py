"""The findings of `gunicorn-cluster check`."""

from dataclasses import dataclass
from typing import Any

import pytest

from gunicorn_cluster_ext.cli.check.findings import (
    AppFacts,
    ConfigFacts,
    Facts,
    Finding,
    Level,
    judge,
)

STICKY = {
    "app": "shop:app",
    "worker_class": "gunicorn_cluster_ext.Sticky",
    "is_sticky": True,
    "is_threaded": True,
    "workers": 4,
    "threads": 100,
    "addresses": ["127.0.0.1:8000"],
    "rules": ["engineio", "cookie"],
    "store": "embedded",
    "open_files": 65536,
    "needed_files": 1128,
}


def found(
    loaded: AppFacts | None = None, second: AppFacts | None = None, **changes: Any
) -> list[Finding]:
    workers = [loaded or AppFacts(), second or loaded or AppFacts()]
    return judge(Facts(ConfigFacts(**{**STICKY, **changes}), workers))


def test_a_good_configuration_has_no_findings() -> None:
    assert found() == []
    assert found(workers=1, threads=1, is_threaded=True) == []


@dataclass
class Case:
    level: Level
    words: str
    changes: dict[str, Any]


@pytest.mark.parametrize(
    "case",
    [
        Case(Level.WARNING, "WEB_CONCURRENCY", {"workers_are_set": False}),
        Case(Level.ERROR, "listed 2 times", {"addresses": ["127.0.0.1:80", "127.0.0.1:80"]}),
        Case(Level.ERROR, "0.0.0.0:80 includes 1", {"addresses": ["1.1.1.1:80", "0.0.0.0:80"]}),
        Case(Level.WARNING, "reuse_port", {"reuse_port": True}),
        Case(Level.WARNING, "preload_app", {"preload": True}),
        Case(Level.ERROR, "engineio, cookie cannot work with TLS", {"reads_heads": False}),
        Case(Level.NOTE, "several machines", {"store": "redis://10.0.0.1:6379/0"}),
        Case(Level.NOTE, "sync does not belong", {"is_sticky": False, "worker_class": "sync"}),
        Case(Level.ERROR, "only root", {"foreign_user": "33"}),
        Case(Level.WARNING, "no directory for the board (full)", {"unwritable": "full"}),
        Case(Level.WARNING, "1024 open files", {"open_files": 1024}),
        Case(Level.ERROR, "__Host-", {"cookie_error": "The cookie __Host-x: ..."}),
    ],
    ids=lambda case: case.words,
)  # fmt: skip
def test_a_configuration(case: Case) -> None:
    (finding,) = found(**case.changes)
    assert finding.level is case.level
    assert case.words in finding.text


def test_settings_without_effect_on_gunicorns_own_classes() -> None:
    findings = found(is_sticky=False, full_rollback=True, health_path="/health")
    warnings = [each.text for each in findings if each.level is Level.WARNING]
    assert ["full" in text or "cluster_health_path" in text for text in warnings] == [True, True]


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1:8000", "127.0.0.1:8001"],
        ["0.0.0.0:8000", "10.0.0.1:8001"],
        ["0.0.0.0:8000", "[::1]:8000"],
        ["unix:/a", "unix:/b"],
    ],
)
def test_addresses_that_do_not_conflict(addresses: list[str]) -> None:
    assert found(addresses=addresses) == []


def test_an_unusable_configuration_is_the_only_finding() -> None:
    configuration = ConfigFacts("shop:app", "cluster_x is no setting", workers_are_set=False)
    assert judge(Facts(configuration)) == [Finding(Level.ERROR, "cluster_x is no setting")]


@pytest.mark.parametrize(
    ("loaded", "level", "words"),
    [
        (AppFacts(error="ImportError: no"), Level.ERROR, "shop:app cannot be loaded: Import"),
        (AppFacts(hung=True), Level.ERROR, "was not loaded within 60 s"),
        (AppFacts(is_asgi=True), Level.ERROR, "StickyASGI"),
        (AppFacts(unmanaged_socketio=True), Level.WARNING, "ClusterManager"),
        (AppFacts(in_memory=["Flask-Caching's SimpleCache"]), Level.WARNING, "SimpleCache is kept"),
        (
            AppFacts(broken_rules={"shop:owner": "ImportError"}),
            Level.ERROR,
            "shop:owner cannot be used",
        ),
        (AppFacts(store_error="redis is away"), Level.WARNING, "cluster_store: redis is away"),
    ],
)
def test_an_application(loaded: AppFacts, level: Level, words: str) -> None:
    (finding,) = found(loaded, startup_timeout=60.0)
    assert finding.level is level
    assert words in finding.text


def test_a_failure_in_one_worker_only() -> None:
    (finding,) = found(AppFacts(), AppFacts(error="ValueError: worker 1"))
    assert "cannot be loaded in one worker of two: ValueError" in finding.text


def test_one_worker_has_nothing_to_share() -> None:
    lonely = AppFacts(unmanaged_socketio=True, in_memory=["x"], secrets={"key": "a"})
    assert found(lonely, AppFacts(secrets={"key": "b"}), workers=1) == []


@pytest.mark.parametrize(
    ("threads", "threaded", "said"), [(1, True, 1), (8, True, 0), (1, False, 0)]
)
def test_websockets_need_threads(threads: int, threaded: bool, said: int) -> None:
    loaded = AppFacts(websockets=["flask_sock"])
    findings = found(loaded, threads=threads, is_threaded=threaded)
    assert len(findings) == said
    assert all("imported flask_sock" in each.text for each in findings)


def test_secrets_are_compared() -> None:
    (finding,) = found(
        AppFacts(secrets={"k": "a", "same": "s"}),
        AppFacts(secrets={"k": "b", "same": "s"}),
    )
    assert finding.level is Level.WARNING and finding.text.startswith(
        "k differs between the workers"
    )


def test_the_worst_comes_first() -> None:
    findings = found(AppFacts(error="x"), store="redis://h", preload=True)
    assert [each.level for each in findings] == [Level.ERROR, Level.WARNING, Level.NOTE]
