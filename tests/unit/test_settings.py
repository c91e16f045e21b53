import dataclasses
import math
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_cluster_ext.setting_values import Rate
from gunicorn_cluster_ext.settings import (
    NAMES,
    SettingError,
    Settings,
    executed_config,
    of_config,
    read,
    table,
)
from tests.harness.reference import config

DEFAULTS = Settings()


def value_of(name: str, value: Any) -> Any:
    """The setting `name` when a configuration gives it `value`."""
    return getattr(read({f"cluster_{name}": value}, {}), name)


def from_environment(name: str, value: str) -> Any:
    return getattr(read({}, {f"GUNICORN_CLUSTER_{name.upper()}": value}), name)


# --- values -----------------------------------------------------------------------------------


def test_nothing_needs_to_be_set() -> None:
    assert read({}, {}) == DEFAULTS
    assert DEFAULTS.sticky == ("engineio", "cookie")
    assert DEFAULTS.cookie == "gunicorn_worker"
    assert DEFAULTS.dir is None
    assert (DEFAULTS.roll_surge, DEFAULTS.roll_unavailable) == (1, 0)
    assert DEFAULTS.restart_limit == Rate(20, 60.0)
    assert (DEFAULTS.drain_timeout, DEFAULTS.health_path, DEFAULTS.max_memory) == (None,) * 3


@pytest.mark.parametrize(
    ("name", "value", "parsed"),
    [
        ("sticky", [], ()),
        ("sticky", "", ()),
        ("sticky", "cookie", ("cookie",)),
        ("sticky", ["engineio", "hash:ip"], ("engineio", "hash:ip")),
        ("sticky", ("hash:path:^/a,b",), ("hash:path:^/a,b",)),
        ("sticky", ["my.module:function"], ("my.module:function",)),
        ("cookie", "worker", "worker"),
        ("cookie", "__Host-worker", "__Host-worker"),
        ("threads", 1, 1),
        ("threads", 10_000, 10_000),
        ("threads", 50.0, 50),
        ("slots", 0, 0),
        ("slots", 1_000, 1_000),
        ("head_timeout", 0.1, 0.1),
        ("head_timeout", 5, 5.0),
        ("head_timeout", 3_600, 3_600.0),
        ("handoff_timeout", 0, 0.0),
        ("learn_ttl", 1, 1.0),
        ("learn_ttl", "1800", 1800.0),
        ("learn_size", 8, 8),
        ("learn_size", 1_000_000, 1_000_000),
        ("dir", None, None),
        ("dir", "", None),
        ("dir", "/run/app", "/run/app"),
        ("dir", Path("/run/app"), "/run/app"),
        ("dir", "here", os.path.abspath("here")),
        ("startup_timeout", 0, 0.0),
        ("startup_timeout", 86_400, 86_400.0),
        ("roll_surge", 2, 2),
        ("roll_surge", 1_000, 1_000),
        ("roll_surge", "3", 3),
        ("roll_surge", 2.0, 2),
        ("roll_surge", "25%", "25%"),
        ("roll_surge", " 100% ", "100%"),
        ("roll_unavailable", 1, 1),
        ("roll_unavailable", "0%", "0%"),
        ("roll_unavailable", "010%", "010%"),
        ("roll_rollback", "keep", "keep"),
        ("roll_rollback", "full", "full"),
        ("roll_observe", 30, 30.0),
        ("drain_timeout", None, None),
        ("drain_timeout", "", None),
        ("drain_timeout", 0, 0.0),
        ("drain_timeout", 600, 600.0),
        ("health_path", None, None),
        ("health_path", "", None),
        ("health_path", "/", "/"),
        ("health_path", "/healthz?full=1&x=%20", "/healthz?full=1&x=%20"),
        ("health_interval", 0.1, 0.1),
        ("health_timeout", 3_600, 3_600.0),
        ("health_failures", 1, 1),
        ("restart_delay", 0, 0.0),
        ("restart_delay_max", 86_400, 86_400.0),
        ("min_uptime", 0, 0.0),
        ("restart_limit", "1/1", Rate(1, 1.0)),
        ("restart_limit", " 100/3600 ", Rate(100, 3_600.0)),
        ("restart_limit", Rate(5, 2.5), Rate(5, 2.5)),
        ("restart_limit", None, None),
        ("restart_limit", "", None),
        ("restart_policy", "halt", "halt"),
        ("max_memory", None, None),
        ("max_memory", "", None),
        ("max_memory", "512M", 512 << 20),
        ("max_memory", "512m", 512 << 20),
        ("max_memory", "512MB", 512 << 20),
        ("max_memory", "2G", 2 << 30),
        ("max_memory", "1024K", 1 << 20),
        ("max_memory", 1 << 20, 1 << 20),
        ("max_memory", "1048576", 1 << 20),
        ("max_memory", "1048576B", 1 << 20),
        ("max_memory_hard", " 1G ", 1 << 30),
        ("max_lifetime", 0, 0.0),
        ("max_lifetime", 86_400, 86_400.0),
    ],
)
def test_a_value_is_accepted(name: str, value: Any, parsed: Any) -> None:
    taken = value_of(name, value)
    assert taken == parsed
    assert type(taken) is type(parsed)


@pytest.mark.parametrize(
    ("name", "text", "parsed"),
    [
        ("sticky", "engineio, hash:header:X-Key ,", ("engineio", "hash:header:X-Key")),
        ("sticky", '["hash:path:^/a{1,2}"]', ("hash:path:^/a{1,2}",)),
        ("sticky", "[]", ()),
        ("cookie", "worker", "worker"),
        ("threads", "8", 8),
        ("slots", "16", 16),
        ("head_timeout", "2.5", 2.5),
        ("handoff_timeout", "1", 1.0),
        ("dir", "/run/app", "/run/app"),
        ("roll_surge", "2", 2),
        ("roll_surge", "50%", "50%"),
        ("drain_timeout", "12.5", 12.5),
        ("drain_timeout", "", None),
        ("restart_limit", "5/10", Rate(5, 10.0)),
        ("restart_limit", "", None),
        ("max_memory", "1G", 1 << 30),
        ("health_path", "/health", "/health"),
        ("roll_rollback", "full", "full"),
    ],
)
def test_the_environment_has_values_as_text(name: str, text: str, parsed: Any) -> None:
    assert from_environment(name, text) == parsed


REFUSED = [
    ("sticky", ["cookies"]),
    ("sticky", "hash:host"),
    ("sticky", '["cookie"'),
    ("sticky", '["cookie", 1]'),
    ("sticky", [1]),
    ("sticky", None),
    ("sticky", 5),
    ("sticky", {"cookie"}),
    ("sticky", ["hash:path:("]),
    ("sticky", ["hash:path:a{9999999999999999999}"]),
    ("cookie", ""),
    ("cookie", "a b"),
    ("cookie", "a;b"),
    ("cookie", "a=b"),
    ("cookie", "é"),
    ("cookie", "a\n"),
    ("cookie", None),
    ("cookie", b"worker"),
    ("threads", 0),
    ("threads", -1),
    ("threads", 10_001),
    ("threads", 1.5),
    ("threads", True),
    ("threads", None),
    ("threads", "many"),
    ("threads", "1.5"),
    ("threads", [8]),
    ("threads", math.nan),
    ("threads", math.inf),
    ("slots", -1),
    ("slots", 1_001),
    ("learn_ttl", 0),
    ("learn_size", 7),
    ("head_timeout", 0),
    ("head_timeout", 0.09),
    ("head_timeout", 3_601),
    ("head_timeout", math.nan),
    ("head_timeout", math.inf),
    ("head_timeout", "inf"),
    ("head_timeout", "nan"),
    ("head_timeout", 10**400),
    ("handoff_timeout", -0.1),
    ("handoff_timeout", "soon"),
    ("dir", 5),
    ("dir", ["/run"]),
    ("startup_timeout", -1),
    ("startup_timeout", None),
    ("roll_surge", -1),
    ("roll_surge", 1_001),
    ("roll_surge", 1.5),
    ("roll_surge", True),
    ("roll_surge", None),
    ("roll_surge", ""),
    ("roll_surge", "101%"),
    ("roll_surge", "-1%"),
    ("roll_surge", "1.5%"),
    ("roll_surge", "%"),
    ("roll_surge", "25 %"),
    ("roll_surge", "9999%"),
    ("roll_unavailable", "half"),
    ("roll_unavailable", math.inf),
    ("roll_rollback", "Full"),
    ("roll_rollback", ""),
    ("roll_rollback", None),
    ("roll_rollback", ["keep"]),
    ("roll_observe", -1),
    ("drain_timeout", -1),
    ("drain_timeout", "soon"),
    ("drain_timeout", False),
    ("health_path", "health"),
    ("health_path", "http://localhost/health"),
    ("health_path", "/a b"),
    ("health_path", "/a\r\nX: y"),
    ("health_path", "/a\n"),
    ("health_path", "/é"),
    ("health_path", b"/health"),
    ("health_interval", 0),
    ("health_timeout", 0),
    ("health_failures", 0),
    ("restart_delay", -0.1),
    ("restart_delay_max", math.nan),
    ("restart_limit", "20"),
    ("restart_limit", "20/"),
    ("restart_limit", "0/60"),
    ("restart_limit", "20/0"),
    ("restart_limit", "-20/60"),
    ("restart_limit", "20/60s"),
    ("restart_limit", "1.5/60"),
    ("restart_limit", "1234567/60"),
    ("restart_limit", 20),
    ("restart_limit", (20, 60)),
    ("restart_policy", "stop"),
    ("max_memory", 0),
    ("max_memory", "1023K"),
    ("max_memory", "512X"),
    ("max_memory", "0.5G"),
    ("max_memory", "-1G"),
    ("max_memory", "G"),
    ("max_memory", "1 G"),
    ("max_memory", True),
    ("max_memory", 2.0**21),
    ("max_memory", "8589934592G"),
    ("max_memory_hard", "much"),
    ("max_lifetime", -1),
    ("max_lifetime", 31_536_001),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_a_value_is_refused(name: str, value: Any) -> None:
    """The message names the setting, the value, and what is allowed."""
    with pytest.raises(SettingError) as refused:
        value_of(name, value)
    message = str(refused.value)
    assert message.startswith(f"cluster_{name} = {value!r}: ")
    allowed = {field.name: field.metadata["allowed"] for field in dataclasses.fields(Settings)}
    assert message.endswith(f" Allowed: {allowed[name]}.")


def test_the_message_says_what_is_wrong() -> None:
    with pytest.raises(
        SettingError, match=r"^cluster_threads = 0: it is out of range\. Allowed: 1"
    ):
        value_of("threads", 0)
    with pytest.raises(SettingError, match=r"'hash:host' is not a rule\. Allowed: a list of engin"):
        value_of("sticky", ["cookie", "hash:host"])


@given(
    st.sampled_from(NAMES),
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=10),
        st.binary(max_size=5),
        st.lists(st.text(max_size=5), max_size=2),
    ),
)
def test_any_value_is_accepted_or_refused(name: str, value: Any) -> None:
    try:
        taken = value_of(name, value)
    except SettingError:
        return
    assert value_of(name, taken) == taken


@pytest.mark.parametrize("surge", [0, "0"])
@pytest.mark.parametrize("unavailable", [0, "0"])
def test_a_reload_must_be_able_to_replace_a_worker(surge: Any, unavailable: Any) -> None:
    with pytest.raises(SettingError, match=r"^cluster_roll_surge and cluster_roll_unavailable are"):
        read({"cluster_roll_surge": surge, "cluster_roll_unavailable": unavailable}, {})


@pytest.mark.parametrize(("surge", "unavailable"), [(0, 1), (1, 0), ("0%", "25%"), ("1%", "0%")])
def test_one_of_two_is_enough(surge: Any, unavailable: Any) -> None:
    settings = Settings(roll_surge=surge, roll_unavailable=unavailable)
    assert (settings.roll_surge, settings.roll_unavailable) == (surge, unavailable)


@given(st.integers(1, (1 << 63) - 1), st.sampled_from([("", 0), ("K", 10), ("M", 20), ("G", 30)]))
def test_sizes_have_units(number: int, unit: tuple[str, int]) -> None:
    size = number << unit[1]
    if 1 << 20 <= size < 1 << 63:
        assert value_of("max_memory", f"{number}{unit[0]}") == size
    else:
        with pytest.raises(SettingError, match="it is out of range"):
            value_of("max_memory", f"{number}{unit[0]}")


def test_settings_built_by_hand_are_checked_as_well() -> None:
    with pytest.raises(SettingError, match=r"^cluster_slots = -1: "):
        Settings(slots=-1)


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("cluster_stiky", "cluster_sticky"),
        ("cluster_cookies", "cluster_cookie"),
        ("cluster_thread", "cluster_threads"),
        ("cluster_hand_off_timeout", "cluster_handoff_timeout"),
        ("cluster_headtimeout", "cluster_head_timeout"),
        ("cluster_Sticky", "cluster_sticky"),
    ],
)
def test_an_unknown_name_is_refused_and_the_nearest_named(written: str, meant: str) -> None:
    with pytest.raises(SettingError) as refused:
        read({written: 1}, {})
    assert str(refused.value).startswith(f"{written} is not a setting. Did you mean {meant}? Known")
    for name in NAMES:
        assert f"cluster_{name}" in str(refused.value)


def test_a_name_that_is_near_nothing_is_refused() -> None:
    with pytest.raises(
        SettingError, match=r"^cluster_zzz is not a setting\. Known settings: cluster"
    ):
        read({"cluster_zzz": 1}, {})


def test_an_unknown_variable_is_refused_by_its_own_name() -> None:
    with pytest.raises(
        SettingError,
        match=r"^GUNICORN_CLUSTER_STIKY is not a setting\. Did you mean cluster_sticky\?",
    ):
        read({}, {"GUNICORN_CLUSTER_STIKY": "cookie"})


def test_other_names_are_ignored() -> None:
    configuration = {"workers": 4, "clusters": 1, "my_cluster_x": 2, "cluster_tools": sys}
    environ = {"GUNICORN_CMD_ARGS": "x", "CLUSTER_STICKY": "x", "GUNICORN_CLUSTERS": "x"}
    assert read(configuration, environ) == DEFAULTS


@pytest.mark.parametrize(
    "variable",
    [
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_HTTP",
        "PORT",
        "PORT_80_TCP",
        "PORT_80_TCP_PROTO",
        "PORT_80_TCP_PORT",
        "PORT_80_TCP_ADDR",
        "PORT_53_UDP_ADDR",
        "WEB_SERVICE_HOST",
        "WEB_PORT_8080_TCP_ADDR",
    ],
)
def test_what_kubernetes_puts_into_the_environment_is_ignored(variable: str) -> None:
    """For services called gunicorn-cluster and gunicorn-cluster-web."""
    assert read({}, {f"GUNICORN_CLUSTER_{variable}": "tcp://10.0.0.1:80"}) == DEFAULTS


# --- where they come from ---------------------------------------------------------------------


def test_the_environment_wins() -> None:
    settings = read(
        {"cluster_threads": 5, "cluster_cookie": "mine"}, {"GUNICORN_CLUSTER_THREADS": "6"}
    )
    assert (settings.threads, settings.cookie) == (6, "mine")


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that gunicorn makes of a configuration file."""
    module = ModuleType("__config__")
    monkeypatch.setitem(sys.modules, "__config__", module)
    return module


def test_a_configuration_file_is_read(
    executed: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    vars(executed).update(cluster_threads=7, cluster_cookie="mine")
    monkeypatch.setenv("GUNICORN_CLUSTER_COOKIE", "theirs")
    settings = of_config(config(config="./gunicorn.conf.py"))
    assert (settings.threads, settings.cookie) == (7, "theirs")


def test_a_module_is_read_as_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_settings")
    vars(module).update(cluster_threads=7)
    monkeypatch.setitem(sys.modules, "my_settings", module)
    assert executed_config("python:my_settings")["cluster_threads"] == 7


def test_without_a_configuration_there_is_nothing_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "__config__", raising=False)
    assert executed_config(None) == {}
    assert executed_config("python:not.imported") == {}


# --- the table for people ---------------------------------------------------------------------


def test_the_table_has_every_setting() -> None:
    header, rule, *rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table().splitlines()]
    assert [cell.strip() for cell in header] == ["setting", "default", "allowed", "purpose"]
    assert [cells[0].strip() for cells in rows] == [f"`cluster_{name}`" for name in NAMES]
    assert {len(cells) for cells in (header, rule, *rows)} == {4}


def test_the_table_names_units_and_defaults() -> None:
    assert "| 100 threads | 1 to 10000 |" in table()
    assert "| 10.0 seconds | 0.1 to 3600 |" in table()
    for field in dataclasses.fields(Settings):
        assert repr(field.default) in table()


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://:hunter2@10.0.0.5:26379",
        "redi://user:hunter2@host/0",
        "redis//:hunter2@host",
        "redis:hunter2@host",
        "rediss://user:p@hunter2@host:port?x=y",
        "mysql://host/0?password=hunter2&ssl=1",
    ],
)
def test_a_password_with_a_mistake_around_it_is_not_shown(url: str) -> None:
    with pytest.raises(SettingError) as raised:
        Settings(store=url)
        Settings(store=f"x{url}")
    assert "cluster_store" in str(raised.value) and "hunter2" not in str(raised.value)
